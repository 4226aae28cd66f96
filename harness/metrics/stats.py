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

__all__ = [
    "MeanEstimate",
    "clustered_se",
    "confidence_bound",
    "iid_se",
    "mean_with_errors",
    "quantile_with_error",
    "require_samples",
]

Samples = NDArray[np.float64]

_NEGLIGIBLE: Final = 1e-12


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
    # Half a second to import, and workers never decide.
    from scipy import stats as scipy_stats

    quantile = scipy_stats.norm.ppf(confidence) if clusters is None else scipy_stats.t.ppf(confidence, clusters - 1)
    return value + float(quantile) * se if upper else value - float(quantile) * se
