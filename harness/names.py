"""The names of everything measured, with units and direction.

One table, and nowhere else: a metric that is not in `METRICS` cannot be recorded.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from harness.errors import GateError

__all__ = ["METRICS", "Better", "MetricInfo", "metric_info"]

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
    "ln_ppl_correlation": MetricInfo("", "higher", "ln PPL corr.", "Correlation with the reference's log-likelihoods."),
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
    # text: greedy continuations of prompts; BLEU and chrF on sacrebleu's scale
    "edit_similarity": MetricInfo(
        "fraction", "higher", "edit similarity", "1 - Levenshtein distance / length, tokens."
    ),
    "exact_prefix_tokens": MetricInfo("tokens", "higher", "exact prefix", "Tokens before the texts first differ."),
    "bleu": MetricInfo("0-100", "higher", "BLEU", "BLEU of the candidate's text against the reference's."),
    "chrf": MetricInfo("0-100", "higher", "chrF", "chrF2 of the candidate's text against the reference's."),
    "rouge_l": MetricInfo("fraction", "higher", "ROUGE-L", "F1 of the longest common subsequence of words."),
    "divergence_probability_gap": MetricInfo(
        "fraction", "lower", "gap at divergence", "Where texts part: p of the reference's token less the candidate's."
    ),
    "text_ppl_under_reference": MetricInfo("", "lower", "text PPL", "Perplexity of the text under the reference."),
    # speed and memory
    "pp_tokens_per_s": MetricInfo("tokens/s", "higher", "prompt t/s", "Prompt processing speed, llama-bench's pp."),
    "tg_tokens_per_s": MetricInfo("tokens/s", "higher", "generation t/s", "Generation speed, llama-bench's tg."),
    "load_s": MetricInfo("s", "lower", "load", "Time to load the model and create a context, file cache warm."),
    "peak_memory_bytes": MetricInfo("bytes", "lower", "peak memory", "Peak memory of the worker process."),
    "weights_bytes": MetricInfo("bytes", "lower", "weights", "Model buffers, as llama.cpp reports them."),
    "kv_cache_bytes": MetricInfo("bytes", "lower", "KV cache", "KV cache buffers, as llama.cpp reports them."),
    "compute_bytes": MetricInfo("bytes", "lower", "compute", "Compute buffers, as llama.cpp reports them."),
    # served to several clients at once
    "served_tokens_per_s": MetricInfo("tokens/s", "higher", "served t/s", "Tokens per second of all clients together."),
    "served_ttft_p50_s": MetricInfo("s", "lower", "TTFT p50", "Median time to a client's first token, queue included."),
    "served_ttft_p99_s": MetricInfo("s", "lower", "TTFT p99", "99th percentile of the time to a client's first token."),
    "served_itl_p50_s": MetricInfo("s", "lower", "ITL p50", "Median time between two tokens that a client gets."),
    "served_itl_p99_s": MetricInfo("s", "lower", "ITL p99", "99th percentile of the time between a client's tokens."),
    # layers: residual stream, what blocks add, logit lens, errors against the reference, patching; on prompts
    "resid_norm": MetricInfo("", "neutral", "resid norm", "Norm of the residual stream after a block, per token."),
    "resid_growth": MetricInfo("", "neutral", "resid growth", "That norm over the one before the block."),
    "attn_share": MetricInfo("", "neutral", "attn share", "Norm of attention's update over the stream's."),
    "mlp_share": MetricInfo("", "neutral", "MLP share", "Norm of the MLP's update over the stream's."),
    "attn_update_cosine": MetricInfo("", "neutral", "attn cosine", "Cosine of attention's update and the stream."),
    "mlp_update_cosine": MetricInfo("", "neutral", "MLP cosine", "Cosine of the MLP's update and the stream."),
    "token_similarity": MetricInfo("", "neutral", "token similarity", "Mean cosine of pairs of tokens of a prompt."),
    "token_similarity_centered": MetricInfo(
        "", "neutral", "centered similarity", "The same without the prompt's mean state."
    ),
    "effective_rank": MetricInfo("", "neutral", "effective rank", "exp of the entropy of the states' spectrum."),
    "participation_ratio": MetricInfo("", "neutral", "participation", "Directions that hold the states' variance."),
    "outlier_kurtosis": MetricInfo("", "neutral", "kurtosis", "Kurtosis of the dimensions' sizes: 1 where all alike."),
    "massive_activations": MetricInfo(
        "per token", "neutral", "massive", "Dimensions beyond 100 times the median magnitude, per token."
    ),
    "final_norm_gain": MetricInfo("", "neutral", "final norm gain", "Norm after the final norm over that before."),
    "final_norm_cosine": MetricInfo("", "neutral", "final norm cosine", "Cosine of the states before and after it."),
    "attn_norm_gain": MetricInfo("", "neutral", "attn norm gain", "Norm of what attention reads over the stream's."),
    "mlp_norm_gain": MetricInfo("", "neutral", "MLP norm gain", "Norm of what the MLP reads over the stream's."),
    "lens_decided_layer": MetricInfo(
        "layer", "neutral", "decided at", "First layer from which the logit lens stays with the final prediction."
    ),
    "lens_agreement": MetricInfo(
        "fraction", "neutral", "lens agreement", "Tokens where the lens says what the end does."
    ),
    "lens_final_p": MetricInfo("fraction", "neutral", "lens p", "Lens probability of the final prediction."),
    "lens_entropy": MetricInfo("nats", "neutral", "lens entropy", "Entropy of the lens distribution."),
    "lens_kl": MetricInfo("nats", "neutral", "lens KL", "KL(final distribution || lens distribution)."),
    "direct_embed": MetricInfo("logits", "neutral", "direct, embed", "What the embedding adds to the predicted logit."),
    "direct_attn": MetricInfo("logits", "neutral", "direct, attn", "What attention adds to the predicted logit."),
    "direct_mlp": MetricInfo("logits", "neutral", "direct, MLP", "What the MLP adds to the predicted logit."),
    "embed_relative_error": MetricInfo("", "lower", "embed error", "Relative error of the embeddings."),
    "embed_cosine": MetricInfo("", "higher", "embed cosine", "Cosine with the reference's embeddings."),
    "resid_relative_error": MetricInfo(
        "", "lower", "resid error", "Norm of the difference from the reference's residual stream, over its norm."
    ),
    "resid_cosine": MetricInfo("", "higher", "resid cosine", "Cosine with the reference's residual stream."),
    "resid_mid_relative_error": MetricInfo("", "lower", "mid error", "Relative error between attention and MLP."),
    "resid_mid_cosine": MetricInfo("", "higher", "mid cosine", "Cosine between attention and MLP."),
    "attn_relative_error": MetricInfo("", "lower", "attn error", "Relative error of attention's update."),
    "attn_cosine": MetricInfo("", "higher", "attn cosine with ref.", "Cosine with the reference's attention update."),
    "mlp_relative_error": MetricInfo("", "lower", "MLP error", "Relative error of the MLP's update."),
    "mlp_cosine": MetricInfo("", "higher", "MLP cosine with ref.", "Cosine with the reference's MLP update."),
    "final_relative_error": MetricInfo("", "lower", "final error", "Relative error after the final norm."),
    "final_cosine": MetricInfo("", "higher", "final cosine", "Cosine after the final norm."),
    "resid_cka": MetricInfo("", "higher", "CKA", "Linear CKA of the residual streams, over tokens of all prompts."),
    "error_amplification": MetricInfo(
        "", "lower", "amplification", "Relative error after a block over the one before it."
    ),
    "layer_importance": MetricInfo(
        "nats", "neutral", "importance", "Rise of the loss on the prompts with a block skipped."
    ),
    "layer_interchange_share": MetricInfo(
        "fraction", "neutral", "KL left", "KL left with the reference's stream put in after a layer."
    ),
    "embed_interchange_share": MetricInfo(
        "fraction", "neutral", "KL left, embed", "KL left with the reference's embeddings put in."
    ),
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
