"""Norms, directions and cosines against numpy, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cosine as cosine_distance

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.directions import cosine, cosine_of_products, directions, norms

_VECTORS = hnp.arrays(np.float64, (4, 6), elements=st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6))


@given(_VECTORS)
def test_equal_arrays_differ_by_nothing(x: np.ndarray) -> None:
    same = cosine(x, x)
    assert (same[np.abs(x).any(-1)] == 1).all()
    assert np.isnan(same[~np.abs(x).any(-1)]).all()


@given(_VECTORS, _VECTORS)
def test_cosine_equals_scipys(x: np.ndarray, y: np.ndarray) -> None:
    for ours, a, b in zip(cosine(x, y), x, y, strict=True):
        if a.any() and b.any():
            assert ours == pytest.approx(1 - cosine_distance(a, b), abs=1e-9)


def test_cosine_of_extreme_vectors() -> None:
    assert cosine([1e-300, 0], [1e300, 1e300]) == pytest.approx(np.sqrt(0.5))


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(NoData, match="nothing to compare"):
        cosine([], [])
    with pytest.raises(ValueError, match="different shape"):
        cosine([1.0], [1.0, 2.0])


@given(_VECTORS)
def test_norms_are_numpys(x: np.ndarray) -> None:
    assert norms(x) == pytest.approx(np.linalg.norm(x, axis=-1))


def test_norms_of_extreme_states() -> None:
    assert norms([3e200, 4e200]) == pytest.approx(5e200)
    assert norms([3e-200, 4e-200]) == pytest.approx(5e-200)
    assert norms([0.0, 0.0]) == 0


@given(_VECTORS)
def test_cosine_of_products_is_the_cosine(x: np.ndarray) -> None:
    products = x @ x.T
    squares = products.diagonal()
    cosines = cosine_of_products(products, squares[:, None], squares[None, :])
    some = np.abs(x).any(axis=1)
    assert (cosines.diagonal()[some] == 1).all()
    assert np.isnan(cosines[~some]).all()
    for i, j in zip(*np.nonzero(some[:, None] & some[None, :]), strict=True):
        assert cosines[i, j] == pytest.approx(float(cosine(x[i], x[j])), abs=1e-9)


@given(_VECTORS, st.floats(1e-100, 1e100))
def test_directions_times_norms_are_the_rows(x: np.ndarray, scale: float) -> None:
    units, valid = directions(scale * x)
    assert (valid == np.abs(x).any(axis=1)).all()
    assert units * norms(x)[:, None] == pytest.approx(x, rel=1e-9, abs=1e-9)
    assert np.linalg.norm(units, axis=1) == pytest.approx(valid.astype(float), abs=1e-12)


def test_rows_without_a_direction() -> None:
    rows = np.array([[3.0, 4.0], [0.0, -0.0], [np.nan, 1.0], [np.inf, 1.0]])
    units, valid = directions(rows)
    assert valid.tolist() == [True, False, False, False]
    assert units.tolist() == [[0.6, 0.8], [0, 0], [0, 0], [0, 0]]
    assert directions(np.empty((2, 0)))[1].tolist() == [False, False]
    assert directions(np.empty((0, 2)))[0].shape == (0, 2)


def test_squares_added_in_float64_keep_digits() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4096)).astype(np.float32)
    units, _ = directions(rows, sums=np.float64)
    assert units.dtype == np.float32
    expected = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    assert np.abs(units - expected).max() < 2e-8


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_directions_do_not_depend_on_scale(scale: float) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    units, valid = directions((rows * np.float32(scale)).astype(np.float32))
    assert valid.all()
    assert units.dtype == np.float32
    assert np.abs(units - directions(rows)[0]).max() < 1e-6
