"""Greedy continuations of prompts compared with the reference's: computed in `gguf_harness.metrics.text`."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, GatedBy, Metric, Table

__all__ = ["METRICS"]


def _text(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str,
    better: Better = "higher",
    values: tuple[float, float] = (-math.inf, math.inf),
    tables: tuple[Table, ...] = (),
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
        parts=("prompt",),
        tables=frozenset(tables),
        gate=GatedBy("quant", "test_texts_stay_close_to_reference"),
    )


METRICS: Final = (
    _text(
        "edit_similarity",
        "edit similarity",
        "fraction",
        "1 - Levenshtein distance / length, tokens.",
        "1 - (insertions, deletions and substitutions of tokens) / length of the longer text.",
        "Levenshtein (1966), Binary codes capable of correcting deletions, insertions, and reversals.",
        tables=("html", "brief"),
    ),
    _text(
        "exact_prefix_tokens",
        "exact prefix",
        "tokens",
        "Tokens before the texts first differ.",
        "Length of the longest common prefix of both texts' tokens.",
        "This harness.",
        tables=("html",),
    ),
    _text(
        "bleu",
        "BLEU",
        "0-100",
        "BLEU of the candidate's text against the reference's.",
        "Geometric mean of the precisions of 1- to 4-grams of words, with brevity penalty; corpus BLEU over prompts.",
        "Papineni et al. (2002), BLEU; sacrebleu's defaults, each Chinese or Japanese character a word.",
        tables=("html",),
    ),
    _text(
        "chrf",
        "chrF",
        "0-100",
        "chrF2 of the candidate's text against the reference's.",
        "F-score (beta = 2) of n-grams of 1 to 6 characters.",
        "Popović (2015), chrF; sacrebleu's defaults.",
        tables=("html",),
    ),
    _text(
        "rouge_l",
        "ROUGE-L",
        "fraction",
        "F1 of the longest common subsequence of words.",
        "F1 of (longest common subsequence / length) of both texts' words, mean over prompts.",
        "Lin (2004), ROUGE; as rouge-score's rougeL, without stemming.",
        tables=("html",),
    ),
    _text(
        "divergence_probability_gap",
        "gap at divergence",
        "fraction",
        "Where texts diverge: p of the reference's token minus the candidate's.",
        "p_reference(its token) - p_reference(the candidate's token) at the first token that differs.",
        "This harness: near 0 where the two tokens were a close call.",
        better="lower",
        values=(-1.0, 1.0),
    ),
    _text(
        "text_ppl_under_reference",
        "text PPL",
        "",
        "Perplexity of the text under the reference.",
        "exp(mean of -ln p_reference(token)) over the tokens that the candidate wrote.",
        "Jelinek et al. (1977), Perplexity.",
        better="lower",
        values=(1.0, math.inf),
    ),
)
