"""Values in types of the KV cache, converted by ggml's own functions, and the rotation before they are quantized."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.binding import library
from gguf_harness.engine.settings import GGML_TYPES, CacheType
from gguf_harness.errors import EngineError
from gguf_harness.gguf.cache_layout import row_bytes

__all__ = ["from_bytes", "hadamard", "rotate", "through_cache", "to_bytes"]

F32 = NDArray[np.float32]

_CONVERT: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` (ggml/include/ggml.h)."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


class _CpuTraits(ctypes.Structure):
    """The start of `struct ggml_type_traits_cpu` (ggml/include/ggml-cpu.h)."""

    _fields_ = [("from_float", ctypes.c_void_p)]


@functools.cache
def _functions(cache_type: CacheType) -> tuple[Any, Any]:
    """(to bytes, to float): ggml's, the first that of its CPU backend, which writes the cache there."""
    ggml, number = library(), GGML_TYPES[cache_type]
    traits = _Traits.from_address(ggml.ggml_get_type_traits(number))
    if (name := traits.type_name) is None or name.decode().lower() != cache_type:
        raise EngineError(f"The loaded ggml has {name!r} for the type {cache_type}: its layout of types is another.")
    to_cache = _CpuTraits.from_address(ggml.ggml_get_type_traits_cpu(number)).from_float
    return _CONVERT(to_cache), _CONVERT(traits.to_float) if traits.to_float else None


def to_bytes(cache_type: CacheType, values: F32) -> NDArray[np.uint8]:
    """Rows as a cache of this type holds them on the CPU.

    Args:
        cache_type: type of the cache.
        values: [..., d], d a multiple of the type's block.

    Returns:
        [..., bytes of d values].
    """
    rows = np.ascontiguousarray(values, dtype=np.float32)
    raw = np.empty((*rows.shape[:-1], row_bytes(cache_type, rows.shape[-1])), dtype=np.uint8)
    if cache_type == "f32":
        return rows.view(np.uint8).reshape(raw.shape).copy()
    _functions(cache_type)[0](rows.ctypes.data, raw.ctypes.data, rows.size)
    return raw


def from_bytes(cache_type: CacheType, raw: NDArray[np.uint8], values: int) -> F32:
    """Inverse of `to_bytes`, up to the type's precision.

    Args:
        cache_type: type of the cache.
        raw: [..., bytes of a row].
        values: of a row, d.

    Returns:
        [..., d].
    """
    if raw.shape[-1] != row_bytes(cache_type, values):
        raise ValueError(f"A row of {values} values in {cache_type} has other than {raw.shape[-1]} bytes")
    rows = np.ascontiguousarray(raw)
    if cache_type == "f32":
        return rows.view(np.float32).reshape(*raw.shape[:-1], values).copy()
    out = np.empty((*raw.shape[:-1], values), dtype=np.float32)
    _functions(cache_type)[1](rows.ctypes.data, out.ctypes.data, out.size)
    return out


@functools.cache
def hadamard(size: int) -> F32:
    """The orthonormal, symmetric Hadamard matrix of Sylvester (1867) of a power of two: its own inverse."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"A Hadamard matrix of {size} rows is not made here, expected a power of two")
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / size**0.5, dtype=np.float32)


def rotate(values: F32, size: int) -> F32:
    """Multiply each run of `size` values by the Hadamard matrix; 0 leaves all as it is. Twice is once back.

    Args:
        values: [..., d], d a multiple of the size.
        size: of the matrix.
    """
    if size == 0:
        return values
    runs = values.reshape(-1, size) @ hadamard(size)
    return np.asarray(runs.reshape(values.shape), dtype=np.float32)


def through_cache(cache_type: CacheType, values: F32, rotation: int = 0) -> F32:
    """What is left of values that are rotated, stored in a cache and read from it: all of it in single precision."""
    stored = to_bytes(cache_type, rotate(values, rotation))
    return rotate(from_bytes(cache_type, stored, values.shape[-1]), rotation)
