"""Distance of a candidate's next-token distribution from the reference's.

`DivergenceKernel` compares two rows of logits; `summarize_divergence` turns per-token values into estimates.
Definitions are llama-perplexity's (llama.cpp, tools/perplexity --kl-divergence); the reverse direction and the
clustered errors are ours.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.log_softmax import shifted_exp
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import (
    INTERVAL,
    as_estimate,
    mean_with_errors,
    quantile_with_error,
    require_samples,
    signed_root,
)

__all__ = [
    "TOKEN_VALUES",
    "TOKEN_VALUES_VERSION",
    "DivergenceKernel",
    "RowDivergence",
    "delta_p_rms",
    "probability_change",
    "summarize_delta_p",
    "summarize_divergence",
    "summarize_same_top",
    "summarize_top5",
]

Row = NDArray[np.float32]

TOKEN_VALUES: Final[dict[str, type[np.generic]]] = {
    "kld": np.float64,
    "kld_reverse": np.float64,
    "in_top5": np.bool_,
}
"""What is kept of each token that a candidate's pass compares, in the order in which `DivergenceKernel` gives it."""

TOKEN_VALUES_VERSION: Final = 3
"""Raise it with what `DivergenceKernel` computes: passes are then decoded again."""


_FIRST: Final = 5


class RowDivergence(NamedTuple):
    """What two rows of logits give.

    Attributes:
        values: of `TOKEN_VALUES`.
        log_normalizer: ln sum exp(logits) of the candidate.
        top: the candidate's first most likely token.
        total: sum exp(reference), which tells whether what was stored of the reference is whole.
    """

    values: tuple[float, ...]
    log_normalizer: float
    top: int
    total: float


KLD_QUANTILES: Final[dict[str, float]] = {
    "kld_p99_9": 0.999,
    "kld_p99": 0.99,
    "kld_p95": 0.95,
    "kld_p90": 0.90,
    "kld_median": 0.50,
    "kld_p10": 0.10,
    "kld_p5": 0.05,
    "kld_p1": 0.01,
    "kld_p0_1": 0.001,
}
DELTA_P_QUANTILES: Final[dict[str, float]] = {
    "delta_p_p99_9": 0.999,
    "delta_p_p99": 0.99,
    "delta_p_p95": 0.95,
    "delta_p_p90": 0.90,
    "delta_p_p75": 0.75,
    "delta_p_median": 0.50,
    "delta_p_p25": 0.25,
    "delta_p_p10": 0.10,
    "delta_p_p5": 0.05,
    "delta_p_p1": 0.01,
    "delta_p_p0_1": 0.001,
}


class DivergenceKernel:
    """Compares rows of logits, one at a time, in scratch memory that stays in the processor's cache.

    Args:
        vocabulary: length of a row.
    """

    def __init__(self, vocabulary: int) -> None:
        self._shifted = np.empty(vocabulary, dtype=np.float32)
        self._difference = np.empty(vocabulary, dtype=np.float32)
        self._weights = np.empty(vocabulary, dtype=np.float32)

    def __call__(self, reference: Row, logits: Row) -> RowDivergence:
        """KL in both directions, the log-normalizer of `logits`, and its first most likely token.

        With x = ln p up to a constant (at most 0), y = logits - max, S = sum e^x, T = sum e^y and d = x - y:
        KL(p || q) = sum e^x d / S + ln T - ln S, and KL(q || p) = -sum e^y d / T + ln S - ln T. Working with d keeps
        float32 exact where the two nearly agree.

        Args:
            reference: [vocabulary] log-probabilities of the reference, up to a constant, largest 0.
            logits: [vocabulary] raw logits of the candidate.

        Returns:
            The values are KL(reference || candidate), KL(candidate || reference), and whether the reference's most
            likely token is among the candidate's five: fewer than five are likelier.
        """
        shifted, difference, weights = self._shifted, self._difference, self._weights
        top, largest, total_q = shifted_exp(logits, shifted, weights)
        np.subtract(reference, shifted, out=difference)
        backward = float(weights @ difference)
        np.exp(reference, out=weights)
        total_p = float(weights.sum())
        forward = float(weights @ difference)
        log_ratio = math.log(total_q) - math.log(total_p)
        likelier = np.count_nonzero(logits > logits[reference.argmax()])
        values = (forward / total_p + log_ratio, -backward / total_q - log_ratio, float(likelier < _FIRST))
        return RowDivergence(values, largest + math.log(total_q), top, total_p)


