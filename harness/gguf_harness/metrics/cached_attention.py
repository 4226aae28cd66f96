"""Attention computed from queries and cached keys and values, and how far it is from another cache's.

Vaswani et al. (2017), "Attention Is All You Need", equation 1, with heads that share keys and values (Ainslie et al.
2023, arXiv:2305.13245): softmax(q k^T scale + mask) v.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.importance import rank_correlation
from gguf_harness.metrics.pattern_comparison import HeadPlace, PatternComparison
from gguf_harness.metrics.records import WHOLE, Estimate, Place
from gguf_harness.metrics.stats import as_estimate, mean_of_clusters, mean_with_errors, require_samples

__all__ = [
    "attention_pattern",
    "cosines",
    "head_error_estimates",
    "mix_values",
    "pattern_estimates",
    "prediction_rank",
    "relative_errors",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_FEWEST_LAYERS: Final = 3


def attention_pattern(q: F32, k: F32, scale: float, mask: F32) -> F32:
    """softmax(q k^T scale + mask), over keys.

    Args:
        q: [pos, head, d].
        k: [key, kv_head, d]; each of its heads serves as many heads of q, one group after the other.
        scale: of scores.
        mask: [pos, key], -inf where a key is not seen; each position sees one.

    Returns:
        [head, pos, key], rows that sum to one.
    """
    group = _group(q.shape[1], k.shape[1])
    pattern = np.empty((q.shape[1], len(q), len(k)), dtype=np.float32)
    for head in range(q.shape[1]):
        scores = (q[:, head] @ k[:, head // group].T).astype(np.float64) * scale + mask
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        pattern[head] = scores / scores.sum(axis=1, keepdims=True)
    return pattern


def mix_values(pattern: F32, v: F32) -> F32:
    """[pos, head, d] of a [head, pos, key] pattern and [key, kv_head, d] values."""
    group = _group(len(pattern), v.shape[1])
    mixed = [weights @ v[:, head // group] for head, weights in enumerate(pattern)]
    return np.stack(mixed, axis=1)


def _group(heads: int, shared: int) -> int:
    if heads % shared:
        raise NoData(f"{heads} heads of queries do not share {shared} heads of keys evenly.")
    return heads // shared


def relative_errors(values: F32, reference: F32) -> F64:
    """[head] |x - y| / |y| over all tokens of [pos, head, d], Frobenius norms; NaN where the reference is zero."""
    difference, norm = (
        np.linalg.norm(each.astype(np.float64), axis=(0, 2)) for each in (values - reference, reference)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norm > 0, difference / norm, np.nan))


def cosines(values: F32, reference: F32) -> F64:
    """[head] mean over tokens of the cosine of [pos, head, d] with the reference; NaN where one is zero."""
    x, y = values.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip((x * y).sum(axis=2) / norms, -1.0, 1.0).mean(axis=0))


# -- estimates --------------------------------------------------------------------------------------------------------


def head_error_estimates(metric: str, values: F64, heads: Sequence[HeadPlace]) -> list[Estimate]:
    """The mean over heads and prompts, that of each layer, and that of each head; errors are clustered by prompt.

    Args:
        metric: its name.
        values: [prompt, head]; heads with a NaN are left out.
        heads: layer and head of keys and values.

    Raises:
        NoData: no head has values.
    """
    known = ~np.isnan(values).any(axis=0)
    if not known.any():
        raise NoData(f"{metric}: no head has values.")
    places = np.array(heads)[known]
    there = require_samples(values[:, known], metric)

    def mean(chosen: NDArray[np.bool_], place: Place) -> Estimate:
        return as_estimate(metric, mean_with_errors(there[:, chosen]), place)

    estimates = [mean(np.ones(len(places), dtype=np.bool_), WHOLE)]
    estimates += [mean(places[:, 0] == layer, Place(layer)) for layer in dict.fromkeys(places[:, 0].tolist())]
    return estimates + [
        mean(np.arange(len(places)) == index, Place(layer, head)) for index, (layer, head) in enumerate(places.tolist())
    ]


_ROWS: Final = {
    "kv_pattern_jsd": "jsd",
    "kv_pattern_total_variation": "total_variation",
    "kv_pattern_top_changed": "top_changed",
}  # fmt: skip
"""Metrics that are means over rows of patterns, by field of `PatternComparison`."""


def pattern_estimates(prompts: Sequence[PatternComparison], heads: Sequence[HeadPlace]) -> list[Estimate]:
    """How far patterns are from those of the full cache: over all, of each head, and of the worst.

    Args:
        prompts: a comparison per prompt, all of the same heads.
        heads: layer and head of each entry of the head axis.

    Raises:
        NoData: there is no prompt.
    """
    if not prompts:
        raise NoData("Patterns of no prompt have no estimate.")
    cosine = require_samples([each.cosine for each in prompts], "kv_pattern_cosine")
    estimates = [as_estimate("kv_pattern_cosine", mean_with_errors(cosine))]
    for metric, name in _ROWS.items():
        rows = [getattr(each, name) for each in prompts]
        estimates.append(_over_rows(metric, rows, WHOLE))
    worst = int(np.argmin(cosine.mean(axis=0)))
    lowest = as_estimate("kv_pattern_worst_head", mean_with_errors(cosine[:, worst : worst + 1]))
    estimates.append(replace(lowest, extreme_at=Place(*heads[worst])))
    for index, (layer, head) in enumerate(heads):
        place = Place(layer, head)
        estimates.append(as_estimate("kv_pattern_cosine", mean_with_errors(cosine[:, index : index + 1]), place))
        estimates.append(_over_rows("kv_pattern_jsd", [each.jsd[index] for each in prompts], place))
    return estimates


def _over_rows(metric: str, prompts: Sequence[NDArray[Any]], place: Place) -> Estimate:
    sums = [float(values.sum(dtype=np.float64)) for values in prompts]
    return as_estimate(metric, mean_of_clusters(sums, [values.size for values in prompts], metric), place)


def prediction_rank(predicted: F64, caused: Mapping[int, F64], layers: Sequence[int], starts: NDArray[Any]) -> Estimate:
    """Rank correlation over layers of the predicted error with the KL that it causes; error by bootstrap over prompts.

    Args:
        predicted: [prompt, layer].
        caused: [n] KL of each token, by layer.
        layers: of `predicted`.
        starts: [prompts + 1] of tokens.

    Raises:
        NoData: fewer than three layers, whose order would say nothing.
    """
    if len(layers) < _FEWEST_LAYERS:
        raise NoData(f"The order of {len(layers)} layers says nothing, expected {_FEWEST_LAYERS} or more.")
    means = [[float(caused[layer][start:end].mean()) for start, end in itertools.pairwise(starts)] for layer in layers]
    return rank_correlation("kv_prediction_rank", predicted.T, means)
