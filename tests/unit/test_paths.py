"""Paths that people write, names of files for things of any name, and what can be shown of both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gguf_harness.errors import HarnessError, OptionError, is_utf8, visible
from gguf_harness.store.paths import file_name, option_path

NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=[]), min_size=1),
    st.binary(min_size=1, max_size=255)
    .map(os.fsdecode)
    .map(lambda name: name.replace("\0", "").replace("/", "") or "x"),
)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert option_path("~/runs") == tmp_path / "runs"
    assert option_path("~") == tmp_path
    assert option_path("runs/a b ") == tmp_path / "runs" / "a b "
    assert option_path(Path("./~")) == tmp_path
    assert option_path("a/~/b") == tmp_path / "a" / "~" / "b"
    assert option_path("~root").is_absolute()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A path is empty"),
        ("a\0b", "is not a valid path on this system"),
        ("\ud83d", "is not a valid path on this system"),
        ("x" * 300, "File name too long"),
        ("~nobody-has-this-name/x", "there is no home folder ~nobody-has-this-name"),
    ],
)
def test_what_is_no_path_is_said(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        option_path(text)


def test_a_path_that_leads_in_a_circle_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(OptionError, match="symbolic links"):
        option_path(tmp_path / "a" / "b")


@given(NAMES)
@example("tiny-\udcff")
@example("\u202e\n\x1b[2J")
def test_any_name_can_be_shown_and_stored(name: str) -> None:
    shown = visible(name)
    assert shown.isprintable()
    assert is_utf8(shown)
    assert visible(shown) == shown
    error = HarnessError(f"{name}: no such\nfile", name)
    assert str(error).replace("\n", "").isprintable()


def test_bytes_of_a_name_are_shown_as_such() -> None:
    assert visible(os.fsdecode(b"tiny-\xff\n")) == "tiny-\\xff\\x0a"
    assert visible("模型 ± x") == "模型 ± x"
    assert not is_utf8(os.fsdecode(b"\xff"))


@given(NAMES, NAMES)
@example("a/b", "a_b")
@example("x" * 400, "x" * 401)
@example(".hidden", "hidden")
@example("-x", "x")
@example("...", "-")
def test_any_name_gives_a_name_for_a_file(one: str, other: str) -> None:
    name = file_name(one)
    assert 0 < len(name.encode("ascii")) <= 200
    assert name[0] not in ".- "
    assert not set(name) & set("/\0@]")
    assert (name == file_name(other)) == (one == other)


def test_plain_names_stay(tmp_path: Path) -> None:
    for name in ("tiny-Q8_0", "Meta-Llama-3.1-8B (2)", "x" * 200):
        assert file_name(name) == name
    (tmp_path / f"{file_name('模' * 300)}.server.log").touch()
    assert file_name("模" * 300 + "-Q4_K_M").startswith("_-Q4_K_M-")
    assert "_" + "y" * 25 + "-Q4_K_M-" in file_name("y" * 300 + "-Q4_K_M")
    assert file_name("dir/model") == "dir_model-" + file_name("dir/model")[-8:]
