"""What a call of a task takes along to another machine: its arguments, and the files that their paths lead to.

A path means nothing on another machine, what it leads to does. So paths are pickled by that:

- a path in the session's cache is a place in it: `passes/0123.../codes.bin`. The node has folders for such places, and
  what lies there in the session is sent before the task runs; what the task writes there is brought back.
- any other file, and a model in the cache, is its SHA-256: the node may have it under the same path, or in its own
  store; otherwise it is sent.
- anything else stays a path, which must lead to something there.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from gguf_harness.errors import ModelError, write_error
from gguf_harness.store.atomic_file import replacing
from gguf_harness.store.cache_space import OTHER_FOLDERS, SCRATCH
from gguf_harness.store.file_hashes import FileState, file_states, hash_files

__all__ = [
    "Damaged",
    "Named",
    "Parcel",
    "Piece",
    "SentFile",
    "SessionFiles",
    "dumps",
    "loads",
    "pieces_below",
    "write_checked",
]

_MODELS: Final = ".gguf"
_FOLDERS_OF_NO_TASK: Final = OTHER_FOLDERS - {SCRATCH}

Named = tuple[str, str]
"""How a path is pickled: ("place", in the cache), ("file", SHA-256) or ("path", as it is)."""


class Damaged(Exception):
    """Content arrived that is not what was announced."""


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that is the same wherever its content is.

    Attributes:
        sha256: of its content.
        size: in bytes.
        path: where the session has it; its name is kept elsewhere.
        state: what the session's system says of it.
    """

    sha256: str
    size: int
    path: str
    state: FileState

    @property
    def name(self) -> str:
        """Its name without folders."""
        return Path(self.path).name


@dataclass(frozen=True, slots=True)
class Piece:
    """A file at a place of the cache, as it is now.

    Attributes:
        place: relative to the cache: "passes/0123.../codes.bin".
        size: in bytes.
        sha256: of its content.
    """

    place: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """Arguments of a task as they travel.

    Attributes:
        data: pickled.
        files: that their paths lead to, outside of places.
        places: of the cache that they name: files or folders, which may not exist yet.
        pieces: all files that the session has there.
    """

    data: bytes
    files: tuple[SentFile, ...] = ()
    places: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, name: Callable[[Path], Named]) -> None:
        super().__init__(stream, protocol=5)
        self._name = name

    def persistent_id(self, obj: Any) -> Named | None:
        return self._name(obj) if isinstance(obj, Path) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, find: Callable[[Named], Path]) -> None:
        super().__init__(io.BytesIO(data))
        self._find = find

    def persistent_load(self, pid: Any) -> Path:
        return self._find(pid)


def dumps(value: object, name: Callable[[Path], Named]) -> bytes:
    """Pickle a value, with each path in it named by a function."""
    stream = io.BytesIO()
    _Pickler(stream, name).dump(value)
    return stream.getvalue()


def loads(data: bytes, find: Callable[[Named], Path]) -> Any:
    """What `dumps` has pickled, with each path found by a function. Data must be from our own processes."""
    return _Unpickler(data, find).load()


def pieces_below(place: Path) -> Iterator[Path]:
    """A file, or all files below a folder that belong to a measurement: no locks, no marks, nothing half written."""
    if place.is_file():
        yield place
    elif place.is_dir():
        for path in sorted(place.iterdir()):
            if not path.name.startswith(".") and not path.is_symlink():
                yield from pieces_below(path)


class SessionFiles:
    """The session's end: packs arguments, and takes back results.

    Args:
        cache: the session's cache.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._hashes: dict[Path, tuple[FileState, str]] = {}

    def pack(self, value: object, *, to_same_cache: bool = False) -> Parcel:
        """Arguments of a task, as they travel.

        Args:
            value: the arguments.
            to_same_cache: the node sees the session's cache: what lies in it need not be read to be told apart.

        Raises:
            ModelError: a file cannot be read.
        """
        files: dict[str, SentFile] = {}
        places: set[str] = set()

        def name(path: Path) -> Named:
            place = self._place(path)
            if place is not None and not (path.suffix == _MODELS and path.is_file()):
                # The cache itself is named for its notes on hashes and its logs, which are each machine's own.
                if place.partition("/")[0] not in {".", *_FOLDERS_OF_NO_TASK}:
                    places.add(place)
                return "place", place
            if not path.is_file():
                return "path", str(path)
            sent = self._sent(path)
            files[sent.sha256] = sent
            return "file", sent.sha256

        data = dumps(value, name)
        whole = tuple(sorted(place for place in places if not any(_is_below(place, other) for other in places)))
        pieces = (
            ()
            if to_same_cache
            else tuple(self._piece(path) for place in whole for path in pieces_below(self.cache / place))
        )
        return Parcel(data, tuple(files.values()), whole, pieces)

    def unpack(self, data: bytes) -> Any:
        """The result of a task."""

        def find(named: Named) -> Path:
            kind, value = named
            return self.cache / value if kind == "place" else Path(value)

        return loads(data, find)

    def take(self, pieces: list[tuple[Piece, Iterator[bytes]]], gone: list[str]) -> None:
        """Bring files that a task has written into the cache: all of them, or none.

        Args:
            pieces: each with its content, in blocks.
            gone: places of files that the task has removed.

        Raises:
            StoreError: the session's disk is full, or the cache cannot be written.
            Damaged: what arrived is not what was announced.
        """
        try:
            with ExitStack() as written:
                for piece, blocks in pieces:
                    path = self.cache / piece.place
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_checked(written.enter_context(replacing(path, lasting=False)), piece, blocks)
        except OSError as error:
            raise write_error(self.cache, error) from error
        for piece, _ in pieces:
            path = self.cache / piece.place
            self._remember(path, piece.sha256)
        for place in gone:
            (self.cache / place).unlink(missing_ok=True)

    def _place(self, path: Path) -> str | None:
        return path.relative_to(self.cache).as_posix() if path.is_relative_to(self.cache) else None

    def _sent(self, path: Path) -> SentFile:
        state, digest = self._known(path)
        return SentFile(digest, state.size, str(path), state)

    def _piece(self, path: Path) -> Piece:
        state, digest = self._known(path)
        return Piece(path.relative_to(self.cache).as_posix(), state.size, digest)

    def _known(self, path: Path) -> tuple[FileState, str]:
        """State and SHA-256 of a file; of one that is as it was at the last call, from memory."""
        (state,) = file_states([path])
        known = self._hashes.get(path)
        if known is not None and known[0] == state:
            return known
        digest = hash_files([path], self.cache)
        (after,) = file_states([path])
        if after is None or after != state:
            raise ModelError(f"{path} changed while it was being read.", "Run again when nothing writes to it.")
        self._hashes[path] = (after, digest)
        return after, digest

    def _remember(self, path: Path, digest: str) -> None:
        (state,) = file_states([path])
        if state is not None:
            self._hashes[path] = (state, digest)


def write_checked(stream: BinaryIO, what: Piece | SentFile, blocks: Iterable[bytes]) -> None:
    """Write content as it arrives.

    Raises:
        Damaged: it is not what was announced.
        OSError: no space.
    """
    hasher, size = hashlib.sha256(), 0
    for block in blocks:
        hasher.update(block)
        size += len(block)
        stream.write(block)
    if size != what.size or hasher.hexdigest() != what.sha256:
        raise Damaged(f"{size} bytes arrived that are not the {what.size} bytes of {what.sha256[:12]}")


def _is_below(place: str, other: str) -> bool:
    return place.startswith(f"{other}/")
