"""Clusters against direct calls of scikit-learn, silhouettes against their definition by scipy's distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from gguf_harness.analytics.clustering import CLUSTERERS, NOISE, Clustered, sampled_silhouette
from gguf_harness.errors import AnalyticsError, NoData

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 5000


def _blobs(sizes: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    # Centers in the corners of a simplex: equally far apart.
    return 40 * np.eye(len(sizes), 6)[truth] + rng.normal(size=(len(truth), 6)), truth


def _cluster(method: str, points: np.ndarray, size: int | None = None, seed: int = 0) -> Clustered:
    return CLUSTERERS[method].cluster(points, size, seed, LIMIT, lambda _done, _total: None)


@pytest.mark.parametrize("k", [2, 4])
def test_kmeans_is_scikit_learns_with_clusters_in_order_of_size(k: int) -> None:
    points, _ = _blobs((10, 30, 20))
    labels = _cluster("kmeans", points, k, seed=5).labels
    expected = KMeans(k, n_init=10, random_state=5).fit(points).labels_
    assert adjusted_rand_score(labels, expected) == 1
    counts = np.bincount(labels)
    assert len(counts) == k
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("sizes", [(20, 30), (10, 20, 30), (9, 8, 7, 6, 5)])
def test_the_number_of_clusters_has_the_largest_silhouette(sizes: tuple[int, ...]) -> None:
    points, truth = _blobs(sizes)
    clustering = _cluster("kmeans", points)
    assert adjusted_rand_score(clustering.labels, truth) == 1
    assert clustering.settings["k"] == len(sizes)
    assert max(clustering.scores.values()) == pytest.approx(silhouette_score(points, truth))


def test_hdbscan_is_scikit_learns() -> None:
    points, _ = _blobs((40, 20, 30))
    points = np.vstack([points, [[500.0, 0, 0, 0, 0, 0]]])
    labels = _cluster("hdbscan", points).labels
    expected = HDBSCAN(min_cluster_size=5, copy=True).fit(points).labels_
    assert ((labels == NOISE) == (expected == NOISE)).all()
    assert labels[-1] == NOISE
    assert adjusted_rand_score(labels, expected) == 1
    assert np.bincount(labels[labels >= 0]).tolist() == sorted(np.bincount(expected[expected >= 0]), reverse=True)


def test_all_may_be_noise() -> None:
    points = np.random.default_rng(0).uniform(size=(60, 30))
    assert (_cluster("hdbscan", points).labels == NOISE).all()
    with pytest.raises(NoData, match="0 points in 0 clusters"):
        sampled_silhouette(points, np.full(60, NOISE), 0, LIMIT)


@given(st.integers(0, 50))
def test_duplicates_stay_together(seed: int) -> None:
    points = np.repeat(_blobs((3, 3), seed=seed)[0], 6, axis=0)
    labels = _cluster("kmeans", points, 3).labels.reshape(6, 6)
    assert (labels == labels[:, :1]).all()


@pytest.mark.parametrize(
    ("method", "size", "n", "words"),
    [
        ("kmeans", 1, 9, "k-means cannot make 1 clusters"),
        ("kmeans", 10, 9, "k-means cannot make 10 clusters of 9 points"),
        ("hdbscan", 1, 9, "HDBSCAN cannot have clusters of 1 points"),
    ],
)
def test_a_size_that_does_not_fit_is_named(method: str, size: int, n: int, words: str) -> None:
    with pytest.raises(AnalyticsError, match=words):
        _cluster(method, np.random.default_rng(0).normal(size=(n, 2)), size)


def test_clusters_of_the_same_point_are_none() -> None:
    same = np.ones((30, 3))
    with pytest.raises(AnalyticsError, match="of which 1 differ"):
        _cluster("kmeans", same, 2)
    for few in (same, np.eye(2), np.ones((1, 3))):
        with pytest.raises(NoData, match="not defined"):
            _cluster("kmeans", few)
    with pytest.raises(NoData, match="HDBSCAN of 4 points is not defined: its smallest cluster has 5"):
        _cluster("hdbscan", np.eye(4))


def test_two_different_points_among_many_are_two_clusters() -> None:
    clustering = _cluster("kmeans", np.repeat(np.eye(2), 5, axis=0))
    assert clustering.scores == {2: 1.0}


def _silhouettes(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rousseeuw's definition, point by point."""
    distances = cdist(points, points)
    values = []
    for i, own in enumerate(labels):
        mates = (labels == own) & (np.arange(len(labels)) != i)
        if not mates.any():
            values.append(0.0)
            continue
        a = distances[i, mates].mean()
        b = min(distances[i, labels == other].mean() for other in set(labels) - {own})
        values.append((b - a) / max(a, b))
    return np.array(values)


@given(st.integers(0, 100), st.integers(2, 6))
def test_silhouettes_are_as_defined(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(20, 3))
    labels = np.concatenate([np.arange(k), rng.integers(-1, k, size=20 - k)])
    rows, values = sampled_silhouette(points, labels, 0, LIMIT)
    assert (rows == np.flatnonzero(labels >= 0)).all()
    assert values == pytest.approx(_silhouettes(points[rows], labels[rows]), abs=1e-9)
    assert (np.abs(values) <= 1).all()


def test_a_sample_is_drawn_once_for_a_seed() -> None:
    points, labels = _blobs((50, 50))
    rows, values = sampled_silhouette(points, labels, 7, 30)
    assert len(rows) == 30
    assert values == pytest.approx(_silhouettes(points[rows], labels[rows]))
    assert (sampled_silhouette(points, labels, 7, 30)[0] == rows).all()
    assert (sampled_silhouette(points, labels, 8, 30)[0] != rows).any()


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0, 1, -1]])
def test_a_silhouette_needs_clusters_of_several(labels: list[int]) -> None:
    with pytest.raises(NoData, match="is not defined"):
        sampled_silhouette(np.eye(3), np.array(labels), 0, LIMIT)
