"""Relative error, cosine and CKA against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import ortho_group

from gguf_harness.errors import NoData
from gguf_harness.metrics.similarity import cosine, linear_cka

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


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(NoData, match="at least two"):
        linear_cka([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(NoData, match="do not vary"):
        linear_cka([[1.0], [1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="different shape"):
        cosine([1.0], [1.0, 2.0])
