"""The size of the cache on disk, and how it is kept within a limit.

The least recently used entries are removed first; of these, first the files that only later measurements would read:
log-probabilities, activations, hidden states, quantized models. Results are removed when that is not enough. An entry's
`.used` is touched at every use, since not all file systems keep access times; a process that needs its files later
holds a shared lock on it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf_harness.gguf.companions import CACHE_SIGNATURE, CACHE_TAG
from gguf_harness.store.atomic_file import replacing
from gguf_harness.store.locks import HeldLock, hold

__all__ = [
    "ARRAYS_FILE",
    "META_FILE",
    "OTHER_FOLDERS",
    "SCRATCH",
    "USED_FILE",
    "Item",
    "cap_log",
    "check_cache",
    "entry_lock",
    "folder_bytes",
    "kinds",
    "list_items",
    "mark_cache",
    "new_scratch",
    "remove_item",
    "scratch_bytes",
    "shrink",
    "sweep_locks",
    "sweep_scratch",
]

ARRAYS_FILE: Final = "arrays.npz"
META_FILE: Final = "meta.json"
USED_FILE: Final = ".used"
SCRATCH: Final = "scratch"
_RESULTS: Final = frozenset({ARRAYS_FILE, META_FILE, USED_FILE})
_FILES: Final = ("hashes", "logs", "durations")
OTHER_FOLDERS: Final = frozenset({*_FILES, SCRATCH})
"""Folders of the cache that do not hold entries."""

_TAG_CONTENT: Final = f"{CACHE_SIGNATURE}\n# This is a cache of gguf-harness. Everything in it can be measured again.\n"
_ENTRY: Final = re.compile(r"[0-9a-f]{24}")
_QUIET_S: Final = 3600.0
"""A log written to within the last hour may belong to a running process."""
_LARGE_LOG: Final = 16_000_000
_KEPT_OF_LOG: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """A removable part of the cache: an entry's folder, or a file.

    Attributes:
        kind: the folder of the cache that it is in: "passes".
        path: where it is.
        size: bytes.
        last_used: seconds since the epoch.
    """

    kind: str
    path: Path
    size: int
    last_used: float


def kinds(root: Path) -> list[str]:
    """Folders of a cache whose content can be listed and removed: measurements by kind, hashes and logs."""
    return sorted((*_families(root), *_FILES))


def _families(root: Path) -> list[str]:
    """Folders of a cache that hold entries. Measurements choose their names; they are not known here."""
    return sorted(path.name for path in _children(root) if path.is_dir() and path.name not in OTHER_FOLDERS)


def entry_lock(folder: Path) -> Path:
    """The file that is locked while an entry is measured or removed."""
    return folder.with_name(f"{folder.name}.lock")


def mark_cache(root: Path) -> None:
    """Mark a folder as a cache: backups skip it, and `gguf-harness cache clear` accepts it.

    Raises:
        OSError: the folder cannot be written.
    """
    tag = root / CACHE_TAG
    if not tag.exists():
        root.mkdir(parents=True, exist_ok=True)
        tag.write_text(_TAG_CONTENT, encoding="ascii")


def check_cache(root: Path) -> str | None:
    """Why a folder is not a cache of this harness; None if it is one."""
    if not root.is_dir():
        return "there is no such folder"
    with contextlib.suppress(OSError, ValueError):
        if (root / CACHE_TAG).read_text(encoding="utf-8").startswith(_TAG_CONTENT):
            return None
    # A cache from before caches were tagged.
    names = sorted({path.name.removesuffix(".lock") for path in root.iterdir()})
    strange = next((name for name in names if name not in OTHER_FOLDERS and not _holds_entries(root / name)), None)
    if strange is not None:
        return f"it holds {strange!r}"
    return None if names else "it is empty"


def _holds_entries(folder: Path) -> bool:
    """Whether a folder holds only entries and their locks."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(_ENTRY.fullmatch(path.name.removesuffix(".lock")) for path in folder.iterdir())


def list_items(root: Path) -> list[Item]:
    """Everything that can be removed, the least recently used first. Links are not followed."""
    items: list[Item] = []
    for kind in _families(root):
        for path in _children(root / kind):
            if _ENTRY.fullmatch(path.name) and path.is_dir():
                size, newest = _content(path)
                with contextlib.suppress(OSError):
                    newest = (path / USED_FILE).stat().st_mtime
                items.append(Item(kind, path, size, newest))
    for kind in _FILES:
        for path in _children(root / kind):
            with contextlib.suppress(OSError):
                if path.is_file():
                    items.append(Item(kind, path, path.stat().st_size, path.stat().st_mtime))
    return sorted(items, key=lambda item: (item.last_used, item.path))


def scratch_bytes(root: Path) -> int:
    """Bytes of large temporary files."""
    return sum(folder_bytes(folder) for folder in _children(root / SCRATCH) if folder.is_dir())


