"""Deciding early: error rates over all stopping times by simulation, and the capital by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from gguf_harness.metrics.divergence import summarize_delta_p, summarize_divergence, summarize_same_top
from gguf_harness.metrics.perplexity import compare_perplexity, perplexity
from gguf_harness.metrics.registry import METRICS
from gguf_harness.metrics.sequential import (
    WindowSeries,
    betting_wealth,
    decide_early,
    deviation_wealth,
    max_cv,
    nonnegative_wealth,
    rare_tokens,
    wealth,
)
from gguf_harness.metrics.windows import WindowLimit, decided_so_far, window_series

Values = NDArray[np.float64]

DECISIONS, WINDOWS, CONFIDENCE = 2000, 200, 0.95
THRESHOLD = math.log(1 / (1 - CONFIDENCE))
CV = 1.0
"""Largest deviation over the mean that most of these tests let the decisions assume."""


def _lognormal(random: np.random.Generator, sigma: float) -> Values:
    return random.lognormal(-sigma * sigma / 2, sigma, (DECISIONS, WINDOWS))


def _pareto(random: np.random.Generator, shape: float) -> Values:
    values: Values = (random.pareto(shape, (DECISIONS, WINDOWS)) + 1) * (shape - 1) / shape
    return values


def _autoregressive(random: np.random.Generator, correlation: float) -> Values:
    """Standard normal windows that resemble their neighbours."""
    noise = random.standard_normal((DECISIONS, WINDOWS))
    values = noise.copy()
    for window in range(1, WINDOWS):
        values[:, window] = correlation * values[:, window - 1] + math.sqrt(1 - correlation**2) * noise[:, window]
    return values


def _corpus(random: np.random.Generator, correlation: float, sigma: float) -> Values:
    """Windows of corpora whose neighbours resemble each other, each of mean 1, decoded in random order."""
    values: Values = np.exp(sigma * _autoregressive(random, correlation))
    values /= values.mean(axis=1, keepdims=True)
    return random.permuted(values, axis=1)


# Window means of KL, in units of the limit: the true mean is the limit, where a wrong decision is likeliest.
UNBOUNDED: dict[str, Callable[[np.random.Generator], Values]] = {
    "normal": lambda random: np.maximum(random.normal(1, 0.2, (DECISIONS, WINDOWS)), 0),
    "exponential": lambda random: random.exponential(1, (DECISIONS, WINDOWS)),
    "lognormal, sigma 0.5": lambda random: _lognormal(random, 0.5),
    "lognormal, sigma 0.8": lambda random: _lognormal(random, 0.8),
    "Pareto, infinite third moment": lambda random: _pareto(random, 2.5),
    "one bad window in ten": lambda random: np.where(random.random((DECISIONS, WINDOWS)) < 0.1, 4.0, 2 / 3),
    "autocorrelated 0.3, in random order": lambda random: _corpus(random, 0.3, 0.4),
    "autocorrelated 0.6, in random order": lambda random: _corpus(random, 0.6, 0.4),
    "nothing or twice the mean": lambda random: np.where(random.random((DECISIONS, WINDOWS)) < 0.5, 0.0, 2.0),
    # More than is assumed.
    "lognormal, sigma 1": lambda random: _lognormal(random, 1.0),
    "one terrible window in fifty": lambda random: np.where(
        random.random((DECISIONS, WINDOWS)) < 0.02, 10.0, 0.8 / 0.98
    ),
}


def _rate(series: WindowSeries, outcome: str) -> float:
    """Share of sequences in which an outcome is decided at any time."""
    reached = wealth(series, "pass" if outcome == "pass" else "fail") >= THRESHOLD
    return float(reached.any(axis=-1).mean())


@pytest.mark.parametrize("name", UNBOUNDED)
def test_at_the_limit_hardly_anything_is_decided(name: str) -> None:
    """2,000 gates, each looked at after each of 200 windows: wrong at any of these times in less than 5 %."""
    values = UNBOUNDED[name](np.random.default_rng(11))
    assert values.mean() == pytest.approx(1, rel=0.02)
    series = WindowSeries(values, 1.0, lower_is_better=True, floor=0.0, cv=CV)
    assert _rate(series, "pass") < 0.05
    assert _rate(series, "fail") < 0.05


@pytest.mark.parametrize("cv", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("tokens", [150, 255, 1023])
def test_what_is_assumed_of_windows_holds_at_each_length(cv: float, tokens: int) -> None:
    """Lognormal windows whose spread grows as they get shorter, with the square root; their mean is at the limit."""
    spread = cv * math.sqrt(max(1.0, 255 / tokens))
    values = _lognormal(np.random.default_rng(21), math.sqrt(math.log1p(spread**2)))
    series = WindowSeries(values, 1.0, lower_is_better=True, floor=0.0, cv=max_cv(tokens))
    assert _rate(series, "pass") < 0.05


def test_windows_that_spread_further_than_is_assumed_pass_nothing_early() -> None:
    """Nothing in most windows, and far more than the limit in a few: the mean is well within it."""
    values = np.where(np.arange(200) % 20 == 3, 4.0, 0.0)
    assert values.mean() == 0.2
    assert decide_early(WindowSeries(values, 1.0, lower_is_better=True, floor=0.0), CONFIDENCE) is None
    # Such windows say nothing against a limit that is far away.
    assert _outcome(WindowSeries(values, 20.0, lower_is_better=True, floor=0.0)) == "pass"


def test_a_longer_window_is_assumed_to_spread_less_but_not_without_end() -> None:
    assert max_cv(255) == max_cv(4095) == 0.75
    assert max_cv(200) == pytest.approx(0.75 * math.sqrt(255 / 200))
    assert max_cv(63) == 1
    # Chance alone spreads a share of so many tokens by half of that.
    assert 1 / math.sqrt(rare_tokens(255)) == pytest.approx(0.75 / 2)


@pytest.mark.parametrize(
    ("correlation", "a", "b"), [(0.0, 8, 2), (0.0, 0.4, 0.1), (0.0, 80, 20), (0.6, 8, 2), (0.6, 80, 20)]
)
def test_shares_err_as_rarely(correlation: float, a: float, b: float) -> None:
    random = np.random.default_rng(12)
    values = scipy_stats.beta.ppf(scipy_stats.norm.cdf(_autoregressive(random, correlation)), a, b)
    if correlation:
        # About the mean of the corpus, whose windows come in random order.
        values = random.permuted(values * (0.8 / values.mean(axis=1, keepdims=True)), axis=1)
        values = np.minimum(values, 1)
    series = WindowSeries(values, 0.8, lower_is_better=False, floor=0.0, ceiling=1.0)
    assert _rate(series, "pass") < 0.05
    assert _rate(series, "fail") < 0.05


def test_differences_err_as_rarely() -> None:
    random = np.random.default_rng(13)
    values = 0.14 + 0.06 * _autoregressive(random, 0.0)
    reference = random.normal(2.5, 0.4, values.shape)
    series = WindowSeries(values, 0.14, lower_is_better=True, floor=-reference)
    assert _rate(series, "pass") < 0.05
    assert _rate(series, "fail") < 0.05


DEVIATIONS: dict[str, Callable[[np.random.Generator], Values]] = {
    "normal": lambda random: random.standard_normal((DECISIONS, WINDOWS)),
    "exponential": lambda random: random.exponential(1, (DECISIONS, WINDOWS)) - 1,
    "lognormal": lambda random: (_lognormal(random, 0.8) - 1) / math.sqrt(math.expm1(0.64)),
    "mostly a little, rarely much less": lambda random: np.where(
        random.random((DECISIONS, WINDOWS)) < 0.1, -3.0, 1 / 3
    ),
    "one far window in ten, at the cut": lambda random: np.where(
        random.random((DECISIONS, WINDOWS)) < 0.1, 3.0, -1 / 3
    ),
    "one far window in fifty": lambda random: np.where(random.random((DECISIONS, WINDOWS)) < 0.02, 7.0, -1 / 7),
    "autocorrelated 0.6, in random order": lambda random: (_corpus(random, 0.6, 0.4) - 1) / 0.42,
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_differences_with_the_largest_deviation_err_as_rarely(name: str) -> None:
    """Mean at the limit, deviation as large as is assumed: wrong at any time in less than 5 %."""
    values = DEVIATIONS[name](np.random.default_rng(19))
    assert values.mean() == pytest.approx(0, abs=0.02)
    assert values.std() == pytest.approx(1, rel=0.06)
    series = WindowSeries(0.14 + 0.14 * values, 0.14, lower_is_better=True, floor=-3.0, deviation=0.14)
    assert _rate(series, "fail") < 0.05


@given(st.floats(0.01, 0.6), st.floats(0, 30), st.floats(0, 30))
def test_a_lower_mean_only_lowers_the_expected_factor(bet: float, mean: float, further: float) -> None:
    """The bound of exp(b u) for means below the hypothesis, in units of the deviation; see `deviation_wealth`."""

    def bound(below: float) -> float:
        at = bet * (3 + below)
        return math.exp(-bet * below) * (1 + (math.exp(at) - 1 - at) / (3 + below) ** 2)

    assert bound(mean + further) <= bound(mean) * (1 + 1e-12)


def test_a_difference_far_beyond_its_limit_is_decided_soon() -> None:
    """The log-perplexity ratio of Q2_K of tiny: 0.33, limit 0.14."""
    values = np.random.default_rng(20).normal(0.33, 0.09, (200, 60))
    series = WindowSeries(values, math.log(1.15), lower_is_better=True, floor=-3.9, deviation=math.log(1.15))
    reached = wealth(series, "fail") >= THRESHOLD
    assert np.median(reached.argmax(axis=1)) + 1 <= 9
    slow = wealth(WindowSeries(values, math.log(1.15), lower_is_better=True, floor=-3.9), "fail") >= THRESHOLD
    assert np.median(slow.argmax(axis=1)) + 1 > 30 or not slow.any()


def test_capital_of_deviations_by_hand() -> None:
    bet = math.log1p(3 * 0.5) / 3
    largest = math.log1p((math.exp(3 * bet) - 1 - 3 * bet) / 9)
    assert deviation_wealth(np.array([0.9]), 0.5, 0.2) == pytest.approx([2 * bet - largest])
    assert deviation_wealth(np.array([90.0]), 0.5, 0.2) == pytest.approx([3 * bet - largest])


@pytest.mark.parametrize(("mean", "most"), [(0.02, 9), (0.06, 14)])
def test_a_share_far_within_its_limit_is_decided_soon(mean: float, most: int) -> None:
    """Tops that changed in Q8_0 and Q6_K of tiny, in windows of 255 tokens; at most 20 % may."""
    counts = np.random.default_rng(21).binomial(255, mean, (200, 60))
    series = WindowSeries(counts / 255, 0.2, lower_is_better=True, floor=0.0)
    reached = wealth(series, "pass") >= THRESHOLD
    assert np.median(reached.argmax(axis=1)) + 1 <= most


@pytest.mark.parametrize("name", ["normal", "exponential", "one bad window in ten", "nothing or twice the mean"])
def test_shares_that_changed_err_as_rarely(name: str) -> None:
    values = np.minimum(0.2 * UNBOUNDED[name](np.random.default_rng(22)), 1)
    values *= 0.2 / values.mean()
    series = WindowSeries(values, 0.2, lower_is_better=True, floor=0.0, cv=CV)
    assert _rate(series, "pass") < 0.05
    assert _rate(series, "fail") < 0.05


def test_a_rare_share_is_decided_by_its_bound_alone() -> None:
    """Chance alone spreads a share of half a token a window by more than is assumed of others."""
    random = np.random.default_rng(23)
    candidate, reference = _tokens(random)
    limits = [WindowLimit("same_top", bound, CONFIDENCE, "same_top") for bound in (0.8, 0.99)]
    assert [window_series(limit, candidate, reference).ceiling for limit in limits] == [None, 1.0]


def test_a_fixed_sample_bound_that_is_looked_at_often_errs_more_often() -> None:
    """Why this module is there: the same sequences, decided by t bounds after each window."""
    values = UNBOUNDED["normal"](np.random.default_rng(14))
    count = np.arange(1, WINDOWS + 1)
    mean = np.cumsum(values, axis=1) / count
    variance = (np.cumsum(values**2, axis=1) / count - mean**2)[:, 2:] * count[2:] / (count[2:] - 1)
    t = (mean[:, 2:] - 1) / np.sqrt(variance / count[2:])
    assert (t < scipy_stats.t.ppf(0.05, count[2:] - 1)).any(axis=1).mean() > 0.25


@pytest.mark.parametrize(
    ("mean", "deviation", "outcome", "most"),
    [(0.04, 0.1, "pass", 8), (0.57, 0.15, "pass", 40), (7.9, 0.16, "fail", 10)],
)
def test_what_is_far_from_the_limit_is_decided_soon(mean: float, deviation: float, outcome: str, most: int) -> None:
    """KL of Q8_0, Q4_K_M and IQ3_XS of SmolLM2-135M, in units of the built-in limit."""
    values = np.maximum(mean * np.random.default_rng(15).normal(1, deviation, (200, 100)), 0)
    series = WindowSeries(values, 1.0, lower_is_better=True, floor=0.0)
    reached = wealth(series, "pass" if outcome == "pass" else "fail") >= THRESHOLD
    assert np.median(reached.argmax(axis=1)) + 1 <= most
    assert reached[:, -1].mean() > 0.99


def _outcome(series: WindowSeries) -> str | None:
    decision = decide_early(series, CONFIDENCE)
    return None if decision is None else decision.outcome


def test_a_verdict_never_changes() -> None:
    random = np.random.default_rng(16)
    values = np.concatenate([random.normal(0.3, 0.05, 40), random.normal(5, 0.5, 200)])
    verdicts = [
        _outcome(WindowSeries(values[: stop + 1], 1.0, lower_is_better=True, floor=0.0)) for stop in range(len(values))
    ]
    assert verdicts[0] is None
    assert verdicts[39] == "pass"
    first = verdicts.index("pass")
    assert set(verdicts[first:]) == {"pass"}


def _two_point_factor(bet: float, mean: float, largest: float) -> float:
    """Expected factor of `nonnegative_wealth`, for values that are 0 or `largest` and have a mean."""
    square = CV**2
    bound = (square + math.exp(-bet * (1 + square))) / (1 + square)
    share = mean / largest
    return (1 - share + share * math.exp(-bet * largest)) / bound


@given(st.floats(0, 5), st.floats(1, 20), st.floats(0, 1))
def test_no_bet_on_nonnegative_values_is_expected_to_gain(bet: float, mean: float, spread: float) -> None:
    """Two-point values of any mean above the hypothesis (1) and any deviation up to CV times the mean."""
    largest = mean * (1 + (spread * CV) ** 2)
    assert _two_point_factor(bet, mean, largest) <= 1 + 1e-12


def test_the_bound_of_nonnegative_values_is_reached() -> None:
    assert _two_point_factor(0.7, 1.0, 1 + CV**2) == pytest.approx(1)


def test_capital_by_hand() -> None:
    """The first bet is none, or on half the mean; the next are on what was seen."""
    fair = betting_wealth(np.array([0.9, 0.9]), 0.5, 0.0)
    # One imagined value at 0.5 with deviation 0.25, and 0.9: gap 0.2, variance (0.0625 + 0.16) / 2 - 0.04.
    bet = min(0.2 / ((0.0625 + 0.16) / 2), 0.75 / 0.5)
    assert fair == pytest.approx([0.0, math.log1p(bet * 0.4)])
    bet = math.log(1.5 / 0.5) / 2
    expected = -bet * 0.25 - math.log((1 + math.exp(-2 * bet)) / 2)
    assert nonnegative_wealth(np.array([0.25]), 1.0, CV) == pytest.approx([expected])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_shares_and_their_complements_are_decided_alike(values: list[float], limit: float) -> None:
    shares = np.array(values)
    same = WindowSeries(shares, limit, lower_is_better=False, floor=0.0, ceiling=1.0)
    other = WindowSeries(1 - shares, 1 - limit, lower_is_better=True, floor=0.0, ceiling=1.0)
    for outcome in ("pass", "fail"):
        assert wealth(same, outcome) == pytest.approx(wealth(other, outcome), rel=1e-6, abs=1e-6)


def test_limits_beyond_the_bounds_are_decided_at_once() -> None:
    shares = np.array([0.5])

    def decided(limit: float) -> str | None:
        return _outcome(WindowSeries(shares, limit, lower_is_better=False, floor=0.0, ceiling=1.0))

    assert (decided(0.0), decided(-1.0), decided(1.5), decided(1.0)) == ("pass", "pass", "fail", None)
    impossible = WindowSeries(np.array([0.1]), -0.1, lower_is_better=True, floor=0.0)
    assert _outcome(impossible) == "fail"


def test_without_a_bound_no_bet_is_placed() -> None:
    signed = WindowSeries(np.full(100, -3.0), 0.0, lower_is_better=True)
    assert decide_early(signed, CONFIDENCE) is None


def _tokens(random: np.random.Generator, windows: int = 60) -> tuple[dict[str, Values], dict[str, Values]]:
    reference = {"nll": random.gamma(2, 1, (windows, 50)), "top": random.integers(0, 5, (windows, 50)).astype(float)}
    nll = np.maximum(reference["nll"] + random.normal(0.1, 0.1, (windows, 50)), 0)
    top = np.where(random.random((windows, 50)) < 0.1, -1, reference["top"])
    kld = random.gamma(1, 0.05, (windows, 50))
    return {"nll": nll, "top": top, "kld": kld, "kld_reverse": 1.2 * kld}, reference


def test_each_series_is_within_its_limit_where_the_metric_is() -> None:
    """At a limit just above the estimate the mean of the window means is within, just below it is not."""
    candidate, reference = _tokens(np.random.default_rng(17))
    estimates = {
        estimate.metric: estimate.value
        for estimate in (
            *summarize_divergence(candidate["kld"], candidate["kld_reverse"]),
            *summarize_delta_p(candidate["nll"], reference["nll"]),
            summarize_same_top(candidate["top"], reference["top"]),
            perplexity(candidate["nll"]),
            *compare_perplexity(candidate["nll"], reference["nll"]),
        )
    }
    for metric in (name for name, entry in METRICS.items() if entry.early is not None):
        value = estimates[metric]
        good = 1 if METRICS[metric].better == "lower" else -1
        for side in (1, -1):
            limit = value + side * good * 0.6 * abs(value)
            series = window_series(WindowLimit(metric, limit, CONFIDENCE, metric), candidate, reference)
            mean = float(series.values.mean())
            assert (mean <= series.limit if series.lower_is_better else mean >= series.limit) == (side == 1), metric
            floor = -np.inf if series.floor is None else series.floor
            assert (series.values >= floor).all()


def test_gates_of_a_pass_are_decided_together() -> None:
    candidate, reference = _tokens(np.random.default_rng(18))
    limits = [
        WindowLimit("kld_mean", 0.5, CONFIDENCE, "kld_mean"),
        WindowLimit("same_top", 0.99, CONFIDENCE, "same_top"),
        WindowLimit("ppl_ratio", 1.105, CONFIDENCE, "ppl"),
    ]
    decisions = decided_so_far(limits, candidate, reference)
    assert {gate: decision and decision.outcome for gate, decision in decisions.items()} == {
        "kld_mean": "pass",
        "same_top": "fail",
        "ppl": None,
    }
    (decision,) = [decision for gate, decision in decisions.items() if gate == "kld_mean"]
    assert decision is not None
    assert decision.windows < 20
    assert decision.p_value < 0.01
