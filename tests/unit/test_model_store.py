"""Models that tests share are what each would have written, and nobody changes another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_store import STORE
from tests.random_llama import write_random_llama


def test_a_copy_is_what_would_have_been_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE)
    alone = write_random_llama(tmp_path / "m.gguf", width=32, n_layer=1, noise=0.1).read_bytes()
    monkeypatch.setenv(STORE, str(tmp_path / "store"))
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        file = write_random_llama(folder / "m.gguf", width=32, n_layer=1, noise=0.1)
        assert file.read_bytes() == alone
        file.write_bytes(b"changed")
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_other_arguments_and_another_name_are_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is in the file."""
    monkeypatch.setenv(STORE, str(tmp_path / "store"))
    (tmp_path / "c").mkdir()
    files = [
        write_random_llama(tmp_path / "a.gguf", width=32, n_layer=1),
        write_random_llama(tmp_path / "b.gguf", width=32, n_layer=1),
        write_random_llama(tmp_path / "c" / "a.gguf", width=32, n_layer=1, seed=1),
    ]
    assert len({file.read_bytes() for file in files}) == 3
    assert len(list((tmp_path / "store").iterdir())) == 3
