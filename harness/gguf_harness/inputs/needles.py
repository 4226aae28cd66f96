"""Needles: facts to hide in a long text and to ask for at its end.

A set of needles is a hand-written TOML file in UTF-8:

    [[needle]]                                  # at least two
    id = "harbour"                              # distinct
    statement = "The code of the harbour is"    # how the fact begins, and how it is asked for
    answer = "7413"                             # how it ends

The text contains "The code of the harbour is 7413." somewhere, and ends with "The code of the harbour is". A question
in the words of the fact asks for no more than an induction head can do, so models of any size can answer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import PromptError, visible
from gguf_harness.store.paths import option_path
from gguf_harness.store.text_files import parse_toml, read_bytes

__all__ = ["Needle", "NeedleSet", "load_needles"]

_FIELDS: Final = ("id", "statement", "answer")
_FEWEST: Final = 2
"""One fact has no standard error."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A fact.

    Attributes:
        id: distinct in its set.
        statement: its words up to the answer, also the question.
        answer: a word or two that cannot be guessed.
    """

    id: str
    statement: str
    answer: str


@dataclass(frozen=True, slots=True)
class NeedleSet:
    """Facts, and the name of their file."""

    name: str
    needles: tuple[Needle, ...]

    @property
    def sha256(self) -> str:
        """Hash of the facts, however the file is laid out; part of every cache key."""
        return hashlib.sha256(json.dumps([astuple(needle) for needle in self.needles]).encode()).hexdigest()


def load_needles(path: Path | None = None) -> NeedleSet:
    """Read a set of needles.

    Args:
        path: a TOML file; None for the built-in set.

    Raises:
        PromptError: unreadable, not UTF-8, not TOML, fewer than two, or one that is malformed.
    """
    if path is None:
        raw, name = resources.files("gguf_harness.fixtures").joinpath("data/needles.toml").read_bytes(), "built-in"
    else:
        path = option_path(path)
        raw, name = read_bytes(path, "Needles", PromptError), visible(path.name)
    tables = parse_toml(raw, f"Needles {name!r}", PromptError, '[[needle]] with id = "a", statement and answer.')
    entries = tables.get("needle")
    if set(tables) != {"needle"} or not isinstance(entries, list) or len(entries) < _FEWEST:
        raise PromptError(
            f"Needles {name!r} has {len(entries) if isinstance(entries, list) else 'no'} [[needle]], expected at least"
            f" {_FEWEST} and nothing else.",
            "A fact is [[needle]] with id, statement and answer.",
        )
    needles = tuple(_needle(entry, name, place) for place, entry in enumerate(entries))
    repeated = {needle.id for needle in needles if sum(other.id == needle.id for other in needles) > 1}
    if repeated:
        raise PromptError(f"Needles {name!r} has the id {visible(min(repeated))!r} twice.", "Ids are distinct.")
    return NeedleSet(name, needles)


def _needle(entry: Any, name: str, place: int) -> Needle:
    """A fact from a table of the file."""
    sound = isinstance(entry, dict) and set(entry) == set(_FIELDS)
    if not sound or not all(isinstance(entry[field], str) and entry[field].strip() for field in _FIELDS):
        raise PromptError(
            f"needle[{place}] of {name!r} is malformed, expected texts {', '.join(_FIELDS)}.",
            'For example id = "harbour", statement = "The code of the harbour is", answer = "7413".',
        )
    return Needle(*(entry[field].strip() for field in _FIELDS))
