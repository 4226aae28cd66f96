"""LoRA adapters: what they change, and what of it a quantized base keeps.

Computed in `gguf_harness.metrics.adapter_effects` and `gguf_harness.metrics.low_rank`.
"""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, Estimated, GatedBy, Metric, Part

__all__ = ["METRICS", "MOST_WINDOWS"]

MOST_WINDOWS: Final = 8
"""Windows of each text at most: an adapter's effect is large, and its share that a base keeps is a paired estimate."""

_LORA: Final = "Hu et al. (2022), LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"
_OURS: Final = "This harness."
_KULLBACK: Final = "Kullback and Leibler (1951), On Information and Sufficiency."
_RETAINED: Final = GatedBy("lora", "test_adapter_survives_quantization", of="adapted_candidate")
_SIZE: Final = (0.0, math.inf)
_ANYTHING: Final = (-math.inf, math.inf)


def _of_text(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str = _OURS,
    better: Better = "neutral",
    values: tuple[float, float] = _ANYTHING,
    parts: tuple[Part, ...] = (),
    gate: GatedBy | None = None,
    estimated: Estimated = "adapter windows",
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=source,
        estimated=estimated,
        values=values,
        parts=parts,
        gate=gate,
        compared=not parts,
    )


METRICS: Final = (
    _of_text(
        "lora_loss_change",
        "loss by adapter",
        "nats",
        "Change of the loss by the adapter on a text of its own.",
        "mean over tokens of ln p_base - ln p_adapted.",
        better="lower",
    ),
    _of_text(
        "lora_kld",
        "KL by adapter",
        "nats",
        "How far the adapter moves predictions on a text of its own.",
        "mean over tokens of KL(base || base with the adapter).",
        _KULLBACK,
        values=_SIZE,
    ),
    _of_text(
        "lora_top_changed",
        "top changed by adapter",
        "fraction",
        "Share of tokens of its own text for which the adapter makes another token the likeliest.",
        "mean of [argmax p_adapted is not argmax p_base] over tokens.",
        values=(0.0, 1.0),
    ),
    _of_text(
        "lora_corpus_loss_change",
        "corpus loss by adapter",
        "nats",
        "Change of the loss by the adapter on the corpus, for which it was not made.",
        "As lora_loss_change, on the corpus.",
        better="lower",
    ),
    _of_text(
        "lora_corpus_kld",
        "corpus KL by adapter",
        "nats",
        "How far the adapter moves predictions on the corpus, for which it was not made.",
        "As lora_kld, on the corpus.",
        _KULLBACK,
        values=_SIZE,
    ),
    _of_text(
        "lora_effect_retained",
        "effect retained",
        "",
        "How strong the adapter's effect on a quantized base is, beside that on the reference: 1 is as strong.",
        "b of least squares e = b e_reference over tokens, through 0, with e = ln p_adapted - ln p_base of the token.",
        better="higher",
        gate=_RETAINED,
    ),
    _of_text(
        "lora_effect_correlation",
        "effect correlation",
        "",
        "How alike the adapter's effects on a quantized base and on the reference are, token by token.",
        "Pearson's correlation of e and e_reference over tokens; its error by jackknife over windows.",
        better="higher",
        values=(-1.0, 1.0),
        gate=_RETAINED,
    ),
    _of_text(
        "lora_loss_retained",
        "gain retained",
        "",
        "Share of what the adapter gains on its own text that a quantized base keeps.",
        "mean e / mean e_reference over tokens, paired.",
        better="higher",
        gate=_RETAINED,
    ),
    _of_text(
        "lora_effect_kld",
        "KL of effects",
        "nats",
        "How far a quantized base with the adapter is from itself, changed exactly as the reference is by it.",
        "mean over tokens of KL(q || base with the adapter), q = p_base p_reference_adapted / p_reference, normalized.",
        "q: Liu et al. (2024), Tuning Language Models by Proxy, arXiv:2401.08565; the divergence is ours.",
        better="lower",
        values=_SIZE,
        gate=_RETAINED,
    ),
    _of_text(
        "lora_applied_kld",
        "KL, applied",
        "nats",
        "The quantized base with the adapter at run time, against the reference with it.",
        "mean over tokens of KL(reference with the adapter || base with the adapter).",
        _KULLBACK,
        better="lower",
        values=_SIZE,
    ),
    _of_text(
        "lora_merged_kld",
        "KL, merged",
        "nats",
        "The adapter merged into the reference, then quantized like the base; against the reference with it.",
        "mean over tokens of KL(reference with the adapter || merged and quantized).",
        _KULLBACK,
        better="lower",
        values=_SIZE,
    ),
    _of_text(
        "lora_merging_gain",
        "gain of merging",
        "nats",
        "What merging before quantizing gains over applying the adapter to the quantized base, at equal bits.",
        "mean over tokens of the difference: applied less merged, paired.",
    ),
    _of_text(
        "lora_scale_loss_change",
        "loss by scale",
        "nats",
        "Change of the loss on its own text with the adapter at another scale.",
        "As lora_loss_change, with the adapter's scale times the one named.",
        _LORA + ", section 4.1.",
        better="lower",
        parts=("scale",),
    ),
    _of_text(
        "lora_scale_corpus_kld",
        "corpus KL by scale",
        "nats",
        "How far the adapter moves predictions on the corpus at another scale.",
        "As lora_corpus_kld, with the adapter's scale times the one named.",
        _LORA + ", section 4.1.",
        better="lower",
        values=_SIZE,
        parts=("scale",),
    ),
    _of_text(
        "lora_interference",
        "interference",
        "nats",
        "What adapters cost each other on the text that they are for: above 0 they get in each other's way.",
        "mean over tokens of the loss change together less the sum of those alone, paired.",
        better="lower",
    ),
    _of_text(
        "lora_corpus_interference",
        "corpus interference",
        "nats",
        "The same on the corpus.",
        "As lora_interference, on the corpus.",
        better="lower",
    ),
    _of_text(
        "lora_states_moved",
        "states moved",
        "fraction",
        "How far the adapter moves the residual stream after a layer.",
        "mean over tokens of |x_adapted - x_base| / |x_base|.",
        values=_SIZE,
        parts=("layer",),
        estimated="prompts",
    ),
    _of_text(
        "lora_attention_moved",
        "attention moved",
        "nats",
        "How far the adapter moves where heads attend.",
        "mean over rows of the Jensen-Shannon divergence of the patterns with and without the adapter.",
        "Lin (1991), Divergence measures based on the Shannon entropy.",
        values=(0.0, math.log(2)),
        parts=("layer", "head"),
        estimated="prompts",
    ),
    _of_text(
        "lora_lens_changed",
        "lens changed",
        "fraction",
        "Share of tokens for which the logit lens at a layer has another likeliest token with the adapter.",
        "mean of [likeliest token of the lens with the adapter is not that without] over tokens of the prompts.",
        "nostalgebraist (2020), interpreting GPT: the logit lens.",
        values=(0.0, 1.0),
        parts=("layer",),
        estimated="prompts",
    ),
    _of_text(
        "lora_text_similarity",
        "texts with adapter",
        "fraction",
        "How alike the texts are that the model writes with and without the adapter.",
        "As edit_similarity, of the prompts' continuations with the adapter and without.",
        "Levenshtein (1966), Binary codes capable of correcting deletions, insertions, and reversals.",
        values=(0.0, 1.0),
        estimated="prompts",
    ),
    _of_text(
        "lora_relative_norm",
        "size of change",
        "fraction",
        "Size of the adapter's change of a matrix, relative to the matrix.",
        "|scale alpha / rank B A| / |W|, Frobenius norms; of several matrices, of all of their weights together.",
        _LORA + ", section 7.3.",
        values=_SIZE,
        parts=("layer", "tensors"),
        estimated="adapter file",
    ),
    _of_text(
        "lora_rank",
        "rank",
        "",
        "Rank of the adapter's changes, the largest of any matrix.",
        "Number of columns of B.",
        _LORA + ".",
        values=_SIZE,
        estimated="adapter file",
    ),
    _of_text(
        "lora_effective_rank",
        "effective rank of change",
        "",
        "How many directions of a change carry it: less than the rank where few dominate.",
        "exp of the entropy of B A's singular values, normalized to sum one; mean over matrices.",
        "Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.",
        values=_SIZE,
        parts=("layer", "tensors"),
        estimated="adapter file",
    ),
)
