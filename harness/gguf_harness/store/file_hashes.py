"""Files by their content: SHA-256, remembered only where no change could have gone without a trace."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from gguf_harness.errors import ModelError
from gguf_harness.store.atomic_file import replacing

__all__ = ["FileState", "file_states", "has_change_time", "hash_files", "sample_files"]

_HASH_BLOCK: Final = 1 << 24
_SMALL: Final = 1 << 23
"""Files up to this size are read each time: that takes milliseconds, and there is nothing to believe."""

_SAMPLE_HEAD: Final = 1 << 20
_SAMPLE_BLOCK: Final = 1 << 16
_SAMPLE_BLOCKS: Final = 64
_SETTLED_NS: Final = 2 * 10**9
"""Clocks of file systems tick: a change in the tick of the one before has the same time. The longest tick in use is
FAT's of 2 s."""

_SECOND_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class FileState:
    """What the system says of a file: where two states differ, something may have been written.

    Attributes:
        changed_ns: time of the last change of content, name or attributes (ctime); unlike the time of modification it
            cannot be set by a program.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """The state in a status."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_states(files: Sequence[Path]) -> tuple[FileState | None, ...]:
    """The state of each file; None for one that is gone."""
    return tuple(_state(file) for file in files)


def _state(file: Path) -> FileState | None:
    try:
        return FileState.of(file.stat())
    except OSError:
        return None


def hash_files(files: Sequence[Path], cache: Path | None, progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of a file's content, or of its splits' hashes.

    The hash of a large file is remembered. It is believed again only if all of this holds:

    - inode, size, time of modification and time of change (ctime, in nanoseconds) are the same. `touch`, `os.utime`,
      `cp -p`, `tar` and reproducible builds set the time of modification, and none of them can set ctime;
    - its first megabyte and 64 blocks of 64 kB spread over it, which are read each time, hash to the same;
    - ctime was two seconds old when the file was read: before, a second write may have had the same ctime;
    - ctime is a real one. Images (squashfs, EROFS, ISO 9660) have none: they show whole seconds, or the time of
      modification on a read-only file system. There the file is read in each session, as it is on Windows.

    This assumes that the clock is not set back to the same nanosecond, that nothing writes to the disk behind the file
    system, and that no other program still has the file mapped for writing when it is hashed.

    Args:
        files: a file, or all splits of one.
        cache: folder that remembers; None to read every file.
        progress: called with (megabytes done, megabytes) of a file that has to be read.

    Raises:
        ModelError: a file cannot be read, or is being written to.
    """
    digests = [_hash_file(file, cache, progress) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sample_files(files: Sequence[Path]) -> str:
    """SHA-256 of the size and of samples of a file, or of its splits: five megabytes are read of each, however large.

    It tells files of a plan apart without reading them all. It is no hash of the content: a change between the samples
    leaves it as it was.

    Args:
        files: a file, or all splits of one.

    Raises:
        ModelError: a file cannot be read.
    """
    hasher = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                hasher.update(f"{size}:{_sample(stream, size)};".encode())
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror or error}.", "Check its permissions.") from error
    return hasher.hexdigest()


def _hash_file(file: Path, cache: Path | None, progress: Callable[[int, int], None] | None) -> str:
    try:
        with file.open("rb") as stream:
            # Of the open file: the path may lead to another file by now.
            state = FileState.of(os.fstat(stream.fileno()))
            if state.size <= _SMALL or cache is None:
                return _read(stream, state, progress)
            note = cache / "hashes" / f"{hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:24]}.json"
            identity = {**asdict(state), "sample": _sample(stream, state.size)}
            known = _recall(note, identity)
            if known is not None and has_change_time(stream, state):
                return known
            started = time.time_ns()
            digest = _read(stream, state, progress)
            if has_change_time(stream, state) and started - state.changed_ns > _SETTLED_NS:
                _remember(note, {"identity": identity, "sha256": digest})
            return digest
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.", "Check its permissions.") from error


def _read(stream: BinaryIO, state: FileState, progress: Callable[[int, int], None] | None) -> str:
    hasher, done = hashlib.sha256(), 0
    stream.seek(0)
    # A file that grows as fast as it is read would never end.
    while done <= state.size and (block := stream.read(_HASH_BLOCK)):
        hasher.update(block)
        done += len(block)
        if progress is not None:
            progress(done // 10**6, state.size // 10**6)
    if FileState.of(os.fstat(stream.fileno())) != state:
        raise ModelError(
            f"{stream.name} changed while it was being read.", "Run again when nothing writes to it any more."
        )
    return hasher.hexdigest()


def _sample(stream: BinaryIO, size: int) -> str:
    """Hash of the start and of one block in each of 64 stretches of a file, always the same ones."""
    chosen = random.Random(size)  # noqa: S311 - not used for security
    hasher = hashlib.sha256(stream.read(_SAMPLE_HEAD))
    stretch = size // _SAMPLE_BLOCKS
    for index in range(_SAMPLE_BLOCKS):
        stream.seek(index * stretch + chosen.randrange(max(1, stretch - _SAMPLE_BLOCK)))
        hasher.update(stream.read(_SAMPLE_BLOCK))
    stream.seek(max(0, size - _SAMPLE_BLOCK))
    hasher.update(stream.read(_SAMPLE_BLOCK))
    return hasher.hexdigest()


def has_change_time(stream: BinaryIO, state: FileState) -> bool:
    """Whether the file system keeps its own change time."""
    if os.name == "nt" or state.changed_ns % _SECOND_NS == 0:
        return False
    read_only = os.fstatvfs(stream.fileno()).f_flag & os.ST_RDONLY
    return not (read_only and state.changed_ns == state.modified_ns)


def _recall(note: Path, identity: dict[str, int | str]) -> str | None:
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        digest = known["sha256"]
        believable = known["identity"] == identity and re.fullmatch("[0-9a-f]{64}", digest)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not hashed yet, or the note is damaged
    return str(digest) if believable else None


def _remember(note: Path, content: dict[str, object]) -> None:
    # Without a note, the file is only hashed again. Another place reports why the cache cannot be written.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as stream:
            stream.write(json.dumps(content).encode())
