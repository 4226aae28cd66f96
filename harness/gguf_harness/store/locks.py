"""File locks between processes: one process measures, or several read what is stored.

A lock is released when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path
from typing import Literal, overload

__all__ = ["HeldLock", "hold"]


class HeldLock:
    """A lock that this process holds, until `release` or its end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._status = os.fstat(descriptor)
        self._close = weakref.finalize(self, os.close, descriptor)

    @property
    def is_current(self) -> bool:
        """Whether the lock is still valid: its file has been neither removed nor replaced."""
        try:
            return self._close.alive and os.path.samestat(self.path.stat(), self._status)
        except OSError:
            return False

    def release(self, *, remove: bool = False) -> None:
        """Release the lock.

        Args:
            remove: remove the file first; waiting processes notice that and take a new lock.
        """
        if remove and self.is_current:
            # It may stay in a folder that has become read-only: it is empty, and others can lock it.
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._close()


@overload
def hold(path: Path, *, shared: bool = False, wait: Literal[True] = True) -> HeldLock: ...


@overload
def hold(path: Path, *, shared: bool = False, wait: Literal[False]) -> HeldLock | None: ...


def hold(path: Path, *, shared: bool = False, wait: bool = True) -> HeldLock | None:
    """Take a lock.

    Args:
        path: a file, created if missing; its folder must exist.
        shared: others may also hold it as shared.
        wait: until it is free.

    Returns:
        The lock; None if another process holds it and `wait` is false.

    Raises:
        OSError: the file cannot be created, or the file system does not support locks.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        # Readable and writable as the umask allows: caches are shared.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        lock = HeldLock(path, descriptor)
        if lock.is_current:
            return lock
        # Its holder removed the file while we waited: that lock is no longer valid.
        lock.release()