def shrink(root: Path, target: int, spare: Collection[Path] = ()) -> int:
    """Remove the least recently used entries until the cache takes `target` bytes, or nothing more can be removed.

    Args:
        root: the cache.
        target: bytes that may stay.
        spare: entries to keep. Entries that other processes measure or hold are kept as well.

    Returns:
        Bytes that the cache takes afterwards.
    """
    sweep_locks(root)
    sweep_scratch(root)
    items = list_items(root)
    total = sum(item.size for item in items) + scratch_bytes(root)
    recent = time.time() - _QUIET_S
    for whole in (False, True):
        for item in items:
            if total <= target:
                return total
            busy = item.kind == "logs" and item.last_used > recent
            if item.path not in spare and not busy:
                total -= remove_item(root, item, whole=whole) or 0
    return total


def remove_item(root: Path, item: Item, *, whole: bool = True) -> int | None:
    """Remove an entry or a file.

    Args:
        root: the cache.
        item: from `list_items`.
        whole: remove results as well; otherwise only files that later measurements would read.

    Returns:
        Bytes that it took; None where it is in use, or cannot be removed.
    """
    if item.kind in _FILES:
        return _remove_file(item) if whole else 0
    try:
        lock = hold(entry_lock(item.path), wait=False)
        if lock is None:
            return None
        try:
            return _remove_entry(root, item, whole=whole)
        finally:
            lock.release(remove=not item.path.is_dir())
    except OSError:  # missing, read-only, or on a file system without locks: leave it
        return None


def _remove_file(item: Item) -> int | None:
    with contextlib.suppress(OSError):
        item.path.unlink()
        return item.size
    return None


def _remove_entry(root: Path, item: Item, *, whole: bool) -> int | None:
    used = hold(item.path / USED_FILE, wait=False)
    if used is None:
        return None
    try:
        # Taking the lock does not count as a use of the entry, even if that created the file.
        os.utime(item.path / USED_FILE, (item.last_used, item.last_used))
        parts = [path for path in item.path.iterdir() if path.name not in _RESULTS]
        freed = item.size if whole else sum(_size(path) for path in parts)
        _discard(root, [item.path] if whole else parts)
    finally:
        used.release()
    return freed


def _discard(root: Path, paths: Iterable[Path]) -> None:
    """Remove files and folders, each as a whole: renamed first, then deleted."""
    trash, lock = new_scratch(root)
    try:
        for path in paths:
            path.rename(trash / path.name)
    finally:
        shutil.rmtree(trash, ignore_errors=True)
        lock.release()


def new_scratch(root: Path) -> tuple[Path, HeldLock]:
    """An empty folder for temporary files, and the lock that marks it as in use.

    Raises:
        OSError: the folder cannot be written.
    """
    (root / SCRATCH).mkdir(parents=True, exist_ok=True)
    with _scratch_guard(root):
        folder = Path(tempfile.mkdtemp(dir=root / SCRATCH))
        return folder, hold(folder / ".lock")


@contextlib.contextmanager
def _scratch_guard(root: Path) -> Iterator[None]:
    """Until a new folder is locked, other processes must not take it for a leftover."""
    guard = hold(root / SCRATCH / ".lock")
    try:
        yield
    finally:
        guard.release(remove=True)


def sweep_locks(root: Path) -> None:
    """Remove the locks of removed entries."""
    for kind in _families(root):
        for lock in _children(root / kind):
            folder = lock.with_name(lock.name.removesuffix(".lock"))
            if lock.name.endswith(".lock") and _ENTRY.fullmatch(folder.name) and not folder.exists():
                with contextlib.suppress(OSError):
                    held = hold(lock, wait=False)
                    if held is not None:
                        held.release(remove=True)


def sweep_scratch(root: Path) -> int:
    """Remove what killed processes left in the scratch folder. Returns the number of bytes."""
    freed = 0
    with contextlib.suppress(OSError), _scratch_guard(root):
        for folder in _children(root / SCRATCH):
            # A lock is released when its process ends.
            lock = hold(folder / ".lock", wait=False) if folder.is_dir() else None
            if lock is not None:
                freed += folder_bytes(folder)
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()
    return freed


def cap_log(log: Path) -> None:
    """Keep only the end of a log that has grown large."""
    try:
        if log.stat().st_size <= _LARGE_LOG:
            return
        with log.open("rb") as file:
            file.seek(-_KEPT_OF_LOG, os.SEEK_END)
            end = file.read()
        with replacing(log) as file:
            file.write(b"(what came before was removed)\n" + end.partition(b"\n")[2])
    except OSError:
        return  # a log that cannot be shortened must not stop the measurement


def _children(folder: Path) -> Iterator[Path]:
    """Content of a folder, without links; empty if it is a link, missing, or not readable."""
    if folder.is_symlink():
        return
    with contextlib.suppress(OSError):
        yield from sorted(path for path in folder.iterdir() if not path.is_symlink())


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; 0 if it does not exist."""
    return _content(folder)[0]


def _size(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() and not path.is_symlink() else path.lstat().st_size


def _content(folder: Path) -> tuple[int, float]:
    """Bytes of the files below a folder, and when the newest was changed; files may disappear meanwhile."""
    size, newest = 0, 0.0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - thousands of files
                size, newest = size + status.st_size, max(newest, status.st_mtime)
    return size, newest
