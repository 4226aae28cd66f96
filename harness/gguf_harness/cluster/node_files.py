"""A node's end of what travels: finds what paths stand for, takes what is missing, and says what a task has written.

    <node's cache>/models/<hash>/        files by content, under their own names
    <node's cache>/borrowed/<hash>/      places of a session's cache: an entry's folder, or what a task writes

It is a cache like any other: nothing in it is needed, and the least recently used goes first.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf_harness.cluster.parcels import Damaged, Named, Parcel, Piece, SentFile, dumps, loads, pieces_below
from gguf_harness.errors import ModelError, StoreError, write_error
from gguf_harness.store.atomic_file import replacing
from gguf_harness.store.cache_space import USED_FILE, cap_log, entry_lock, mark_cache, shrink
from gguf_harness.store.file_hashes import FileState, file_states, hash_files
from gguf_harness.store.locks import HeldLock, hold

__all__ = ["NODE_CACHE", "Changes", "Incoming", "NodeFiles", "node_cache"]

NODE_CACHE: Final = "GGUF_HARNESS_NODE_CACHE"
"""Environment variable of a node with the folder that it keeps files in; the session's own is then left alone."""


def node_cache() -> Path:
    """The folder of this node: as its environment says, or one below its temporary folder."""
    named = os.environ.get(NODE_CACHE)
    return Path(named).absolute() if named else Path(tempfile.gettempdir()) / f"gguf-harness-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a task has done at the places of its arguments.

    Attributes:
        written: files that are new or have another content.
        gone: places of files that are no longer there.
    """

    written: tuple[Piece, ...] = ()
    gone: tuple[str, ...] = ()


class Incoming:
    """A file that is being received: written whole, or not at all.

    Args:
        path: where it will be.
        what: what was announced.
        held: closed at the end, however it ends.
        done: called when it is there.
    """

    def __init__(self, path: Path, what: SentFile | Piece, held: ExitStack, done: Callable[[], None]) -> None:
        self._path, self._what, self._held, self._done = path, what, held, done
        self._hasher, self._size = hashlib.sha256(), 0
        try:
            self._stream = held.enter_context(replacing(path, lasting=False))
        except OSError as error:
            held.close()
            raise write_error(path, error) from error

    def write(self, block: bytes) -> None:
        """The next block.

        Raises:
            StoreError: this node's disk is full, say; nothing of the file stays.
        """
        self._hasher.update(block)
        self._size += len(block)
        try:
            self._stream.write(block)
        except OSError as error:
            self._abandon(error)
            raise write_error(self._path, error) from error

    def finish(self) -> None:
        """After the last block.

        Raises:
            StoreError: the last of it could not be written.
            Damaged: what arrived is not what was announced.
        """
        if self._size != self._what.size or self._hasher.hexdigest() != self._what.sha256:
            damaged = Damaged(f"{self._size} bytes arrived that are not the {self._what.size} of {self._path.name}")
            self._abandon(damaged)
            raise damaged
        try:
            self._held.close()
        except OSError as error:
            raise write_error(self._path, error) from error
        self._done()

    def _abandon(self, error: Exception) -> None:
        with suppress(type(error)):
            self._held.__exit__(type(error), error, error.__traceback__)


class NodeFiles:
    """Files of one session on this node.

    Args:
        root: the node's cache.
        session: name of the session, so that places of two sessions are apart.
        origin: the session's cache, where the session sees it.
        token: a file in it, and its content: if it is seen here too, both caches are the same folder. None if the
            node is to use its own in any case.
        limit: most bytes of the node's cache.
    """

    def __init__(self, root: Path, session: str, origin: Path, token: tuple[str, bytes] | None, limit: int) -> None:
        self.root = root
        self._session = session
        self._origin = origin
        self._limit = limit
        self._held: dict[Path, HeldLock] = {}
        self._places: dict[Path, str] = {}
        self._paths: dict[str, Path] = {}
        self._origins: dict[Path, str] = {}
        self._hashes: dict[Path, tuple[FileState, str]] = {}
        self.is_shared = token is not None and _content(origin / token[0]) == token[1]
        # Notes on hashes, and logs.
        self._notes = origin if self.is_shared else root

    # -- before a task ----------------------------------------------------------------------------------------------

    def missing(self, parcel: Parcel) -> list[SentFile | Piece]:
        """What has to be sent first; what the session no longer has at a place goes.

        Raises:
            StoreError: the node's cache cannot be written.
        """
        try:
            self._hold(parcel)
            files = [file for file in parcel.files if not self._has(file)]
            if self.is_shared:
                return list(files)
            for place in parcel.places:
                self._clear(place, {piece.place for piece in parcel.pieces})
        except OSError as error:
            raise write_error(self.root, error) from error
        return [*files, *(piece for piece in parcel.pieces if self._hash(self.path(piece.place)) != piece.sha256)]

    def receive(self, what: SentFile | Piece) -> Incoming | None:
        """Begin to take what the session sends; None if it is here by now, received by another process of this node.

        Raises:
            StoreError: the node's cache cannot be written.
        """
        path = self._store(what) if isinstance(what, SentFile) else self.path(what.place)
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(what, SentFile):
                    # Two processes of a node may need the same model: one waits for what the other receives.
                    stack.callback(hold(entry_lock(path.parent)).release)
                    if self._has(what):
                        return None
                    self._protect(path.parent)
                shrink(self.root, max(0, self._limit - what.size), self._held.keys())
            except OSError as error:
                raise write_error(path, error) from error

            def done() -> None:
                self._remember(path, what.sha256)
                if isinstance(what, SentFile):
                    self._use(what, path)

            return Incoming(path, what, stack.pop_all(), done)

    def load(self, parcel: Parcel) -> Any:
        """The arguments, with paths that lead to the same here."""
        for place in parcel.places:
            with suppress(OSError):
                self.path(place).parent.mkdir(parents=True, exist_ok=True)

        def find(named: Named) -> Path:
            kind, value = named
            return self.path(value) if kind == "place" else self._paths[value] if kind == "file" else Path(value)

        return loads(parcel.data, find)

    # -- after it ---------------------------------------------------------------------------------------------------

    def pack(self, value: object) -> bytes:
        """A result, with paths as the session knows them."""

        def name(path: Path) -> Named:
            if self.is_shared and path.is_relative_to(self._origin):
                return "place", path.relative_to(self._origin).as_posix()
            for parent in (path, *path.parents):
                if parent in self._places:
                    return "place", "/".join((self._places[parent], *path.relative_to(parent).parts))
            return "path", self._origins.get(path, str(path))

        return dumps(value, name)

    def changes(self, parcel: Parcel) -> Changes:
        """What differs at its places from what the session has.

        Raises:
            StoreError: a file cannot be read.
        """
        if self.is_shared:
            return Changes()
        before = {piece.place: piece for piece in parcel.pieces}
        now: dict[str, Piece] = {}
        for place in parcel.places:
            start = self.path(place)
            for path in pieces_below(start):
                inner = "/".join((place, *path.relative_to(start).parts))
                digest, size = self._hash(path), self._size(path)
                if digest is None or size is None:
                    raise StoreError(f"{path} cannot be read.", "Look into the node's log.")
                now[inner] = Piece(inner, size, digest)
        written = tuple(piece for place, piece in now.items() if before.get(place) != piece)
        return Changes(written, tuple(place for place in before if place not in now))

    def read(self, place: str, offset: int, size: int) -> bytes:
        """A block of a file at a place."""
        with self.path(place).open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def hash_of(self, files: Sequence[Path]) -> str:
        """Hash of files of this node; large ones are remembered."""
        return hash_files(files, self._notes)

    def log(self, name: str) -> Path:
        """Where a child process writes."""
        log = self._notes / "logs" / f"{name}.log"
        cap_log(log)
        return log

    # -- where things are -------------------------------------------------------------------------------------------

    def path(self, place: str) -> Path:
        """Where a place of the session's cache is here."""
        if self.is_shared:
            return self._origin / place
        if place == "." or place.partition("/")[0] in {"logs", "hashes"}:
            return self.root / place
        kind, key, *inner = place.split("/")
        # A folder of its own name within: what tasks say of it in messages is then what people know.
        start = self._borrowed(place) / key
        self._places[start] = f"{kind}/{key}"
        return start.joinpath(*inner)

    def _borrowed(self, place: str) -> Path:
        """The node's entry for a place: one for each entry of the session's cache."""
        return self.root / "borrowed" / _digest(self._session, *place.split("/")[:2])

    def _store(self, file: SentFile) -> Path:
        return self.root / "models" / file.sha256[:24] / file.name

    def _has(self, file: SentFile) -> bool:
        """Whether a file is here: under its own path, or in the store."""
        own, stored = Path(file.path), self._store(file)
        # The session's cache is another machine's folder, whatever is found here at that path.
        may_be_own = self.is_shared or not own.is_relative_to(self._origin)
        if may_be_own and file_states([own])[0] == file.state:
            self._use(file, own)  # the very same file, of a file system that both see
            return True
        for path in (own, stored) if may_be_own else (stored,):
            if self._size(path) == file.size and self._hash(path) == file.sha256:
                self._use(file, path)
                return True
        return False

    def _use(self, file: SentFile, path: Path) -> None:
        self._paths[file.sha256] = path
        self._origins[path] = file.path

    def _clear(self, place: str, known: set[str]) -> None:
        """Remove what is no longer part of a place: of a call that was lost, or older than what the session has."""
        start = self.path(place)
        for path in pieces_below(start):
            if "/".join((place, *path.relative_to(start).parts)) not in known:
                path.unlink(missing_ok=True)

    def _hold(self, parcel: Parcel) -> None:
        """Protect what a task needs from removal by other processes of this node, and release the rest."""
        stored = {self._store(file).parent for file in parcel.files}
        folders = {folder for folder in stored if folder.is_dir()}
        if not self.is_shared:
            folders |= {self._borrowed(place) for place in parcel.places}
        self._held = {folder: lock for folder, lock in self._held.items() if folder in folders and lock.is_current}
        for folder in folders:
            self._protect(folder)

    def _protect(self, folder: Path) -> None:
        if folder not in self._held:
            mark_cache(self.root)
            folder.mkdir(parents=True, exist_ok=True)
            self._held[folder] = hold(folder / USED_FILE, shared=True)
        (folder / USED_FILE).touch()

    def _size(self, path: Path) -> int | None:
        (state,) = file_states([path])
        return None if state is None else state.size

    def _hash(self, path: Path) -> str | None:
        """SHA-256 of a file, from memory where it is as it was; None if it is not there."""
        (state,) = file_states([path])
        if state is None:
            return None
        known = self._hashes.get(path)
        if known is None or known[0] != state:
            try:
                known = state, hash_files([path], self._notes)
            except ModelError:  # it cannot be read, or changes at this moment
                return None
            self._hashes[path] = known
        return known[1]

    def forget_hashes(self) -> None:
        """Read files again before they are used, as something was wrong with them."""
        self._hashes.clear()

    def _remember(self, path: Path, digest: str) -> None:
        (state,) = file_states([path])
        if state is not None:
            self._hashes[path] = (state, digest)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]
