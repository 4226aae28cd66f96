"""Behaviour and importance of heads: `gguf_harness.metrics.heads`, `.circuits`, `.taxonomy`, `.importance`."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, Column, Estimated, GatedBy, Metric, Part

__all__ = ["METRICS"]

_BEHAVIOUR: Final = GatedBy("heads", "test_heads_keep_their_behaviour")
_IMPORTANCE: Final = GatedBy("heads", "test_the_same_heads_matter")
_HEADS: Final[tuple[Part, ...]] = ("head",)
_CLARK: Final = "Clark et al. (2019), What Does BERT Look At?; of positions after the first, mean over prompts."
_OLSSON: Final = "Olsson et al. (2022), In-context Learning and Induction Heads."
_ZERO: Final = "Michel, Levy and Neubig (2019), Are Sixteen Heads Really Better than One?, arXiv:1905.10650."
_MEAN: Final = "Wang et al. (2022), Interpretability in the Wild, arXiv:2211.00593."
_GEIGER: Final = "Interchange interventions: Geiger et al. (2021), Causal Abstractions, arXiv:2106.02997."


def _score(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str = _CLARK,
    estimated: Estimated = "prompts",
) -> Metric:
    """A score of a head's attention."""
    return Metric(
        name=name,
        title=title,
        unit=unit,
        meaning=meaning,
        definition=definition,
        source=source,
        estimated=estimated,
        parts=_HEADS,
    )


def _all(name: str, title: str, unit: str, meaning: str, definition: str, source: str) -> Metric:
    """A metric over all heads."""
    return Metric(
        name=name, title=title, unit=unit, meaning=meaning, definition=definition, source=source, estimated="once"
    )


def _kept(name: str, title: str, meaning: str, definition: str, source: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit="fraction",
        better="higher",
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="once",
        gate=_BEHAVIOUR,
    )


def _changed(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str,
    better: Better = "neutral",
    values: tuple[float, float] = (-math.inf, math.inf),
    parts: tuple[Part, ...] = _HEADS,
    gate: GatedBy | None = None,
    column: Column | None = None,
) -> Metric:
    """A metric of the effect of changed heads on the next-token loss and distribution."""
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="head windows",
        values=values,
        parts=parts,
        gate=gate,
        column=column,
        tables=frozenset({"html"} if column else ()),
    )


