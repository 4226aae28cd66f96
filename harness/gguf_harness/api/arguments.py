"""Arguments of the API: wrong types are TypeErrors that say what was expected, wrong values are errors with a hint."""

from __future__ import annotations

import argparse
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import OptionError, PromptError
from gguf_harness.inputs.prompts import ROLES, Message, Prompt
from gguf_harness.inputs.subject_values import AdapterSpec, adapter_spec
from gguf_harness.measure.live.requests import NOTHING_OFF, Ablation

__all__ = [
    "AnyPrompt",
    "Read",
    "ablation_of",
    "chosen",
    "folder_of",
    "loras_of",
    "off",
    "parsed",
    "place_of",
    "prompt_of",
    "real",
    "spec_of",
    "whole",
]

Parsed = TypeVar("Parsed")

AnyPrompt = str | Prompt | Sequence[Mapping[str, str]] | Sequence[int] | NDArray[np.integer[Any]]
"""What a prompt may be: a text, a chat, or token ids."""

Read = str | Prompt | tuple[int, ...]
"""A prompt as `LiveModel.read` takes it; it can be a key."""

_PROMPTS = (
    "a text, a chat such as [{'role': 'user', 'content': 'Hello'}], a gguf_harness.Prompt, or a sequence of token ids"
)


def parsed(value: object, name: str, parse: Callable[[str], Parsed]) -> Parsed | None:
    """What a text says, as the option of the command line reads it; None for None.

    Raises:
        TypeError: it is no text.
        OptionError: it says nothing that is known.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} is a text such as on the command line, got {value!r} ({_kind(value)})")
    try:
        return parse(value)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{name}: {error}.") from None


def loras_of(value: object) -> list[AdapterSpec]:
    """Adapters as `FILE` or `FILE:SCALE`, one or several.

    Raises:
        TypeError: something else.
        OptionError: a text that names no file.
    """
    given = [] if value is None else [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(given, Sequence) or not all(isinstance(each, str | os.PathLike) for each in given):
        raise TypeError(f"lora is a path, FILE:SCALE, or a list of those, got {value!r} ({_kind(value)})")
    specs = (parsed(os.fspath(each), "lora", adapter_spec) for each in given)
    return [spec for spec in specs if spec is not None]


def off(*, heads: Iterable[Sequence[int]] = (), layers: Iterable[int] = ()) -> Ablation:
    """What is switched off while a model reads or writes: an argument of most questions.

        model.next_tokens("the cat sat; the cat", off=gguf_harness.off(heads=[(1, 1)]))

    Args:
        heads: pairs of layer and head, counted from 0. The mixed values of such a head are zero before the output
            projection: it adds nothing to the residual stream.
        layers: blocks that the residual stream passes unchanged.

    Raises:
        TypeError: heads are no pairs of whole numbers, or layers no whole numbers.
    """
    for name, given in (("heads is a list of pairs such as [(1, 1)]", heads), ("layers is a list of numbers", layers)):
        if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
            raise TypeError(f"{name}, got {given!r} ({_kind(given)})")
    pairs = []
    for each in heads:
        if not isinstance(each, tuple | list) or len(each) != 2:
            raise TypeError(f"a head is a pair of layer and head such as (1, 1), got {each!r} ({_kind(each)})")
        pairs.append((whole(each[0], "the layer of a head"), whole(each[1], "the number of a head")))
    blocks = [whole(each, "a layer") for each in layers]
    # In order and without repetition: the same choice is the same key.
    return Ablation(tuple(sorted(set(pairs))), tuple(sorted(set(blocks))))


def ablation_of(value: object) -> Ablation:
    """An argument `off`.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return NOTHING_OFF
    if isinstance(value, Ablation):
        return value
    raise TypeError(f"off is what gguf_harness.off(heads=[(1, 1)], layers=[2]) returns, got {_kind(value)}")


def spec_of(model: object) -> str:
    """A model as the command line takes it.

    Raises:
        TypeError: it is neither text nor path.
    """
    if isinstance(model, str | os.PathLike):
        text = os.fspath(model)
        if isinstance(text, str):
            return text
    raise TypeError(
        "a model is a str or a Path: of a GGUF file, an alias such as 'tiny', or 'hf:org/repo:file';"
        f" got {_kind(model)}"
    )


