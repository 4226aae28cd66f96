"""Silhouettes against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_samples

from gguf_harness.metrics.kernels.silhouette import silhouettes

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0.01, 100), st.booleans())
def test_silhouettes_are_scikit_learns(seed: int, k: int, scale: float, alone: bool) -> None:
    random = np.random.default_rng(seed)
    points = random.normal(size=(20, 3))
    labels = np.concatenate([np.arange(k), random.integers(1 if alone else 0, k, 20 - k)])
    distances = cdist(points, points)
    values = silhouettes(distances, labels)
    assert values == pytest.approx(silhouette_samples(distances, labels, metric="precomputed"), abs=1e-12)
    assert (np.abs(values) <= 1).all()
    # Neither the unit nor the order of points matters.
    assert silhouettes(scale * distances, labels) == pytest.approx(values, abs=1e-9)
    order = random.permutation(20)
    assert silhouettes(distances[np.ix_(order, order)], labels[order]) == pytest.approx(values[order], abs=1e-12)


def test_who_is_alone_has_none_and_who_is_in_one_place_has_all() -> None:
    points = np.array([[0.0], [0.0], [1.0]])
    assert silhouettes(cdist(points, points), np.array([0, 0, 1])).tolist() == [1, 1, 0]
    same = np.zeros((4, 4))
    assert silhouettes(same, np.array([0, 0, 1, 1])).tolist() == [0, 0, 0, 0]
