"""Gates of a corpus pass as limits on the mean of window means, which can be decided while the pass goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.divergence import KLD_QUANTILES, probability_change
from gguf_harness.metrics.sequential import MAX_CV, RARE_TOKENS, EarlyDecision, WindowSeries, decide_early

__all__ = [
    "COMPARED",
    "WINDOW_METRICS",
    "EarlyDecisions",
    "WindowLimit",
    "decided_so_far",
    "from_mean",
    "window_means",
    "window_series",
]

Tokens = Mapping[str, NDArray[Any]]
EarlyDecisions = dict[str, dict[str, EarlyDecision | None]]
"""By model and gate; a gate that could have been decided and was not has None."""

WINDOW_METRICS: Final = frozenset({
    "kld_mean", "kld_reverse_mean", "ln_ppl_ratio", "ppl_ratio", "ppl", "same_top", "delta_p_mean", "delta_p_rms",
    *KLD_QUANTILES,
})  # fmt: skip
"""Metrics whose limit is one on a mean over windows. All others of `CORPUS_METRICS` need all windows of a pass."""

COMPARED: Final = ("kld_mean", "same_top", "ppl", "delta_p_rms")
"""Metrics that are compared with a baseline, by the means of windows that both have."""

MEAN_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "kld_mean": (-1.0, 700.0),
    "same_top": (0.0, 1.0),
    "ppl": (0.0, 700.0),
    "delta_p_rms": (0.0, 1.0),
}
"""What a mean of a window can be, by metric of `COMPARED`: the logarithm of a float64 ends at 709; the reference's
rounded probabilities can make a divergence of nothing slightly negative."""


@dataclass(frozen=True, slots=True)
class WindowLimit:
    """A limit on a metric of `WINDOW_METRICS`, and the confidence with which it is decided early.

    Attributes:
        limit: in the metric's unit.
        gate: metric of the gate that it comes from: a limit on PPL relative to the reference is one on the PPL ratio.
    """

    metric: str
    limit: float
    confidence: float
    gate: str


def window_series(limit: WindowLimit, candidate: Tokens, reference: Tokens) -> WindowSeries:
    """The window means whose mean is within a limit exactly where the metric is within its limit.

    PPL <= L means that the mean nll is at most ln L; an RMS <= L, that the mean square is at most L^2; a quantile
    Q(q) <= L, that a share of at least q of all tokens is at most L.

    Args:
        limit: of one of `WINDOW_METRICS`.
        candidate: nll, top, kld and kld_reverse, each [windows, scored tokens].
        reference: nll and top of the same windows.
    """
    metric, bound = limit.metric, limit.limit
    if metric in KLD_QUANTILES:
        below = _means(candidate["kld"] <= bound)
        series = WindowSeries(below, KLD_QUANTILES[metric], lower_is_better=False, floor=0.0, ceiling=1.0)
    elif metric == "same_top":
        # As the share that changed: it is close to 0, which is the bound that matters.
        changed = _means(candidate["top"] != reference["top"])
        rare = (1 - bound) * candidate["top"].shape[-1] < RARE_TOKENS
        series = WindowSeries(changed, 1 - bound, lower_is_better=True, floor=0.0, ceiling=1.0 if rare else None)
    elif metric == "ppl":
        series = WindowSeries(_means(candidate["nll"]), _ln(bound), lower_is_better=True, floor=0.0)
    elif metric in {"ppl_ratio", "ln_ppl_ratio"}:
        # A candidate's nll is never negative: the reference's, known before, bounds how much better it can be.
        floor = -_means(reference["nll"])
        bound = bound if metric == "ln_ppl_ratio" else _ln(bound)
        deviation = MAX_CV * bound if bound > 0 else None
        difference = _means(candidate["nll"] - reference["nll"])
        series = WindowSeries(difference, bound, lower_is_better=True, floor=floor, deviation=deviation)
    elif metric == "delta_p_mean":
        change = probability_change(candidate["nll"], reference["nll"])
        series = WindowSeries(_means(change), bound, lower_is_better=False, floor=-1.0, ceiling=1.0)
    elif metric == "delta_p_rms":
        # Squares are at most 1, a hundred times a usual limit: bets that fear it would take a thousand windows.
        squares = _means(probability_change(candidate["nll"], reference["nll"]) ** 2)
        series = WindowSeries(squares, bound * abs(bound), lower_is_better=True, floor=0.0)
    else:
        samples = candidate[metric.removesuffix("_mean")]
        series = WindowSeries(_means(samples), bound, lower_is_better=True, floor=0.0)
    return series


def decided_so_far(
    limits: Sequence[WindowLimit], candidate: Tokens, reference: Tokens
) -> dict[str, EarlyDecision | None]:
    """The decision of each limit, by its gate, after the windows so far; None where it is open.

    Args:
        limits: each of one of `WINDOW_METRICS`.
        candidate: per-token values of the windows so far, in the order in which they were decoded.
        reference: the same of the reference, of the same windows.
    """
    return {limit.gate: decide_early(window_series(limit, candidate, reference), limit.confidence) for limit in limits}


def _ln(value: float) -> float:
    """Of a limit on a perplexity, which a limit of zero or less is below in any case."""
    return math.log(value) if value > 0 else -math.inf


def _means(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Of each window, [windows]."""
    means: NDArray[np.float64] = np.asarray(samples, dtype=np.float64).mean(axis=-1)
    return means


def window_means(candidate: Tokens, reference: Tokens) -> dict[str, NDArray[np.float64]]:
    """Means of windows by metric of `COMPARED`, each [windows]: of nll for PPL, of squares for an RMS, of agreement.

    Args:
        candidate: nll, top and kld, each [windows, scored tokens].
        reference: nll and top of the same windows.
    """
    # The values do not depend on the limit.
    means = {
        metric: window_series(WindowLimit(metric, 1.0, 0.95, metric), candidate, reference).values
        for metric in COMPARED
    }
    return means | {"same_top": 1 - means["same_top"]}


def from_mean(metric: str, mean: float) -> tuple[float, float]:
    """A metric of `COMPARED` from the mean of its window means, and its derivative there."""
    if metric == "ppl":
        return math.exp(mean), math.exp(mean)
    if metric == "delta_p_rms":
        root = math.sqrt(mean)
        return root, 1 / (2 * root) if root > 0 else 0.0
    return mean, 1.0
