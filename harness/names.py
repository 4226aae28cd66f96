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
