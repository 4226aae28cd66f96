"""Reading of text, TOML and JSON files that users write, with uniform messages.

UTF-8, with or without a byte order mark. Each function takes the error class to raise.
"""

from __future__ import annotations

import codecs
import json
import math
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import HarnessError

__all__ = ["decode_text", "parse_toml", "read_bytes", "read_json", "read_text", "read_toml"]

# UTF-32 first: its byte order mark begins with that of UTF-16.
_OTHER_MARKS: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_bytes(path: Path, what: str, error: type[HarnessError]) -> bytes:
    """A file's content.

    Args:
        path: of the file.
        what: begins the message of an error, such as `Prompt set`.
        error: what is raised.

    Raises:
        HarnessError: of that kind: missing, a folder, or not readable; or a pipe or a device, which cannot be read by
            several processes.
    """
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise error(f"{_named(what, path)} is a pipe or a device, not a file.", "Save its output to a file.")
        return path.read_bytes()
    except OSError as problem:
        reason = problem.strerror or str(problem)
    except ValueError as problem:  # an invalid path
        reason = str(problem)
    raise error(f"{_named(what, path)} cannot be read: {reason}.", "Give the path of a readable file.")


def read_text(path: Path, what: str, error: type[HarnessError]) -> str:
    """A file's text; arguments and errors as for `read_bytes`, and an error where it is not UTF-8."""
    return decode_text(read_bytes(path, what, error), _named(what, path), error)


def decode_text(raw: bytes, where: str, error: type[HarnessError]) -> str:
    """Decode UTF-8 bytes, without the byte order mark that some editors add.

    Args:
        raw: bytes.
        where: begins the message of an error.
        error: what is raised.

    Raises:
        HarnessError: of that kind: bytes that are not UTF-8, or NUL among them.
    """
    for mark, encoding in _OTHER_MARKS.items():
        if raw.startswith(mark):
            raise error(f"{where} is {encoding}, expected UTF-8.", "Save it as UTF-8.")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as problem:
        start = problem.start + (len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0)
        line = raw.count(b"\n", 0, start) + 1
        raise error(
            f"{where} is not UTF-8 text: byte 0x{raw[start]:02x} at offset {start}, line {line}.",
            "Convert it to UTF-8.",
        ) from None
    if b"\0" in raw:
        # English text in UTF-16 is also valid UTF-8, with a NUL after each letter.
        raise error(
            f"{where} is not UTF-8 text: byte 0x00 at offset {raw.index(0)}, as in UTF-16 without a byte order mark.",
            "Save it as UTF-8.",
        )
    return text


def read_toml(path: Path, what: str, error: type[HarnessError], example: str) -> dict[str, Any]:
    """A TOML file's tables; as `read_text`, with an example of the expected form for the message."""
    return parse_toml(read_bytes(path, what, error), _named(what, path), error, example)


def parse_toml(raw: bytes, where: str, error: type[HarnessError], example: str) -> dict[str, Any]:
    """The tables of TOML in UTF-8; as `decode_text`."""
    try:
        return tomllib.loads(decode_text(raw, where, error))
    except (ValueError, RecursionError) as problem:  # numbers of thousands of digits raise another error
        raise error(f"{where} is not TOML: {problem}.", f"Expected {example}") from None


def read_json(path: Path, what: str, error: type[HarnessError], hint: str) -> Any:
    """A JSON file's content; as `read_text`, with the next step for invalid JSON.

    NaN, infinity, numbers that overflow, and duplicate names in a table are refused.
    """
    text = read_text(path, what, error)
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        raise error(f"{_named(what, path)} cannot be read as JSON: {problem}.", hint) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return table


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


def _named(what: str, path: Path) -> str:
    return f"{what} '{path}'"
