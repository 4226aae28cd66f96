"""Results of analyses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clustering", "Neighbors", "Projection", "Silhouette"]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Common fields.

    Attributes:
        backend: what computed it, and on what: "scikit-learn 1.9.1, CPU".
        settings: settings of the method for these points.
        warnings: warnings of the libraries about these points.
    """

    backend: str
    settings: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Projection(_Outcome):
    """Points in two or three dimensions.

    Attributes:
        coordinates: [n, dimensions].
        explained: [dimensions], the share of the variance along each axis; None except for PCA.
    """

    coordinates: NDArray[np.float64]
    explained: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Clustering(_Outcome):
    """Which cluster each point belongs to.

    Attributes:
        labels: [n], from 0 for the largest cluster on; -1 for none (noise), which may be all.
        scores: mean silhouette by number of clusters, if chosen by that.
    """

    labels: NDArray[np.int64]
    scores: Mapping[int, float]

    @property
    def clusters(self) -> int:
        """Number of clusters; 0 if all points are noise."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True, slots=True)
class Neighbors(_Outcome):
    """The nearest other points.

    Attributes:
        rows: [m], whose neighbors.
        indices: [m, k], nearest first.
        distances: [m, k]; with cosine 1 - cos.
    """

    rows: NDArray[np.int64]
    indices: NDArray[np.int64]
    distances: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Silhouette(_Outcome):
    """How well each point fits its cluster, from -1 to 1.

    Attributes:
        rows: [m], the points: a sample if there are many, without noise.
        values: [m].
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.values.mean())
