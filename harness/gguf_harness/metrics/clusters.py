"""Means and ratios of samples in clusters of different sizes: tokens of prompts. `stats` has those of equal windows.

Samples are a flat array, cluster after cluster; `starts` has the start of each and the end of the last. All errors are
CR1 (Cameron and Miller 2015, section II), those of ratios by the delta method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.kernels.standard_errors import clustered_se_of_runs, iid_se
from gguf_harness.metrics.records import WHOLE, Estimate, Place
from gguf_harness.metrics.stats import MeanEstimate, as_estimate

__all__ = ["by_layer", "cluster_mean", "cluster_ratio", "layers_and_means", "over_layers"]


def cluster_mean(samples: ArrayLike, starts: ArrayLike) -> MeanEstimate:
    """Mean of all samples, with a standard error clustered by cluster.

    Args:
        samples: [n].
        starts: [clusters + 1].

    Raises:
        NoData: no samples, or one that is not finite.
    """
    values, places = _require(samples, starts)
    return _with_errors(float(values.mean()), values, places)


def cluster_ratio(numerator: ArrayLike, denominator: ArrayLike, starts: ArrayLike) -> MeanEstimate:
    """Ratio of two paired means: se from the influence (a - R b) / mean(b).

    Args:
        numerator: [n].
        denominator: [n], of the same samples.
        starts: [clusters + 1].

    Raises:
        NoData: no samples, one that is not finite, or a denominator whose mean is not positive.
    """
    a, places = _require(numerator, starts)
    b, _ = _require(denominator, starts)
    mean = float(b.mean())
    if not mean > 0:
        raise NoData(f"A ratio to {mean:g} is meaningless: expected more than zero.")
    return _with_errors(*ratio_of_means(a, b), places)


def _require(samples: ArrayLike, starts: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    values, places = np.asarray(samples, dtype=np.float64), np.asarray(starts, dtype=np.int64)
    if values.ndim != 1 or places[0] != 0 or places[-1] != len(values):
        raise ValueError(f"Clusters from {places[0]} to {places[-1]} do not cover samples of shape {values.shape}")
    if len(values) == 0:
        raise NoData("The mean of no samples is not defined.")
    if not np.isfinite(values).all():
        raise NoData(f"{int(np.count_nonzero(~np.isfinite(values)))} of {len(values)} samples are not finite.")
    # Empty clusters are ignored.
    return values, np.unique(places)


def _with_errors(value: float, influence: NDArray[np.float64], starts: NDArray[np.int64]) -> MeanEstimate:
    se = clustered_se_of_runs(influence, starts)
    return MeanEstimate(value, se, iid_se(influence), len(influence), len(starts) - 1)


def by_layer(metric: str, values: ArrayLike, starts: ArrayLike, layers: Iterable[int]) -> dict[int, Estimate]:
    """The mean of each layer; NaN samples are unknown, and layers with only such samples are left out.

    Args:
        metric: its name.
        values: [layer, n].
        starts: [clusters + 1].
        layers: the requested layers.
    """
    rows, places = np.asarray(values, dtype=np.float64), np.asarray(starts, dtype=np.int64)
    estimates = {}
    for layer in layers:
        known = ~np.isnan(rows[layer])
        if known.any():
            kept = np.concatenate([[0], np.cumsum(known)])[places]
            estimates[layer] = as_estimate(metric, cluster_mean(rows[layer][known], kept), Place(layer))
    return estimates


def over_layers(metric: str, values: ArrayLike, starts: ArrayLike, layers: Iterable[int]) -> Estimate | None:
    """The mean over layers of each sample, and over samples; None if no layer is known; arguments as for `by_layer`."""
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[[layer for layer in layers if not np.isnan(rows[layer]).all()]]
    if len(rows) == 0:
        return None
    whole = by_layer(metric, rows.mean(axis=0)[None], starts, [0]).get(0)
    return None if whole is None else replace(whole, place=WHOLE, detail=f"mean of {len(rows)} layers")


def layers_and_means(measured: Mapping[str, NDArray[Any]], starts: ArrayLike, layers: Iterable[int]) -> list[Estimate]:
    """`by_layer` of several metrics, followed by `over_layers` of each; metrics unknown in all layers are left out.

    Args:
        measured: values by metric, [layer, n] each.
        starts: [clusters + 1].
        layers: the requested layers.

    Raises:
        NoData: no metric is known in any layer.
    """
    chosen = list(layers)
    single = [by_layer(metric, values, starts, chosen) for metric, values in measured.items()]
    means = [over_layers(metric, values, starts, chosen) for metric, values in measured.items()]
    if not any(single):
        raise NoData("None of these metrics is known for this model.")
    return [
        *(each for estimates_of_layers in single for each in estimates_of_layers.values()),
        *(mean for mean in means if mean is not None),
    ]