METRICS: Final = (
    _score(
        "head_previous_token",
        "previous token",
        "fraction",
        "Attention to the token before.",
        "mean over positions i of p[i, i - 1].",
    ),
    _score(
        "head_current_token",
        "current token",
        "fraction",
        "Attention to the token itself.",
        "mean over positions i of p[i, i].",
    ),
    _score(
        "head_first_token",
        "first token",
        "fraction",
        "Attention to the first token: the sink.",
        "mean over positions i of p[i, 0].",
        "Xiao et al. (2023), Efficient Streaming Language Models with Attention Sinks.",
    ),
    _score(
        "head_distance",
        "distance",
        "tokens",
        "Mean distance to the attended tokens.",
        "mean over positions i of sum over keys j of p[i, j] (i - j).",
    ),
    _score(
        "head_distance_spread",
        "spread",
        "tokens",
        "Standard deviation of that distance.",
        "Square root of the variance of i - j under p[i, .], mean over positions.",
    ),
    _score(
        "head_local",
        "local",
        "fraction",
        "Attention to the last 8 tokens, including itself.",
        "mean over positions i of sum over j > i - 8 of p[i, j].",
    ),
    _score(
        "head_entropy",
        "entropy",
        "nats",
        "Entropy of a position's attention.",
        "mean over positions of -sum over keys of p ln p.",
    ),
    _score(
        "head_entropy_normalized",
        "normalized entropy",
        "fraction",
        "Entropy divided by that of equal attention to all visible tokens.",
        "mean over positions i of H(p[i, .]) / ln(i + 1).",
    ),
    _score(
        "head_punctuation",
        "punctuation",
        "fraction",
        "Attention to punctuation.",
        "mean over positions of the weight on tokens that are punctuation.",
    ),
    _score(
        "head_delimiter",
        "delimiters",
        "fraction",
        "Attention to line breaks, brackets, quotes and separators.",
        "mean over positions of the weight on such tokens.",
    ),
    _score(
        "head_same_word",
        "same word",
        "fraction",
        "Attention to earlier occurrences of the same word piece.",
        "mean over positions i of the weight on j < i with the same piece, case and spaces aside.",
        "This harness.",
    ),
    _score(
        "head_rare_token",
        "rare tokens",
        "nats",
        "Mean surprisal of attended tokens minus that of all visible ones.",
        "mean over positions of sum over keys of p s - mean of s, s = -ln of a token's frequency in the prompts.",
        "This harness; frequencies by Laplace's rule of succession.",
    ),
    _score(
        "head_induction",
        "induction",
        "fraction",
        "On repeated random tokens: attention to the token after the earlier occurrence.",
        "mean over the second half's positions of the weight on the token after the earlier occurrence.",
        _OLSSON,
        "repeats",
    ),
    _score(
        "head_duplicate_token",
        "duplicate token",
        "fraction",
        "On repeated random tokens: attention to the same token before.",
        "mean over the second half's positions of the weight on the earlier occurrence.",
        _OLSSON,
        "repeats",
    ),
    _score(
        "head_copy_score",
        "copying",
        "",
        "Sum over sum of magnitudes of the OV circuit's eigenvalues: 1 if it only copies.",
        "sum of the eigenvalues of W_U W_O W_V W_E / sum of their magnitudes.",
        "Elhage et al. (2021), A Mathematical Framework for Transformer Circuits.",
        "once",
    ),
    _kept(
        "head_kind_kept",
        "kinds kept",
        "Share of heads of the same kind as in the reference.",
        "Share of heads whose kind, by the first rule that holds, is the same in both models.",
        "This harness: the rules are in gguf_harness.metrics.taxonomy.",
    ),
    _kept(
        "head_matched_to_itself",
        "matched",
        "Share of heads whose assigned partner in the reference is the same head.",
        "Share of heads that the assignment of least total distance of scores gives to themselves.",
        "Kuhn (1955), The Hungarian Method for the Assignment Problem; scipy's linear_sum_assignment.",
    ),
    _all(
        "head_clusters",
        "head clusters",
        "",
        "Groups of heads by their scores.",
        "Number of clusters of the heads' scores; the detail names the method.",
        "scikit-learn's k-means (of the best silhouette) and HDBSCAN.",
    ),
    _all(
        "head_cluster_silhouette",
        "cluster silhouette",
        "",
        "Mean silhouette of heads in their groups: 1 means well separated.",
        "mean of (b - a) / max(a, b): distances to the own and to the nearest other group.",
        "Rousseeuw (1987), Silhouettes.",
    ),
    _all(
        "heads_redundant",
        "redundant heads",
        "fraction",
        "Share of heads that attend like another one: cosine of patterns 0.9 or more.",
        "Share of heads that are in a group with another one.",
        "This harness.",
    ),
    _changed(
        "head_importance",
        "head importance",
        "nats",
        "Rise of the loss with the head's output set to zero.",
        "mean of nll(without the head) - nll over tokens.",
        _ZERO,
    ),
    _changed(
        "head_importance_kl",
        "head KL",
        "nats",
        "KL(model || model with the head's output set to zero).",
        "mean over tokens of KL(model || model without the head).",
        _ZERO,
    ),
    _changed(
        "head_importance_mean",
        "head importance, mean",
        "nats",
        "Rise of the loss with the head's output set to its mean.",
        "As head_importance, with the head's mean over tokens in place of zero.",
        _MEAN,
    ),
    _changed(
        "head_importance_mean_kl",
        "head KL, mean",
        "nats",
        "KL(model || model with the head's output set to its mean).",
        "As head_importance_kl, with the head's mean over tokens in place of zero.",
        _MEAN,
    ),
    _changed(
        "head_importance_screen",
        "head importance, screen",
        "nats",
        "Estimate of head importance from two windows, for all heads of a model.",
        "As head_importance, on the first and the last of the windows.",
        _ZERO,
    ),
    _changed(
        "head_screen_rank_correlation",
        "screen rank corr.",
        "",
        "Spearman correlation over heads of the screen with the ablation on all windows.",
        "Spearman's correlation of head_importance_screen with head_importance over heads: windows are shared.",
        "Spearman (1904), The Proof and Measurement of Association between Two Things.",
        "higher",
        (-1.0, 1.0),
        parts=(),
    ),
    _changed(
        "head_importance_rank_correlation",
        "head rank corr.",
        "",
        "Spearman correlation over heads of their importance with the reference's.",
        "Spearman's correlation of head_importance of both models over heads.",
        "Spearman (1904), The Proof and Measurement of Association between Two Things.",
        "higher",
        (-1.0, 1.0),
        parts=(),
        gate=_IMPORTANCE,
        column=Column("heads, rank corr.", rank=12),
    ),
    _changed(
        "head_top_overlap",
        "top heads",
        "fraction",
        "Share of the reference's most important heads that are also the candidate's.",
        "Heads among the 8 most important ones of both models / 8.",
        "This harness.",
        "higher",
        parts=(),
        gate=_IMPORTANCE,
    ),
    _changed(
        "head_interchange_share",
        "head share of KL",
        "fraction",
        "Share of KL(reference || candidate) removed by the reference's head.",
        "1 - KL with the reference's output of the head put in / KL without.",
        _GEIGER,
        values=(-math.inf, 1.0),
    ),
    _changed(
        "layer_interchange_share",
        "layer share of KL",
        "fraction",
        "The same with all heads of a layer from the reference.",
        "1 - KL with the reference's outputs of all heads of a layer put in / KL without.",
        _GEIGER,
        values=(-math.inf, 1.0),
        parts=("layer",),
    ),
    _changed(
        "heads_removable",
        "removable heads",
        "heads",
        "Heads that can be removed, those that change least first, before the loss rises by 0.05.",
        "Largest number of heads, removed greedily by KL from the whole model, with mean nll at most 0.05 nats above"
        " the whole model's, on other windows than those that chose the heads.",
        _ZERO,
        parts=(),
    ),
)
