"""Means, quantiles and their standard errors, with and without clusters.

Samples come as [clusters, samples per cluster]: tokens of one window share a context and are not independent, so a
window is a cluster. `se_iid` treats every token as independent; it is what llama-perplexity prints and is kept for
comparison with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import NoData
from harness.records import Estimate

__all__ = [
    "MeanEstimate",
    "as_estimate",
    "clustered_se",
    "clusters_needed",
    "confidence_bound",
    "exceedance_p_value",
    "iid_se",
    "mean_of_clusters",
    "mean_with_errors",
    "quantile_with_error",
    "ratio_with_error",
    "require_samples",
]

Samples = NDArray[np.float64]

_NEGLIGIBLE: Final = 1e-12
_MOST_CLUSTERS: Final = 10**7


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean (or a smooth function of means) with both standard errors.

    Attributes:
        value: the estimate.
        se: clustered standard error; None with a single cluster, where it is not defined.
        se_iid: standard error with all samples taken as independent; None for a single sample.
        n: number of samples.
        clusters: number of clusters.
    """

    value: float
    se: float | None
    se_iid: float | None
    n: int
    clusters: int


def as_estimate(metric: str, mean: MeanEstimate) -> Estimate:
    """A mean under the name of its metric."""
    return Estimate(metric, mean.value, mean.n, mean.se, mean.se_iid, mean.clusters)


def require_samples(samples: ArrayLike, what: str) -> Samples:
    """As [clusters, samples] float64.

    Raises:
        NoData: when there are none, or one is not finite.
    """
    array = np.atleast_2d(np.asarray(samples, dtype=np.float64))
    if array.size == 0:
        raise NoData(f"{what}: no samples.")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise NoData(f"{what}: {bad} of {array.size} samples are not finite.")
    return array


def clustered_se(influence: Samples) -> float | None:
    """Cluster-robust standard error of a mean, CR1.

    For residuals e[g, i] (influence values of any smooth function of means work as well, by the delta method):
    sqrt(G / (G - 1) * sum_g (sum_i e[g, i])^2) / n. Cameron and Miller (2015), A Practitioner's Guide to
    Cluster-Robust Inference, section II, with one regressor.

    Args:
        influence: [clusters, samples], centred here.
    """
    clusters = influence.shape[0]
    if clusters < 2:
        return None
    totals = (influence - influence.mean()).sum(axis=1)
    return math.sqrt(clusters / (clusters - 1) * float(totals @ totals)) / influence.size


def iid_se(influence: Samples) -> float | None:
    """Standard error of a mean of independent samples: sqrt((E[x^2] - E[x]^2) / (n - 1)), as llama-perplexity."""
    if influence.size < 2:
        return None
    return math.sqrt(float(np.var(influence)) / (influence.size - 1))


def mean_with_errors(samples: Samples, influence: Samples | None = None, value: float | None = None) -> MeanEstimate:
    """The mean of samples, or any `value` with its influence function, with both standard errors.

    Args:
        samples: [clusters, samples].
        influence: [clusters, samples] influence of each sample on `value`, up to a constant; `samples` if not given.
        value: the estimate; the mean of `samples` if not given.
    """
    influence = samples if influence is None else influence
    return MeanEstimate(
        value=float(samples.mean()) if value is None else value,
        se=clustered_se(influence),
        se_iid=iid_se(influence),
        n=samples.size,
        clusters=samples.shape[0],
    )


def mean_of_clusters(sums: ArrayLike, counts: ArrayLike, what: str) -> MeanEstimate:
    """The mean of samples in clusters of unequal size, from each cluster's sum and count; se is CR1.

    The mean is sum(sums) / sum(counts): every sample weighs the same. It is a ratio of means over clusters, whose
    influence by the delta method is (sum - mean * count) / mean count; with equal counts this is `mean_with_errors`.
    There is no se_iid: sums do not tell the spread within clusters.

    Args:
        sums: [clusters].
        counts: [clusters] samples in each; clusters without any are left out.
        what: named in errors.

    Raises:
        NoData: there are no samples, or a sum is not finite.
    """
    size = np.asarray(counts, dtype=np.float64)
    filled = size > 0
    total, size = require_samples(np.asarray(sums, dtype=np.float64)[filled], what)[0], size[filled]
    value = float(total.sum() / size.sum())
    influence = (total - value * size) / size.mean()
    return MeanEstimate(value, clustered_se(influence[:, None]), None, int(size.sum()), len(size))


