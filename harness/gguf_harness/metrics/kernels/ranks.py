"""Ranks, the correlation of ranks, and the first of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData

__all__ = ["largest", "mean_ranks", "spearman"]


def largest(values: NDArray[np.floating[Any]], most: int) -> NDArray[np.int64]:
    """[..., min(n, most)] places of the largest of [..., n] values, in order; the first of equal ones comes first.

    A sort of everything would take longer than a token of a small model with a large vocabulary.

    Args:
        values: [n], or rows of them; none is NaN.
        most: how many, at least 1.
    """
    if values.ndim > 1:
        return np.stack([largest(row, most) for row in values])
    if most < len(values):
        least = np.partition(values, -most)[-most]
        some = np.flatnonzero(values >= least)
    else:
        some = np.arange(len(values))
    return np.asarray(some[np.argsort(-values[some], kind="stable")][:most], dtype=np.int64)


def mean_ranks(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """[n] ranks of [n] values from 1 on, ties at their mean rank.

    The same as `scipy.stats.rankdata`, without importing scipy.stats, which takes half a second.

    Args:
        values: [n], or rows of them; none is NaN.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def spearman(first: NDArray[np.float64], second: NDArray[np.float64], what: str = "rank correlation") -> float:
    """Rank correlation, ties at their mean rank. Spearman (1904), The proof and measurement of association.

    Args:
        first: [n] values.
        second: [n] paired values.
        what: named in errors.

    Returns:
        In [-1, 1].

    Raises:
        NoData: fewer than two pairs, values that are not finite, or all values of one side equal.
    """
    if first.shape != second.shape or first.size < 2:
        raise NoData(f"{what}: it needs two pairs or more, has {first.size} and {second.size} values.")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise NoData(f"{what}: some of {first.size} pairs are not finite.")
    x, y = (mean_ranks(side) - (len(side) + 1) / 2 for side in (first, second))
    norm = math.sqrt(float(x @ x) * float(y @ y))
    if norm == 0:
        raise NoData(f"{what}: it is not defined if all values on one side are equal.")
    return min(1.0, max(-1.0, float(x @ y) / norm))
