"""The names of everything measured, with units and direction.

One table, and nowhere else: a metric that is not in `METRICS` cannot be recorded.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Final, Literal

from gguf_harness.errors import GateError

__all__ = ["CORPUS_METRICS", "METRICS", "Better", "MetricInfo", "metric_info", "possible_values"]

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


CORPUS_METRICS: dict[str, MetricInfo] = {
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
}
"""Metrics of a pass over the corpus. A gate of one keeps a pass from stopping early until it is decided."""

METRICS: dict[str, MetricInfo] = CORPUS_METRICS | {
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
    "pp_speed_ratio": MetricInfo("", "higher", "prompt speed ratio", "Prompt speed over the reference's, in turns."),
    "tg_speed_ratio": MetricInfo("", "higher", "generation speed ratio", "Generation speed over the reference's."),
    "load_ratio": MetricInfo("", "lower", "load ratio", "Load time over the reference's, in turns."),
    "peak_memory_bytes": MetricInfo("bytes", "lower", "peak memory", "Peak memory of the worker process."),
    "weights_bytes": MetricInfo("bytes", "lower", "weights", "Model buffers, as llama.cpp reports them."),
    "kv_cache_bytes": MetricInfo("bytes", "lower", "KV cache", "KV cache buffers, as llama.cpp reports them."),
    "compute_bytes": MetricInfo("bytes", "lower", "compute", "Compute buffers, as llama.cpp reports them."),
    # served to several clients at once
    "served_tokens_per_s": MetricInfo("tokens/s", "higher", "served t/s", "Tokens per second of all clients together."),
    "served_single_tokens_per_s": MetricInfo(
        "tokens/s", "higher", "single stream t/s", "Generation speed that a server's only client sees."
    ),
    "served_ttft_p50_s": MetricInfo("s", "lower", "TTFT p50", "Median time to a client's first token, queue included."),
    "served_ttft_p99_s": MetricInfo("s", "lower", "TTFT p99", "99th percentile of the time to a client's first token."),
    "served_itl_p50_s": MetricInfo("s", "lower", "ITL p50", "Median time between two tokens that a client gets."),
    "served_itl_p99_s": MetricInfo("s", "lower", "ITL p99", "99th percentile of the time between a client's tokens."),
    # attention and heads
    "attn_cosine": MetricInfo(
        "", "higher", "attention cosine", "Cosine of a head's attention pattern with the reference's."
    ),
    "attn_cosine_worst_head": MetricInfo(
        "", "higher", "worst head's cosine", "Attention cosine of the head that is least like the reference's."
    ),
    "attn_jsd": MetricInfo(
        "nats", "lower", "attention JSD", "Jensen-Shannon divergence of a position's attention; at most ln 2."
    ),
    "attn_total_variation": MetricInfo(
        "fraction", "lower", "attention TV", "Share of a position's attention that went to other tokens."
    ),
    "attn_entropy_change": MetricInfo(
        "nats", "neutral", "attention entropy Δ", "Entropy of a position's attention less the reference's."
    ),
    "attn_top_changed": MetricInfo(
        "fraction", "lower", "top key changed", "Share of positions whose most attended token is another one."
    ),
    "attn_q_error": MetricInfo("", "lower", "q error", "Relative error of queries, norm over norm, mean over heads."),
    "attn_k_error": MetricInfo("", "lower", "k error", "Relative error of keys, norm over norm, mean over KV heads."),
    "attn_v_error": MetricInfo("", "lower", "v error", "Relative error of values, norm over norm, mean over KV heads."),
    "attn_scores_error": MetricInfo(
        "", "lower", "score error", "Relative error of attention scores q k, norm over norm, mean over heads."
    ),
    "attn_q_cka": MetricInfo("", "higher", "q CKA", "Linear CKA of queries with the reference's, mean over heads."),
    "attn_k_cka": MetricInfo("", "higher", "k CKA", "Linear CKA of keys with the reference's, mean over KV heads."),
    "attn_v_cka": MetricInfo("", "higher", "v CKA", "Linear CKA of values with the reference's, mean over KV heads."),
    "head_previous_token": MetricInfo("fraction", "neutral", "previous token", "Attention to the token before."),
    "head_current_token": MetricInfo("fraction", "neutral", "current token", "Attention to the token itself."),
    "head_first_token": MetricInfo("fraction", "neutral", "first token", "Attention to the first token: the sink."),
    "head_distance": MetricInfo("tokens", "neutral", "distance", "Mean distance to what is attended."),
    "head_distance_spread": MetricInfo("tokens", "neutral", "spread", "Standard deviation of that distance."),
    "head_local": MetricInfo("fraction", "neutral", "local", "Attention to the last 8 tokens, itself included."),
    "head_entropy": MetricInfo("nats", "neutral", "entropy", "Entropy of a position's attention."),
    "head_entropy_normalized": MetricInfo(
        "fraction", "neutral", "normalized entropy", "Entropy over that of equal attention to all visible tokens."
    ),
    "head_punctuation": MetricInfo("fraction", "neutral", "punctuation", "Attention to punctuation."),
    "head_delimiter": MetricInfo(
        "fraction", "neutral", "delimiters", "Attention to line breaks, brackets, quotes and separators."
    ),
    "head_same_word": MetricInfo(
        "fraction", "neutral", "same word", "Attention to earlier occurrences of the same word piece."
    ),
    "head_rare_token": MetricInfo(
        "nats", "neutral", "rare tokens", "Mean surprisal of attended tokens less that of all visible ones."
    ),
    "head_induction": MetricInfo(
        "fraction", "neutral", "induction", "On repeated random tokens: attention to what followed the last time."
    ),
    "head_duplicate_token": MetricInfo(
        "fraction", "neutral", "duplicate token", "On repeated random tokens: attention to the same token before."
    ),
    "head_copy_score": MetricInfo(
        "", "neutral", "copying", "Sum over sum of magnitudes of the OV circuit's eigenvalues: 1 if it only copies."
    ),
    "head_kind_kept": MetricInfo(
        "fraction", "higher", "kinds kept", "Heads that are of the same kind as in the reference."
    ),
    "head_matched_to_itself": MetricInfo(
        "fraction", "higher", "matched", "Heads whose closest partner in the reference, by assignment, is themselves."
    ),
    "head_clusters": MetricInfo("", "neutral", "head clusters", "Groups of heads by their scores."),
    "head_cluster_silhouette": MetricInfo(
        "", "neutral", "cluster silhouette", "Mean silhouette of heads in their groups: 1 is far apart."
    ),
    "heads_redundant": MetricInfo(
        "fraction", "neutral", "redundant heads", "Heads that attend as another does: cosine of patterns 0.9 or more."
    ),
    # heads, changed: what the model's next-token loss and distribution make of it
    "head_importance": MetricInfo("nats", "neutral", "head importance", "Rise of the loss where the head gives zero."),
    "head_importance_kl": MetricInfo("nats", "neutral", "head KL", "KL(model || model whose head gives zero)."),
    "head_importance_mean": MetricInfo(
        "nats", "neutral", "head importance, mean", "Rise of the loss where the head gives its mean."
    ),
    "head_importance_mean_kl": MetricInfo(
        "nats", "neutral", "head KL, mean", "KL(model || model whose head gives its mean)."
    ),
    "head_importance_screen": MetricInfo(
        "nats", "neutral", "head importance, screen", "Estimate of it from ablations of random subsets of heads."
    ),
    "head_screen_rank_correlation": MetricInfo(
        "", "higher", "screen rank corr.", "Spearman correlation over heads of the screen with the ablation of each."
    ),
    "head_importance_rank_correlation": MetricInfo(
        "", "higher", "head rank corr.", "Spearman correlation over heads of their importance with the reference's."
    ),
    "head_top_overlap": MetricInfo(
        "fraction", "higher", "top heads", "Share of the reference's most important heads that are the candidate's."
    ),
    "head_interchange_share": MetricInfo(
        "fraction",
        "neutral",
        "head share of KL",
        "Share of KL(reference || candidate) that the reference's head undoes.",
    ),
    "layer_interchange_share": MetricInfo(
        "fraction", "neutral", "layer share of KL", "The same with all heads of a layer from the reference."
    ),
    "heads_removable": MetricInfo(
        "heads", "neutral", "removable heads", "Heads that can go, least costly first, before the loss rises by 0.05."
    ),
    # embeddings: a model's own space of token embeddings
    "embedding_anisotropy": MetricInfo("", "neutral", "anisotropy", "Mean cosine of random pairs of token embeddings."),
    "embedding_variance_pc1": MetricInfo("fraction", "neutral", "PC 1", "Variance in the first principal component."),
    "embedding_variance_pc10": MetricInfo("fraction", "neutral", "PC 1-10", "Variance in the first ten components."),
    "embedding_intrinsic_dimension": MetricInfo("", "neutral", "intrinsic dim.", "Dimension of directions, by TwoNN."),
    "word_silhouette": MetricInfo("", "higher", "silhouette", "Mean silhouette of the groups of words, by cosine."),
    "word_purity": MetricInfo("fraction", "higher", "purity", "Share of a word's 5 nearest words of its own group."),
    "analogy_accuracy": MetricInfo(
        "fraction", "higher", "analogies", "Share of a - b + c whose nearest word is right."
    ),
    "analogy_mrr": MetricInfo("", "higher", "analogy MRR", "Mean of 1 / rank of the right word of a - b + c."),
    # embeddings: a candidate's space beside the reference's
    "neighbour_recall": MetricInfo("fraction", "higher", "neighbours", "Share of the 10 nearest tokens that stay."),
    "similarity_rank_correlation": MetricInfo("", "higher", "rank corr.", "Spearman of cosines of pairs of tokens."),
    "procrustes_error": MetricInfo("", "lower", "Procrustes", "What rotation and scale leave of the difference."),
    "embedding_cka": MetricInfo("", "higher", "CKA", "Linear CKA of the token embeddings."),
    "contextual_cosine": MetricInfo("", "higher", "contextual cos.", "Cosine of prompts: mean final hidden state."),
    "last_token_cosine": MetricInfo("", "higher", "last-token cos.", "Cosine of the prompts' last final hidden state."),
    "pooled_cosine": MetricInfo("", "higher", "pooled cos.", "Cosine of prompts, as an embedding model pools them."),
    "word_neighbour_recall": MetricInfo(
        "fraction", "higher", "word neighbours", "Of the 5 nearest words, those that stay."
    ),
    "word_rank_correlation": MetricInfo("", "higher", "word rank corr.", "Spearman of cosines of all pairs of words."),
    "word_procrustes_error": MetricInfo("", "lower", "word Procrustes", "The same of words, in their components."),
    "word_cka": MetricInfo("", "higher", "word CKA", "Linear CKA of the words that both models have."),
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
    "attn_out_relative_error": MetricInfo("", "lower", "attn error", "Relative error of attention's update."),
    "attn_out_cosine": MetricInfo("", "higher", "attn cosine", "Cosine with the reference's attention update."),
    "mlp_out_relative_error": MetricInfo("", "lower", "MLP error", "Relative error of the MLP's update."),
    "mlp_out_cosine": MetricInfo("", "higher", "MLP cosine", "Cosine with the reference's MLP update."),
    "final_relative_error": MetricInfo("", "lower", "final error", "Relative error after the final norm."),
    "final_cosine": MetricInfo("", "higher", "final cosine", "Cosine after the final norm."),
    "resid_cka": MetricInfo("", "higher", "CKA", "Linear CKA of the residual streams, over tokens of all prompts."),
    "error_amplification": MetricInfo(
        "", "lower", "amplification", "Relative error after a block over the one before it."
    ),
    "layer_importance": MetricInfo(
        "nats", "neutral", "importance", "Rise of the loss on the prompts with a block skipped."
    ),
    "layer_kl_left": MetricInfo(
        "fraction", "neutral", "KL left", "KL left with the reference's stream put in after a layer."
    ),
    "embed_kl_left": MetricInfo(
        "fraction", "neutral", "KL left, embed", "KL left with the reference's embeddings put in."
    ),
    # the file
    "file_bytes": MetricInfo("bytes", "lower", "size", "Size of the GGUF file, all splits together."),
    "bits_per_weight": MetricInfo("bits", "lower", "bits/weight", "Tensor bytes times eight over parameters."),
    # the weights beside the reference's, and what each group of tensors costs
    "weight_relative_rmse": MetricInfo(
        "", "lower", "weight error", "Norm of the weights' difference over the norm of the reference's."
    ),
    "weight_max_error": MetricInfo("", "lower", "largest weight error", "Largest difference of any weight."),
    "weight_cosine": MetricInfo("", "higher", "weight cosine", "Cosine between the weights and the reference's."),
    "weight_snr_db": MetricInfo("dB", "higher", "weight SNR", "Signal-to-noise ratio of the weights."),
    "weight_bits": MetricInfo("bits", "neutral", "weight bits", "Bits per weight spent on these tensors."),
    "weight_outlier_share": MetricInfo(
        "fraction", "neutral", "outliers", "Share of the reference's weights beyond 6 standard deviations."
    ),
    "weight_outlier_sigmas": MetricInfo(
        "", "neutral", "farthest weight", "The reference's farthest weight, in standard deviations of its tensor."
    ),
    "tensor_group_kld": MetricInfo(
        "nats", "lower", "KL of a group", "Mean KL from the reference when only these tensors are quantized."
    ),
    "tensor_group_share": MetricInfo(
        "fraction", "neutral", "share of a group", "A group's KL over the sum of all groups' KL."
    ),
    "tensor_additivity": MetricInfo(
        "", "neutral", "additivity", "Sum of the groups' KL over the candidate's: 1 where effects add up."
    ),
    "tensor_restored_gain": MetricInfo(
        "nats", "higher", "KL gained", "KL that the candidate loses when these tensors are the reference's again."
    ),
    "tensor_restored_gain_per_mb": MetricInfo(
        "nats/MB", "higher", "KL gained per MB", "The same by megabyte that these tensors grow."
    ),
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


_UNIT_RANGES: Final = {
    "fraction": (0.0, 1.0),
    "0-100": (0.0, 100.0),
    **dict.fromkeys(("bytes", "tokens/s", "s", "tokens", "bits"), (0.0, math.inf)),
}
_NAME_RANGES: Final = {
    "ppl": (1.0, math.inf),
    "text_ppl_under_reference": (1.0, math.inf),
    "ppl_ratio": (0.0, math.inf),
    "attn_jsd": (0.0, math.log(2)),
    "analogy_mrr": (0.0, 1.0),
    **dict.fromkeys(("delta_p_mean", "divergence_probability_gap", "word_silhouette"), (-1.0, 1.0)),
}
_PART_RANGES: Final = {
    "kld": (0.0, math.inf),
    "cka": (0.0, 1.0),
    "cosine": (-1.0, 1.0),
    "correlation": (-1.0, 1.0),
    "error": (0.0, math.inf),
    "rmse": (0.0, math.inf),
}


def possible_values(metric: str) -> tuple[float, float]:
    """The least and the largest value that a metric can have; infinite where nothing is known.

    Raises:
        GateError: for an unknown name.
    """
    unit = metric_info(metric).unit
    by_part = next((span for part, span in _PART_RANGES.items() if part in metric.split("_")), (-math.inf, math.inf))
    return _NAME_RANGES.get(metric) or _UNIT_RANGES.get(unit) or by_part
