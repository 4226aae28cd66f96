"""Means, quantiles and their standard errors, with and without clusters.

Samples come as [clusters, samples per cluster]: tokens of one window share a context and are not independent, so a
window is a cluster. `se_iid` treats every token as independent; it is what llama-perplexity prints and is kept for
comparison with it.

Errors and intervals are for an infinite text of the same kind. For the given text, from which n of W windows were
drawn, errors would be smaller by sqrt(1 - n / W): this finite population correction is left out, since gates should
also hold for the next text.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData, import_alone
from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.kernels.standard_errors import clustered_se, iid_se
from gguf_harness.metrics.records import WHOLE, Estimate, Place

__all__ = [
    "INTERVAL",
    "POWER",
    "MeanEstimate",
    "as_estimate",
    "clusters_needed",
    "confidence_bound",
    "exceedance_p_value",
    "mean_interval",
    "mean_of_clusters",
    "mean_with_errors",
    "quantile_with_error",
    "ratio_with_error",
    "require_samples",
    "side_error",
    "signed_root",
]

Samples = NDArray[np.float64]

INTERVAL: Final = 0.95
"""Confidence of an estimate's interval: each end is wrong with half of the remaining probability."""

POWER: Final = 0.8
"""Probability that the recommended number of clusters decides; the convention of Cohen (1988)."""

_NEGLIGIBLE: Final = 1e-12
_NO_SKEWNESS: Final = 1e-6
_TINY: Final = 1e-200
_MOST_CLUSTERS: Final = 10**7


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean (or a smooth function of means) with both standard errors.

    Attributes:
        value: the estimate.
        se: clustered standard error; None with a single cluster, for which it is not defined.
        se_iid: standard error taking all samples as independent; None for a single sample.
        n: number of samples.
        clusters: number of clusters; None for a ratio of plain facts.
        low: lower end of the interval of `INTERVAL`; None if the samples do not give one.
        high: its upper end.
    """

    value: float
    se: float | None
    se_iid: float | None
    n: int
    clusters: int | None
    low: float | None = None
    high: float | None = None


def as_estimate(metric: str, mean: MeanEstimate, place: Place = WHOLE, detail: str | None = None) -> Estimate:
    """Convert to an estimate of a metric, at its place."""
    return Estimate(
        metric, mean.value, mean.n, mean.se, mean.se_iid, mean.clusters, mean.low, mean.high, place=place, detail=detail
    )


def require_samples(samples: ArrayLike, what: str) -> Samples:
    """Samples as [clusters, samples] float64.

    Raises:
        NoData: no samples, or one is not finite.
    """
    array = np.atleast_2d(np.asarray(samples, dtype=np.float64))
    if array.size == 0:
        raise NoData(f"{what}: no samples.")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise NoData(f"{what}: {bad} of {array.size} samples are not finite.")
    return array


def mean_interval(means: Samples, confidence: float = INTERVAL) -> tuple[Samples, Samples] | None:
    """Ends of the confidence interval of a mean, corrected for the skewness of the samples.

    Hall (1992), On the Removal of Skewness by Transformation, JRSS B 54(1): with S = (mean - truth) / s, s the standard
    deviation and g the skewness of n samples, S + g S^2 / 3 + g^2 S^3 / 27 + g / (6 n) is symmetric but for terms of
    order 1 / n. It is a monotone function of S, and solved for it here. sqrt(n) times it is taken as t distributed, so
    that without skewness the interval is Student's. With few samples of a skewed distribution, Student's bounds are
    wrong on one side two or three times as often as their level.

    Args:
        means: [..., clusters], independent.
        confidence: of the interval.

    Returns:
        Lower and upper ends, [...]; None for a single cluster.
    """
    if means.shape[-1] < 2:
        return None
    moments = _Moments.of(means)
    return moments.interval_end(confidence, upper=False), moments.interval_end(confidence, upper=True)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Moments from which the interval of a mean is computed.

    Attributes:
        n: number of samples, at least two.
        mean: [...] of the samples.
        spread: [...] their standard deviation, of n - 1 degrees of freedom.
        symmetric: [...] whether their skewness is negligible.
        skewness: [...] their skewness; 1 if they have none.
    """

    n: int
    mean: Samples
    spread: Samples
    symmetric: NDArray[np.bool_]
    skewness: Samples

    @classmethod
    def of(cls, samples: Samples) -> _Moments:
        """Of [..., n] samples."""
        # Sums by hand: intervals are computed thousands of times, and NumPy's means do many checks each time.
        n = samples.shape[-1]
        mean = np.add.reduce(samples, axis=-1) / n
        centred = samples - mean[..., None]
        squares = np.add.reduce(centred * centred, axis=-1)
        variance = np.maximum(squares / n, _TINY)
        skewness = np.add.reduce(centred**3, axis=-1) / n / variance**1.5
        symmetric = np.abs(skewness) < _NO_SKEWNESS
        return cls(n, mean, np.sqrt(squares / (n - 1)), symmetric, np.where(symmetric, 1.0, skewness))

    def interval_end(self, confidence: float, *, upper: bool) -> Samples:
        """One end of the interval, see `mean_interval`."""
        reach = _t_quantile(self.n, (1 + confidence) / 2) / math.sqrt(self.n)
        standardized = -reach if upper else reach
        root = np.cbrt(1 + self.skewness * (standardized - self.skewness / (6 * self.n)))
        # Without skewness the limit is Student's; close to it, digits are lost.
        solved = np.where(self.symmetric, standardized, 3 / self.skewness * (root - 1))
        end: Samples = self.mean - self.spread * solved
        return end


