"""Arrays in .npz files, written atomically and checked when read; and in .npy files, mapped into memory."""

from __future__ import annotations

import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import FilesLost, write_error
from gguf_harness.store.atomic_file import replacing

__all__ = ["Arrays", "checksums", "file_checksum", "load_arrays", "map_array", "save_arrays"]

Arrays = dict[str, NDArray[np.generic]]
"""The result of a measurement: arrays by name."""

_READING: Final = threading.RLock()
"""numpy parses headers with `ast`, which Python 3.11 may fail to do in two threads at a time: SystemError, "AST
constructor recursion depth mismatch" (https://github.com/python/cpython/issues/106905)."""
_UNREADABLE: Final = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
    # What zipfile and numpy raise for damage that they notice before the checksum: wrong flags, types or sizes.
    *(RuntimeError, TypeError, AttributeError, MemoryError, OverflowError, SyntaxError, zlib.error, struct.error),
)


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write all arrays into one .npz file, atomically.

    Raises:
        StoreError: no space, or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise write_error(path, error) from error


def load_arrays(path: Path) -> Arrays:
    """Read all arrays of an .npz file. The checksums of the zip format are verified.

    Raises:
        FilesLost: the file is missing or damaged.
    """
    try:
        with _READING, np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise _lost(path, error) from error


def map_array(path: Path) -> NDArray[np.generic]:
    """The array of a .npy file as a memory map, to read. Any thread may call this.

    Raises:
        OSError, ValueError, EOFError: the file is missing, or not one array of numbers.
    """
    with _READING:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise ValueError("it contains several arrays, expected one")  # noqa: TRY004
    return loaded


def checksums(path: Path) -> dict[str, int]:
    """CRC-32 of each array in an .npz file, as its directory gives it: `load_arrays` compares the content with these.

    Raises:
        FilesLost: the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {part.filename: part.CRC for part in archive.infolist()}
    except _UNREADABLE as error:
        raise _lost(path, error) from error


def file_checksum(path: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _lost(path: Path, error: Exception) -> FilesLost:
    return FilesLost(f"{path} cannot be read: {error}.", "Delete it; its content will be measured again.")
