"""Measurements on disk, by content.

    <cache>/passes/<key>/             meta.json and arrays.npz of one pass, and the reference's log-probabilities
    <cache>/speed/<key>/              the same for timings, and so on: one folder for each kind of measurement
    <cache>/models/<key>/             quantized models
    <cache>/scratch/                  large temporary files
    <cache>/logs/                     llama.cpp's log, one file per model

A key is the hash of everything a measurement depends on, its version included. A description holds its own checksum and
those of the arrays: an entry that does not match is measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import StoreError, write_error
from gguf_harness.store.cache_space import (
    ARRAYS_FILE,
    META_FILE,
    OTHER_FOLDERS,
    SCRATCH,
    USED_FILE,
    entry_lock,
    folder_bytes,
    mark_cache,
    new_scratch,
    shrink,
    sweep_scratch,
)
from gguf_harness.store.locks import HeldLock, hold
from gguf_harness.store.runs import to_json, write_json

if TYPE_CHECKING:
    from gguf_harness.store.arrays import Arrays

__all__ = ["Cache", "Entry"]

_BEGUN_FILE: Final = ".begun"
_WORD: Final = re.compile(r"[a-z][a-z_]*")
_LOOK_EVERY_S: Final = 0.05
_COUNT_EVERY_S: Final = 60.0
"""Other processes also add to a cache: its size is counted again after this time."""


class Entry:
    """One cached measurement: a folder whose name is the hash of what it depends on."""

    def __init__(self, cache: Cache, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder
        self._cache = cache
        self._key = key

    @cached_property
    def digest(self) -> str:
        """The hash of the whole key."""
        return _digest(self._key)

    @property
    def arrays_file(self) -> Path:
        """Path of the arrays."""
        return self.folder / ARRAYS_FILE

    def load(self) -> tuple[dict[str, Any], Arrays] | None:
        """The stored description and arrays; None when there is nothing yet, or it is damaged."""
        meta = self._read()
        if meta is None:
            return None
        arrays: Arrays = {}
        if meta.get("arrays") is not None:
            from gguf_harness.store.arrays import checksums, load_arrays

            try:
                # Arrays and description are two files: a process may have ended after writing only one of them.
                if meta["arrays"] != checksums(self.arrays_file):
                    return None
                arrays = load_arrays(self.arrays_file)
            except StoreError:
                return None
        self._cache.used(self)
        return dict(meta["value"]), arrays

    def _read(self) -> dict[str, Any] | None:
        """Content of the description file, if it is complete and belongs to this key."""
        try:
            meta = json.loads((self.folder / META_FILE).read_text(encoding="utf-8"))
            belongs = isinstance(meta, dict) and meta.get("key") == self._key and isinstance(meta.get("value"), dict)
            return meta if belongs and meta.get("check") == _digest(meta["value"]) else None
        except (OSError, ValueError, RecursionError):
            return None

    @property
    def is_of_this_session(self) -> bool:
        """Whether a process of this session stored it, or has begun to."""
        meta = self._read()
        if meta is not None and meta.get("session") == self._cache.session:
            return True
        with contextlib.suppress(OSError):
            return (self.folder / _BEGUN_FILE).read_text(encoding="utf-8") == self._cache.session
        return False

    def claim(self) -> None:
        """Note that this session has begun to measure it: what lies in its folder from now on is of this session."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _BEGUN_FILE).write_text(self._cache.session, encoding="utf-8")
        except OSError as error:
            raise write_error(self.folder, error) from error

    @property
    def stamp(self) -> tuple[int, int] | None:
        """A value that changes when another process stores the entry again; None if nothing is stored."""
        try:
            status = (self.folder / META_FILE).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def save(self, value: dict[str, Any], arrays: Arrays | None = None, about: str = "") -> None:
        """Store a result. The description is written last: an entry without one does not count.

        Args:
            value: of JSON types.
            arrays: stored with it.
            about: what the entry is, for people who look into the cache.

        Raises:
            StoreError: no space, no permission, or a number that JSON cannot represent.
        """
        from gguf_harness.store.arrays import checksums, save_arrays

        meta: dict[str, Any] = {"about": about, "key": self._key, "session": self._cache.session, "arrays": None}
        if arrays is not None:
            save_arrays(self.arrays_file, arrays)
            meta["arrays"] = checksums(self.arrays_file)
        file = self.folder / META_FILE
        # As it will be read: JSON turns numeric keys into strings.
        stored = json.loads(to_json(value, file.name))
        write_json(file, {**meta, "value": stored, "check": _digest(stored)})
        self._cache.used(self)
        self._cache.grown(self)

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Lock the entry while it is being measured: with `pytest -n`, other processes wait and then load the result.

        Args:
            waiting: called now and then while another process has it.

        Raises:
            StoreError: the lock cannot be taken. Errors of the block pass through.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = hold(entry_lock(self.folder)) if waiting is None else _hold_when_free(self.folder, waiting)
        except OSError as error:
            raise write_error(self.folder, error) from error
        try:
            yield
        finally:
            # A failed measurement leaves nothing behind.
            lock.release(remove=not self.folder.is_dir())

    def remove(self) -> None:
        """Remove the entry, its description first: an entry without one does not count."""
        with contextlib.suppress(OSError):
            (self.folder / META_FILE).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def _hold_when_free(folder: Path, waiting: Callable[[], None]) -> HeldLock:
    while (lock := hold(entry_lock(folder), wait=False)) is None:
        waiting()
        time.sleep(_LOOK_EVERY_S)
    return lock


