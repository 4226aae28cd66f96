"""Rows of numbers that one process writes and another reads, in memory that both map.

The memory has no name: nothing is left of it when both processes are gone, however they end. A pair of sockets says
whose turn it is, and that the other process is gone.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import EngineError, EngineTimeout, PeerGone

__all__ = ["SharedRows", "make_shared_rows"]


def make_shared_rows(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """File descriptors for `SharedRows` of two processes, two for each: of the memory, and of its socket.

    Raises:
        EngineError: the system has no such memory, or no more descriptors.
    """
    size = 4 * rows * columns
    handles: list[int] = []
    try:
        handles.append(_memory(size))
        handles.append(os.dup(handles[0]))
        ends = socket.socketpair()
        handles += [end.detach() for end in ends]
    except OSError as error:
        for handle in handles:
            os.close(handle)
        raise EngineError(
            f"{size / 1e6:.3g} MB cannot be shared between two processes: {error.strerror or error}.",
            "Check the limits of memory and open files (ulimit -a).",
        ) from error
    return (handles[0], handles[2]), (handles[1], handles[3])


def _memory(size: int) -> int:
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("gguf-harness-rows")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.truncate(handle, size)
    return handle


class SharedRows:
    """One process's end. A context manager, which closes it: then the other process finds it gone.

    Args:
        handles: of this process, from `make_shared_rows`; they are closed with it.
        rows: as given there.
        columns: as given there.
        timeout_s: longest wait for the other process.

    Attributes:
        values: [rows, columns] float32, the shared memory.
    """

    def __init__(self, handles: tuple[int, int], rows: int, columns: int, timeout_s: float) -> None:
        memory, end = handles
        self._connection = Connection(end)
        self._timeout_s = timeout_s
        self._map = mmap.mmap(memory, 4 * rows * columns)
        os.close(memory)
        self.values: NDArray[np.float32] = np.frombuffer(self._map, dtype=np.float32).reshape(rows, columns)

    def send(self, message: object) -> None:
        """Tell the other process.

        Raises:
            PeerGone: it is gone.
        """
        try:
            self._connection.send(message)
        except OSError as error:
            raise PeerGone("The other worker of a pass side by side is gone.") from error

    def receive(self) -> Any:
        """What the other process told.

        Raises:
            PeerGone: it is gone.
            EngineTimeout: it told nothing for the timeout.
        """
        try:
            if self._connection.poll(self._timeout_s):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise PeerGone("The other worker of a pass side by side is gone.") from error
        raise EngineTimeout(
            f"The other worker of a pass side by side sent nothing for {self._timeout_s:g} s.",
            "Raise --gguf-timeout if the model is that slow.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The map goes with the last array that looks into it.
        del self.values
        self._connection.close()
