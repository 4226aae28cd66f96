"""The cache of keys and values: its bytes, what types of it change in keys, values and attention, and where.

Computed in `gguf_harness.metrics.cached_attention`, bytes in `gguf_harness.gguf.cache_layout`.
"""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, Column, Metric, Part

__all__ = ["METRICS"]

_BY_HEAD: Final[tuple[Part, ...]] = ("layer", "head")
_HEADS: Final[tuple[Part, ...]] = ("head",)
_OURS: Final = "This harness, from llama.cpp's state of the cache."
_PATTERN: Final = (
    "This harness, on softmax(q k') with keys as the cache holds them, against the same file's full cache."
)


def _error(name: str, title: str, what: str, better: Better = "lower") -> Metric:
    cosine = name.endswith("cosine")
    return Metric(
        name=name,
        title=title,
        better="higher" if cosine else better,
        meaning=f"{'Cosine' if cosine else 'Relative error'} of {what} in the cache, against those in the full cache.",
        definition=(
            "x.y / (|x| |y|) of a head's vector in both caches, mean over tokens."
            if cosine
            else "|x - y| / |y| of a head's vectors in both caches, Frobenius norms over the tokens of a prompt."
        )
        + " Mean over heads and prompts; rotation is undone.",
        source=_OURS,
        estimated="prompts",
        values=(-1.0, 1.0) if cosine else (0.0, math.inf),
        parts=_BY_HEAD,
    )


def _pattern(
    name: str,
    title: str,
    meaning: str,
    definition: str,
    *,
    unit: str = "",
    better: Better = "lower",
    values: tuple[float, float] = (-math.inf, math.inf),
    parts: tuple[Part, ...] = (),
    column: Column | None = None,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=_PATTERN,
        estimated="prompts",
        values=values,
        parts=parts,
        column=column,
    )


