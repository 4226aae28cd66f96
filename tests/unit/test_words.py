"""Word lists: the built-in one, and mistakes in others."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.errors import PromptError
from gguf_harness.inputs.words import load_words


def test_the_built_in_list() -> None:
    word_list = load_words()
    assert word_list.name == "built-in"
    assert len(word_list.groups) >= 10
    assert len(word_list.words) == len(set(word_list.words)) > 250
    assert word_list.group_of["dog"] == "animals"
    assert set(word_list.group_of) <= set(word_list.words)
    assert len(word_list.sha256) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups = 3", r"\[groups\] of the word list is 3"),
        ("[groups]\na = ['x', 'y']", "has 1 groups"),
        ("[groups]\na = ['x']\nb = ['y', 'z']", "expected a list of at least two words"),
        ("[groups]\na = ['x', 3]\nb = ['y', 'z']", "has 3, expected a word"),
        ("[groups]\na = ['x', 'x']\nb = ['y', 'z']", "has 'x' twice"),
        ("[groups]\na = ['x', \"\\u0007\"]\nb = ['y', 'z']", "expected a word"),
        ("[groups]\na = ['x', 'w']\nb = ['y', 'z']\n[analogies]\nc = [['x', 'y']]", "at least two pairs"),
        ("[groups]\na = ['x', 'w']\nb = ['y', 'z']\n[analogies]\nc = [['x'], ['y']]", "expected a pair of words"),
        ("[other]", "unknown tables: other"),
        ("[groups", "is not TOML"),
    ],
)
def test_mistakes_in_a_list_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "words.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=message):
        load_words(file)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read"):
        load_words(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"[groups]\na = ['\xe9', 'x']")
    with pytest.raises(PromptError, match="UTF-8"):
        load_words(tmp_path / "latin.toml")
