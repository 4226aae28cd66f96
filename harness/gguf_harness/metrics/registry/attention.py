"""Attention compared with the reference: computed in `gguf_harness.metrics.attention`."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, Column, GatedBy, Metric, Part

__all__ = ["METRICS"]

_PATTERNS: Final = GatedBy("attention", "test_attention_stays_close_to_reference")
_VECTORS: Final = GatedBy("attention", "test_queries_keys_and_values_stay_close_to_reference")
_PROMPT_HEAD: Final[tuple[Part, ...]] = ("prompt", "layer", "head")


def _pattern(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str = "This harness, on patterns after the softmax, each row normalized again in float64.",
    better: Better = "lower",
    values: tuple[float, float] = (-math.inf, math.inf),
    parts: tuple[Part, ...] = _PROMPT_HEAD,
    column: Column | None = None,
    gate: GatedBy | None = _PATTERNS,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="prompts",
        values=values,
        parts=parts,
        column=column,
        tables=frozenset({"html"} if column else ()),
        gate=gate,
    )


def _error(name: str, title: str, meaning: str, what: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        better="lower",
        meaning=meaning,
        definition=f"|{what} - the reference's| / |the reference's|, Frobenius norms over tokens, mean over heads.",
        source="Relative error, as in numerical analysis.",
        estimated="prompts",
        values=(0.0, math.inf),
        parts=("layer",),
        gate=_VECTORS,
    )


def _cka(name: str, title: str, meaning: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        better="higher",
        meaning=meaning,
        definition="|A'B|^2 / (|A'A| |B'B|), Frobenius norms, columns of A and B centred, mean over heads.",
        source="Kornblith et al. (2019), Similarity of Neural Network Representations Revisited, linear CKA.",
        estimated="prompts",
        values=(0.0, 1.0),
        parts=("layer",),
        gate=_VECTORS,
    )


METRICS: Final = (
    _pattern(
        "attn_cosine",
        "attention cosine",
        "",
        "Cosine of a head's attention pattern with the reference's.",
        "p.q / (|p| |q|) of a prompt's flattened patterns, mean over heads and prompts.",
        better="higher",
        values=(-1.0, 1.0),
        column=Column("attention cos.", rank=9),
    ),
    _pattern(
        "attn_cosine_worst_head",
        "worst head's cosine",
        "",
        "Attention cosine of the head that differs most from the reference's.",
        "Least of the heads' mean cosines over prompts; its error ignores that the head was selected.",
        better="higher",
        values=(-1.0, 1.0),
        parts=("prompt",),
        column=Column("worst head", rank=11),
    ),
    _pattern(
        "attn_jsd",
        "attention JSD",
        "nats",
        "Jensen-Shannon divergence of a position's attention; at most ln 2.",
        "H((p + q) / 2) - (H(p) + H(q)) / 2, mean over positions.",
        "Lin (1991), Divergence Measures Based on the Shannon Entropy, equation 4.1 with equal weights.",
        values=(0.0, math.log(2)),
    ),
    _pattern(
        "attn_total_variation",
        "attention TV",
        "fraction",
        "Share of a position's attention that moved to other tokens.",
        "sum over keys of |p - q| / 2, mean over positions.",
        "Total variation distance of distributions.",
        parts=("prompt",),
    ),
    _pattern(
        "attn_entropy_change",
        "attention entropy Δ",
        "nats",
        "Entropy of a position's attention minus the reference's.",
        "H(p) - H(q), mean over positions.",
        "Shannon (1948), A Mathematical Theory of Communication.",
        "neutral",
        parts=("prompt",),
        gate=None,
    ),
    _pattern(
        "attn_top_changed",
        "top key changed",
        "fraction",
        "Share of positions whose most attended token changed.",
        "mean of [argmax p is not argmax q] over positions.",
        parts=("prompt",),
    ),
    _error("attn_q_error", "q error", "Relative error of queries, norm over norm, mean over heads.", "queries"),
    _error("attn_k_error", "k error", "Relative error of keys, norm over norm, mean over KV heads.", "keys"),
    _error("attn_v_error", "v error", "Relative error of values, norm over norm, mean over KV heads.", "values"),
    _error(
        "attn_scores_error",
        "score error",
        "Relative error of attention scores q k, norm over norm, mean over heads.",
        "scores q k",
    ),
    _cka("attn_q_cka", "q CKA", "Linear CKA of queries with the reference's, mean over heads."),
    _cka("attn_k_cka", "k CKA", "Linear CKA of keys with the reference's, mean over KV heads."),
    _cka("attn_v_cka", "v CKA", "Linear CKA of values with the reference's, mean over KV heads."),
)
