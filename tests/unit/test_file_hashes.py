"""Keys come from content: whatever the system says of a file's times."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gguf_harness.errors import ModelError
from gguf_harness.store.file_hashes import FileState, file_states, has_change_time, hash_files

LARGE = 9 << 20
"""Beyond what is read each time."""


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _large(file: Path, seed: int = 0) -> Path:
    block = hashlib.sha256(bytes([seed])).digest()
    file.write_bytes(block * (LARGE // len(block)))
    return file


class _Reads:
    """Whether a file was read whole."""

    def __init__(self) -> None:
        self.megabytes = 0

    def __call__(self, done: int, _total: int) -> None:
        self.megabytes = done


@pytest.fixture(scope="module")
def files_of_old(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Large files that were last changed more than two seconds ago, each in a folder of its own."""
    files = [_large(tmp_path_factory.mktemp("settled") / "model.gguf") for _ in range(10)]
    time.sleep(2.1)
    return files


@pytest.fixture
def settled(files_of_old: list[Path]) -> Path:
    """One of them, whose hash is remembered."""
    file = files_of_old.pop()
    assert hash_files([file], file.parent / "cache") == _sha256(file)
    return file


def _write_a_byte(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        value = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([value ^ 1]))


def test_a_settled_file_is_not_read_again(settled: Path) -> None:
    reads, cache = _Reads(), settled.parent / "cache"
    assert hash_files([settled], cache, reads) == _sha256(settled)
    assert reads.megabytes == 0
    os.utime(settled, ns=(1, 1))
    assert hash_files([settled], cache, reads) == _sha256(settled)
    assert reads.megabytes == LARGE // 10**6


def test_one_byte_with_the_time_set_back_is_noticed(settled: Path) -> None:
    status = settled.stat()
    _write_a_byte(settled, LARGE // 2 + 12_345)
    os.utime(settled, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert settled.stat().st_mtime_ns == status.st_mtime_ns
    assert hash_files([settled], settled.parent / "cache") == _sha256(settled)


def test_another_file_in_its_place_is_noticed(settled: Path) -> None:
    status = settled.stat()
    other = _large(settled.with_name("other"), seed=1)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(settled)
    assert (settled.stat().st_size, settled.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert hash_files([settled], settled.parent / "cache") == _sha256(settled)


def test_a_file_just_written_is_read_each_time(tmp_path: Path) -> None:
    """A second change in the same tick of the clock would show in nothing."""
    file, reads = _large(tmp_path / "model.gguf"), _Reads()
    hash_files([file], tmp_path / "cache")
    hash_files([file], tmp_path / "cache", reads)
    assert reads.megabytes == LARGE // 10**6
    assert not (tmp_path / "cache").exists()


def test_what_a_note_says_is_checked_against_the_file(settled: Path) -> None:
    """An image may give two files the same inode and times: their content differs in every place."""
    (note,) = (settled.parent / "cache" / "hashes").iterdir()
    known = json.loads(note.read_text(encoding="utf-8"))
    _large(settled, seed=1)
    status = settled.stat()
    for name, value in (
        ("inode", status.st_ino),
        ("modified_ns", status.st_mtime_ns),
        ("changed_ns", status.st_ctime_ns),
    ):
        known["identity"][name] = value
    note.write_text(json.dumps(known), encoding="utf-8")
    assert hash_files([settled], settled.parent / "cache") == _sha256(settled)


@pytest.mark.parametrize("damage", ["", "[]", "null", '{"identity": 1}', "sha256"])
def test_a_damaged_note_is_no_hash(settled: Path, damage: str) -> None:
    (note,) = (settled.parent / "cache" / "hashes").iterdir()
    known = json.loads(note.read_text(encoding="utf-8"))
    note.write_text(json.dumps(known | {"sha256": "abc"}) if damage == "sha256" else damage, encoding="utf-8")
    assert hash_files([settled], settled.parent / "cache") == _sha256(settled)


def test_small_files_are_always_read(llama_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(llama_file, tmp_path / "m.gguf"))
    assert file.stat().st_size < LARGE
    first = hash_files([file], tmp_path / "cache")
    assert first == _sha256(file)
    status = file.stat()
    _write_a_byte(file, status.st_size - 1)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hash_files([file], tmp_path / "cache") == _sha256(file) != first
    assert hash_files([file, file], tmp_path / "cache") != hash_files([file], tmp_path / "cache")


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = _large(tmp_path / "model.gguf")

    def grow(_done: int, _total: int) -> None:
        with file.open("ab") as stream:
            stream.write(b"more")

    with pytest.raises(ModelError, match=r"model\.gguf changed while it was being read"):
        hash_files([file], tmp_path / "cache", grow)


def test_what_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        hash_files([tmp_path / "nothing.gguf"], tmp_path)
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        hash_files([tmp_path], tmp_path)


def test_a_cache_that_cannot_be_written_only_costs_time(settled: Path) -> None:
    (settled.parent / "no folder").write_text("a file", encoding="utf-8")
    assert hash_files([settled], settled.parent / "no folder") == _sha256(settled)


def test_times_of_change_in_whole_seconds_are_not_believed(llama_file: Path) -> None:
    """Images show them; where files change they are one in millions, or as rare as the clock ticks."""
    with llama_file.open("rb") as stream:
        state = replace(FileState.of(os.fstat(stream.fileno())), changed_ns=10**18 + 1)
        assert has_change_time(stream, state)
        assert not has_change_time(stream, replace(state, changed_ns=10**18))


_READ_ONLY = """
mount -t tmpfs none "$0" && echo model > "$0/m.gguf" && mount -o remount,ro "$0" && exec "$1" -c "
import os, sys
from gguf_harness.store.file_hashes import FileState, has_change_time
with open(sys.argv[1], 'rb') as stream:
    state = FileState.of(os.fstat(stream.fileno()))
    assert state.changed_ns == state.modified_ns
    print(has_change_time(stream, state))
" "$0/m.gguf"
"""


def test_a_read_only_file_system_that_shows_one_time_is_not_believed(tmp_path: Path) -> None:
    namespace = shutil.which("unshare")
    if namespace is None or subprocess.run([namespace, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs a namespace of one's own")
    command = [namespace, "-rm", "sh", "-c", _READ_ONLY, str(tmp_path), sys.executable]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "False\n"


def test_states_see_what_times_of_modification_hide(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    (before,) = file_states([file])
    status = file.stat()
    file.write_bytes(b"2")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    (after,) = file_states([file])
    assert before is not None
    assert after is not None
    assert before.modified_ns == after.modified_ns
    assert before != after
    file.unlink()
    assert file_states([file]) == (None,)
