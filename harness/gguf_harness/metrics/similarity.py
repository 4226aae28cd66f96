"""How alike two sets of activations are: cosine and CKA. Pure numpy, computed in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData

__all__ = ["cosine", "linear_cka"]


def cosine(candidate: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Cosine of the angle between vectors along the last axis: exactly 1 for equal ones.

    Args:
        candidate: [..., d].
        reference: [..., d].

    Returns:
        [...]; NaN where one of both is zero: it has no direction.
    """
    a, b = _pair(candidate, reference)
    # Of each vector its own scale first: squares neither overflow nor vanish.
    a, b = _scaled(a), _scaled(b)
    products = np.einsum("...i,...i->...", a, a) * np.einsum("...i,...i->...", b, b)
    dot = np.einsum("...i,...i->...", a, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip(dot / np.sqrt(products), -1.0, 1.0))


def linear_cka(candidate: ArrayLike, reference: ArrayLike) -> float:
    """Linear centered kernel alignment of two representations of the same examples, between 0 and 1.

    Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited", equation 4 with features
    centered: ||Y'X||^2 / (||X'X|| ||Y'Y||). Invariant to rotation and isotropic scaling of either side. Biased upwards
    where there are few examples per feature: compare it only at equal n.

    Args:
        candidate: [n, d1].
        reference: [n, d2].

    Raises:
        NoData: fewer than two examples, or features that do not vary.
    """
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(f"CKA needs two matrices with the same number of rows, not {a.shape} and {b.shape}")
    if len(a) < 2:
        raise NoData(f"CKA of {len(a)} examples is not defined.", "Give at least two.")
    a, b = a - a.mean(0), b - b.mean(0)
    scales = np.abs(a).max(), np.abs(b).max()
    if 0 in scales:
        raise NoData("CKA of features that do not vary is not defined.")
    a, b = a / scales[0], b / scales[1]
    # Both forms are the same number; the smaller matrices are those of the shorter side.
    if len(a) <= min(a.shape[1], b.shape[1]):
        k, m = a @ a.T, b @ b.T
        cross, norms = float(np.sum(k * m)), np.linalg.norm(k) * np.linalg.norm(m)
    else:
        cross, norms = float(np.linalg.norm(b.T @ a) ** 2), np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return min(1.0, float(cross / norms))


def _pair(candidate: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Arrays of different shape: {a.shape} and {b.shape}")
    if a.size == 0:
        raise NoData("There is nothing to compare: the arrays are empty.")
    return a, b


def _scaled(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    return vectors / np.where(largest > 0, largest, 1.0)
