"""The names of everything measured: metrics with units and direction, and taps with llama.cpp's graph names.

One table each, and nowhere else. A metric that is not in `METRICS` cannot be recorded.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from harness.errors import GateError, TapNotFound

__all__ = [
    "METRICS",
    "NEEDS_FLASH_ATTENTION_OFF",
    "TAPS",
    "Better",
    "MetricInfo",
    "TapInfo",
    "graph_name",
    "metric_info",
]

Better = Literal["higher", "lower", "neutral"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """What a metric is.

    Attributes:
        unit: unit of the value ("nats", "tokens/s", "bytes", "fraction", "" for a pure number).
        better: which direction is good; "neutral" where neither is.
        title: a short human name, for table heads and axis titles.
        meaning: one sentence for the report.
    """

    unit: str
    better: Better
    title: str
    meaning: str


def _kld_percentile(share: str) -> MetricInfo:
    return MetricInfo("nats", "lower", f"KL {share}", f"{share} percentile of KL(reference || candidate) over tokens.")


def _delta_p_percentile(share: str) -> MetricInfo:
    return MetricInfo(
        "fraction", "neutral", f"Δp {share}", f"{share} percentile of the change of the correct token's probability."
    )


METRICS: dict[str, MetricInfo] = {
    # perplexity
    "ppl": MetricInfo("", "lower", "PPL", "Perplexity: exp of the mean negative log-likelihood per scored token."),
    "ln_ppl_ratio": MetricInfo("nats", "lower", "ln PPL ratio", "Mean difference of the log-likelihoods, paired."),
    "ppl_ratio": MetricInfo("", "lower", "PPL ratio", "Perplexity over the reference's, with the paired error."),
    "ppl_difference": MetricInfo("", "lower", "PPL difference", "Perplexity minus the reference's, paired error."),
    "ln_ppl_correlation": MetricInfo(
        "", "higher", "ln PPL corr.", "Correlation of the log-likelihoods of candidate and reference over tokens."
    ),
    # divergence
    "kld_mean": MetricInfo("nats", "lower", "KL mean", "Mean KL(reference || candidate) of next-token distributions."),
    "kld_reverse_mean": MetricInfo("nats", "lower", "reverse KL mean", "Mean KL(candidate || reference)."),
    "kld_max": MetricInfo("nats", "lower", "KL max", "Largest KL(reference || candidate) of any token."),
    "kld_p99_9": _kld_percentile("99.9th"),
    "kld_p99": _kld_percentile("99th"),
    "kld_p95": _kld_percentile("95th"),
    "kld_p90": _kld_percentile("90th"),
    "kld_median": _kld_percentile("50th"),
    "kld_p10": _kld_percentile("10th"),
    "kld_p5": _kld_percentile("5th"),
    "kld_p1": _kld_percentile("1st"),
    "kld_p0_1": _kld_percentile("0.1th"),
    "kld_min": MetricInfo("nats", "lower", "KL min", "Smallest KL(reference || candidate) of any token."),
    "delta_p_mean": MetricInfo("fraction", "higher", "Δp mean", "Mean change of the correct token's probability."),
    "delta_p_rms": MetricInfo("fraction", "lower", "Δp RMS", "Root mean square change of that probability."),
    "delta_p_max": MetricInfo("fraction", "neutral", "Δp max", "Largest gain of the correct token's probability."),
    "delta_p_p99_9": _delta_p_percentile("99.9th"),
    "delta_p_p99": _delta_p_percentile("99th"),
    "delta_p_p95": _delta_p_percentile("95th"),
    "delta_p_p90": _delta_p_percentile("90th"),
    "delta_p_p75": _delta_p_percentile("75th"),
    "delta_p_median": _delta_p_percentile("50th"),
    "delta_p_p25": _delta_p_percentile("25th"),
    "delta_p_p10": _delta_p_percentile("10th"),
    "delta_p_p5": _delta_p_percentile("5th"),
    "delta_p_p1": _delta_p_percentile("1st"),
    "delta_p_p0_1": _delta_p_percentile("0.1th"),
    "delta_p_min": MetricInfo("fraction", "neutral", "Δp min", "Largest loss of the correct token's probability."),
    "same_top": MetricInfo("fraction", "higher", "same top", "Share of tokens with the reference's most likely token."),
    # the floor: the reference against itself, decoded with another batch layout
    "floor_kld_mean": MetricInfo("nats", "lower", "floor KL", "KL of the reference against itself: only noise."),
    "floor_kld_max": MetricInfo("nats", "lower", "floor KL max", "Largest KL of the reference against itself."),
    "floor_ln_ppl_ratio": MetricInfo("nats", "lower", "floor ln PPL ratio", "ln PPL ratio of it against itself."),
    "floor_same_top": MetricInfo("fraction", "higher", "floor same top", "Same-top share of it against itself."),
    # speed and memory
    "pp_tokens_per_s": MetricInfo("tokens/s", "higher", "prompt t/s", "Prompt processing speed, llama-bench's pp."),
    "tg_tokens_per_s": MetricInfo("tokens/s", "higher", "generation t/s", "Generation speed, llama-bench's tg."),
    "load_s": MetricInfo("s", "lower", "load", "Time to load the model and create a context, file cache warm."),
    "peak_memory_bytes": MetricInfo("bytes", "lower", "peak memory", "Peak memory of the worker process."),
    "weights_bytes": MetricInfo("bytes", "lower", "weights", "Model buffers, as llama.cpp reports them."),
    "kv_cache_bytes": MetricInfo("bytes", "lower", "KV cache", "KV cache buffers, as llama.cpp reports them."),
    "compute_bytes": MetricInfo("bytes", "lower", "compute", "Compute buffers, as llama.cpp reports them."),
    # the file
    "file_bytes": MetricInfo("bytes", "lower", "size", "Size of the GGUF file, all splits together."),
    "bits_per_weight": MetricInfo("bits", "lower", "bits/weight", "Tensor bytes times eight over parameters."),
}


def metric_info(metric: str) -> MetricInfo:
    """Look a metric up.

    Raises:
        GateError: for an unknown name, with the closest known one.
    """
    try:
        return METRICS[metric]
    except KeyError:
        close = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known metrics: {', '.join(METRICS)}."
        raise GateError(f"Unknown metric {metric!r}.", hint) from None


@dataclass(frozen=True, slots=True)
class TapInfo:
    """A tensor that can be read or patched during a decode.

    Attributes:
        graph: llama.cpp's name for it in its graph, without the layer.
        shape: numpy's order, as it is read; pos is the token in the batch, key the position attended to (padded by
            llama.cpp to a multiple of 256: cells that hold no token have a pattern of 0).
        operation: where llama.cpp uses a name several times, the operation whose result is meant.
        meaning: one sentence.
    """

    graph: str
    shape: str
    meaning: str
    operation: str | None = None


TAPS: dict[str, TapInfo] = {
    "embed": TapInfo("embd", "[pos, d_model]", "Token embeddings."),
    "blocks.{i}.attn.q": TapInfo("Qcur", "[pos, head, d_head]", "Queries, after rope.", "ROPE"),
    "blocks.{i}.attn.k": TapInfo("Kcur", "[pos, kv_head, d_head]", "Keys, after rope.", "ROPE"),
    "blocks.{i}.attn.v": TapInfo("Vcur", "[pos, kv_head, d_head]", "Values.", "RESHAPE"),
    "blocks.{i}.attn.scores": TapInfo("kq", "[head, pos, key]", "Raw q k^T: neither scaled nor masked."),
    "blocks.{i}.attn.pattern": TapInfo("kq_soft_max", "[head, pos, key]", "Attention weights: rows sum to one."),
    "blocks.{i}.attn.z": TapInfo("kqv_out", "[pos, head * d_head]", "Mixed values, before the output projection."),
    "blocks.{i}.attn_out": TapInfo("attn_out", "[pos, d_model]", "What attention adds to the residual stream."),
    "blocks.{i}.resid_mid": TapInfo("ffn_inp", "[pos, d_model]", "Residual stream between attention and MLP."),
    "blocks.{i}.mlp_out": TapInfo("ffn_out", "[pos, d_model]", "What the MLP adds to the residual stream."),
    "blocks.{i}.resid_post": TapInfo("l_out", "[pos, d_model]", "Residual stream after the block."),
    "ln_final.normalized": TapInfo("result_norm", "[pos, d_model]", "After the final norm."),
    "logits": TapInfo("result_output", "[pos, vocabulary]", "Logits."),
}
"""Tap names follow TransformerLens. Graph names are those that llama.cpp's graph builders give (src/models)."""

