"""Arrays in .npz files, written atomically and checked when read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import FilesLost, write_error
from gguf_harness.store.atomic_file import replacing

__all__ = ["Arrays", "checksums", "file_checksum", "load_arrays", "save_arrays"]

Arrays = dict[str, NDArray[np.generic]]
"""The result of a measurement: arrays by name."""

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
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise _lost(path, error) from error


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