METRICS: Final = (
    Metric(
        name="kv_bytes_per_token",
        title="KV bytes/token",
        unit="bytes",
        better="lower",
        meaning="Memory that one more token of context takes in the cache of keys and values.",
        definition="Growth of llama.cpp's buffers by 256 more tokens at the session's context, / 256. Layers with a"
        " sliding window keep the window, as in llama-server.",
        source="llama.cpp's buffers, equal to the formula from the file's header.",
        estimated="memory",
        decimals=0,
        tables=frozenset({"html", "markdown"}),
    ),
    Metric(
        name="kv_sequence_bytes",
        title="KV of a sequence",
        unit="bytes",
        better="lower",
        meaning="Memory of the cache of keys and values for one sequence of the session's context.",
        definition="Size of llama.cpp's buffers of keys and values. Layers with a sliding window keep the window, as in"
        " llama-server.",
        source="llama.cpp's buffers, equal to the formula from the file's header.",
        estimated="memory",
        decimals=0,
        tables=frozenset({"html"}),
    ),
    _error("kv_key_error", "K error", "keys"),
    _error("kv_key_cosine", "K cosine", "keys"),
    _error("kv_value_error", "V error", "values"),
    _error("kv_value_cosine", "V cosine", "values"),
    _pattern(
        "kv_pattern_cosine",
        "cached attention cosine",
        "Cosine of a head's attention pattern with the one that the full cache gives.",
        "p.q / (|p| |q|) of a prompt's flattened patterns, mean over heads and prompts.",
        better="higher",
        values=(-1.0, 1.0),
        parts=_HEADS,
    ),
    _pattern(
        "kv_pattern_jsd",
        "cached attention JSD",
        "Jensen-Shannon divergence of a position's attention from that with the full cache; at most ln 2.",
        "H((p + q) / 2) - (H(p) + H(q)) / 2, mean over positions.",
        unit="nats",
        values=(0.0, math.log(2)),
        parts=_HEADS,
    ),
    _pattern(
        "kv_pattern_total_variation",
        "cached attention TV",
        "Share of a position's attention that moved to other tokens.",
        "sum over keys of |p - q| / 2, mean over positions.",
        unit="fraction",
    ),
    _pattern(
        "kv_pattern_top_changed",
        "cached top key changed",
        "Share of positions whose most attended token changed.",
        "mean of [argmax p is not argmax q] over positions.",
        unit="fraction",
    ),
    _pattern(
        "kv_pattern_worst_head",
        "worst cached head",
        "Attention cosine of the head that the cache's types change most.",
        "Least of the heads' mean cosines over prompts; its error ignores that the head was selected.",
        better="higher",
        values=(-1.0, 1.0),
    ),
    Metric(
        name="kv_layer_predicted",
        title="predicted error",
        better="lower",
        meaning="Change of a layer's attention output by types of its cache, from its keys and values alone.",
        definition="|o - o'| / |o|, Frobenius norms over a prompt: o = softmax(q k') v, o' the same with keys and"
        " values stored in the types and queries rounded as they are multiplied; mean over prompts.",
        source="First order: queries, keys and values are the full cache's. This harness.",
        estimated="prompts",
        values=(0.0, math.inf),
        parts=("layer",),
    ),
    Metric(
        name="kv_layer_stream_change",
        title="predicted change",
        better="lower",
        meaning="Change of the residual stream by types of a layer's cache, from its queries, keys and values alone.",
        definition="kv_layer_predicted times |attention's update| / |stream after it|, Frobenius norms over a prompt;"
        " mean over some prompts. KL grows with its square.",
        source="First order: the output projection keeps relative errors as they are. This harness.",
        estimated="prompts",
        values=(0.0, math.inf),
        parts=("layer",),
    ),
    Metric(
        name="kv_layer_kld",
        title="layer's cache KL",
        unit="nats",
        better="lower",
        meaning="KL divergence with one layer's keys and values stored in the types; for the whole, those of all.",
        definition="KL(p || q) per token: p with a cache in f32, q with a layer's keys and values replaced by what the"
        " types leave of them, rotated before, and queries rounded, as llama.cpp does. On six prompts at most.",
        source="Activation patching: Vig et al. (2020); Meng et al. (2022), Locating and Editing Factual Associations.",
        estimated="prompts",
        values=(0.0, math.inf),
        parts=("layer",),
    ),
    Metric(
        name="kv_layer_floor",
        title="rounding floor",
        unit="nats",
        better="lower",
        meaning="KL divergence with the first layer's keys and values changed by a millionth: rounding alone.",
        definition="As kv_layer_kld, with keys and values times 1 + 2^-20 in place of what the types leave of them.",
        source="This harness. Files with quantized weights round activations, which carries small changes on.",
        estimated="prompts",
        values=(0.0, math.inf),
    ),
    Metric(
        name="kv_run_kld",
        title="cache KL on prompts",
        unit="nats",
        better="lower",
        meaning="KL divergence of the run with these types of the cache, on the tokens of the prompts.",
        definition="KL(p || q) per token: p with a cache in f32, q as llama.cpp runs with the types.",
        source="This harness, beside kv_layer_kld of all layers: they should be the same.",
        estimated="prompts",
        values=(0.0, math.inf),
    ),
    Metric(
        name="kv_patched_gap",
        title="patched to run",
        unit="nats",
        better="lower",
        meaning="KL divergence of all layers' patched caches from the run with these types: what patching leaves out.",
        definition="KL(q || r) per token: q as llama.cpp runs with the types, r with all keys and values replaced by"
        " what the types leave of them, and queries rounded.",
        source="This harness. On a GPU queries are rounded in another way, which is then part of it.",
        estimated="prompts",
        values=(0.0, math.inf),
    ),
    Metric(
        name="kv_prediction_rank",
        title="prediction's rank corr.",
        better="neutral",
        meaning="Whether the layers with the largest predicted error are those that cause the largest KL.",
        definition="Spearman's rank correlation over layers of kv_layer_stream_change with kv_layer_kld; of"
        " kv_layer_predicted where llama.cpp's graph does not name the stream.",
        source="Spearman (1904), The proof and measurement of association; error by bootstrap over prompts.",
        estimated="prompts",
        values=(-1.0, 1.0),
    ),
)
