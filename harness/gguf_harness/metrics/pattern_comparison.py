"""Distance of a candidate's attention patterns from the reference's, by head and position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.directions import cosine_of_products
from gguf_harness.metrics.records import WHOLE, Estimate, Place
from gguf_harness.metrics.stats import as_estimate, mean_of_clusters, mean_with_errors, require_samples

__all__ = ["HeadPlace", "PatternComparison", "attention_estimates", "compare_patterns", "head_estimates", "moved_heads"]

Pattern = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
HeadPlace = tuple[int, int]
"""(layer, head)."""

_TINY: Final = np.finfo(np.float64).tiny
_BLOCK: Final = 2**15
"""Cells of a pattern processed at once: six buffers of 256 KiB, which fit into CPU caches."""


@dataclass(frozen=True, slots=True)
class PatternComparison:
    """Comparison of a candidate's patterns with the reference's on one prompt.

    Attributes:
        cosine: [head] cosine of the patterns, flattened; 1 for equal ones.
        cosine_rows: [head, row] cosine of each position's attention.
        jsd: [head, row] Jensen-Shannon divergence in nats, in [0, ln 2].
        total_variation: [head, row] half the summed difference, in [0, 1].
        entropy_change: [head, row] entropy in nats, candidate minus reference.
        top_changed: [head, row] whether another key is the most attended one (the first of equals).
    """

    cosine: Floats
    cosine_rows: Floats
    jsd: Floats
    total_variation: Floats
    entropy_change: Floats
    top_changed: NDArray[np.bool_]


def compare_patterns(candidate: Pattern, reference: Pattern, first_row: int = 1) -> PatternComparison:
    """Compare attention patterns of the same tokens.

    Each row is a distribution over keys, normalized again in float64 before anything is computed: in half precision
    it sums to one only within 1e-3. The Jensen-Shannon divergence is that of Lin (1991), "Divergence Measures Based
    on the Shannon Entropy", equation 4.1 with equal weights: H((p + q) / 2) - (H(p) + H(q)) / 2. Total variation is
    sum |p - q| / 2. Equal patterns have cosine 1 and both divergences 0, exactly.

    Args:
        candidate: [head, position, key], half or single precision; keys that are masked are 0. Causal or not.
        reference: the same shape.
        first_row: rows before this position are left out. The first position of a causal model can only attend to
            itself; use 0 for an encoder.

    Returns:
        Arrays whose row axis starts at position `first_row`.

    Raises:
        NoData: no rows are left, or one is not finite, is negative, or attends to nothing.
    """
    if candidate.shape != reference.shape or candidate.ndim != 3:
        raise ValueError(f"Patterns must have the same shape [head, pos, key]: {candidate.shape}, {reference.shape}")
    heads, positions, keys = candidate.shape
    rows = positions - first_row
    if heads == 0 or keys == 0 or rows < 1:
        raise NoData(f"Attention patterns of shape {candidate.shape} have no rows to compare from row {first_row} on.")
    step = max(1, _BLOCK // keys)
    buffers = np.empty((6, min(step, rows), keys))
    # Of each row: p·q, p·p, q·q, H(p), H(q), H((p + q) / 2), sum |p - q|.
    sums = np.empty((7, heads, rows))
    changed = np.empty((heads, rows), dtype=np.bool_)
    for head in range(heads):
        for start in range(0, rows, step):
            here = slice(start, min(start + step, rows))
            block = slice(first_row + here.start, first_row + here.stop)
            p, q = candidate[head, block], reference[head, block]
            width = _visible(p, q, block.stop)
            changed[head, here] = _compare_rows(p[:, :width], q[:, :width], buffers, sums[:, head, here])
    return _comparison(sums, changed)


def _visible(p: Pattern, q: Pattern, causal: int) -> int:
    # Half of a causal pattern is masked. NaN counts as visible, so that it is detected.
    keys: int = p.shape[1]
    return keys if p[:, causal:].any() or q[:, causal:].any() else min(causal, keys)


def _compare_rows(candidate: Pattern, reference: Pattern, buffers: Floats, sums: Floats) -> NDArray[np.bool_]:
    """Sums over keys of a block of rows, into `sums` [7, row]; returns whether the most attended key differs."""
    p, q, m, log_p, log_q, log_m = buffers[:, : candidate.shape[0], : candidate.shape[1]]
    _normalize(candidate, p, "candidate")
    _normalize(reference, q, "reference")
    np.add(p, q, out=m)
    m *= 0.5
    for values, logs in ((p, log_p), (q, log_q), (m, log_m)):
        np.maximum(values, _TINY, out=logs)
        np.log(logs, out=logs)
    pairs = ((p, q), (p, p), (q, q), (p, log_p), (q, log_q), (m, log_m))
    for row, (left, right) in enumerate(pairs):
        np.einsum("rk,rk->r", left, right, out=sums[row])
    np.negative(sums[3:6], out=sums[3:6])
    changed = p.argmax(axis=1) != q.argmax(axis=1)
    np.subtract(p, q, out=m)
    np.abs(m, out=m)
    np.sum(m, axis=1, out=sums[6])
    return np.asarray(changed)


def _normalize(rows: Pattern, out: Floats, whose: str) -> None:
    out[...] = rows
    mass, least = out.sum(axis=1), out.min(axis=1)
    good = np.isfinite(mass) & (mass > 0) & (least >= 0)
    if not good.all():
        bad = int(np.argmin(good))
        raise NoData(
            f"Attention of the {whose} is not a distribution over keys: a row sums to {mass[bad]}, and its smallest "
            f"weight is {least[bad]}.",
            "Is it the pattern after the softmax, and does the model compute finite numbers?",
        )
    out /= mass[:, None]


def _comparison(sums: Floats, changed: NDArray[np.bool_]) -> PatternComparison:
    # The sums of squares of rows also give those of the whole pattern, so one pass gives both cosines.
    dot, square_p, square_q, entropy_p, entropy_q, entropy_m, distance = sums
    dots, squares_p, squares_q = dot.sum(axis=1), square_p.sum(axis=1), square_q.sum(axis=1)
    return PatternComparison(
        cosine=cosine_of_products(dots, squares_p, squares_q),
        cosine_rows=cosine_of_products(dot, square_p, square_q),
        jsd=np.clip(entropy_m - (entropy_p + entropy_q) / 2, 0.0, math.log(2)),
        total_variation=np.minimum(distance / 2, 1.0),
        entropy_change=entropy_p - entropy_q,
        top_changed=changed,
    )


def attention_estimates(prompts: Sequence[PatternComparison], heads: Sequence[HeadPlace]) -> list[Estimate]:
    """Estimates over all heads and prompts, with errors clustered by prompt (CR1); without one for a single prompt.

    attn_cosine is the mean over heads and prompts of the flattened patterns' cosine, each prompt weighing the same.
    attn_jsd, attn_total_variation, attn_entropy_change and attn_top_changed are means over rows, each row weighing
    the same. attn_cosine_worst_head is the lowest of the heads' mean cosines, with that head's own error, which ignores
    that the head was selected as the worst.

    Args:
        prompts: a comparison per prompt, all of the same heads.
        heads: layer and head of each entry of the head axis.

    Raises:
        NoData: there is no prompt, or a value is not finite.
    """
    _require_heads(prompts, heads)
    cosines = require_samples([each.cosine for each in prompts], "attn_cosine")
    worst = int(np.argmin(cosines.mean(axis=0)))
    lowest = as_estimate("attn_cosine_worst_head", mean_with_errors(cosines[:, worst : worst + 1]))
    return [
        as_estimate("attn_cosine", mean_with_errors(cosines)),
        replace(lowest, extreme_at=Place(*heads[worst])),
        _over_rows("attn_jsd", [each.jsd for each in prompts]),
        _over_rows("attn_total_variation", [each.total_variation for each in prompts]),
        _over_rows("attn_entropy_change", [each.entropy_change for each in prompts]),
        _over_rows("attn_top_changed", [each.top_changed for each in prompts]),
    ]


def head_estimates(prompts: Sequence[PatternComparison], heads: Sequence[HeadPlace]) -> list[Estimate]:
    """attn_cosine and attn_jsd of each head, with errors over prompts; arguments as for `attention_estimates`."""
    _require_heads(prompts, heads)
    cosines = require_samples([each.cosine for each in prompts], "attn_cosine")
    estimates = []
    for index, (layer, head) in enumerate(heads):
        place = Place(layer, head)
        estimates.append(as_estimate("attn_cosine", mean_with_errors(cosines[:, index : index + 1]), place))
        estimates.append(_over_rows("attn_jsd", [each.jsd[index] for each in prompts], place))
    return estimates


def moved_heads(metric: str, prompts: Sequence[PatternComparison], heads: Sequence[HeadPlace]) -> list[Estimate]:
    """Mean Jensen-Shannon divergence of patterns: over all heads, of each layer, and of each head.

    Args:
        metric: its name.
        prompts: a comparison per prompt, all of the same heads.
        heads: layer and head of each entry of the head axis.

    Raises:
        NoData: there is no prompt, or a value is not finite.
    """
    _require_heads(prompts, heads)
    layers: dict[int, list[int]] = {}
    for index, (layer, _) in enumerate(heads):
        layers.setdefault(layer, []).append(index)
    return [
        _over_rows(metric, [each.jsd for each in prompts]),
        *(_over_rows(metric, [each.jsd[of] for each in prompts], Place(layer)) for layer, of in layers.items()),
        *(_over_rows(metric, [each.jsd[i] for each in prompts], Place(*head)) for i, head in enumerate(heads)),
    ]


def _require_heads(prompts: Sequence[PatternComparison], heads: Sequence[HeadPlace]) -> None:
    if not prompts or not heads:
        raise NoData(f"Attention of {len(prompts)} prompts and {len(heads)} heads has no estimate.")
    wrong = [len(each.cosine) for each in prompts if len(each.cosine) != len(heads)]
    if wrong:
        raise ValueError(f"A comparison has {wrong[0]} heads, and {len(heads)} are named")


def _over_rows(metric: str, prompts: Sequence[NDArray[Any]], place: Place = WHOLE) -> Estimate:
    sums = [float(values.sum(dtype=np.float64)) for values in prompts]
    mean = mean_of_clusters(sums, [values.size for values in prompts], metric)
    return as_estimate(metric, mean, place)
