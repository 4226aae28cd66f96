"""Sequential tests of a mean, which may be evaluated after every window and stopped at any of them.

A fixed-sample bound that is evaluated after each window errs far more often than its level. These tests are valid at
all times: a bet against the hypothesis, window by window, whose capital is not expected to grow while the hypothesis is
true, and so ever exceeds 1 / alpha with probability at most alpha (Ville 1939).

Assumptions:
    Windows are clusters. Only their means enter; how tokens of a window depend on each other does not matter.
    The expected mean of the next window, given the windows so far, is the mean that the limit is about. Neighbouring
    windows of a text resemble each other, and its first pages are no sample of it: passes decode windows in random
    order (--gguf-windows=sampled), and what one concludes early is about the mean of the corpus.
    Where values are bounded close enough on the side that the hypothesis bets on, nothing else is assumed, and the
    error is exact for any distribution: "KL is beyond its limit", since KL is never negative, and the same of shares.
    Nothing bounds KL from above, and without any assumption its mean has no upper confidence bound at all (Bahadur and
    Savage 1956): windows so far say nothing of rare terrible ones. "KL is within its limit" therefore assumes that the
    standard deviation of window means is at most `max_cv` times their mean if that is at the limit or above. So does
    "the top token is the same often enough", of the share where it is not: that 1 bounds it is no help, as a window may
    be all wrong. Of shares that are less than `rare_tokens` tokens of a window only the bound is used: chance alone
    spreads those further. Nothing passes while the windows so far spread by more than that at the limit.
    "The log-perplexity difference is beyond its limit" assumes that the standard deviation is at most `max_cv` times
    the limit if the mean is at the limit or below: what bounds it, the reference's own loss, is many times as far.
    Measured on quantized models, with windows of 512 tokens: 0.08 to 0.16 for KL, 0.2 to 0.44 for log-perplexity
    differences, 0.1 to 0.4 for tops that changed. At that length 0.75 is assumed. What is measured grows as windows get
    shorter, with the square root at most, and so does what is assumed, up to 1.

An asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024) and a t-test for every time
would need neither, but err where window means are skewed: in simulations of 200 windows, nominally 5 %, they passed
what is at the limit in 13 % to 27 % of cases (lognormal, sigma 1) and in 77 % to 91 % (one terrible window in fifty).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EarlyDecision",
    "WindowSeries",
    "betting_wealth",
    "decide_early",
    "deviation_wealth",
    "max_cv",
    "nonnegative_wealth",
    "rare_tokens",
    "wealth",
]

_CV: Final = 0.75
_LARGEST_CV: Final = 1.0
_CV_AT: Final = 255
"""Scored tokens of a window of 512, for which `_CV` is meant."""

_CUT: Final = 3.0
_LARGEST_SLOPE: Final = 1.0
_LARGEST_BET: Final = 0.75
_LARGEST_GAP: Final = 0.9
"""Caps on bets and on what they are chosen by. They cost power and never validity: any bet that is known before its
window is allowed. They see to it that no single window can lose all of the capital."""

Values = NDArray[np.float64]


def max_cv(tokens: int) -> float:
    """Largest standard deviation of window means, as a multiple of their mean, that is assumed of unbounded metrics.

    Args:
        tokens: of a window that are scored.
    """
    return min(_LARGEST_CV, _CV * math.sqrt(max(1.0, _CV_AT / tokens)))


def rare_tokens(tokens: int) -> float:
    """A share's mean, in tokens of a window, from which on chance alone spreads it by half of `max_cv` at most.

    A share of a few tokens has a binomial spread of 1 / sqrt(its tokens) times its mean.
    """
    return 4 / max_cv(tokens) ** 2


@dataclass(frozen=True, slots=True)
class WindowSeries:
    """Means of windows, in the order in which they were decoded, and the limit that their mean has.

    Attributes:
        values: [..., windows].
        limit: of their mean.
        lower_is_better: whether the mean is to be at most `limit`; otherwise at least.
        floor: what no value is below, one number or one per window known before it is decoded; None for no bound.
        ceiling: what no value is above; None for no bound.
        deviation: largest standard deviation of a window, if the mean is at the limit or better, that is assumed where
            the floor is too far to be of use; None to assume nothing. Only where lower is better.
        cv: the same over the mean, if that is at the limit or worse, of values that have no ceiling; see `max_cv`.
    """

    values: Values
    limit: float
    lower_is_better: bool
    floor: float | Values | None = None
    ceiling: float | None = None
    deviation: float | None = None
    cv: float = _CV


@dataclass(frozen=True, slots=True)
class EarlyDecision:
    """A verdict that holds whatever follows.

    Attributes:
        windows: number of windows after which it was reached.
        p_value: one over the largest capital so far: valid at any time.
    """

    outcome: Literal["pass", "fail"]
    windows: int
    p_value: float


def decide_early(series: WindowSeries, confidence: float) -> EarlyDecision | None:
    """The decision after the windows so far, None while it is open. Its outcome never changes once it is there.

    The probability that it is ever wrong, however often it is asked, is at most 1 - confidence under the module's
    assumptions: either "within the limit" or "beyond it" is true, and each is tested at that level.

    Args:
        series: windows so far, at least one; [windows].
        confidence: in (0.5, 1).
    """
    threshold = math.log(1 / (1 - confidence))
    decisions: list[EarlyDecision] = []
    outcomes: tuple[Literal["pass", "fail"], ...] = ("pass", "fail")
    for outcome in outcomes:
        capital = wealth(series, outcome)
        if (crossed := np.flatnonzero(capital >= threshold)).size:
            decisions.append(EarlyDecision(outcome, int(crossed[0]) + 1, math.exp(-float(capital.max()))))
    return min(decisions, key=lambda decision: decision.windows, default=None)


def wealth(series: WindowSeries, outcome: Literal["pass", "fail"]) -> Values:
    """Logarithm of the capital after each window of who bets on an outcome, [..., windows].

    Zero at all times where no bet can be placed: no bound on the side that is needed, or a limit that is not positive
    for values without a ceiling. Infinite where a bound of the values alone gives the outcome.
    """
    series = _lower_is_better(series)
    values = np.maximum(series.values, -math.inf if series.floor is None else series.floor)
    values = np.minimum(values, math.inf if series.ceiling is None else series.ceiling)
    return _wealth_of_failure(series, values) if outcome == "fail" else _wealth_of_success(series, values)


def _wealth_of_failure(series: WindowSeries, values: Values) -> Values:
    if series.deviation is not None:
        return deviation_wealth(values, series.limit, series.deviation)
    if series.floor is None:
        return np.zeros_like(values)
    return betting_wealth(values, series.limit, series.floor)


def _wealth_of_success(series: WindowSeries, values: Values) -> Values:
    if series.ceiling is not None and series.ceiling <= series.limit:
        return np.full(values.shape, math.inf)
    if series.ceiling is not None:
        return betting_wealth(-values, -series.limit, -series.ceiling)
    if series.limit <= 0:
        return np.zeros_like(values)
    held = np.maximum(values, 0)
    too_far = _deviations(held) > series.cv * series.limit
    return np.where(too_far, -math.inf, nonnegative_wealth(held, series.limit, series.cv))


def _deviations(values: Values) -> Values:
    """Standard deviation of the windows so far, after each, [..., windows]; 0 after the first."""
    count = np.arange(1, values.shape[-1] + 1)
    squares = np.cumsum(values**2, axis=-1) - np.cumsum(values, axis=-1) ** 2 / count
    return np.asarray(np.sqrt(np.maximum(squares, 0) / np.maximum(count - 1, 1)))


def betting_wealth(values: Values, mean: float, floor: float | Values) -> Values:
    """Log-capital of bets against "the mean is at most `mean`", for values that are at least `floor`.

    The capital is multiplied by 1 + b (x - mean) with a bet b, chosen before x is seen, from 0 to 1 / (mean - floor):
    it stays positive, and its expectation does not grow while the hypothesis is true, whatever the distribution.
    Bets are aGRAPA's, (m - mean) / (v + (m - mean)^2) of the mean m and variance v so far, at most three quarters of
    the largest. Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by betting, JRSS B 86(1).

    Args:
        values: [..., windows].
        mean: the hypothesis.
        floor: one number, or one per window, known before the window is.
    """
    room = mean - np.asarray(floor, dtype=np.float64)
    if np.any(room < 0):
        return np.full(values.shape, math.inf)
    if np.any(room == 0):
        return np.zeros_like(values)
    before = np.arange(1, values.shape[-1] + 1)
    excess = values - mean
    # One imagined value at the hypothesis, with half of the room as its deviation, stands at the beginning.
    gap = _earlier(np.cumsum(excess, axis=-1)) / before
    second = (room**2 / 4 + _earlier(np.cumsum(excess**2, axis=-1))) / before
    variance = np.maximum(second - gap**2, 1e-12 * room**2)
    bets = np.clip(gap / (variance + gap**2), 0, _LARGEST_BET / room)
    return np.cumsum(np.log1p(bets * excess), axis=-1)


def nonnegative_wealth(values: Values, mean: float, cv: float) -> Values:
    """Log-capital of bets against "the mean is at least `mean`", for values that are not negative.

    Of all x >= 0 with mean m and a standard deviation of at most c m, E exp(-b x / m) is largest for the one that is
    either 0 or (1 + c^2) m: it is at most (c^2 + exp(-b (1 + c^2))) / (1 + c^2). This is the two-point bound of Bennett
    (1962), Probability Inequalities for the Sum of Independent Random Variables, JASA 57(297), for 1 - x / m, which is
    at most 1. With b / mean in place of b / m it falls as m grows: exp(-b x / mean) over the bound at `mean` is
    expected to be at most 1 for every larger mean too.

    For a mean that is (1 - d) times the hypothesis' the best bet is b = ln((c^2 + d) / (c^2 (1 - d))) / (1 + c^2):
    there the derivative of its expected logarithm is zero. d is estimated from the windows before, beginning with 1/2.

    Args:
        values: [..., windows].
        mean: the hypothesis, positive.
        cv: c.
    """
    square = cv**2
    before = np.arange(1, values.shape[-1] + 1)
    gap = np.clip((0.5 + _earlier(np.cumsum(1 - values / mean, axis=-1))) / before, 0, _LARGEST_GAP)
    bets = np.log((square + gap) / (square * (1 - gap))) / (1 + square)
    largest = np.log((square + np.exp(-bets * (1 + square))) / (1 + square))
    return np.cumsum(-bets * values / mean - largest, axis=-1)


def deviation_wealth(values: Values, mean: float, deviation: float) -> Values:
    """Log-capital of bets against "the mean is at most `mean`", for values whose standard deviation is bounded.

    In units of the deviation, u = (x - mean) / deviation is cut at t = 3 from above, which can only lower its mean.
    As (e^y - 1 - y) / y^2 grows with y, exp(b u) <= 1 + b u + u^2 (e^bt - 1 - bt) / t^2, whose expectation is at most
    1 + (e^bt - 1 - bt) / t^2 for a mean of 0: Bennett (1962) once more. For a mean of -m the same holds of u + m, cut
    at t + m, and exp(-bm) times that bound falls as m grows: exp(b u) over the bound is expected to be at most 1.

    The best bet is ln(1 + t g) / t for a mean of g: there the derivative of its expected logarithm is zero, but for the
    logarithm of the bound. g is estimated from the windows before, beginning with 1/2, and 1 at most.

    Args:
        values: [..., windows].
        mean: the hypothesis.
        deviation: the bound, positive.
    """
    cut = np.minimum((values - mean) / deviation, _CUT)
    before = np.arange(1, values.shape[-1] + 1)
    slope = np.clip((0.5 + _earlier(np.cumsum(cut, axis=-1))) / before, 0, _LARGEST_SLOPE)
    bets = np.log1p(_CUT * slope) / _CUT
    largest = np.log1p((np.exp(bets * _CUT) - 1 - bets * _CUT) / _CUT**2)
    return np.cumsum(bets * cut - largest, axis=-1)


def _lower_is_better(series: WindowSeries) -> WindowSeries:
    """The same question with all signs turned, where higher is better."""
    if series.lower_is_better:
        return series
    return WindowSeries(
        -series.values,
        -series.limit,
        lower_is_better=True,
        floor=None if series.ceiling is None else -series.ceiling,
        ceiling=None if series.floor is None else float(-np.min(series.floor)),
        cv=series.cv,
    )


def _earlier(sums: Values) -> Values:
    """[..., windows]: what was known before each window."""
    return np.concatenate([np.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
