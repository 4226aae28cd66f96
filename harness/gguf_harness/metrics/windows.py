"""Gates of a corpus pass as limits on the mean of window means, which can be decided during the pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.divergence import probability_change
from gguf_harness.metrics.registry import compared_by_window, metric_info
from gguf_harness.metrics.registry.entry import WindowMean
from gguf_harness.metrics.sequential import EarlyDecision, WindowSeries, decide_early, max_cv, rare_tokens

__all__ = [
    "EarlyDecisions",
    "WindowLimit",
    "decided_so_far",
    "from_mean",
    "is_settled",
    "to_mean",
    "window_means",
    "window_series",
]

Tokens = Mapping[str, NDArray[Any]]
EarlyDecisions = dict[str, dict[str, EarlyDecision | None]]
"""By model and gate; None for a gate that could have been decided early but was not."""


@dataclass(frozen=True, slots=True)
class WindowLimit:
    """A limit on a metric that can be decided early, with its confidence.

    Attributes:
        metric: its name; that of the ratio if the gate's limit is relative to the reference.
        limit: in the metric's unit.
        gate: metric of the original gate: a limit on PPL relative to the reference becomes one on the PPL ratio.
    """

    metric: str
    limit: float
    confidence: float
    gate: str


def window_series(limit: WindowLimit, candidate: Tokens, reference: Tokens) -> WindowSeries:
    """The window means whose mean is within a limit exactly if the metric is within its limit.

    PPL <= L means that the mean nll is at most ln L; an RMS <= L, that the mean square is at most L^2; a quantile
    Q(q) <= L, that a share of at least q of all tokens is at most L.

    Args:
        limit: of a metric that can be decided early.
        candidate: nll, top, kld and kld_reverse, each [windows, scored tokens].
        reference: nll and top of the same windows.
    """
    metric, bound = metric_info(limit.metric), limit.limit
    early = metric.early
    if early is None:
        raise ValueError(f"{metric.name} cannot be decided from window means")
    if early.by == "quantile":
        below = _means(candidate[early.of] <= bound)
        return WindowSeries(below, early.share, lower_is_better=False, floor=0.0, ceiling=1.0)
    values, lower = _values(early, candidate, reference), metric.better == "lower"
    tokens = candidate["top"].shape[-1]
    cv = max_cv(tokens)
    if early.of == "agreement":
        rare = (1 - bound) * tokens < rare_tokens(tokens)
        return WindowSeries(values, 1 - bound, lower_is_better=True, floor=0.0, ceiling=1.0 if rare else None, cv=cv)
    if early.by == "exp":
        bound = _ln(bound)
    if early.of == "nll_difference":
        # A candidate's nll is never negative: the known reference's nll bounds how much better it can be.
        floor = -_means(reference["nll"])
        deviation = cv * bound if bound > 0 else None
        return WindowSeries(values, bound, lower_is_better=lower, floor=floor, deviation=deviation)
    if early.of == "change" and early.by == "mean":
        return WindowSeries(values, bound, lower_is_better=lower, floor=-1.0, ceiling=1.0)
    if early.by == "rms":
        # Squares are at most 1, a hundred times a usual limit: bets using that bound would need a thousand windows.
        bound *= abs(bound)
    return WindowSeries(values, bound, lower_is_better=lower, floor=0.0, cv=cv)


def decided_so_far(
    limits: Sequence[WindowLimit], candidate: Tokens, reference: Tokens
) -> dict[str, EarlyDecision | None]:
    """The decision on each limit after the windows so far, by gate; None if undecided.

    Args:
        limits: each of a metric that can be decided early.
        candidate: per-token values of the windows so far, in the order in which they were decoded.
        reference: the same of the reference, of the same windows.
    """
    return {limit.gate: decide_early(window_series(limit, candidate, reference), limit.confidence) for limit in limits}


def is_settled(decisions: Mapping[str, EarlyDecision | None]) -> bool:
    """Whether a pass can stop: all gates are decided, or one has failed, and with it the model."""
    return (
        any(one is not None and one.outcome == "fail" for one in decisions.values()) or None not in decisions.values()
    )


def _ln(value: float) -> float:
    """The logarithm of a perplexity limit; limits of zero or less are always exceeded."""
    return math.log(value) if value > 0 else -math.inf


def _means(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of each window, [windows]."""
    means: NDArray[np.float64] = np.asarray(samples, dtype=np.float64).mean(axis=-1)
    return means


def _values(early: WindowMean, candidate: Tokens, reference: Tokens) -> NDArray[np.float64]:
    """Means of windows, [windows], of what a metric is the mean of, or the root or exp of it.

    Agreement is given as the share that changed, which is close to 0, the bound that matters.
    """
    if early.of == "agreement":
        return _means(candidate["top"] != reference["top"])
    if early.of == "change":
        change = probability_change(candidate["nll"], reference["nll"])
        return _means(change**2 if early.by == "rms" else change)
    return _means(candidate["nll"] - reference["nll"] if early.of == "nll_difference" else candidate[early.of])


def window_means(candidate: Tokens, reference: Tokens) -> dict[str, NDArray[np.float64]]:
    """Means of windows by metric that baselines compare by window, each [windows]: nll for PPL, squares for an RMS.

    Args:
        candidate: nll, top and kld, each [windows, scored tokens].
        reference: nll and top of the same windows.
    """
    means = {}
    for name in compared_by_window():
        early = metric_info(name).early
        if early is None or early.by == "quantile":
            raise ValueError(f"{name} has window means, but its entry does not say of what")
        values = _values(early, candidate, reference)
        means[name] = 1 - values if early.of == "agreement" else values
    return means


def from_mean(metric: str, mean: float) -> tuple[float, float]:
    """The value of a metric from the mean of its window means, and the derivative there."""
    early = metric_info(metric).early
    by = "mean" if early is None else early.by
    if by == "exp":
        return math.exp(mean), math.exp(mean)
    if by == "rms":
        root = math.sqrt(mean)
        return root, 1 / (2 * root) if root > 0 else 0.0
    return mean, 1.0


def to_mean(metric: str, value: float) -> float:
    """The mean of window means from the value of a metric: the inverse of `from_mean`.

    Raises:
        ValueError: no mean has this value: a perplexity that is not above 0.
    """
    early = metric_info(metric).early
    by = "mean" if early is None else early.by
    return math.log(value) if by == "exp" else value**2 if by == "rms" else value
