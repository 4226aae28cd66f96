"""The weights in GGUF files, dequantized a block of rows at a time.

Blocks are read, not memory-mapped: mapped pages count as memory of the process, and a mapped file that shrinks kills
it. The numbers are those of the package `gguf`, from fewer and larger calls.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import InvalidGGUF, ModelError
from gguf_harness.gguf.header import TENSOR_TYPES, TensorInfo, read_header

__all__ = ["BLOCK_WEIGHTS", "Weights"]

Floats = NDArray[np.float32]

BLOCK_WEIGHTS: Final = 1 << 20
"""Weights in a block of `Weights.blocks`: 4 MB as float32."""
# gguf's NumPy code is fastest if its temporaries fit into the CPU cache.
_PIECE_WEIGHTS: Final = 1 << 17
_TYPES: Final = {kind.name: kind for kind in TENSOR_TYPES.values()}


class Weights:
    """Tensors of a model as float32.

    Args:
        files: the GGUF file, or all its splits.

    Raises:
        InvalidGGUF: a file is not a valid GGUF file, or a tensor is in two splits.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: dict[str, tuple[Path, int, TensorInfo]] = {}
        for file in files:
            header = read_header(file)
            for info in header.tensors:
                if info.name in self._places:
                    raise InvalidGGUF(
                        f"Tensor {info.name!r} is in {self._places[info.name][0].name} and in {file.name}.",
                        "Give the splits of one model.",
                    )
                self._places[info.name] = file, header.data_offset + info.offset, info

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in the order of the files."""
        return tuple(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def info(self, name: str) -> TensorInfo:
        """The header's entry of a tensor; its shape is in ggml's order.

        Raises:
            ModelError: there is no such tensor.
        """
        return self._place(name)[2]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in numpy's order: [out, in] for a matrix, [experts, out, in] for one of experts, [n] for a vector."""
        return tuple(reversed(self.info(name).shape))

    def type(self, name: str) -> str:
        """Name of the type that a tensor is stored in, such as `Q4_K`."""
        return self.info(name).type

    def count_rows(self, name: str) -> int:
        """Number of rows of a tensor: the product of its shape without the last axis; 1 for a vector."""
        return math.prod(self.shape(name)[:-1])

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows `start` to `stop` of a tensor; of [experts, out, in], rows of all experts are counted through.

        Memory beyond the result is bounded, except for single rows longer than 2^17.

        Returns:
            [stop - start, in].

        Raises:
            ModelError: there is no such tensor, or its type cannot be dequantized.
            InvalidGGUF: the file is shorter than it was.
            IndexError: there are no such rows.
        """
        file, offset, info = self._place(name)
        count = self.count_rows(name)
        if not 0 <= start <= stop <= count:
            raise IndexError(f"{name} has {count} rows, not {start} to {stop}")
        width = info.shape[0]
        kind = _TYPES[info.type]
        row_bytes = width // kind.block * kind.block_bytes
        result = np.empty((stop - start, width), dtype=np.float32)
        step = max(1, _PIECE_WEIGHTS // width)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            raw = _read(file, offset + first * row_bytes, (last - first) * row_bytes)
            result[first - start : last - start] = _dequantize(raw, info, file).reshape(-1, width)
        return result

    def blocks(self, name: str, weights: int = BLOCK_WEIGHTS) -> Iterator[Floats]:
        """Yield all rows of a tensor in blocks of at most the given number of weights, but at least one row."""
        step = max(1, weights // self.info(name).shape[0])
        count = self.count_rows(name)
        for start in range(0, count, step):
            yield self.rows(name, start, min(start + step, count))

    def tensor(self, name: str) -> Floats:
        """A whole tensor, in its shape."""
        return self.rows(name, 0, self.count_rows(name)).reshape(self.shape(name))

    def _place(self, name: str) -> tuple[Path, int, TensorInfo]:
        try:
            return self._places[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._places, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"The files have {len(self._places)} tensors."
            raise ModelError(f"There is no tensor {name!r}.", hint) from None


def _read(file: Path, offset: int, size: int) -> NDArray[np.uint8]:
    try:
        raw = np.fromfile(file, dtype=np.uint8, count=size, offset=offset)
    except OSError as error:
        raise InvalidGGUF(f"{file} cannot be read: {error.strerror or error}.", "Check its permissions.") from error
    if raw.size != size:
        raise InvalidGGUF(
            f"{file.name} ends at byte {offset + raw.size}, expected at least {offset + size}: it has shrunk since its"
            " header was read.",
            "Download or create it again.",
        )
    return raw


def _dequantize(raw: NDArray[np.uint8], info: TensorInfo, file: Path) -> Floats:
    """Dequantize to flat float32. As one row, since gguf would otherwise process sixteen rows at a time."""
    from gguf import GGMLQuantizationType, quants

    try:
        values = quants.dequantize(raw.reshape(1, -1), GGMLQuantizationType[info.type])
    except (KeyError, NotImplementedError):
        import importlib.metadata

        raise ModelError(
            f"{file.name}: tensor {info.name!r} has type {info.type}, which gguf {importlib.metadata.version('gguf')}"
            " cannot dequantize.",
            "Update it (pip install -U gguf), or compare files of other types.",
        ) from None
    return np.asarray(values, dtype=np.float32).reshape(-1)
