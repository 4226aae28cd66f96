"""Points: read in pieces, checked, scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gguf_harness.analytics.points import Metric, count_distinct, load_points, open_points, read_rows
from gguf_harness.errors import AnalyticsError, NoData


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint32])
def test_a_file_is_the_array_that_it_holds(tmp_path: Path, dtype: type) -> None:
    points: np.ndarray = (np.random.default_rng(0).normal(size=(9, 4)) * 50).clip(0).astype(dtype)
    np.save(tmp_path / "x.npy", points)
    assert (open_points(tmp_path / "x.npy") == points).all()
    block = read_rows(tmp_path / "x.npy", 2, 5, "euclidean")
    assert (block == points[2:5]).all()
    assert block.dtype == (np.float32 if np.dtype(dtype).kind == "f" and np.dtype(dtype).itemsize < 8 else np.float64)
    block[:] = 0
    assert points.any()


@given(hnp.arrays(np.float64, (5, 3), elements=st.floats(-1e300, 1e300).filter(lambda x: x == 0 or abs(x) > 1e-300)))
def test_directions_have_length_one(points: np.ndarray) -> None:
    if not np.abs(points).max(axis=1).all():
        with pytest.raises(NoData, match="zero, the first of them in row"):
            read_rows(points, 0, 5, "cosine")
        return
    lengths = np.linalg.norm(read_rows(points, 0, 5, "cosine"), axis=1)
    assert lengths == pytest.approx(np.ones(5), abs=1e-12)


def test_loaded_points_are_centered() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3)) + 1e6
    assert load_points(points, "euclidean") == pytest.approx(points - points.mean(0))
    assert (points > 1e5).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_could_not_be_measured_is_no_data(metric: Metric, bad: float) -> None:
    points = np.ones((7, 2), dtype=np.float32)
    points[4, 1] = bad
    with pytest.raises(NoData, match="1 of 5 points is not finite, the first of them in row 4"):
        read_rows(points, 2, 7, metric)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_points_are_no_data(shape: tuple[int, int]) -> None:
    with pytest.raises(NoData, match="no points"):
        open_points(np.empty(shape))


def test_what_is_no_matrix_of_numbers_is_named(tmp_path: Path) -> None:
    for wrong in (np.zeros(3), np.zeros((2, 2, 2)), np.array([["a"]]), np.array([[True]]), np.zeros((2, 2), complex)):
        with pytest.raises(AnalyticsError, match="expected a matrix of numbers"):
            open_points(wrong)
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    for name, words in {
        "text.npy": "cannot be read as points",
        "missing.npy": "cannot be read as points",
        "objects.npy": "cannot be read as points",
        "x.npz": "contains several arrays",
    }.items():
        with pytest.raises(AnalyticsError, match=words):
            open_points(tmp_path / name)


@given(hnp.arrays(np.float64, (8, 2), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0])), st.integers(1, 9))
def test_distinct_points_are_counted(points: np.ndarray, enough: int) -> None:
    assert count_distinct(points, enough) == min(enough, len(np.unique(points, axis=0)))