class Cache:
    """Measurements by content.

    Args:
        root: its folder.
        limit: most bytes that it may take; the least recently used entries are removed first. None for no limit.
        session: name that all processes of a session share; None for a new one.
    """

    def __init__(self, root: Path, limit: int | None = None, session: str | None = None) -> None:
        self.root = root
        self.limit = limit
        self.session = session or secrets.token_hex(8)
        self._used: set[Path] = set()
        self._held: dict[Path, HeldLock] = {}
        self._size: int | None = None
        self._counted = 0.0

    def entry(self, measurement: str, version: int, key: dict[str, Any]) -> Entry:
        """The entry of a measurement.

        Args:
            measurement: folder of the cache and name: "passes/reference".
            version: of the measurement.
            key: everything that it depends on except its version, as JSON types.

        Raises:
            ValueError: an invalid name, or a key that is not of JSON types.
        """
        kind, _, name = measurement.partition("/")
        if not (_WORD.fullmatch(kind) and _WORD.fullmatch(name)) or kind in OTHER_FOLDERS:
            raise ValueError(
                f"{measurement!r} is not a valid name of a measurement, expected family/name in lower case."
            )
        full = _canonical({"measurement": name, "version": version, "key": key})
        return Entry(self, self.root / kind / _digest(full)[:24], full)

    def used(self, entry: Entry) -> None:
        """Note that an entry was used now."""
        self._used.add(entry.folder)
        # A read-only cache still serves its entries.
        with contextlib.suppress(OSError):
            (entry.folder / USED_FILE).touch(mode=0o666)

    def keep(self, entry: Entry) -> None:
        """Protect the files of an entry from removal by other processes, as long as this process lives."""
        held = self._held.get(entry.folder)
        if held is None or not held.is_current:
            # Without locks, an entry that was just used is still removed last.
            with contextlib.suppress(OSError):
                self._held[entry.folder] = hold(entry.folder / USED_FILE, shared=True)

    def grown(self, entry: Entry) -> None:
        """Note that an entry was stored; if the cache is now too large, remove other entries."""
        self._mark()
        if self.limit is None:
            return
        if self._size is not None:
            self._size += folder_bytes(entry.folder)
        if self._size is None or self._size > self.limit or time.monotonic() - self._counted > _COUNT_EVERY_S:
            self._shrink(self.limit)

    def make_room(self, needed: int, entry: Entry) -> None:
        """Remove the least recently used entries until an entry of `needed` bytes has room."""
        if self.limit is not None:
            self._used.add(entry.folder)
            # Files of an interrupted measurement already take space.
            self._shrink(self.limit - max(0, needed - folder_bytes(entry.folder)))

    def _shrink(self, target: int) -> None:
        self._size = shrink(self.root, target, self._used)
        self._counted = time.monotonic()

    @property
    def excess(self) -> int:
        """Bytes by which the cache exceeds its limit, when all the rest is in use."""
        return 0 if self._size is None or self.limit is None else max(0, self._size - self.limit)

    def _mark(self) -> None:
        try:
            mark_cache(self.root)
        except OSError as error:
            raise write_error(self.root, error) from error

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder for large files, removed when the block ends; leftovers of killed processes are removed now.

        Raises:
            StoreError: no permission. Errors of the block pass through.
        """
        sweep_scratch(self.root)
        try:
            folder, lock = new_scratch(self.root)
        except OSError as error:
            raise write_error(self.root / SCRATCH, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _canonical(value: object) -> Any:
    """A key in JSON types; equal values give equal keys: 1 and 1.0, tuples and lists.

    Raises:
        ValueError: another type, or a number that is not finite.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _canonical(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(part) for part in value]
    raise ValueError(f"{value!r} cannot be part of a cache key.")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