def summarize_divergence(kld: ArrayLike, kld_reverse: ArrayLike) -> list[Estimate]:
    """Mean, percentiles and extremes of KL(reference || candidate), and the mean of the other direction.

    Extremes are those of the tokens that were measured, and no estimates of a text's: they have no error.

    Kullback and Leibler (1951), On Information and Sufficiency.

    Args:
        kld: [windows, scored tokens] in nats.
        kld_reverse: the same, KL(candidate || reference).
    """
    samples = require_samples(kld, "KL divergence")
    reverse = require_samples(kld_reverse, "reverse KL divergence")
    estimates = [
        as_estimate("kld_mean", mean_with_errors(samples)),
        as_estimate("kld_reverse_mean", mean_with_errors(reverse)),
        Estimate("kld_max", float(samples.max()), samples.size),
    ]
    estimates += [as_estimate(name, quantile_with_error(samples, share)) for name, share in KLD_QUANTILES.items()]
    return [*estimates, Estimate("kld_min", float(samples.min()), samples.size)]


def probability_change(nll: NDArray[np.float64], nll_reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the correct token: exp(-nll) - exp(-nll_reference), elementwise."""
    return np.asarray(np.exp(-nll) - np.exp(-nll_reference))


def delta_p_rms(nll: ArrayLike, nll_reference: ArrayLike) -> Estimate:
    """Root mean square of the change of the correct token's probability; see `summarize_delta_p`."""
    candidate = require_samples(nll, "probabilities")
    squares = probability_change(candidate, require_samples(nll_reference, "probabilities of the reference")) ** 2
    rms = math.sqrt(squares.mean())
    influence = squares / (2 * rms) if rms > 0 else squares
    return as_estimate("delta_p_rms", mean_with_errors(squares, influence=influence, value=rms, link=signed_root))


def summarize_delta_p(nll: ArrayLike, nll_reference: ArrayLike) -> list[Estimate]:
    """Change of the correct token's probability, exp(-nll) - exp(-nll_reference): mean, RMS, percentiles, extremes.

    The error of the RMS is se(d^2) / (2 RMS), as llama-perplexity has it; the interval is the root of the mean
    square's.
    """
    candidate = require_samples(nll, "probabilities")
    reference = require_samples(nll_reference, "probabilities of the reference")
    if candidate.shape != reference.shape:
        raise NoData(f"Probabilities of different tokens: {candidate.shape} against {reference.shape}.")
    change = probability_change(candidate, reference)
    estimates = [
        as_estimate("delta_p_mean", mean_with_errors(change)),
        delta_p_rms(candidate, reference),
        Estimate("delta_p_max", float(change.max()), change.size),
    ]
    estimates += [as_estimate(name, quantile_with_error(change, share)) for name, share in DELTA_P_QUANTILES.items()]
    return [*estimates, Estimate("delta_p_min", float(change.min()), change.size)]


def summarize_same_top(top: ArrayLike, top_reference: ArrayLike) -> Estimate:
    """Share of positions where both find the same token most likely; its iid error is sqrt(p (1 - p) / (n - 1)).

    Where it is all or none of n positions there is no spread to tell an error from. The interval then reaches to the
    share with which n independent positions would be all alike once in forty times (Hanley and Lippman-Hand 1983, If
    Nothing Goes Wrong, Is Everything All Right?, JAMA 249(13)): no fewer could be told from it.

    Args:
        top: [windows, scored tokens] most likely token of the candidate, the first where several are.
        top_reference: the same of the reference.
    """
    candidate, reference = np.atleast_2d(np.asarray(top)), np.atleast_2d(np.asarray(top_reference))
    if candidate.shape != reference.shape:
        raise NoData(f"Top tokens of different positions: {candidate.shape} against {reference.shape}.")
    return _share("same_top", require_samples(candidate == reference, "top tokens"))


def summarize_top5(in_top5: ArrayLike) -> Estimate:
    """Share of positions where the reference's most likely token is among the candidate's five likeliest.

    Errors are those of `summarize_same_top`.

    Args:
        in_top5: [windows, scored tokens] whether it is.
    """
    return _share("top5_agreement", require_samples(in_top5, "top-5 agreement"))


def _share(metric: str, samples: NDArray[np.float64]) -> Estimate:
    mean = mean_with_errors(samples)
    unseen = 1 - ((1 - INTERVAL) / 2) ** (1 / samples.size)
    if mean.value == 1:
        mean = replace(mean, low=1 - unseen)
    elif mean.value == 0:
        mean = replace(mean, high=unseen)
    return as_estimate(metric, mean)
