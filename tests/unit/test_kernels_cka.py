"""CKA against the ratio of HSICs, and against itself computed anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.cka import linear_cka, linear_cka_from_rows, linear_cka_without_each, row_products


@pytest.mark.parametrize(("n", "d1", "d2"), [(50, 4, 7), (5, 20, 30), (8, 8, 8)])
def test_cka_equals_hsic_ratio(n: int, d1: int, d2: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d1)), rng.normal(size=(n, d2)) + 3
    centering = np.eye(n) - 1 / n

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ a.T @ centering @ b @ b.T @ centering))

    assert linear_cka(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), rel=1e-9)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_cka_does_not_see_rotation_scale_and_shift(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 5))
    turned = scale * x @ ortho_group.rvs(5, random_state=seed) + rng.normal(size=5)
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-9)
    other = rng.normal(size=(12, 3))
    assert 0 <= linear_cka(x, other) == pytest.approx(linear_cka(turned, other), abs=1e-9)


def test_cka_of_nothing_is_an_error() -> None:
    with pytest.raises(NoData, match="at least two"):
        linear_cka([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(NoData, match="do not vary"):
        linear_cka([[1.0], [1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="same number of rows"):
        linear_cka(np.eye(3), np.eye(4))


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 8))
def test_cka_without_a_cluster_is_that_of_the_other_rows(seed: int, d1: int, d2: int) -> None:
    rng = np.random.default_rng(seed)
    starts = np.array([0, 4, 9, 10, 17])
    x, y = rng.normal(size=(17, d1)), rng.normal(size=(17, d2)) - 5
    value, without = linear_cka_without_each(x, y, starts)
    assert value == pytest.approx(linear_cka(x, y), rel=1e-9)
    expected = [
        linear_cka(np.delete(x, np.s_[a:b], axis=0), np.delete(y, np.s_[a:b], axis=0))
        for a, b in itertools.pairwise(starts.tolist())
    ]
    assert without == pytest.approx(np.array(expected), rel=1e-6, abs=1e-9)


def test_what_is_left_without_a_cluster_may_not_vary() -> None:
    x = np.array([[1.0], [1.0], [1.0], [5.0]])
    _, without = linear_cka_without_each(x, x, np.array([0, 2, 3, 4]))
    assert without[:2] == pytest.approx([1, 1])
    assert np.isnan(without[2])
    _, whole = linear_cka_without_each(x, x, np.array([0, 4]))
    assert np.isnan(whole).all()


@given(st.integers(0, 1000), st.integers(1, 6))
def test_cka_of_row_products_and_their_influence(seed: int, d: int) -> None:
    """The influence is the derivative by a row's weight, which is moved a little here."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(30, d)), rng.normal(size=(30, d))
    a, b = a - a.mean(0), b - b.mean(0)
    own, other, cross = row_products(a, b, a.T @ a, b.T @ b, a.T @ b)
    value, influence = linear_cka_from_rows(own, other, cross)
    assert value == pytest.approx(linear_cka(a, b), rel=1e-9)
    assert influence is not None
    assert influence.mean() == pytest.approx(0, abs=1e-9)

    def weighted(weights: np.ndarray) -> float:
        products = [left.T @ (weights[:, None] * right) for left, right in ((a, a), (b, b), (a, b))]
        aa, bb, ab = (float(np.square(product).sum()) for product in products)
        return ab / float(np.sqrt(aa * bb))

    step = np.zeros(30)
    step[7] = 1e-6
    slope = (weighted(1 + step) - weighted(1 - step)) / 2e-6
    assert influence[7] == pytest.approx(30 * slope, rel=1e-4, abs=1e-5)


def test_rows_that_have_nothing_in_common_have_no_influence() -> None:
    a, b = np.array([[1.0, 0], [-1, 0], [0, 0], [0, 0]]), np.array([[0.0, 0], [0, 0], [0, 1], [0, -1]])
    assert linear_cka_from_rows(*row_products(a, b, a.T @ a, b.T @ b, a.T @ b)) == (0, None)
