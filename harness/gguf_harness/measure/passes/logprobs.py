"""The reference's next-token distributions on disk, memory-mapped: 16-bit codes, see `gguf_harness.metrics.codec`."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import FilesLost, StoreError, write_error

__all__ = ["LogprobReader", "LogprobWriter", "logprob_bytes"]

Codes = NDArray[np.uint16]


def logprob_bytes(windows: int, scored: int, vocabulary: int) -> int:
    """Size of a store: two bytes per scored token and vocabulary entry."""
    return 2 * windows * scored * vocabulary


class LogprobWriter:
    """Writes codes, block by block, into a file that a resumed pass can continue. Threads may share it.

    Free space is checked first, so that a full disk is an error before the pass. Nothing is forced to the disk: what a
    killed process wrote is in the file, and after a power failure the sums of the rows tell (`DivergenceObserver`
    compares them).

    Args:
        path: the file; an existing one of the right size is continued.
        shape: (windows, scored tokens, vocabulary).

    Attributes:
        continues: the file was there; otherwise nothing of an earlier pass is in it.

    Raises:
        StoreError: no space, or no permission.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        size = logprob_bytes(*shape)
        self._shape = shape
        self._local = threading.local()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.continues = path.is_file() and path.stat().st_size == size
            if not self.continues:
                _reserve(path, size)
            self._file = path.open("r+b", buffering=0)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise _no_room(path, size, error) from error

    def buffer(self, rows: int) -> Codes:
        """[rows, vocabulary] codes to fill, used again for each block of a thread."""
        buffer: Codes | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < rows:
            buffer = self._local.buffer = np.empty((rows, self._shape[2]), dtype=np.uint16)
        return buffer[:rows]

    def write(self, window: int, first: int, codes: Codes) -> None:
        """Write consecutive rows of a window. Not through a memory map: each fresh page of one costs a fault."""
        _, scored, vocabulary = self._shape
        try:
            rest = codes.data.cast("B")
            offset = 2 * vocabulary * (window * scored + first)
            # One call writes 2 GiB at most.
            while len(rest) > 0:
                written = os.pwrite(self._file.fileno(), rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise _no_room(Path(self._file.name), logprob_bytes(*self._shape), error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LogprobReader:
    """Reads what a `LogprobWriter` wrote.

    Args:
        path: the file.
        scales: [windows, scored tokens] scale of each row.
        totals: [windows, scored tokens] sum of exp of each row, as it was before coding.
        vocabulary: length of a row.
        windows: how many the file will have, where it is still written to; None if as many as `scales`.

    Raises:
        FilesLost: the file is missing or has another size than its description.
    """

    def __init__(
        self,
        path: Path,
        scales: NDArray[np.float32],
        totals: NDArray[np.float32],
        vocabulary: int,
        windows: int | None = None,
    ) -> None:
        shape = (windows or len(scales), scales.shape[1], vocabulary)
        expected = 2 * int(np.prod(shape))
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise FilesLost(
                f"{path} holds {size} bytes, expected {expected}.", "Delete that folder; it will be measured again."
            )
        self._scales, self._totals = scales, totals
        self._codes: Codes = np.memmap(path, dtype=np.uint16, mode="r", shape=shape)

    def rows(self, window: int, first: int, count: int) -> tuple[Codes, NDArray[np.float32], NDArray[np.float32]]:
        """([count, vocabulary] codes, [count] scales, [count] sums)."""
        rows = slice(first, first + count)
        return self._codes[window, rows], self._scales[window, rows], self._totals[window, rows]


def _no_room(path: Path, size: int, error: OSError) -> StoreError:
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return write_error(path, error)
    return StoreError(
        f"The reference's log-probabilities need {size / 1e9:.2f} GB in {path.parent}: {error.strerror}.",
        "Free some space (`gguf-harness cache clear`), choose another --gguf-cache folder, or use fewer --gguf-chunks.",
    )


def _reserve(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(errno.ENOSPC, f"only {free / 1e9:.2f} GB are free")
    with path.open("wb") as file:
        # Not posix_fallocate: on ext4, writing to reserved extents takes four times as long.
        file.truncate(size)
