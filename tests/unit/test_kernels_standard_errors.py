"""Standard errors against the sandwich formula, scipy and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from gguf_harness.metrics.kernels.standard_errors import (
    clustered_se,
    clustered_se_of_labels,
    clustered_se_of_runs,
    iid_se,
    jackknife_se,
)

samples = hnp.arrays(
    np.float64,
    st.tuples(st.integers(2, 8), st.integers(2, 12)),
    elements=st.floats(-100, 100, allow_nan=False, width=32),
)


def _clustered_by_hand(values: NDArray[np.float64]) -> float:
    """The sandwich formula for a regression on a constant, written out: (X'X)^-1 (sum of outer products) (X'X)^-1."""
    groups, size = values.shape
    n = groups * size
    residuals = values.ravel() - values.mean()
    design = np.ones((n, 1))
    bread = np.linalg.inv(design.T @ design)
    meat = np.zeros((1, 1))
    for group in range(groups):
        rows = slice(group * size, (group + 1) * size)
        score = design[rows].T @ residuals[rows]
        meat += np.outer(score, score)
    factor = groups / (groups - 1) * (n - 1) / (n - 1)
    return math.sqrt(float((bread @ meat @ bread)[0, 0]) * factor)


@given(samples)
def test_clustered_error_equals_the_sandwich_formula(values: NDArray[np.float64]) -> None:
    assert clustered_se(values) == pytest.approx(_clustered_by_hand(values), rel=1e-9, abs=1e-9)


@given(samples)
def test_clusters_of_one_give_the_usual_standard_error(values: NDArray[np.float64]) -> None:
    single = values.reshape(-1, 1)
    expected = float(np.std(values, ddof=1)) / math.sqrt(values.size)
    assert clustered_se(single) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_perfectly_correlated_clusters_count_as_one_sample_each() -> None:
    groups = np.random.default_rng(0).standard_normal(40)
    values = np.repeat(groups[:, None], 25, axis=1)
    assert clustered_se(values) == pytest.approx(scipy_stats.sem(groups))
    assert iid_se(values) == pytest.approx(scipy_stats.sem(groups) / 5, rel=0.05)


@given(samples, st.integers(0, 1000))
def test_equal_clusters_are_runs_and_labels_in_any_order(values: NDArray[np.float64], seed: int) -> None:
    groups, size = values.shape
    expected = pytest.approx(clustered_se(values), rel=1e-9, abs=1e-9)
    assert clustered_se_of_runs(values.ravel(), np.arange(0, values.size + 1, size)) == expected
    order = np.random.default_rng(seed).permutation(values.size)
    labels = np.repeat(7 * np.arange(groups) - 3, size)
    assert clustered_se_of_labels(values.ravel()[order], labels[order]) == expected


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(0, 1000))
def test_clusters_of_any_size_equal_the_sandwich_formula(sizes: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=sum(sizes))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    residuals = values - values.mean()
    meat = sum(residuals[a:b].sum() ** 2 for a, b in itertools.pairwise(starts))
    expected = math.sqrt(len(sizes) / (len(sizes) - 1) * meat) / len(values)
    assert clustered_se_of_runs(values, starts) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert clustered_se_of_labels(values, np.repeat(np.arange(len(sizes)), sizes)) == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


@given(samples, st.floats(0.1, 10), st.floats(-100, 100))
def test_errors_scale_with_the_samples_and_do_not_see_a_shift(
    values: NDArray[np.float64], scale: float, shift: float
) -> None:
    for error in (clustered_se, iid_se):
        plain, moved = error(values), error(-scale * values + shift)
        assert plain is not None
        assert moved == pytest.approx(scale * plain, rel=1e-6, abs=1e-9)


def test_a_single_cluster_has_no_error() -> None:
    assert clustered_se(np.ones((1, 10))) is None
    assert clustered_se_of_runs(np.ones(10), np.array([0, 10])) is None
    assert clustered_se_of_labels(np.ones(10), np.zeros(10, dtype=np.int64)) is None
    assert iid_se(np.ones((1, 1))) is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9))
def test_jackknife_of_a_mean_is_its_error(values: list[float]) -> None:
    """Efron and Tibshirani (1993), section 11.2."""
    n, x = len(values), np.array(values)
    expected = x.std(ddof=1) / np.sqrt(n)
    assert jackknife_se([np.delete(x, i).mean() for i in range(n)]) == pytest.approx(expected, abs=1e-9)
    assert jackknife_se([1.0]) is None