def mean_with_errors(
    samples: Samples,
    influence: Samples | None = None,
    value: float | None = None,
    link: Callable[[float], float] | None = None,
) -> MeanEstimate:
    """The mean of samples, or any `value` with its influence function, with both standard errors and an interval.

    Args:
        samples: [clusters, samples].
        influence: [clusters, samples] influence of each sample on `value`, up to a constant; `samples` if not given.
        value: the estimate; the mean of `samples` if not given.
        link: an increasing function that maps the mean of `samples` to `value`, if there is one. The interval is then
            the mapped one of the mean, which is more exact than the linear approximation by the influence.
    """
    influence = samples if influence is None else influence
    value = float(samples.mean()) if value is None else value
    return MeanEstimate(
        value,
        clustered_se(influence),
        iid_se(influence),
        samples.size,
        samples.shape[0],
        *_interval_of(value, influence if link is None else samples, link),
    )


def signed_root(square: float) -> float:
    """The square root of the magnitude with the sign of the number: an interval's end may be negative."""
    return math.copysign(math.sqrt(abs(square)), square)


def _interval_of(
    value: float, influence: Samples, link: Callable[[float], float] | None = None
) -> tuple[float | None, float | None]:
    """Ends of the interval of a value, from its [clusters, samples] influence or, with a link, from the samples."""
    ends = mean_interval(influence.mean(axis=1))
    if ends is None:
        return None, None
    low, high = float(ends[0]), float(ends[1])
    if link is not None:
        return link(low), link(high)
    shift = value - float(influence.mean())
    return low + shift, high + shift


def mean_of_clusters(sums: ArrayLike, counts: ArrayLike, what: str) -> MeanEstimate:
    """The mean of samples in clusters of unequal size, from each cluster's sum and count; se is CR1.

    The mean is sum(sums) / sum(counts): every sample has the same weight. It is a ratio of means over clusters, whose
    influence by the delta method is (sum - mean * count) / mean count; with equal counts this is `mean_with_errors`.
    There is no se_iid: sums do not give the spread within clusters.

    Args:
        sums: [clusters].
        counts: [clusters] samples in each; clusters without any are left out.
        what: named in errors.

    Raises:
        NoData: no samples, or a sum is not finite.
    """
    size = np.asarray(counts, dtype=np.float64)
    filled = size > 0
    total, size = require_samples(np.asarray(sums, dtype=np.float64)[filled], what)[0], size[filled]
    value, influence = ratio_of_means(total, size)
    error = clustered_se(influence[:, None])
    return MeanEstimate(value, error, None, int(size.sum()), len(size), *_interval_of(value, influence[:, None]))


def quantile_with_error(samples: Samples, share: float) -> MeanEstimate:
    """A quantile by linear interpolation at share * (n - 1), with its interval and errors.

    The interval contains the values that the samples do not reject as this quantile: those for which `share` is within
    the interval of the share of samples up to them, a mean over clusters. Francisco and Fuller (1991), Quantile
    Estimation with a Complex Survey Design, Annals of Statistics 19(1). Woodruff (1952), Confidence Intervals for
    Medians and Other Position Measures, JASA 47(260), takes one error for all of them, that of the share at the
    quantile itself. As SUDAAN does it, the standard error is the interval's width over twice the t quantile.

    An end beyond the outermost sample is unknown if not even that many independent samples would reach it. Without it
    there is no error.
    """
    ordered = np.sort(samples, axis=None)
    value = float(np.quantile(ordered, share))
    low = high = error = None
    rare = -math.log((1 - INTERVAL) / 2)
    if samples.shape[0] > 1:
        low = _first_within(samples, ordered, share, upper=False) if share * samples.size >= rare else None
        high = _first_within(samples, ordered, share, upper=True) if (1 - share) * samples.size >= rare else None
    if low is not None and high is not None:
        error = (high - low) / (2 * _t_quantile(samples.shape[0], (1 + INTERVAL) / 2))
    error_iid = iid_se((samples <= value).astype(np.float64))
    return MeanEstimate(value, error, _carried(ordered, share, error_iid), samples.size, samples.shape[0], low, high)


def _first_within(samples: Samples, ordered: Samples, share: float, *, upper: bool) -> float:
    """An end of a quantile's interval: the first sample up to which the share's other end is at least `share`."""
    first, last = 0, len(ordered) - 1
    while first < last:
        middle = (first + last) // 2
        shares = np.count_nonzero(samples <= ordered[middle], axis=1) / samples.shape[1]
        if _Moments.of(shares).interval_end(INTERVAL, upper=not upper) >= share:
            last = middle
        else:
            first = middle + 1
    return float(ordered[first])


