"""What analyses find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clustering", "Neighbors", "Projection", "Silhouette"]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Common to all.

    Attributes:
        backend: what computed it, and where: "scikit-learn 1.9.1, CPU".
        settings: of the method, once fitted to the points.
        warnings: what the libraries said about these points.
    """

    backend: str
    settings: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Projection(_Outcome):
    """Points in two or three dimensions.

    Attributes:
        coordinates: [n, dimensions].
        explained: [dimensions], the share of the variance along each axis; None but for PCA.
    """

    coordinates: NDArray[np.float64]
    explained: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Clustering(_Outcome):
    """Which cluster each point belongs to.

    Attributes:
        labels: [n], from 0 for the largest cluster on; -1 for none (noise), which may be all.
        scores: mean silhouette by number of clusters, where it was chosen by that.
    """

    labels: NDArray[np.int64]
    scores: Mapping[int, float]

    @property
    def clusters(self) -> int:
        """How many there are; 0 where all is noise."""
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
    """How well each point lies in its cluster, from -1 to 1.

    Attributes:
        rows: [m], which points: a sample of many, and none that is noise.
        values: [m].
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Of all values."""
        return float(self.values.mean())
