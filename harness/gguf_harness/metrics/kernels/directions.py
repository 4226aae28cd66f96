"""Lengths and directions of vectors, and the cosine between them.

Each vector is divided by its largest entry first, so that squares neither overflow nor underflow.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData

__all__ = ["cosine", "cosine_of_products", "directions", "norms"]

Floats = NDArray[np.float64]
Float = TypeVar("Float", bound=np.floating[Any])


def norms(vectors: ArrayLike) -> Floats:
    """[...] Euclidean norms along the last axis, in float64."""
    x = np.asarray(vectors, dtype=np.float64)
    scale = _scale(x)
    return np.asarray(np.sqrt(np.square(x / scale).sum(axis=-1)) * scale[..., 0])


def cosine(candidate: ArrayLike, reference: ArrayLike) -> Floats:
    """Cosine of the angle between vectors along the last axis, in float64: exactly 1 for equal ones.

    Args:
        candidate: [..., d].
        reference: [..., d].

    Returns:
        [...]; NaN if one of them is zero and has no direction.

    Raises:
        NoData: the arrays are empty.
    """
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Arrays of different shape: {a.shape} and {b.shape}")
    if a.size == 0:
        raise NoData("There is nothing to compare: the arrays are empty.")
    a, b = a / _scale(a), b / _scale(b)
    return cosine_of_products(
        np.einsum("...i,...i->...", a, b), np.einsum("...i,...i->...", a, a), np.einsum("...i,...i->...", b, b)
    )


def cosine_of_products(product: Floats, square: Floats, other_square: Floats) -> Floats:
    """Cosines from a'b, a'a and b'b; NaN where one of the squares is zero.

    The square root of x * x is x: a vector has cosine 1 with itself, to the bit.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip(product / np.sqrt(square * other_square), -1.0, 1.0))


def directions(rows: NDArray[Float], sums: type[np.float64] | None = None) -> tuple[NDArray[Float], NDArray[np.bool_]]:
    """Rows scaled to unit length, and which of them are valid: neither zero nor NaN.

    Args:
        rows: [n, d].
        sums: type in which squares are added up; that of the rows if not given.

    Returns:
        ([n, d] of the type of the rows, zero where there is no direction; [n]).
    """
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    valid = np.isfinite(largest) & (largest > 0)
    units = np.divide(rows, largest, out=np.zeros_like(rows), where=valid)
    lengths = np.sqrt(np.einsum("ij,ij->i", units, units, dtype=sums))[:, None].astype(rows.dtype)
    np.divide(units, lengths, out=units, where=valid)
    return units, valid[:, 0]


def _scale(vectors: Floats) -> Floats:
    """[..., 1] largest magnitude along the last axis, 1 where that is 0."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    return np.asarray(np.where(largest > 0, largest, 1.0))
