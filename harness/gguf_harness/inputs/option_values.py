"""Values of options: parsed from text, or set by a conftest, which may set `config.option.gguf_ctx` to anything.

Loaded in every pytest session of an environment: imports for errors and paths are local.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

__all__ = [
    "ANY_CLUSTER",
    "Shard",
    "all_or_at_least",
    "at_least",
    "checked_value",
    "depth_list",
    "duration",
    "head_list",
    "parse_layers",
    "path_text",
    "seconds",
    "shard_text",
    "size_in_bytes",
]

ANY_CLUSTER: Final = "default"
"""Value of --gguf-ray without an address."""
_HINT: Final = "If it is not on the command line, a conftest or a plugin has set it."
_MOST_LAYERS: Final = 10_000
# llama.cpp uses 32 bits: larger values would overflow.
_MOST: Final = 2**31 - 1
# poll() takes milliseconds in 32 bits.
_MOST_SECONDS: Final = 1_728_000
_MOST_SHARDS: Final = 10_000
_NUMBER: Final = r"\d+(?:\.\d+)?"
_DURATION: Final = re.compile(rf"({_NUMBER})|(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?", re.ASCII)
_SIZE_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Shard(NamedTuple):
    """A part of a run that is measured in several sessions.

    Attributes:
        number: which part, from 1.
        of: how many there are.
    """

    number: int
    of: int

    def __str__(self) -> str:
        """`shard 2 of 3`."""
        return f"shard {self.number} of {self.of}"


def at_least(minimum: int, most: int = _MOST) -> Callable[[str], int]:
    """Option type for a whole number."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            shown = repr(text[:40])
            raise argparse.ArgumentTypeError(f"{shown} is not a whole number, expected at least {minimum}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is too small, expected at least {minimum}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text[:40]} is too large, expected at most {most}")
        return value

    return parse


def all_or_at_least(minimum: int) -> Callable[[str], int | None]:
    """Option type for a whole number, or `all`, which gives None."""

    def parse(text: str) -> int | None:
        if text == "all":
            return None
        try:
            return at_least(minimum)(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or `all`") from None

    return parse


def seconds(text: str) -> float:
    """Option type for a time to wait."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a time to wait, expected more than 0 seconds")
    if value > _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} seconds are too many, expected at most {_MOST_SECONDS} (20 days)")
    return value


def duration(text: str) -> float:
    """Option type for a time that something may take: 600, 90s, 10m, 1h30m; in seconds."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a time such as 90s, 10m, 1h30m, or 600 for seconds")
    plain, hours, minutes, left = (float(part or 0) for part in match.groups())
    return seconds(str(plain + 3600 * hours + 60 * minutes + left))


def size_in_bytes(text: str) -> int:
    """Option type for a size, such as 500M or 8G, in units of 1000."""
    number, unit = text.rstrip("bB"), ""
    if number and number[-1].upper() in _SIZE_UNITS:
        number, unit = number[:-1], number[-1].upper()
    try:
        value = float(number) * _SIZE_UNITS[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 8G") from None
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in bytes, expected a size such as 500M or 8G")
    return int(value)


def shard_text(text: str) -> Shard:
    """Option type for a part of a run, `2/3`: the second of three."""
    index, slash, of = text.partition("/")
    if not (slash and index.isascii() and index.isdecimal() and of.isascii() and of.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a shard such as 2/3, the second of three")
    if not 1 <= len(of) <= len(str(_MOST_SHARDS)) or not 1 <= int(of) <= _MOST_SHARDS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} has {of[:20]} shards, expected 1 to {_MOST_SHARDS}")
    if not 1 <= len(index) <= len(of) or not 1 <= int(index) <= int(of):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not one of {of} shards, which are counted from 1 to {of}")
    return Shard(int(index), int(of))


def parse_layers(text: str) -> tuple[int, ...]:
    """Parse layers from ranges and numbers, `0-3,7`: sorted, without duplicates.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is neither a layer nor a range such as 0-3")
        start, stop = int(first), int(last or first)
        if stop < start or stop >= _MOST_LAYERS:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not a range of layers, expected the smaller number first and less than {_MOST_LAYERS}"
            )
        layers.update(range(start, stop + 1))
    return tuple(sorted(layers))


def depth_list(text: str) -> tuple[int, ...]:
    """Option type for numbers of tokens, `0,4096`: each once, in their order of size."""
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a list of whole numbers such as 0,4096") from None
    if depths[0] < 0 or depths[-1] > _MOST:
        wrong = depths[0] if depths[0] < 0 else depths[-1]
        raise argparse.ArgumentTypeError(f"{wrong} in {text[:40]!r} is no number of tokens, expected 0 to {_MOST}")
    return tuple(depths)


def head_list(text: str) -> tuple[int, ...]:
    """The same for heads."""
    try:
        return parse_layers(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of heads such as 0-3,7") from None


def path_text(text: str) -> str:
    """Option type for a path: errors are reported now, the text is kept and becomes a path later."""
    from gguf_harness.store.paths import path_argument

    path_argument(text)
    return text


def checked_value(name: str, value: object, attributes: Mapping[str, Any]) -> Any:
    """Check a value as argparse would; a value that argparse has checked is returned unchanged.

    Args:
        name: of the option.
        value: of it.
        attributes: argparse attributes of the option.

    Raises:
        OptionError: the value could not have been given on a command line.
    """
    if value is None or value == attributes["default"]:
        return value
    action, choices = attributes.get("action"), attributes.get("choices")
    if action == "store_true":
        return _known(name, value, isinstance(value, bool), "True or False")
    if action == "append":
        values = [value] if isinstance(value, str) else value
        is_list = isinstance(values, list | tuple) and all(isinstance(part, str) for part in values)
        return _known(name, values, is_list, "a text or a list of texts")
    if choices is not None:
        return _known(name, value, value in choices, f"one of {', '.join(choices)}")
    parse = attributes.get("type")
    if parse is None:
        return _known(name, value, isinstance(value, str), "a text")
    return _parsed(name, value, parse)


def _known(name: str, value: object, is_known: bool, expected: str) -> object:
    if not is_known:
        from gguf_harness.errors import OptionError

        raise OptionError(f"{name} is {value!r}, expected {expected}.", _HINT)
    return value


def _parsed(name: str, value: object, parse: Callable[[str], object]) -> object:
    if not isinstance(value, str | os.PathLike | int | float):  # what an option type made of text
        return value
    try:
        return parse(os.fspath(value) if isinstance(value, os.PathLike) else str(value))
    except argparse.ArgumentTypeError as error:
        from gguf_harness.errors import OptionError

        raise OptionError(f"{name}: {error}.", _HINT) from None
