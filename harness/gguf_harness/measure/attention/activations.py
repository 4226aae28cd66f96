"""Tensors of a decode on disk: appended during the decode, memory-mapped for comparisons."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import FilesLost, StoreError, write_error

__all__ = ["ActivationReader", "ActivationWriter"]

_INDEX: Final = "activations.json"
_DATA: Final = "activations.bin"
_ALIGNMENT: Final = 64
_AGAIN: Final = "Measure again with --gguf-fresh."


class ActivationWriter:
    """Appends named arrays. Several of one name are slices of it, in order along one axis.

    Args:
        folder: where the two files go; replaced if they exist.
        limit_bytes: most that may be written.

    Raises:
        StoreError: no space, no permission, or the limit.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._size = 0
        self._index: dict[str, list[dict[str, Any]]] = {}
        with self._guarded():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _INDEX).unlink(missing_ok=True)
            self._file = (folder / _DATA).open("wb")

    def add(self, name: str, values: NDArray[np.floating[Any]]) -> None:
        """Append a slice of an array."""
        padding = -self._size % _ALIGNMENT
        if self._size + padding + values.nbytes > self._limit:
            raise StoreError(
                f"Activations of the reference would take more than {self._limit / 1e9:.1f} GB.",
                "Use fewer or shorter prompts (--gguf-prompts), or raise --gguf-logprobs-limit and --gguf-cache-limit.",
            )
        with self._guarded():
            self._file.write(b"\0" * padding)
            content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
            self._file.write(content)
        self._size += padding
        entry = {"offset": self._size, "shape": list(values.shape), "dtype": values.dtype.str}
        entry["crc"] = zlib.crc32(content)
        self._index.setdefault(name, []).append(entry)
        self._size += values.nbytes

    def close(self) -> None:
        """Finish the file: the index is written last, and without it the data does not count."""
        with self._guarded():
            self._file.close()
            (self._folder / _INDEX).write_text(json.dumps({"bytes": self._size, "arrays": self._index}))

    def discard(self) -> None:
        """Remove the files, finished or not."""
        # Flushing the buffer may fail because the disk is full, which may be the reason for this call.
        with contextlib.suppress(OSError):
            self._file.close()
        ActivationReader.discard(self._folder)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self._folder / _DATA, error) from error


class ActivationReader:
    """Memory-maps the files of an `ActivationWriter`.

    Raises:
        FilesLost: they are missing, or shorter than their index says.
    """

    def __init__(self, folder: Path) -> None:
        try:
            content = json.loads((folder / _INDEX).read_text())
            self._index: dict[str, list[dict[str, Any]]] = content["arrays"]
            # Raises if the file is shorter. Empty files cannot be mapped.
            size = content["bytes"]
            self._data = np.memmap(folder / _DATA, np.uint8, "r", shape=(size,)) if size else np.empty(0, np.uint8)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise FilesLost(f"The stored activations in {folder} cannot be read: {error}.", _AGAIN) from error

    @staticmethod
    def is_there(folder: Path) -> bool:
        """Whether a finished set of activations is in a folder."""
        try:
            ActivationReader(folder)
        except StoreError:
            return False
        return True

    @staticmethod
    def discard(folder: Path) -> None:
        """Delete the activations of a folder, if any."""
        for name in (_INDEX, _DATA):
            (folder / name).unlink(missing_ok=True)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def slices(self, name: str) -> list[NDArray[np.floating[Any]]]:
        """The slices of an array, as read-only views of the file.

        Raises:
            FilesLost: they are not what was written.
        """
        try:
            arrays = [
                np.ndarray(tuple(entry["shape"]), np.dtype(entry["dtype"]), self._data, entry["offset"])
                for entry in self._index[name]
            ]
            damaged = [zlib.crc32(one.reshape(-1).view(np.uint8).data) for one in arrays] != [
                entry["crc"] for entry in self._index[name]
            ]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FilesLost(f"The stored activations of {name} cannot be read: {error!r}.", _AGAIN) from error
        if damaged:
            raise FilesLost(f"The stored activations of {name} are damaged.", _AGAIN)
        return arrays

    def array(self, name: str, axis: int = 0) -> NDArray[np.floating[Any]]:
        """The slices of an array joined along an axis: a view of the file if there is only one slice, else a copy."""
        slices = self.slices(name)
        return slices[0] if len(slices) == 1 else np.concatenate(slices, axis=axis)
