"""Files that are replaced in one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.store.atomic_file import replacing


@pytest.mark.parametrize("lasting", [True, False])
def test_it_takes_the_place_of_what_was_there(tmp_path: Path, lasting: bool) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"old")
    with replacing(path, lasting=lasting) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_write_that_is_broken_off_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"old")

    def break_off() -> None:
        with replacing(path) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(type(error)):
        break_off()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
