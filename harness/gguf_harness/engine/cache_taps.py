"""What llama.cpp's graph says about the KV cache while it decodes: its buffers, and how attention reads it.

llama.cpp has no public function for either. Cache tensors are operands of graph nodes and have names of their own
(`cache_k_l0`); attention is one node per layer with flash attention, and ends in a softmax without it.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.binding import Tensor, library, read_tensor
from gguf_harness.engine.taps import Taps

if TYPE_CHECKING:
    from gguf_harness.engine.taps import Patcher, Reader

__all__ = ["Attention", "CacheTaps", "CacheTensor"]

_CACHE: Final = re.compile(rb"cache_([kv])_l(\d+)")
_FLASH, _SOFT_MAX, _PRODUCT = b"FLASH_ATTN_EXT", b"SOFT_MAX", b"MUL_MAT"
_SINKS: Final = {_FLASH: 4, _SOFT_MAX: 2}
"""Operand with learned weights of a sink, which take attention from all tokens."""


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """The cache of keys or values of a layer.

    Attributes:
        bytes: of all cells.
        buffer: llama.cpp's buffer that holds it, which tensors share.
        buffer_bytes: size of that buffer, as ggml reports it.
    """

    bytes: int
    buffer: int
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class Attention:
    """How a layer's attention reads the cache, by llama.cpp's graph.

    Attributes:
        layer: number in the model.
        flash: whether it is flash attention.
        scale: of q k^T before the softmax.
        more: what else scores pass through besides scale, mask and softmax: `ALiBi`, `softcap`, `sinks`, or an
            operation of the graph; empty for none.
    """

    layer: int
    flash: bool
    scale: float
    more: tuple[str, ...] = ()


class CacheTaps(Taps):
    """Taps that also notice the tensors of the cache and each layer's attention.

    Args:
        architecture: as for `Taps`.
        n_layer: as for `Taps`.
        read: as for `Taps`.
        patch: as for `Taps`.
        query: called with (attention, q, mask) after each layer's attention: q [pos, head, d_key] as attention used it,
            scaled and rotated where llama.cpp does so before; mask [pos, cell] is added to scores, -inf where a cell is
            not seen. Both of one sequence alone.

    Attributes:
        tensors: by kind (`k` or `v`) and layer, those that the last decodes used.
    """

    def __init__(
        self,
        architecture: str,
        n_layer: int,
        *,
        read: Mapping[str, Reader] | None = None,
        patch: Mapping[str, Patcher] | None = None,
        query: Callable[[Attention, NDArray[np.float32], NDArray[np.float32]], None] | None = None,
    ) -> None:
        self.tensors: dict[tuple[str, int], CacheTensor] = {}
        self._query = query
        super().__init__(architecture, n_layer, read=read, patch=patch, changing=True)

    def _on_node(self, address: int, ask: bool, user: object) -> bool:
        wanted = False
        try:
            node = Tensor.from_address(address)
            if ask:
                self._note_cache(node)
            found = self._attention(address, node) if self._query is not None and self._failure is None else None
            if found is not None and self._query is not None:
                attention, product = found
                if not ask:
                    q = _query_of(product, flash=attention.flash)
                    mask = read_tensor(node.src[3 if attention.flash else 1])[0, 0, : len(q)]
                    self._query(attention, q, mask)
                wanted = True
        except BaseException as error:
            self._failure = error
        # The taps decide for the others; what both want is told to both.
        return super()._on_node(address, ask, user) or wanted

    def _note_cache(self, node: Tensor) -> None:
        for operand in node.src:
            if not operand:
                break
            address = operand.contents.view_src or ctypes.addressof(operand.contents)
            root = Tensor.from_address(address)
            match = _CACHE.fullmatch(root.name)
            if match is None or not root.buffer:
                continue
            place = match[1].decode(), int(match[2])
            if place not in self.tensors:
                size = library().ggml_backend_buffer_get_size(root.buffer)
                self.tensors[place] = CacheTensor(library().ggml_nbytes(address), root.buffer, size)

    @property
    def buffer_bytes(self) -> int:
        """Size of llama.cpp's buffers that hold keys and values, to the byte."""
        sizes = {tensor.buffer: tensor.buffer_bytes for tensor in self.tensors.values()}
        return sum(sizes.values())

    def _attention(self, address: int, node: Tensor) -> tuple[Attention, Tensor] | None:
        """The attention that a node ends, and the node whose operands are k and q (in flash attention q and k)."""
        operation = self._describe(address)
        if operation not in _SINKS:
            return None
        product, between = node, []
        if operation == _SOFT_MAX:
            product = node.src[0].contents
            while (name := self._describe(ctypes.addressof(product))) != _PRODUCT:
                if not product.src[0]:
                    return None
                between.append(name.decode().lower())
                product = product.src[0].contents
        keys = product.src[1] if operation == _FLASH else product.src[0]
        match = _CACHE.fullmatch(_root_of(keys.contents)) if keys else None
        if match is None:
            return None
        scale, bias, softcap = struct.unpack("<3f", bytes(node.op_params)[:12])
        flags = {
            "ALiBi": bias > 0,
            "softcap": operation == _FLASH and softcap > 0,
            "sinks": bool(node.src[_SINKS[operation]]),
        }
        more = (*(name for name, there in flags.items() if there), *between)
        return Attention(int(match[2]), operation == _FLASH, scale, more), product


def _root_of(tensor: Tensor) -> bytes:
    root = Tensor.from_address(tensor.view_src) if tensor.view_src else tensor
    return bytes(root.name)


def _query_of(product: Tensor, *, flash: bool) -> NDArray[np.float32]:
    """[pos, head, d_key] of an operand in ggml's shape [stream, head, pos, d_key]."""
    values = read_tensor(product.src[0 if flash else 1])
    streams, heads, positions, size = values.shape
    return values.transpose(0, 2, 1, 3).reshape(streams * positions, heads, size)
