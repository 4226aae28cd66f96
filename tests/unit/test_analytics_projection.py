"""Projections: PCA against numpy's SVD, t-SNE against a direct call, and what they do with odd points."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.manifold import TSNE

from gguf_harness.analytics.points import load_points
from gguf_harness.analytics.projection import PROJECTORS
from gguf_harness.errors import AnalyticsError

pytestmark = pytest.mark.usefixtures("one_thread")


def _points(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Variances that are apart, so that axes are unique.
    return rng.normal(size=(n, d)) * np.linspace(5, 1, d) + 100


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("n", "d"), [(60, 7), (5, 40), (300, 300)])
def test_pca_is_the_svd_of_centered_points(n: int, d: int, dimensions: int) -> None:
    points = _points(n, d)
    u, s, vt = np.linalg.svd(points - points.mean(0), full_matrices=False)
    signs = np.sign([row[np.argmax(np.abs(row))] for row in vt[:dimensions]])
    projection = PROJECTORS["pca"].project(load_points(points, "euclidean"), dimensions, 0, None)
    assert projection.coordinates == pytest.approx((u * s)[:, :dimensions] * signs, rel=1e-6, abs=1e-6)
    assert projection.arrays["explained"] == pytest.approx((s**2 / (s**2).sum())[:dimensions], rel=1e-9)


@given(st.integers(0, 100), st.sampled_from([1e-3, 1.0, 1e6]))
def test_pca_does_not_see_shifts_and_scales_with_its_points(seed: int, scale: float) -> None:
    points = _points(12, 4, seed)
    plain = PROJECTORS["pca"].project(load_points(points, "euclidean"), 2, 0, None).coordinates
    moved = PROJECTORS["pca"].project(load_points(scale * (points + 3), "euclidean"), 2, 0, None).coordinates
    assert moved == pytest.approx(scale * plain, rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize(("n", "d"), [(2, 5), (9, 1), (2, 1)])
def test_axes_beyond_the_rank_are_zero(n: int, d: int) -> None:
    projection = PROJECTORS["pca"].project(load_points(_points(n, d), "euclidean"), 3, 0, None)
    assert np.abs(projection.coordinates[:, min(n - 1, d) :]).max() < 1e-9
    assert projection.arrays["explained"].sum() == pytest.approx(1)


def test_constant_features_are_no_obstacle() -> None:
    points = np.hstack([_points(30, 3), np.full((30, 2), 7.0)])
    projection = PROJECTORS["pca"].project(load_points(points, "euclidean"), 2, 0, None)
    plain = PROJECTORS["pca"].project(load_points(points[:, :3], "euclidean"), 2, 0, None)
    assert projection.coordinates == pytest.approx(plain.coordinates)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_tsne_is_scikit_learns(dimensions: Literal[2, 3]) -> None:
    points = load_points(_points(40, 6), "euclidean")
    projection = PROJECTORS["tsne"].project(points, dimensions, 3, 5.0)
    expected = TSNE(dimensions, perplexity=5.0, random_state=3, init="pca").fit_transform(points)
    assert (projection.coordinates == expected).all()


@pytest.mark.parametrize("n", [4, 5, 9, 30])
def test_tsne_has_a_perplexity_that_fits(n: int) -> None:
    projection = PROJECTORS["tsne"].project(load_points(_points(n, 2), "euclidean"), 3, 0, None)
    assert projection.settings["perplexity"] == pytest.approx((n - 1) / 3)
    assert np.isfinite(projection.coordinates).all()


@pytest.mark.parametrize(
    ("method", "size", "words"),
    [
        ("tsne", 20.0, "t-SNE cannot have perplexity 20 with 20 points"),
        ("tsne", 0.5, "t-SNE cannot have perplexity 0.5"),
        ("tsne", float("nan"), "t-SNE cannot have perplexity nan"),
        ("pca", 5.0, "PCA has no neighborhoods"),
    ],
)
def test_a_size_that_does_not_fit_is_named(method: str, size: float, words: str) -> None:
    with pytest.raises(AnalyticsError, match=words):
        PROJECTORS[method].project(load_points(_points(20, 3), "euclidean"), 2, 0, size)


def test_duplicates_lie_together() -> None:
    points = load_points(np.repeat(_points(5, 4), 8, axis=0), "euclidean")
    found = PROJECTORS["pca"].project(points, 2, 0, None).coordinates.reshape(5, 8, 2)
    assert np.ptp(found, axis=1).max() < 1e-9
    assert np.isfinite(PROJECTORS["tsne"].project(points, 2, 0, None).coordinates).all()