def _carried(ordered: Samples, share: float, error: float | None) -> float | None:
    """The error of a share as one of its quantile, by Woodruff's method; None if share ± error leaves [0, 1]."""
    if error is None or share - error < 0 or share + error > 1:
        return None
    low, high = np.quantile(ordered, [share - error, share + error])
    return float(high - low) / 2


def side_error(estimate: Estimate | MeanEstimate, *, upper: bool) -> float | None:
    """The standard error for bounds on one side: that of a t interval with the same end as the estimate's.

    Infinite if there are too few samples for a bound on that side; None for values without an error: a file size, a
    maximum.
    """
    if estimate.clusters is None:
        return estimate.se
    end = estimate.high if upper else estimate.low
    if end is not None:
        return abs(end - estimate.value) / _t_quantile(estimate.clusters, (1 + INTERVAL) / 2)
    return estimate.se if estimate.se is not None else math.inf


def confidence_bound(value: float, se: float, clusters: int | None, confidence: float, *, upper: bool) -> float:
    """One-sided confidence bound: value ± t * se, with clusters - 1 degrees of freedom (normal without clusters).

    Args:
        value: the estimate.
        se: its standard error, >= 0.
        clusters: number of clusters behind `se`; None for a normal quantile.
        confidence: probability that the bound holds, in (0.5, 1).
        upper: the upper bound, otherwise the lower one.
    """
    if se < _NEGLIGIBLE:
        return value
    if clusters is not None and clusters < 2:
        return math.inf if upper else -math.inf
    margin = _t_quantile(clusters, confidence) * se
    return value + margin if upper else value - margin


def exceedance_p_value(value: float, se: float, clusters: int | None, limit: float) -> float:
    """One-sided p-value of the hypothesis "at most `limit`": the probability of a value at least this far above it.

    Consistent with `confidence_bound`: below 1 - confidence exactly if the lower bound is above the limit. One
    minus it belongs to "at least `limit`".
    """
    if se < _NEGLIGIBLE:
        return 0.0 if value > limit else 1.0
    if clusters is not None and clusters < 2:
        return 0.5
    distance = (value - limit) / se
    return float(_special().ndtr(-distance) if clusters is None else _special().stdtr(clusters - 1, -distance))


def clusters_needed(value: float, se: float, clusters: int, limit: float, confidence: float) -> int | None:
    """Clusters with which the one-sided bound would be on the value's side of `limit` with a probability of `POWER`.

    The smallest G with (t(confidence, G - 1) + t(POWER, G - 1)) * se * sqrt(clusters / G) < |value - limit|: the
    standard error of a mean falls with 1 / sqrt(clusters), and the value of the next run is off by its own error. An
    estimate that assumes the present value and spread. None if it is beyond ten million, the value is at the limit, or
    the spread is unknown.
    """
    distance = abs(value - limit)

    def decides(count: int) -> bool:
        reach = _t_quantile(count, confidence) + _t_quantile(count, POWER)
        return reach * se * math.sqrt(clusters / count) < distance

    if clusters < 2 or not math.isfinite(se) or not decides(_MOST_CLUSTERS):
        return None
    low, high = 1, 2
    while not decides(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def ratio_with_error(numerator: Estimate, denominator: Estimate) -> MeanEstimate:
    """The ratio of two independent estimates, by the delta method.

    With R = a / b: se(R)^2 = (se(a)^2 + R^2 se(b)^2) / b^2. The clusters are the smaller of the two: t with their
    degrees of freedom is never narrower than with Welch and Satterthwaite's. A value without an error (a file size)
    adds none; if one error is unknown, so is the ratio's.

    Raises:
        NoData: the denominator is not positive.
    """
    if not denominator.value > 0:
        raise NoData(f"A ratio to {denominator.value} is meaningless: expected more than zero.")
    ratio = numerator.value / denominator.value

    def error(first: float | None, second: float | None) -> float | None:
        if first is None and second is None:
            return None
        return math.hypot(first or 0.0, ratio * (second or 0.0)) / denominator.value

    sampled = [side for side in (numerator, denominator) if side.clusters is not None]
    return MeanEstimate(
        ratio,
        error(numerator.se, denominator.se) if all(side.se is not None for side in sampled) else None,
        error(numerator.se_iid, denominator.se_iid),
        min(numerator.n, denominator.n),
        min((side.clusters or 1 for side in sampled), default=None),
    )


@lru_cache(maxsize=1024)
def _t_quantile(clusters: int | None, confidence: float) -> float:
    return float(_special().ndtri(confidence) if clusters is None else _special().stdtrit(clusters - 1, confidence))


@cache
def _special() -> ModuleType:
    """The functions that scipy.stats uses for its t and normal distributions, without its import time of a second."""
    try:
        return import_alone("scipy.special", "_ufuncs")
    except ImportError:  # a name that scipy may change
        return importlib.import_module("scipy.special")
