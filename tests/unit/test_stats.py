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
    clusters_needed,
    confidence_bound,
    exceedance_p_value,
    iid_se,
    mean_with_errors,
    quantile_with_error,
    ratio_with_error,
    require_samples,
)
from harness.records import Estimate

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


@given(st.floats(-5, 5), st.floats(0.01, 3), st.integers(2, 30), st.floats(-5, 5), st.floats(0.55, 0.99))
def test_p_values_agree_with_bounds(value: float, se: float, clusters: int, limit: float, confidence: float) -> None:
    """A p-value below 1 - confidence, and a lower bound above the limit, are the same finding."""
    p = exceedance_p_value(value, se, clusters, limit)
    assert p == pytest.approx(scipy_stats.t(clusters - 1, value, se).cdf(limit), abs=1e-12)
    bound = confidence_bound(value, se, clusters, confidence, upper=False)
    if abs(bound - limit) > 1e-9:
        assert (p < 1 - confidence) == (bound > limit)


def test_p_values_without_spread_or_with_one_cluster() -> None:
    assert (exceedance_p_value(2.0, 0.0, 8, 1.0), exceedance_p_value(1.0, 0.0, 8, 1.0)) == (0.0, 1.0)
    assert exceedance_p_value(2.0, 0.5, 1, 1.0) == 0.5
    assert exceedance_p_value(1.96, 1.0, None, 0.0) == pytest.approx(0.025, abs=1e-3)


@given(st.floats(0.01, 1), st.floats(0.001, 1), st.integers(2, 60), st.floats(0.6, 0.99))
def test_the_clusters_needed_decide_and_one_less_does_not(
    distance: float, se: float, clusters: int, confidence: float
) -> None:
    needed = clusters_needed(distance, se, clusters, 0.0, confidence)
    assert needed is not None

    def bound(count: int) -> float:
        return confidence_bound(distance, se * math.sqrt(clusters / count), count, confidence, upper=False)

    assert bound(needed) > 0
    assert needed == 2 or bound(needed - 1) <= 0


def test_no_number_of_clusters_decides_at_the_limit() -> None:
    assert clusters_needed(0.1, 0.01, 16, 0.1, 0.95) is None
    assert clusters_needed(0.1, 0.01, 1, 0.2, 0.95) is None


def test_more_clusters_decide_where_they_are_foretold() -> None:
    """The estimate from 16 windows, checked against what windows of the same distribution then do."""
    random = np.random.default_rng(7)
    foretold = clusters_needed(1.0, 0.5 / math.sqrt(16), 16, 0.9, 0.95)
    assert foretold is not None
    decided = 0
    for _ in range(400):
        mean = mean_with_errors(random.normal(1.0, 0.5, (foretold, 1)))
        assert mean.se is not None
        decided += confidence_bound(mean.value, mean.se, mean.clusters, 0.95, upper=False) > 0.9
    # Where the bound of the expected value is just at the limit, half of the samples are beyond it.
    assert 0.42 < decided / 400 < 0.6


def test_the_error_of_a_ratio_covers() -> None:
    """Ratios of independent means, simulated: the delta method's error is their standard deviation."""
    random = np.random.default_rng(8)
    first = random.normal(10, 1, (4000, 12)).mean(axis=1)
    second = random.normal(4, 0.5, (4000, 12)).mean(axis=1)
    ratio = ratio_with_error(
        Estimate("tg_tokens_per_s", 10, 12, 1 / math.sqrt(12), None, 12),
        Estimate("tg_tokens_per_s", 4, 8, 0.5 / math.sqrt(12), None, 8),
    )
    assert ratio.value == 2.5
    assert ratio.se == pytest.approx(float(np.std(first / second)), rel=0.05)
    assert (ratio.clusters, ratio.n) == (8, 8)


def test_ratios_of_plain_facts_have_no_error() -> None:
    ratio = ratio_with_error(Estimate("file_bytes", 30, 1), Estimate("file_bytes", 60, 1))
    assert (ratio.value, ratio.se) == (0.5, None)
    with pytest.raises(NoData, match="more than zero"):
        ratio_with_error(Estimate("file_bytes", 30, 1), Estimate("file_bytes", 0, 1))
