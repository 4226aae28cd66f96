"""Silhouettes of points in clusters, from their distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["silhouettes"]


def silhouettes(distances: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Silhouette of each point, from -1 to 1. Rousseeuw (1987), "Silhouettes".

    (b - a) / max(a, b) with a the mean distance to the others of the own cluster and b the least mean distance to
    another one; 0 for a single point in its cluster.

    Args:
        distances: [n, n] of all pairs, 0 on the diagonal.
        labels: [n] clusters, from 0 on without a gap: two or more.

    Returns:
        [n].
    """
    sizes = np.bincount(labels)
    members = np.equal.outer(labels, np.arange(len(sizes))).astype(np.float64)
    sums = distances @ members
    points = np.arange(len(labels))
    own = sums[points, labels] / np.maximum(1, sizes[labels] - 1)
    means = sums / sizes
    means[points, labels] = np.inf
    other = means.min(axis=1)
    largest = np.maximum(own, other)
    values = np.where(largest > 0, (other - own) / np.where(largest > 0, largest, 1), 0.0)
    return np.asarray(np.where(sizes[labels] > 1, values, 0.0), dtype=np.float64)
