"""Statistics against numpy, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from harness.errors import NoData
from harness.metrics.stats import (
    clustered_se,
    confidence_bound,
    iid_se,
    mean_with_errors,
    quantile_with_error,
    require_samples,
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


def test_clustered_error_covers_where_the_iid_error_does_not() -> None:
    """Simulation: 95 % intervals of correlated samples; the clustered ones hold, the iid ones do not."""
    random = np.random.default_rng(1)
    held = {"clustered": 0, "iid": 0}
    repetitions, groups = 600, 20
    for _ in range(repetitions):
        values = random.standard_normal((groups, 1)) + random.standard_normal((groups, 30))
        mean = mean_with_errors(values)
        assert mean.se is not None
        assert mean.se_iid is not None
        held["clustered"] += abs(mean.value) < scipy_stats.t.ppf(0.975, groups - 1) * mean.se
        held["iid"] += abs(mean.value) < 1.96 * mean.se_iid
    assert 0.92 < held["clustered"] / repetitions < 0.98
    assert held["iid"] / repetitions < 0.6


def test_a_single_cluster_has_no_error() -> None:
    assert clustered_se(np.ones((1, 10))) is None
    assert iid_se(np.ones((1, 1))) is None


@given(samples, st.floats(0.001, 0.999))
def test_quantile_equals_numpy(values: NDArray[np.float64], share: float) -> None:
    assert quantile_with_error(values, share).value == pytest.approx(float(np.quantile(values, share)))


def test_quantile_error_agrees_with_theory() -> None:
    """Median of a normal: standard error sqrt(pi / 2 / n) (Stuart and Ord)."""
    values = np.random.default_rng(2).standard_normal((400, 25))
    median = quantile_with_error(values, 0.5)
    expected = math.sqrt(math.pi / 2 / values.size)
    assert median.se == pytest.approx(expected, rel=0.15)
    assert median.se_iid == pytest.approx(expected, rel=0.15)


def test_quantile_beyond_the_samples_has_no_error() -> None:
    assert quantile_with_error(np.random.default_rng(3).standard_normal((2, 4)), 0.999).se is None


@pytest.mark.parametrize("bad", [[], [[]], [math.nan], [1.0, math.inf]])
def test_no_data_is_never_a_number(bad: list[float]) -> None:
    with pytest.raises(NoData):
        require_samples(bad, "test")


@given(st.floats(-10, 10), st.floats(0.001, 10), st.integers(2, 50), st.floats(0.6, 0.99))
def test_bounds_are_those_of_the_t_distribution(value: float, se: float, clusters: int, confidence: float) -> None:
    upper = confidence_bound(value, se, clusters, confidence, upper=True)
    lower = confidence_bound(value, se, clusters, confidence, upper=False)
    assert upper == pytest.approx(scipy_stats.t(clusters - 1, value, se).ppf(confidence))
    assert lower == pytest.approx(2 * value - upper)


def test_bound_of_one_cluster_is_infinite() -> None:
    assert confidence_bound(1.0, 0.5, 1, 0.95, upper=True) == math.inf
    assert confidence_bound(1.0, 0.0, 1, 0.95, upper=True) == 1.0
