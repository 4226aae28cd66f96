"""Word lists: words whose embeddings are compared, in groups, and analogies between them.

A word list is a hand-written TOML file in UTF-8:

    [groups]                                       # at least two; a word may be in several
    animals = ["dog", "cat", "horse"]
    colours = ["red", "green", "blue"]

    [analogies]                                    # optional: families of pairs with the same relation
    plural = [["dog", "dogs"], ["cat", "cats"]]    # at least two pairs each: dog is to dogs as cat is to which word?
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import PromptError, visible
from gguf_harness.store.paths import option_path
from gguf_harness.store.text_files import parse_toml, read_bytes

__all__ = ["WordList", "load_words"]

_TABLES: Final = frozenset({"groups", "analogies"})
_LONGEST: Final = 80

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class WordList:
    """Words by group, and pairs by family."""

    name: str
    groups: Mapping[str, tuple[str, ...]]
    analogies: Mapping[str, tuple[Pair, ...]]

    @property
    def words(self) -> tuple[str, ...]:
        """All words without duplicates: those of groups first, then those only in analogies."""
        grouped = [word for words in self.groups.values() for word in words]
        paired = [word for pairs in self.analogies.values() for pair in pairs for word in pair]
        return tuple(dict.fromkeys([*grouped, *paired]))

    @property
    def group_of(self) -> dict[str, str]:
        """The first group of each word; words only in analogies have none."""
        groups: dict[str, str] = {}
        for group, words in self.groups.items():
            for word in words:
                groups.setdefault(word, group)
        return groups

    @property
    def sha256(self) -> str:
        """Hash of the words, however the file is laid out; part of every cache key."""
        content = json.dumps([list(self.groups.items()), list(self.analogies.items())], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def load_words(path: Path | None = None) -> WordList:
    """Read a word list.

    Args:
        path: a TOML file; None for the built-in list.

    Raises:
        PromptError: unreadable, not UTF-8, not TOML, fewer than two groups, or an entry that is malformed.
    """
    if path is None:
        raw, name = resources.files("gguf_harness.fixtures").joinpath("data/words.toml").read_bytes(), "built-in"
    else:
        path = option_path(path)
        raw, name = read_bytes(path, "Word list", PromptError), visible(path.name)
    tables = parse_toml(raw, f"Word list {name!r}", PromptError, '[groups] with lines such as a = ["b", "c"].')
    if unknown := set(tables) - _TABLES:
        raise PromptError(f"Word list {name!r} has unknown tables: {', '.join(sorted(unknown))}.", _hint())
    groups = {group: _words(words, f"Word list {name!r}, group {group!r}") for group, words in _table(tables, "groups")}
    if len(groups) < 2:
        raise PromptError(f"Word list {name!r} has {len(groups)} groups, expected at least two.", _hint())
    analogies = {
        family: _pairs(pairs, f"Word list {name!r}, analogy {family!r}")
        for family, pairs in _table(tables, "analogies")
    }
    return WordList(name, groups, analogies)


def _table(tables: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise PromptError(f"[{name}] of the word list is {table!r}, expected a table.", _hint())
    return list(table.items())


def _words(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise PromptError(f"{where} is {value!r}, expected a list of at least two words.", _hint())
    words = tuple(_word(word, where) for word in value)
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise PromptError(f"{where} has {twice!r} twice.", "Remove one.")
    return words


def _pairs(value: object, where: str) -> tuple[Pair, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise PromptError(f"{where} is {value!r}, expected a list of at least two pairs.", _hint())
    pairs = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise PromptError(f"{where} has {pair!r}, expected a pair of words.", _hint())
        pairs.append((_word(pair[0], where), _word(pair[1], where)))
    return tuple(pairs)


def _word(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > _LONGEST:
        raise PromptError(f"{where} has {value!r}, expected a word of 1 to {_LONGEST} printable characters.", _hint())
    return value


def _hint() -> str:
    return 'Write [groups] with animals = ["dog", "cat"], [analogies] with plural = [["dog", "dogs"], ["cat", "cats"]].'
