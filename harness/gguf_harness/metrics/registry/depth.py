"""What a KV cache costs by depth: computed in `gguf_harness.metrics.by_position` and the modules beside it."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, GatedBy, Metric

__all__ = ["METRICS"]

_LOSS: Final = GatedBy("kv", "test_loss_does_not_grow_with_depth", of="cached")
_OCTAVES: Final = "over the positions of an octave (64-127) of all windows, against the same file with its plain cache"
_TOOL: Final = "llama-perplexity --kl-divergence, by position: this harness."
_KAMRADT: Final = "Kamradt (2023), Needle in a haystack: pressure testing LLMs; by probabilities: this harness."
_SURVIVAL: Final = (
    "Kaplan and Meier (1958), Nonparametric Estimation from Incomplete Observations, with Greenwood's (1926) error."
)
_FACT: Final = GatedBy("kv", "test_facts_are_found_with_this_cache", of="cached")
_SLOPES: Final = (
    "Matthews et al. (1990), Analysis of serial measurements in medical research: a slope for each window, then their"
    " mean."
)


def _by_position(
    name: str, title: str, unit: str, better: Better, meaning: str, definition: str, values: tuple[float, float]
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=_TOOL,
        estimated="positions",
        values=values,
        parts=("position",),
        compared=False,
    )


def _needle(
    name: str,
    title: str,
    unit: str,
    better: Better,
    meaning: str,
    definition: str,
    values: tuple[float, float] = (-math.inf, math.inf),
    gate: GatedBy | None = None,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=_KAMRADT,
        estimated="needles",
        values=values,
        parts=("position",),
        gate=gate,
        compared=False,
    )


def _timed(name: str, title: str, meaning: str, ratio: bool) -> Metric:
    what = "a prompt (--gguf-pp)" if name.startswith("pp") else "generation, one by one (--gguf-tg),"
    speed = (
        f"Tokens of {what} / seconds that they take after --gguf-depths others, which are decoded before the time runs"
    )
    return Metric(
        name=name,
        title=title,
        unit="" if ratio else "tokens/s",
        better="higher",
        meaning=meaning,
        definition=f"{speed}; with this cache / with the full one, in turns." if ratio else f"{speed}.",
        source="llama-bench -d (tools/llama-bench of llama.cpp)" + ("; the ratio: this harness." if ratio else "."),
        estimated="timing",
        values=(0.0, math.inf),
        parts=("position",),
        compared=False,
    )


METRICS: Final = (
    _by_position(
        "kld_by_position",
        "KL by position",
        "nats",
        "lower",
        "KL divergence of tokens at some depth of the window.",
        f"Mean KL(reference || candidate) {_OCTAVES}.",
        (0.0, math.inf),
    ),
    _by_position(
        "same_top_by_position",
        "same top by position",
        "fraction",
        "higher",
        "Share of tokens at some depth where both find the same token likeliest.",
        f"Share of equal most likely tokens {_OCTAVES}.",
        (0.0, 1.0),
    ),
    _by_position(
        "ppl_ratio_by_position",
        "PPL ratio by position",
        "",
        "lower",
        "Perplexity of tokens at some depth, over the reference's.",
        f"exp(mean of nll - nll of the reference) {_OCTAVES}.",
        (0.0, math.inf),
    ),
    _by_position(
        "delta_p_rms_by_position",
        "RMS Δp by position",
        "fraction",
        "lower",
        "Change of the correct token's probability at some depth, root mean square.",
        f"Root mean square of p_candidate(token) - p_reference(token) {_OCTAVES}.",
        (0.0, 1.0),
    ),
    Metric(
        name="nll_slope",
        title="loss by depth",
        unit="nats",
        better="lower",
        meaning="How much the loss against the reference's rises with each doubling of the context.",
        definition="Mean over windows of the least-squares slope of nll - nll of the reference against log2(position),"
        " from position 16 on.",
        source=_SLOPES,
        estimated="positions",
        gate=_LOSS,
        compared=False,
    ),
    Metric(
        name="kld_slope",
        title="KL by depth",
        unit="nats",
        meaning="How much KL rises with each doubling of the context.",
        definition="Mean over windows of the least-squares slope of KL(reference || candidate) against log2(position),"
        " from position 16 on.",
        source=_SLOPES,
        estimated="positions",
        compared=False,
    ),
    Metric(
        name="kld_relative_slope",
        title="KL by depth, relative",
        better="lower",
        meaning="How much KL rises with each doubling of the context, as a share of its mean.",
        definition="kld_slope / mean KL of the same tokens, a ratio of means over windows.",
        source=f"{_SLOPES[:-1]}; its error by the delta method.",
        estimated="positions",
        gate=_LOSS,
        compared=False,
    ),
    _needle(
        "needle_logprob",
        "answer's log p",
        "nats",
        "higher",
        "Log-probability of the answer to a fact that was hidden in a long text.",
        "Mean over facts of ln p(answer | text with the fact, question), all tokens of the answer.",
        (-math.inf, 0.0),
    ),
    _needle(
        "needle_lift",
        "evidence of the fact",
        "nats",
        "higher",
        "What having read the fact adds to its answer's log-probability: above 0 it is retrieved.",
        "Mean over facts of ln p(answer | text with the fact) - ln p(answer | the same text without it).",
    ),
    _needle(
        "needle_rank",
        "answer's rank",
        "",
        "lower",
        "Rank of the answer's first token among all tokens; 1 is the likeliest.",
        "Geometric mean over facts of 1 + number of tokens that are likelier.",
        (1.0, math.inf),
    ),
    _needle(
        "needle_change",
        "answer's log p against the full cache's",
        "nats",
        "higher",
        "What a KV cache changes in the log-probability of answers to facts that were hidden in long texts.",
        "Mean over facts of ln p(answer) with this cache - ln p(answer) with the full one, on the same texts.",
        gate=_FACT,
    ),
    Metric(
        name="tokens_until_different",
        title="tokens until different",
        unit="tokens",
        better="higher",
        meaning="Tokens of greedy texts before they part from those with a full cache, of as many as were written.",
        definition="Area under the survival curve of texts that are the same, up to --gguf-gen-tokens.",
        source=_SURVIVAL,
        estimated="prompts",
        gate=GatedBy("kv", "test_texts_stay_the_same", of="cached"),
        compared=False,
    ),
    Metric(
        name="text_survival",
        title="texts still the same",
        unit="fraction",
        better="higher",
        meaning="Share of greedy texts that are the same as with a full cache after so many tokens.",
        definition="Kaplan-Meier estimate over prompts; texts that are the same to their end are censored there.",
        source=_SURVIVAL,
        estimated="prompts",
        parts=("position",),
        compared=False,
    ),
    _timed(
        "pp_at_depth",
        "prompt t/s at depth",
        "Prompt speed with so many tokens in the cache, llama-bench's pp at -d.",
        False,
    ),
    _timed("tg_at_depth", "generation t/s at depth", "Generation speed with so many tokens in the cache.", False),
    _timed("pp_at_depth_ratio", "prompt speed ratio at depth", "Prompt speed at depth, over the full cache's.", True),
    _timed("tg_at_depth_ratio", "gen. speed ratio at depth", "Generation speed at depth, over the full cache's.", True),
)
