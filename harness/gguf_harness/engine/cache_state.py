"""Keys and values as the cache of a context holds them, from llama.cpp's state of it.

The state is what llama.cpp writes to continue later: `llama_state_get_data` (include/llama.h). Its layout is that of
`llama_kv_cache::state_write` (src/llama-kv-cache.cpp). It is read whole, since the state of one sequence leaves out
what a sliding window has passed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.cache_types import from_bytes, rotate
from gguf_harness.engine.settings import GGML_TYPES, CacheType
from gguf_harness.errors import EngineError
from gguf_harness.gguf.cache_layout import row_bytes

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.gguf.cache_layout import CacheLayer, CacheLayout

__all__ = ["CachedRows", "read_cache"]

F32 = NDArray[np.float32]

_NAMES: Final[dict[int, CacheType]] = {number: name for name, number in GGML_TYPES.items()}
_MOST_SEQUENCES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class CachedRows:
    """Keys or values of one layer and one sequence.

    Attributes:
        type: how they are stored.
        positions: [tokens] ascending.
        raw: [tokens, bytes of a row], as they are stored; transposed values are put back in rows.
        heads: heads of keys and values.
        size: values of a head.
    """

    type: CacheType
    positions: NDArray[np.int32]
    raw: NDArray[np.uint8]
    heads: int
    size: int

    def values(self, rotation: int = 0) -> F32:
        """[tokens, heads, size], converted by ggml's own functions.

        Args:
            rotation: size of the Hadamard matrix that llama.cpp multiplied them by, which is undone; 0 for none, or to
                leave them as attention reads them.
        """
        flat = from_bytes(self.type, self.raw, self.heads * self.size)
        return rotate(flat.reshape(len(self.positions), self.heads, self.size), rotation)


def read_cache(context: Context, layout: CacheLayout, sequence: int = 0) -> dict[str, dict[int, CachedRows]]:
    """Keys (`k`) and values (`v`) of a sequence, by layer; no values where only latents are cached.

    Raises:
        EngineError: llama.cpp gives no state, or one of another form.
    """
    state = _State(_state_of(context), layout)
    found: dict[str, dict[int, CachedRows]] = {"k": {}, "v": {}}
    try:
        state.skip_architecture()
        for sliding in (False, True) if layout.sliding else (False,):
            layers = [layer for layer in layout.layers if layer.sliding == sliding]
            state.read(layers, sequence, found)
    except (struct.error, IndexError, KeyError) as error:
        raise EngineError(f"The state of the cache of {context.model.name} has another form: {error!r}.") from None
    return found


def _state_of(context: Context) -> NDArray[np.uint8]:
    size = int(llama_cpp.llama_state_get_size(context.pointer))
    data = np.empty(size, dtype=np.uint8)
    kind: Any = llama_cpp.ctypes.c_uint8 * size
    written = int(llama_cpp.llama_state_get_data(context.pointer, kind.from_buffer(data), size)) if size else 0
    if written != size or size == 0:
        raise EngineError(f"llama.cpp wrote {written} bytes of the state of {context.model.name}, expected {size}.")
    return data


class _State:
    """A single pass over the bytes."""

    def __init__(self, data: NDArray[np.uint8], layout: CacheLayout) -> None:
        self._data, self._layout, self._at = data, layout, 0

    def skip_architecture(self) -> None:
        (length,) = self._take("I")
        name = self._bytes(length).tobytes().decode("utf-8", "replace")
        if name != self._layout.architecture:
            raise EngineError(f"The state is of a {name} model, expected {self._layout.architecture}.")

    def read(self, layers: list[CacheLayer], sequence: int, found: dict[str, dict[int, CachedRows]]) -> None:
        """One cache: all of its streams."""
        (streams,) = self._take("I")
        for _ in range(streams):
            (cells,) = self._take("I")
            if cells == 0:
                continue
            positions, own = self._cells(cells, sequence)
            order = np.flatnonzero(own)[np.argsort(positions[own], kind="stable")]
            self._rows(layers, cells, positions, order, found)

    def _cells(self, count: int, sequence: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(position of each cell, whether it is of the sequence)."""
        positions, own = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.bool_)
        for cell in range(count):
            positions[cell], n_sequences = self._take("iI")
            if not 1 <= n_sequences <= _MOST_SEQUENCES:
                raise EngineError("A cache whose tokens have positions of several dimensions cannot be read.")
            own[cell] = sequence in self._take(f"{n_sequences}i")
        return positions, own

    def _rows(
        self,
        layers: list[CacheLayer],
        cells: int,
        positions: NDArray[np.int32],
        order: NDArray[np.intp],
        found: dict[str, dict[int, CachedRows]],
    ) -> None:
        transposed, n_layer = self._take("II")
        if n_layer != len(layers):
            raise EngineError(f"The state has {n_layer} layers of a cache, expected {len(layers)}.")

        def keep(kind: str, layer: CacheLayer, name: CacheType, rows: NDArray[np.uint8], size: int) -> None:
            if len(order):
                found[kind][layer.layer] = CachedRows(name, positions[order], rows[order], layer.heads, size)

        for layer in layers:
            keep("k", layer, *self._rows_of(cells, layer.key_values), layer.d_key)
        for layer in (layer for layer in layers if layer.d_value):
            read = self._columns_of if transposed else self._rows_of
            keep("v", layer, *read(cells, layer.value_values), layer.d_value)

    def _rows_of(self, cells: int, values: int) -> tuple[CacheType, NDArray[np.uint8]]:
        number, size = self._take("=iQ")
        name = _NAMES[number]
        if size != row_bytes(name, values):
            raise EngineError(f"A row of {values} values of type {name} has {size} bytes in the state.")
        return name, self._bytes(cells * size).reshape(cells, size)

    def _columns_of(self, cells: int, values: int) -> tuple[CacheType, NDArray[np.uint8]]:
        """Values that are stored transposed: the same value of all tokens side by side."""
        number, size, columns = self._take("=iII")
        name = _NAMES[number]
        if (size, columns) != (row_bytes(name, 1), values):
            raise EngineError(f"{columns} transposed values of {size} bytes are in the state, expected {values}.")
        stored = self._bytes(columns * cells * size).reshape(columns, cells, size)
        return name, np.ascontiguousarray(stored.transpose(1, 0, 2)).reshape(cells, columns * size)

    def _take(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        return struct.unpack(form, self._bytes(size).tobytes())

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        if self._at + count > len(self._data):
            raise EngineError("The state of the cache ends too early.")
        self._at += count
        return self._data[self._at - count : self._at]
