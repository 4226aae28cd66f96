"""Standard errors of means: cluster-robust (CR1), of independent samples, and by the jackknife.

Each takes the influence of every sample on a statistic: the samples themselves for a mean; for a smooth function of
means its influence function, by the delta method.

CR1, of residuals e[g, i] of cluster g: sqrt(G / (G - 1) * sum_g (sum_i e[g, i])^2) / n. Cameron and Miller (2015), A
Practitioner's Guide to Cluster-Robust Inference, section II, with one regressor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["clustered_se", "clustered_se_of_labels", "clustered_se_of_runs", "iid_se", "jackknife_se"]

Floats = NDArray[np.float64]


def clustered_se(influence: Floats) -> float | None:
    """CR1 of clusters of equal size; None for a single cluster, for which it is not defined.

    Args:
        influence: [clusters, samples], centred here.
    """
    return _cr1((influence - influence.mean()).sum(axis=1), influence.size)


def clustered_se_of_runs(influence: Floats, starts: NDArray[np.integer[Any]]) -> float | None:
    """CR1 of clusters that are consecutive runs of samples; None for a single one.

    Args:
        influence: [n], centred here.
        starts: [clusters + 1] where each cluster begins and the last one ends, strictly rising from 0 to n.
    """
    return _cr1(np.asarray(np.add.reduceat(influence - influence.mean(), starts[:-1])), len(influence))


def clustered_se_of_labels(influence: Floats, labels: NDArray[np.integer[Any]]) -> float | None:
    """CR1 of clusters of samples with the same label; None for a single one.

    Args:
        influence: [n], centred here.
        labels: [n].
    """
    _, cluster = np.unique(labels, return_inverse=True)
    return _cr1(np.bincount(cluster, influence - influence.mean()).astype(np.float64), len(influence))


def _cr1(totals: Floats, samples: int) -> float | None:
    """From the summed residuals of each cluster, and the number of samples in all."""
    clusters = len(totals)
    if clusters < 2:
        return None
    return math.sqrt(clusters / (clusters - 1) * float(totals @ totals)) / samples


def iid_se(influence: Floats) -> float | None:
    """Of independent samples: sqrt((E[x^2] - E[x]^2) / (n - 1)), as llama-perplexity; None for a single sample.

    Args:
        influence: of any shape.
    """
    if influence.size < 2:
        return None
    return math.sqrt(float(np.var(influence)) / (influence.size - 1))


def jackknife_se(without: ArrayLike) -> float | None:
    """Standard error of a statistic from its values without each cluster in turn; None for a single cluster.

    sqrt((G - 1) / G * sum (theta_g - mean theta)^2): Efron and Tibshirani (1993), equation 11.5, a cluster at a time.

    Args:
        without: [clusters].
    """
    values = np.asarray(without, dtype=np.float64)
    if len(values) < 2:
        return None
    return math.sqrt((len(values) - 1) / len(values) * float(np.sum((values - values.mean()) ** 2)))