def folder_of(value: object, name: str) -> Path:
    """A path.

    Raises:
        TypeError: it is neither text nor path.
    """
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str):
            return Path(text)
    raise TypeError(f"{name} is a str or a Path, got {_kind(value)}")


def prompt_of(prompt: object) -> Read:
    """A prompt as it is read.

    Raises:
        TypeError: it is none.
        PromptError: a message of a chat is not one.
    """
    if isinstance(prompt, str | Prompt):
        return prompt
    if isinstance(prompt, bytes | Mapping) or not hasattr(prompt, "__iter__"):
        raise TypeError(f"a prompt is {_PROMPTS}; got {_kind(prompt)}")
    items = list(prompt)
    if items and all(isinstance(each, Mapping) for each in items):
        return Prompt("chat", None, tuple(_message(number, each) for number, each in enumerate(items, 1)))
    try:
        return tuple(whole(each, "a token") for each in items)
    except TypeError:
        raise TypeError(f"a prompt is {_PROMPTS}; got a {type(prompt).__name__} of {_kinds(items)}") from None


def _message(number: int, message: Mapping[Any, Any]) -> Message:
    if set(message) != {"role", "content"}:
        raise PromptError(
            f"Message {number} of the chat has {', '.join(map(repr, message)) or 'nothing'}.",
            "Give each message 'role' and 'content'.",
        )
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise TypeError(
            f"role and content of a message are texts; message {number} has {_kind(role)}, {_kind(content)}"
        )
    if role not in ROLES:
        raise PromptError(f"Message {number} of the chat has the role {role!r}.", f"Roles are {', '.join(ROLES)}.")
    return Message(role, content)


def whole(value: object, name: str, least: int | None = None) -> int:
    """A whole number, of Python or NumPy.

    Raises:
        TypeError: it is none; True is none.
        OptionError: it is below the least.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is a whole number, got {value!r} ({_kind(value)})")
    number = operator.index(value)
    if least is not None and number < least:
        raise OptionError(f"{name} is {number}.", f"Give {least} or more.")
    return number


def real(value: object, name: str) -> float:
    """A number, of Python or NumPy.

    Raises:
        TypeError: it is none; True is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number, got {value!r} ({_kind(value)})")
    return float(value)


def place_of(place: object, count: int) -> int:
    """A place in a prompt, counted from 0; negative ones from the end.

    Raises:
        TypeError: it is no whole number.
        OptionError: the prompt is shorter.
    """
    at = whole(place, "place")
    if not -count <= at < count:
        raise OptionError(f"The prompt has {count} tokens, and none at {at}.", f"Give a place from 0 to {count - 1}.")
    return at % count


def chosen(wanted: Iterable[int] | None, known: Sequence[int], what: str) -> tuple[int, ...]:
    """The numbers that were chosen, in the order of those that there are; all of them if none were named.

    Args:
        wanted: numbers; None for all.
        known: those that there are, rising.
        what: `layer`, `head` or `token`, for messages.

    Raises:
        TypeError: not a list of whole numbers.
        OptionError: one is not there, or there are none.
    """
    if wanted is None:
        return tuple(known)
    if isinstance(wanted, str | bytes) or not hasattr(wanted, "__iter__"):
        raise TypeError(f"{what}s is a list of numbers such as [0, 2], got {wanted!r} ({_kind(wanted)})")
    named = {whole(each, f"a {what}") for each in wanted}
    if strange := sorted(named - set(known)):
        raise OptionError(f"There is no {what} {strange[0]}.", f"There are {_listed(known)}.")
    if not named:
        raise OptionError(f"No {what}s were chosen.", f"There are {_listed(known)}.")
    return tuple(number for number in known if number in named)


def _listed(known: Sequence[int]) -> str:
    if len(known) > 2 and list(known) == list(range(known[0], known[-1] + 1)):
        return f"{known[0]} to {known[-1]}"
    return ", ".join(map(str, known)) or "none"


def _kind(value: object) -> str:
    return type(value).__name__


def _kinds(items: Sequence[object]) -> str:
    return " and ".join(sorted({_kind(each) for each in items}))
