"""What types of the KV cache cost, alone and with quantized weights: computed in `gguf_harness.metrics.cache_cost`."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Column, GatedBy, Metric

__all__ = ["METRICS"]

_CACHE: Final = GatedBy("kv", "test_cache_keeps_the_distribution", of="cached")
_TOTAL: Final = GatedBy("kv", "test_cost_of_weights_and_cache_together", of="cached")
_KULLBACK: Final = "Kullback and Leibler (1951), On Information and Sufficiency; llama.cpp, pull request 7412."
_OURS: Final = "This harness: two factors, weights and cache, each plain or quantized (Fisher 1935, factorial designs)."

METRICS: Final = (
    Metric(
        name="kv_kld",
        title="KL of the cache",
        unit="nats",
        better="lower",
        meaning="Mean KL of next-token distributions from the same file with a full KV cache to it with this one.",
        definition="mean over tokens of KL(file, full cache || file, this cache); weights are the same in both.",
        source=_KULLBACK,
        estimated="cache",
        values=(0.0, math.inf),
        column=Column("KL of the cache", rank=0),
        tables=frozenset({"html", "brief", "markdown", "comparison"}),
        gate=_CACHE,
    ),
    Metric(
        name="kv_kld_p99",
        title="KL of the cache, 99th percentile",
        unit="nats",
        better="lower",
        meaning="99th percentile over tokens of the KL that the types of the KV cache cause.",
        definition="Quantile at 0.99 (n - 1); its interval inverts the test of the share of tokens below.",
        source=_KULLBACK,
        estimated="cache",
        values=(0.0, math.inf),
        tables=frozenset({"html", "comparison"}),
        gate=_CACHE,
    ),
    Metric(
        name="kv_same_top",
        title="same top token as with a full cache",
        unit="fraction",
        better="higher",
        meaning="Share of tokens whose most likely successor is the same with this KV cache and with a full one.",
        definition="mean over tokens of [argmax with a full cache = argmax with this one].",
        source="llama-perplexity --kl-divergence (tools/perplexity of llama.cpp), of two caches of one file.",
        estimated="cache",
        column=Column("same top", rank=2),
        tables=frozenset({"html", "brief", "markdown", "comparison"}),
        gate=_CACHE,
    ),
    Metric(
        name="kv_delta_p_rms",
        title="RMS Δp of the cache",
        unit="fraction",
        better="lower",
        meaning="Root mean square of the change of the correct token's probability that the KV cache causes.",
        definition="root of the mean over tokens of (p with this cache - p with a full cache) squared.",
        source="llama-perplexity --kl-divergence (tools/perplexity of llama.cpp), of two caches of one file.",
        estimated="cache",
        tables=frozenset({"html", "comparison"}),
        gate=_CACHE,
    ),
    Metric(
        name="kv_ppl_ratio",
        title="PPL ratio of the cache",
        better="lower",
        meaning="Perplexity with this KV cache over that with a full one. It can fall while predictions get worse: no "
        "gate decides on it.",
        definition="exp(mean nll with this cache - mean nll with a full one), paired by token.",
        source="llama-perplexity (tools/perplexity of llama.cpp), of two caches of one file.",
        estimated="cache",
        values=(0.0, math.inf),
        column=Column("PPL ratio", rank=4),
        tables=frozenset({"html", "markdown", "comparison"}),
    ),
    Metric(
        name="kv_total_kld",
        title="KL of weights and cache",
        unit="nats",
        better="lower",
        meaning="Mean KL from the reference with a full KV cache to this file with this one: what both cost together.",
        definition="mean over tokens of KL(reference, full cache || file, this cache).",
        source=_KULLBACK,
        estimated="cache",
        values=(0.0, math.inf),
        column=Column("KL with weights", rank=3),
        tables=frozenset({"html", "markdown", "comparison"}),
        gate=_TOTAL,
    ),
    Metric(
        name="kv_weights_kld",
        title="KL of the weights",
        unit="nats",
        better="lower",
        meaning="Mean KL from the reference to this file, both with a full KV cache: what its weights cost alone.",
        definition="mean over tokens of KL(reference, full cache || file, full cache).",
        source=_KULLBACK,
        estimated="cache",
        values=(0.0, math.inf),
    ),
    Metric(
        name="kv_interaction_kld",
        title="interaction in KL",
        unit="nats",
        meaning="KL of weights and cache together less that of each alone: above 0 they make each other worse.",
        definition="KL(ref, full || file, this) - KL(ref, full || file, full) - KL(ref, full || ref, this), token by "
        "token.",
        source=_OURS,
        estimated="cache",
    ),
    Metric(
        name="kv_interaction_loss",
        title="interaction in loss",
        unit="nats",
        meaning="Loss that weights and cache add together, less what each adds alone: above 0 they make each other "
        "worse.",
        definition="mean over tokens of nll(file, this) - nll(file, full) - nll(ref, this) + nll(ref, full).",
        source=_OURS,
        estimated="cache",
    ),
)