NEEDS_FLASH_ATTENTION_OFF = frozenset({"blocks.{i}.attn.scores", "blocks.{i}.attn.pattern"})
"""Flash attention never forms these tensors."""

_WITHOUT_ROPE = frozenset({"gpt2", "bloom", "mpt", "t5", "t5encoder", "bert", "jina-bert-v2", "starcoder", "refact"})


def graph_name(tap: str, architecture: str, n_layer: int) -> tuple[str, str | None]:
    """llama.cpp's name of a tap, and the operation that makes it where the name alone is ambiguous.

    Args:
        tap: such as `blocks.3.attn.pattern`.
        architecture: `general.architecture` of the model.
        n_layer: number of layers.

    Raises:
        TapNotFound: unknown tap, or a layer that the model does not have.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", tap)
    info = TAPS.get(f"blocks.{{i}}.{match[2]}" if match else tap)
    if info is None:
        close = difflib.get_close_matches(tap, [name.replace("{i}", "0") for name in TAPS], n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise TapNotFound(f"Unknown tap {tap!r}.", f"{hint}Known taps: {', '.join(TAPS)}.")
    if match and int(match[1]) >= n_layer:
        raise TapNotFound(f"{tap!r}: the model has {n_layer} layers.", f"Layers are 0 to {n_layer - 1}.")
    operation = None if architecture in _WITHOUT_ROPE else info.operation
    return (f"{info.graph}-{match[1]}" if match else info.graph), operation