def quantile_with_error(samples: Samples, share: float) -> MeanEstimate:
    """A quantile by linear interpolation at share * (n - 1), with errors by Woodruff's method.

    The standard error of the share of samples below the quantile is carried over to the quantile through the
    empirical distribution: (Q(share + e) - Q(share - e)) / 2. Woodruff (1952), Confidence Intervals for Medians and
    Other Position Measures, JASA 47(260). None where share ± e leaves [0, 1]: too few samples that far out.
    """
    ordered = np.sort(samples, axis=None)
    value = float(np.quantile(ordered, share))
    below = (samples <= value).astype(np.float64)

    def carried(error: float | None) -> float | None:
        if error is None or share - error < 0 or share + error > 1:
            return None
        low, high = np.quantile(ordered, [share - error, share + error])
        return float(high - low) / 2

    return MeanEstimate(value, carried(clustered_se(below)), carried(iid_se(below)), samples.size, samples.shape[0])


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
    margin = _quantile(clusters, confidence) * se
    return value + margin if upper else value - margin


def exceedance_p_value(value: float, se: float, clusters: int | None, limit: float) -> float:
    """One-sided p-value of the hypothesis "at most `limit`": the probability of a value this far above it, or farther.

    Consistent with `confidence_bound`: below 1 - confidence exactly where the lower bound is above the limit. One
    minus it belongs to "at least `limit`".
    """
    if se < _NEGLIGIBLE:
        return 0.0 if value > limit else 1.0
    if clusters is not None and clusters < 2:
        return 0.5
    from scipy import stats as scipy_stats

    distance = (value - limit) / se
    return float(scipy_stats.norm.sf(distance) if clusters is None else scipy_stats.t.sf(distance, clusters - 1))


def clusters_needed(value: float, se: float, clusters: int, limit: float, confidence: float) -> int | None:
    """Clusters with which the one-sided bound would be on the value's side of `limit`, all else equal.

    The smallest G with t(confidence, G - 1) * se * sqrt(clusters / G) < |value - limit|: the standard error of a mean
    falls with 1 / sqrt(clusters). An estimate: it takes the value and the spread to be what they are so far. None
    where it is beyond ten million, the value is at the limit, or one cluster says nothing of the spread.
    """
    distance = abs(value - limit)

    def decides(count: int) -> bool:
        return _quantile(count, confidence) * se * math.sqrt(clusters / count) < distance

    if clusters < 2 or not decides(_MOST_CLUSTERS):
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
    adds none.

    Raises:
        NoData: the denominator is not positive.
    """
    if not denominator.value > 0:
        raise NoData(f"A ratio to {denominator.value} means nothing: expected more than zero.")
    ratio = numerator.value / denominator.value

    def error(first: float | None, second: float | None) -> float | None:
        if first is None and second is None:
            return None
        return math.hypot(first or 0.0, ratio * (second or 0.0)) / denominator.value

    known = [side.clusters for side in (numerator, denominator) if side.se is not None and side.clusters]
    return MeanEstimate(
        ratio,
        error(numerator.se, denominator.se),
        error(numerator.se_iid, denominator.se_iid),
        min(numerator.n, denominator.n),
        min(known, default=1),
    )


def _quantile(clusters: int | None, confidence: float) -> float:
    # Half a second to import, and workers never decide.
    from scipy import stats as scipy_stats

    return float(scipy_stats.norm.ppf(confidence) if clusters is None else scipy_stats.t.ppf(confidence, clusters - 1))
