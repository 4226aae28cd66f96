"""What the types of a KV cache cost: divergence from the same file with a full cache, and how it adds to the weights'.

Values per token come from passes over the same windows, so all differences are paired. Definitions of the divergences
are those of `gguf_harness.metrics.divergence` and `perplexity`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.divergence import summarize_delta_p, summarize_divergence, summarize_same_top
from gguf_harness.metrics.perplexity import compare_perplexity
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import as_estimate, exceedance_p_value, mean_with_errors, require_samples

__all__ = ["summarize_cache", "summarize_interaction", "summarize_together", "summarize_total"]

Tokens = Mapping[str, NDArray[Any]]
"""Of a pass: nll, top and, against another, kld, each [windows, scored tokens]."""

_OF_CACHE: Final = {
    "kld_mean": "kv_kld",
    "kld_p99": "kv_kld_p99",
    "same_top": "kv_same_top",
    "delta_p_rms": "kv_delta_p_rms",
    "ppl_ratio": "kv_ppl_ratio",
}


def summarize_cache(cached: Tokens, full: Tokens) -> list[Estimate]:
    """What a KV cache costs: KL (mean and 99th percentile), same top token, RMS change of probability, PPL ratio.

    Args:
        cached: a file with this cache, against itself with a full one.
        full: nll and top of the file with the full one, on the same windows.
    """
    estimates = [
        *summarize_divergence(cached["kld"], cached["kld_reverse"]),
        summarize_same_top(cached["top"], full["top"]),
        *summarize_delta_p(cached["nll"], full["nll"]),
        *compare_perplexity(cached["nll"], full["nll"]),
    ]
    by_name = {estimate.metric: estimate for estimate in estimates}
    return [replace(by_name[name], metric=metric) for name, metric in _OF_CACHE.items()]


def summarize_together(both: Tokens, weights: Tokens) -> list[Estimate]:
    """KL of weights and cache together, and of the weights alone.

    Args:
        both: a file with this cache, against the reference with a full one.
        weights: the file with a full cache, against the same.
    """
    return [_mean("kv_total_kld", both), _mean("kv_weights_kld", weights)]


def summarize_total(both: Tokens) -> Estimate:
    """KL of weights and cache together; see `summarize_together`."""
    return _mean("kv_total_kld", both)


def _mean(metric: str, tokens: Tokens) -> Estimate:
    return as_estimate(metric, mean_with_errors(require_samples(tokens["kld"], "KL")))


def summarize_interaction(both: Tokens, weights: Tokens, cache: Tokens, reference: Tokens) -> list[Estimate]:
    """What weights and cache cost together less what each costs alone, in KL and in loss, paired by token.

    In the loss this is the interaction of a two-by-two design, exact: the four cells are the four passes. KL is no sum
    of parts even where nothing interacts, since it is quadratic in small changes: its interaction tells whether adding
    both numbers of a table is allowed.

    Args:
        both: the file with this cache, against the reference with a full one.
        weights: the file with a full cache, against the same.
        cache: the reference's file with this cache, against the same.
        reference: nll of the reference with a full cache.
    """
    kld = _together([both["kld"], weights["kld"], cache["kld"]], (1, -1, -1))
    loss = _together([both["nll"], weights["nll"], cache["nll"], reference["nll"]], (1, -1, -1, 1))
    return [_tested("kv_interaction_kld", kld), _tested("kv_interaction_loss", loss)]


def _together(parts: Sequence[NDArray[Any]], signs: Sequence[int]) -> NDArray[np.float64]:
    samples = [require_samples(part, "interaction of weights and cache") for part in parts]
    if len({part.shape for part in samples}) > 1:
        raise NoData(f"An interaction of passes over different tokens: {', '.join(str(p.shape) for p in samples)}.")
    return np.asarray(sum(sign * part for sign, part in zip(signs, samples, strict=True)))


def _tested(metric: str, samples: NDArray[np.float64]) -> Estimate:
    """The mean with its error, and the p-value of the two-sided t test that it is 0."""
    mean = mean_with_errors(samples)
    if mean.se is None:
        return as_estimate(metric, mean, detail="not tested: one window")
    p = min(1.0, 2 * exceedance_p_value(abs(mean.value), mean.se, mean.clusters, 0.0))
    sure = "no interaction is seen" if p >= 0.05 or not math.isfinite(p) else "they interact"
    return as_estimate(metric, mean, detail=f"{sure}: p = {p:.2g}, t test over {mean.clusters} windows")
