"""Does a difference grow with depth? Values per token by position in the window, and the slope over it.

Arrays are [windows, scored tokens], as a pass over the corpus gives them; the first column is position `first`, which
has at least one token before it. Buckets are octaves of the position: 1, 2-3, 4-7 and so on to the end of the window.

**The slope.** In each window, the ordinary least-squares slope of the value against log2(position): what a token's
value rises by where its context is twice as long. All windows have the same positions, so the mean of these slopes is
the slope of all tokens together, and a window is one independent number. Tokens of a window depend on each other, in
ways that nobody has to model then: with windows drawn from a text, the t interval of that mean holds whatever they are
(for slopes that are not normal, with Hall's correction of the skewness). A regression of all tokens at once would take
each for independent, and claim too much. Slopes begin at position 16: before it a token has hardly a cache to read, so
what any cache costs rises there from nothing, and these few tokens would have half of the weight.

**Against what?** A model that reads more predicts more sharply, so a divergence may depend on position in a file
without any fault: KL's slope describes and does not accuse. The test is that of the loss: nll - nll_reference of the
same token. It has mean zero at every position where both models predict the text equally well, and a fault that begins
with distance (positions that are turned wrongly, a cache that loses what is old) makes it rise.

Source: per-cluster slopes ("summary measures"): Matthews, Altman, Campbell and Royston (1990), Analysis of serial
measurements in medical research, BMJ 300.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.divergence import delta_p_rms, summarize_same_top
from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.perplexity import compare_perplexity
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.stats import (
    MeanEstimate,
    as_estimate,
    exceedance_p_value,
    mean_with_errors,
    require_samples,
    side_error,
)

__all__ = [
    "FIRST_POSITION",
    "SLOPE_FROM",
    "bucket_name",
    "buckets",
    "growth_p_value",
    "slope",
    "slopes",
    "summarize_positions",
]

FIRST_POSITION: Final = 1
"""Of a pass that is read by position: the first token has nothing before it, and log2(0) is not a number."""

SLOPE_FROM: Final = 16
"""Position from which on slopes are taken. With a q4_0 cache `tiny` has a KL of 0.023 nats at position 1, 0.051 from 4
on and 0.075 from 16 on, where it stays to the end of the window."""

_FEWEST: Final = 2
"""Positions of a slope."""

Values = NDArray[np.float64]
Tokens: TypeAlias = Mapping[str, NDArray[Any]]


def buckets(first: int, count: int) -> list[range]:
    """Octaves of the positions first, ..., first + count - 1, the outer ones cut to these.

    Raises:
        NoData: no positions, or the first is not positive.
    """
    if first < 1 or count < 1:
        raise NoData(f"Positions {first} to {first + count - 1} have no octaves: expected some, from 1 on.")
    stop = first + count
    starts = [1 << power for power in range(first.bit_length() - 1, (stop - 1).bit_length())]
    return [range(max(first, start), min(stop, 2 * start)) for start in starts]


def bucket_name(bucket: range) -> str:
    """`64-127`, or `1` for a single position: the part that is the place of an estimate."""
    return f"{bucket.start}-{bucket.stop - 1}" if len(bucket) > 1 else str(bucket.start)


def summarize_positions(candidate: Tokens, reference: Tokens, first: int) -> list[Estimate]:
    """KL, same top, PPL ratio and RMS of the change of probability in each bucket, with errors clustered by window.

    Args:
        candidate: kld, nll and top, each [windows, scored tokens].
        reference: nll and top of the same tokens.
        first: position of the first column.
    """
    kld = require_samples(candidate["kld"], "KL by position")
    estimates: list[Estimate] = []
    for bucket in buckets(first, kld.shape[1]):
        columns = slice(bucket.start - first, bucket.stop - first)
        nll, base = (np.asarray(tokens["nll"])[:, columns] for tokens in (candidate, reference))
        (ratio,) = (each for each in compare_perplexity(nll, base) if each.metric == "ppl_ratio")
        same = summarize_same_top(np.asarray(candidate["top"])[:, columns], np.asarray(reference["top"])[:, columns])
        found = {
            "kld_by_position": as_estimate("kld_by_position", mean_with_errors(kld[:, columns])),
            "same_top_by_position": same,
            "ppl_ratio_by_position": ratio,
            "delta_p_rms_by_position": delta_p_rms(nll, base),
        }
        place = Place(part=bucket_name(bucket))
        estimates += [replace(estimate, metric=metric, place=place) for metric, estimate in found.items()]
    return estimates


def slopes(candidate: Tokens, reference: Tokens, first: int) -> list[Estimate]:
    """Slope of the loss against the reference's, slope of KL, and KL's as a share of its mean.

    All from position `SLOPE_FROM` on. The last is left out where there is no divergence to have a share of.

    Args:
        candidate: kld and nll, each [windows, scored tokens].
        reference: nll of the same tokens.
        first: position of the first column.

    Raises:
        NoData: windows that end before there are two positions to have a slope over.
    """
    columns = slice(max(0, SLOPE_FROM - first), None)
    first = max(first, SLOPE_FROM)
    nll, base, kld = (
        np.asarray(values)[:, columns] for values in (candidate["nll"], reference["nll"], candidate["kld"])
    )
    if kld.shape[1] < _FEWEST:
        raise NoData(
            f"A slope over depth is taken from position {SLOPE_FROM} on, where {kld.shape[1]} positions are scored.",
            "Use a larger --gguf-ctx.",
        )
    difference = require_samples(nll, "losses") - require_samples(base, "losses of the reference")
    kld = require_samples(kld, "KL by position")
    estimates = [
        as_estimate("nll_slope", slope(difference, first)),
        as_estimate("kld_slope", slope(kld, first)),
    ]
    if kld.mean() > 0:
        rise, influence = ratio_of_means(_by_window(kld, first), kld.mean(axis=1))
        share = mean_with_errors(kld.mean(axis=1)[:, None], influence=influence[:, None], value=rise)
        estimates.append(as_estimate("kld_relative_slope", replace(share, n=kld.size, se_iid=None)))
    return estimates


def slope(values: ArrayLike, first: int) -> MeanEstimate:
    """Rise of a value for each doubling of the position, see the module.

    Args:
        values: [windows, scored tokens].
        first: position of the first column.

    Raises:
        NoData: fewer than two positions, no windows, or a value that is not finite.
    """
    samples = require_samples(values, "slope over position")
    octaves, square = _centred_octaves(first, samples.shape[1])
    value = float(_by_window(samples, first).mean())
    # Of each token on the slope: their sum in a window is that window's slope against the mean.
    residuals = samples - samples.mean() - value * octaves
    return mean_with_errors(samples, influence=len(octaves) * octaves * residuals / square, value=value)


def growth_p_value(estimate: Estimate) -> float:
    """One-sided p-value of "it does not rise with depth", by the bound that gates use; 1 where all slopes are zero."""
    error = side_error(estimate, upper=False)
    return 1.0 if error is None else exceedance_p_value(estimate.value, error, estimate.clusters, 0.0)


def _by_window(samples: Values, first: int) -> Values:
    """[windows] slope of each window."""
    octaves, square = _centred_octaves(first, samples.shape[1])
    # Less the first value, which changes no slope: values that are all the same have none, to the bit.
    return np.asarray((samples - samples[:, :1]) @ octaves / square)


def _centred_octaves(first: int, count: int) -> tuple[Values, float]:
    """(log2 of the positions less their mean, sum of their squares)."""
    if first < 1 or count < _FEWEST:
        raise NoData(f"A slope over {count} positions from {first} on: expected {_FEWEST} or more, from 1 on.")
    octaves = np.log2(np.arange(first, first + count))
    octaves -= octaves.mean()
    return octaves, float(octaves @ octaves)
