"""Clusters, and how well they are separated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_harness.analytics.points import count_distinct
from gguf_harness.errors import AnalyticsError, NoData

__all__ = ["CLUSTERERS", "NOISE", "Clustered", "Clusterer", "sampled_silhouette"]

NOISE: Final = -1
"""Label of points without a cluster."""

_MOST_CLUSTERS: Final = 10
_STARTS: Final = 10
_SMALLEST_CLUSTER: Final = 5
_WORKING_MEMORY_MB: Final = 256

Step = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Clustered:
    """What a clusterer returns.

    Attributes:
        labels: [n], from 0 for the largest cluster on; `NOISE` for none.
        settings: the settings used.
        scores: mean silhouette by number of clusters, if the number was chosen by that.
    """

    labels: NDArray[np.int64]
    settings: dict[str, Any]
    scores: dict[int, float]


class Clusterer(Protocol):
    """A way to find clusters."""

    def cluster(self, points: NDArray[np.float64], size: int | None, seed: int, limit: int, step: Step) -> Clustered:
        """Find clusters.

        Args:
            points: [n, d], centered and finite.
            size: k-means: the number of clusters, None to choose it; HDBSCAN: the fewest points of a cluster.
            seed: of whatever is random.
            limit: most points for silhouettes.
            step: told (done, total).

        Raises:
            AnalyticsError: a size that does not fit the points.
            NoData: too few points, or all the same.
        """


class _KMeans:
    """k-means by Lloyd's algorithm from ten k-means++ starts (Arthur and Vassilvitskii, 2007).

    The number of clusters, if not given, is that of 2 to 10 with the largest mean silhouette (Rousseeuw, 1987); of
    equal ones the smallest.
    """

    def cluster(self, points: NDArray[np.float64], size: int | None, seed: int, limit: int, step: Step) -> Clustered:
        n = len(points)
        if size is not None:
            distinct = count_distinct(points, size)
            if not 2 <= size <= distinct:
                few = f", of which {distinct} differ" if distinct < min(n, size) else ""
                raise AnalyticsError(
                    f"k-means cannot make {size} clusters of {n} points{few}.", "Give 2 or more, and enough points."
                )
            return Clustered(self._fit(points, size, seed), {"k": size, "n_init": _STARTS}, {})
        most = min(_MOST_CLUSTERS, count_distinct(points, _MOST_CLUSTERS), n - 1)
        if most < 2:
            raise NoData(
                f"Clusters of {n} points that are all the same, or fewer than three, are not defined.",
                "Give more points.",
            )
        labels_by_count: dict[int, NDArray[np.int64]] = {}
        scores: dict[int, float] = {}
        for k in range(2, most + 1):
            step(k - 2, most - 1)
            labels = self._fit(points, k, seed)
            if len(np.unique(labels)) == k:
                labels_by_count[k] = labels
                scores[k] = float(sampled_silhouette(points, labels, seed, limit)[1].mean())
        best = max(scores, key=lambda k: (scores[k], -k))
        return Clustered(labels_by_count[best], {"k": best, "n_init": _STARTS, "k_from": 2, "k_to": most}, scores)

    @staticmethod
    def _fit(points: NDArray[np.float64], k: int, seed: int) -> NDArray[np.int64]:
        from sklearn.cluster import KMeans

        return _by_size(np.asarray(KMeans(k, n_init=_STARTS, random_state=seed).fit(points).labels_))


class _HDBSCAN:
    """Clusters by density, with noise (Campello, Moulavi and Sander, 2013), by scikit-learn. Deterministic."""

    def cluster(self, points: NDArray[np.float64], size: int | None, seed: int, limit: int, step: Step) -> Clustered:  # noqa: ARG002 - part of the protocol
        from sklearn.cluster import HDBSCAN

        smallest = _SMALLEST_CLUSTER if size is None else size
        if smallest < 2:
            raise AnalyticsError(f"HDBSCAN cannot have clusters of {smallest} points.", "Give 2 or more.")
        if len(points) < smallest:
            raise NoData(f"HDBSCAN of {len(points)} points is not defined: its smallest cluster has {smallest}.")
        fitted = HDBSCAN(min_cluster_size=smallest, copy=True).fit(points)
        return Clustered(_by_size(np.asarray(fitted.labels_)), {"min_cluster_size": smallest}, {})


CLUSTERERS: Final[dict[str, Clusterer]] = {"kmeans": _KMeans(), "hdbscan": _HDBSCAN()}
"""Methods by name."""


def _by_size(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The same clusters, numbered from the largest to the smallest, ties by first point."""
    # Cluster numbers are arbitrary and differ between libraries.
    names, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    order = order[names[order] >= 0]
    numbered = np.full(len(labels), NOISE, dtype=np.int64)
    for new, old in enumerate(order):
        numbered[labels == names[old]] = new
    return numbered


def sampled_silhouette(
    points: NDArray[np.float64], labels: NDArray[np.integer], seed: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Silhouette of each point, from -1 to 1; of a random sample if there are more points than `limit`.

    Rousseeuw (1987), "Silhouettes": (b - a) / max(a, b), a the mean distance to the point's own cluster, b to the
    nearest other one; 0 in a cluster of one.

    Args:
        points: [n, d].
        labels: [n]; points with the label `NOISE` are left out.
        seed: of the sample.
        limit: most points; distances of a sample are to the sample.

    Returns:
        (rows [m], silhouettes [m]), rows in ascending order.

    Raises:
        NoData: fewer than two clusters, or as many as points.
    """
    from sklearn import config_context
    from sklearn.metrics import silhouette_samples

    rows = np.flatnonzero(labels != NOISE)
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    clusters = len(np.unique(labels[rows]))
    if not 2 <= clusters < len(rows):
        raise NoData(
            f"The silhouette of {len(rows)} points in {clusters} clusters is not defined.",
            "It needs at least two clusters, one of them with several points.",
        )
    with config_context(working_memory=_WORKING_MEMORY_MB):
        values = silhouette_samples(points[rows], labels[rows])
    return rows, np.asarray(values, dtype=np.float64)
