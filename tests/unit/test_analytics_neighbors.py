"""Neighbors in blocks are those of all distances at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from gguf_harness.analytics.neighbors import BlockPlan, find_neighbors, plan_blocks
from gguf_harness.analytics.points import Metric
from gguf_harness.errors import AnalyticsError, NoData

pytestmark = pytest.mark.usefixtures("one_thread")


def _find(
    points: np.ndarray | Path, rows: np.ndarray, k: int, metric: Metric = "euclidean", block: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    return find_neighbors(points, rows, k, metric, BlockPlan(block, 0), lambda _done, _total: None)


def _brute_force(points: np.ndarray, rows: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    distances = cdist(points[rows], points, metric)
    distances[np.arange(len(rows)), rows] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(6, 40), st.sampled_from(["euclidean", "cosine"]))
def test_blocks_find_what_all_distances_say(seed: int, k: int, block: int, metric: Metric) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(31, 5))
    rows = rng.permutation(31)[: rng.integers(1, 32)]
    indices, distances = _find(points, rows, k, metric, block)
    expected, far = _brute_force(points, rows, k, metric)
    assert (indices == expected).all()
    assert distances == pytest.approx(far, abs=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_file_of_small_numbers(tmp_path: Path, dtype: type, metric: Metric) -> None:
    points: np.ndarray = (np.random.default_rng(0).normal(size=(200, 16)) + 3).astype(dtype)
    np.save(tmp_path / "x.npy", points)
    rows = np.arange(200)
    indices, distances = _find(tmp_path / "x.npy", rows, 5, metric, 64)
    expected, far = _brute_force(points.astype(np.float64), rows, 5, metric)
    assert (indices == expected).mean() > 0.99
    assert distances == pytest.approx(far, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("block", [3, 7, 100])
def test_duplicates_are_neighbors_and_no_point_is_its_own(block: int) -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(4, 3)), 6, axis=0)
    indices, distances = _find(points, np.arange(24), 5, block=block)
    assert (indices // 6 == np.arange(24)[:, None] // 6).all()
    assert (indices != np.arange(24)[:, None]).all()
    assert all(len(set(row)) == 5 for row in indices.tolist())
    assert distances == pytest.approx(np.zeros((24, 5)), abs=1e-7)


def test_what_does_not_fit_is_named() -> None:
    points = np.random.default_rng(0).normal(size=(5, 2))
    every = np.arange(5)
    for k in (0, 5):
        with pytest.raises(AnalyticsError, match=f"5 points do not have {k} neighbors each"):
            _find(points, every, k)
    for rows in (np.array([5]), np.array([-1]), np.array([], dtype=np.int64), np.zeros((2, 2), dtype=np.int64)):
        with pytest.raises(AnalyticsError, match="Rows of 5 points"):
            _find(points, rows, 2)
    with pytest.raises(NoData, match="single point"):
        _find(points[:1], np.array([0]), 1)
    points[3] = 0
    with pytest.raises(NoData, match="zero, the first of them in row 3"):
        _find(points, every, 2, "cosine")


@given(st.integers(1, 300_000), st.integers(1, 8192), st.integers(1, 64), st.sampled_from([4, 8]), st.integers(1, 32))
def test_a_plan_keeps_its_limit_where_it_can(n: int, d: int, k: int, itemsize: int, threads: int) -> None:
    limit = 1 << 30
    plan = plan_blocks(n, d, k, itemsize, threads, limit)
    assert plan.bytes <= limit or plan.rows == 16
    assert plan.rows >= 16


def test_the_plan_for_a_large_vocabulary() -> None:
    """256k tokens of width 2048: 2.1 GB that are never in memory at once."""
    plan = plan_blocks(262_144, 2048, 10, 4, 16, 1 << 30)
    assert plan.bytes <= 1 << 30
    assert plan.rows > 10_000
