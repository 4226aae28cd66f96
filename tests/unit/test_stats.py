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

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import (
    clusters_needed,
    confidence_bound,
    exceedance_p_value,
    mean_interval,
    mean_with_errors,
    quantile_with_error,
    ratio_with_error,
    require_samples,
    side_error,
)

samples = hnp.arrays(
    np.float64,
    st.tuples(st.integers(2, 8), st.integers(2, 12)),
    elements=st.floats(-100, 100, allow_nan=False, width=32),
)


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


def test_a_quantile_beyond_the_samples_has_no_bound_there() -> None:
    """Of 124 tokens the largest says little of the 99th percentile: 124 would be below it one time in four."""
    values = np.random.default_rng(3).standard_normal((4, 31))
    high, low = quantile_with_error(values, 0.99), quantile_with_error(values, 0.01)
    assert (high.se, high.high, low.se, low.low) == (None, None, None, None)
    assert high.low is not None
    assert high.low < high.value
    assert side_error(high, upper=True) == math.inf
    assert side_error(low, upper=False) == math.inf
    error = side_error(high, upper=False)
    assert error is not None
    assert 0 < error < math.inf


@given(samples, st.floats(0.05, 0.95))
def test_the_interval_of_a_quantile_is_that_of_the_share_below(values: NDArray[np.float64], share: float) -> None:
    """A value is in the interval where the share of samples up to it does not contradict it, and nowhere else."""
    quantile = quantile_with_error(values, share)
    for end, upper in ((quantile.low, False), (quantile.high, True)):
        if end is None:
            continue
        ends = mean_interval((values <= end).mean(axis=1))
        assert ends is not None
        assert ends[0 if upper else 1] >= share
        below = values[values < end]
        if below.size:
            before = mean_interval((values <= below.max()).mean(axis=1))
            assert before is not None
            assert before[0 if upper else 1] < share


@given(hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-100, 100, width=32)), st.floats(-5, 5))
def test_an_interval_moves_and_turns_with_its_samples(values: NDArray[np.float64], shift: float) -> None:
    ends, turned, moved = (mean_interval(each) for each in (values, -values, 3 * values + shift))
    assert ends is not None
    assert turned is not None
    assert moved is not None
    assert (-turned[1], -turned[0]) == pytest.approx(ends, rel=1e-6, abs=1e-6)
    assert tuple(3 * end + shift for end in ends) == pytest.approx(moved, rel=1e-6, abs=1e-5)
    assert ends[0] - 1e-9 <= values.mean() <= ends[1] + 1e-9


@given(st.integers(1, 10), st.floats(0.01, 5))
def test_without_skewness_the_interval_is_students(pairs: int, spread: float) -> None:
    half = spread * np.random.default_rng(pairs).random(pairs)
    values = np.concatenate([1 + half, 1 - half])
    ends = mean_interval(values)
    reach = scipy_stats.t.ppf(0.975, 2 * pairs - 1) * scipy_stats.sem(values)
    assert ends == pytest.approx((1 - reach, 1 + reach), rel=1e-3, abs=1e-3)


def test_one_cluster_has_no_interval() -> None:
    assert mean_interval(np.ones(1)) is None
    mean = mean_with_errors(np.random.default_rng(0).random((1, 9)))
    assert (mean.low, mean.high, side_error(mean, upper=True)) == (None, None, math.inf)


@pytest.mark.parametrize("clusters", [8, 16, 48])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_bounds_of_skewed_means_hold_more_often_than_students(clusters: int, sigma: float) -> None:
    """Means of normal samples: both are exact. Of lognormal ones both are too low above, and Student's far more."""
    random = np.random.default_rng(31)
    draws = (
        random.lognormal(-sigma * sigma / 2, sigma, (20_000, clusters))
        if sigma
        else random.normal(1, 0.3, (20_000, clusters))
    )
    ends = mean_interval(draws)
    assert ends is not None
    ours = float(((ends[0] <= 1) & (ends[1] >= 1)).mean())
    reach = scipy_stats.t.ppf(0.975, clusters - 1) * draws.std(axis=1, ddof=1) / math.sqrt(clusters)
    students = float((np.abs(draws.mean(axis=1) - 1) <= reach).mean())
    if sigma == 0:
        assert 0.94 < ours < 0.96
        return
    assert students < ours < 0.955
    above = [float((bound < 1).mean()) for bound in (ends[1], draws.mean(axis=1) + reach)]
    assert above[0] < 0.8 * above[1]


def test_errors_of_a_side_end_where_the_interval_does() -> None:
    values = np.random.default_rng(5).lognormal(0, 1, (16, 1))
    estimate = mean_with_errors(values)
    assert estimate.low is not None
    assert estimate.high is not None
    below, above = (side_error(estimate, upper=upper) for upper in (False, True))
    assert below is not None
    assert above is not None
    assert below < above
    assert confidence_bound(estimate.value, above, 16, 0.975, upper=True) == pytest.approx(estimate.high)
    assert confidence_bound(estimate.value, below, 16, 0.975, upper=False) == pytest.approx(estimate.low)


def test_a_link_maps_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(6).normal(3, 0.4, (12, 5))
    plain, mapped = mean_with_errors(values), mean_with_errors(values, 20 * values, math.exp(3), math.exp)
    assert plain.low is not None
    assert plain.high is not None
    assert (mapped.low, mapped.high) == (math.exp(plain.low), math.exp(plain.high))


def test_what_has_no_error_is_a_fact_and_what_has_an_unknown_one_is_not() -> None:
    assert side_error(Estimate("file_bytes", 10, 1), upper=True) is None
    assert side_error(Estimate("kld_max", 10, 4080), upper=True) is None
    assert side_error(Estimate("bleu", 10, 1, clusters=1), upper=True) == math.inf
    assert side_error(Estimate("kld_mean", 1, 100, 0.1, None, 16), upper=True) == 0.1


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
        """Of a value that comes out as far towards the limit as one in five does."""
        error = se * math.sqrt(clusters / count)
        unlucky = confidence_bound(distance, error, count, 0.8, upper=False)
        return confidence_bound(unlucky, error, count, confidence, upper=False)

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
    assert 0.74 < decided / 400 < 0.86


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


@pytest.mark.parametrize("clusters", [None, 2, 3, 16, 600, 10**6])
@pytest.mark.parametrize("confidence", [0.75, 0.8, 0.95, 0.975, 0.9999])
def test_bounds_and_p_values_equal_scipys_distributions(clusters: int | None, confidence: float) -> None:
    """To the last digit: what is called for them is what scipy.stats calls, without the time of importing it."""
    distribution = scipy_stats.norm() if clusters is None else scipy_stats.t(clusters - 1)
    assert confidence_bound(0.0, 1.0, clusters, confidence, upper=True) == distribution.ppf(confidence)
    assert exceedance_p_value(confidence, 1.0, clusters, 0.0) == distribution.sf(confidence)
    assert exceedance_p_value(-confidence, 1.0, clusters, 0.0) == distribution.sf(-confidence)


@pytest.mark.parametrize("clusters", [2, 7, 16, 40])
def test_intervals_of_many_means_are_those_of_each(clusters: int) -> None:
    rows = np.vstack([np.random.default_rng(clusters).exponential(size=(50, clusters)) ** 3, np.full(clusters, 0.25)])
    ends = mean_interval(rows)
    assert ends is not None
    for index, row in enumerate(rows):
        single = mean_interval(row)
        assert single is not None
        assert [float(end[index]) for end in ends] == pytest.approx([float(end) for end in single], rel=1e-13)
