"""Embedding spaces, alone and compared with the reference's.

Computed in `gguf_harness.metrics.geometry`, `.neighbours`, `.words` and `.embeddings`.
"""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, Column, Estimated, GatedBy, Metric

__all__ = ["METRICS"]

_NEIGHBOURS: Final = "test_neighbours_stay"
_SPACE: Final = "test_space_stays"
_CONTEXTS: Final = "test_contexts_stay"
_WORDS: Final = "test_words_stay"
_CKA: Final = "Kornblith et al. (2019), Similarity of Neural Network Representations Revisited, linear CKA."
_PROCRUSTES: Final = "Schönemann (1966), A generalized solution of the orthogonal Procrustes problem."
_SIMILARITY: Final = "Kriegeskorte et al. (2008), Representational similarity analysis."
_COSINE: Final = (-1.0, 1.0)
_SHARE: Final = (0.0, 1.0)
_ERROR: Final = (0.0, math.inf)


def _own(name: str, title: str, unit: str, meaning: str, definition: str, source: str) -> Metric:
    """A metric of a model's own space of token embeddings: neither direction is better."""
    return Metric(
        name=name,
        title=title,
        unit=unit,
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="vocabulary",
    )


def _of_words(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str,
    test: str,
    values: tuple[float, float] = _SHARE,
    *,
    relative: bool = True,
) -> Metric:
    """A metric of the words of a list, in a model's own space."""
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better="higher",
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="words",
        values=values,
        gate=GatedBy("embeddings", test, any_model=True, relative=relative),
    )


def _beside(
    name: str,
    title: str,
    meaning: str,
    definition: str,
    source: str,
    test: str,
    values: tuple[float, float],
    unit: str = "",
    better: Better = "higher",
    estimated: Estimated = "vocabulary",
    column: Column | None = None,
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
        column=column,
        tables=frozenset({"html"} if column else ()),
        gate=GatedBy("embeddings", test),
    )


METRICS: Final = (
    _own(
        "embedding_anisotropy",
        "anisotropy",
        "",
        "Mean cosine of random pairs of token embeddings.",
        "mean of x.y / (|x| |y|) over random pairs of tokens that share none.",
        "Ethayarajh (2019), How Contextual are Contextualized Word Representations?, section 3.4.",
    ),
    _own(
        "embedding_variance_pc1",
        "PC 1",
        "fraction",
        "Variance in the first principal component.",
        "Largest eigenvalue of the embeddings' covariance / sum of all.",
        "Mu and Viswanath (2018), All-but-the-top.",
    ),
    _own(
        "embedding_variance_pc10",
        "PC 1-10",
        "fraction",
        "Variance in the first ten components.",
        "Ten largest eigenvalues of the embeddings' covariance / sum of all.",
        "Mu and Viswanath (2018), All-but-the-top.",
    ),
    _own(
        "embedding_intrinsic_dimension",
        "intrinsic dim.",
        "",
        "Dimension of directions, by TwoNN.",
        "1 / mean of ln(r2 / r1), distances to the second and the first neighbour, by maximum likelihood.",
        "Facco et al. (2017), Estimating the intrinsic dimension of datasets by a minimal neighborhood information.",
    ),
    _of_words(
        "word_silhouette",
        "silhouette",
        "",
        "Mean silhouette of the groups of words, by cosine.",
        "mean of (b - a) / max(a, b): cosine distances to the own and to the nearest other group.",
        "Rousseeuw (1987), Silhouettes.",
        "test_word_groups",
        _COSINE,
        relative=False,
    ),
    _of_words(
        "word_purity",
        "purity",
        "fraction",
        "Share of a word's 5 nearest words of its own group.",
        "mean over words of the share of its 5 nearest words, by cosine, that are of its group.",
        "Precision at 5, with groups as relevance.",
        "test_word_groups",
    ),
    _of_words(
        "analogy_mrr",
        "analogy MRR",
        "",
        "Mean of 1 / rank of the right word of a - b + c.",
        "mean of 1 / rank by cosine with a - b + c of unit vectors; a, b and c are left out.",
        "3CosAdd: Mikolov et al. (2013), Linguistic Regularities in Continuous Space Word Representations.",
        "test_analogies",
    ),
    _of_words(
        "analogy_accuracy",
        "analogies",
        "fraction",
        "Share of a - b + c whose nearest word is right.",
        "Share of analogies whose right word has rank 1, as for analogy_mrr.",
        "3CosAdd: Mikolov et al. (2013), Linguistic Regularities in Continuous Space Word Representations.",
        "test_analogies",
    ),
    # A candidate's space compared with the reference's.
    _beside(
        "neighbour_recall",
        "neighbours",
        "Share of the 10 nearest tokens that are kept.",
        "mean over tokens of the share of the reference's 10 nearest tokens, by cosine, among the candidate's.",
        "Recall at k: Jégou et al. (2011), Product Quantization for Nearest Neighbor Search.",
        _NEIGHBOURS,
        _SHARE,
        "fraction",
        column=Column("neighbours kept", rank=13),
    ),
    _beside(
        "similarity_rank_correlation",
        "rank corr.",
        "Spearman of cosines of pairs of tokens.",
        "Spearman's correlation of the cosines of the same pairs of tokens in both models.",
        _SIMILARITY,
        _NEIGHBOURS,
        _COSINE,
    ),
    _beside(
        "procrustes_error",
        "Procrustes",
        "Difference that remains after rotation and scale.",
        "Least |s A R - B| / |B| over rotations R and scales s, both sides centred.",
        _PROCRUSTES,
        _SPACE,
        _ERROR,
        better="lower",
    ),
    _beside(
        "embedding_cka",
        "CKA",
        "Linear CKA of the token embeddings.",
        "|A'B|^2 / (|A'A| |B'B|), Frobenius norms, columns centred.",
        _CKA,
        _SPACE,
        _SHARE,
    ),
    _beside(
        "contextual_cosine",
        "contextual cos.",
        "Cosine of prompts: mean final hidden state.",
        "Cosine of the mean over tokens of the final hidden state with the reference's, mean over prompts.",
        "Cosine similarity.",
        _CONTEXTS,
        _COSINE,
        estimated="prompts",
        column=Column("context cos.", rank=14),
    ),
    _beside(
        "last_token_cosine",
        "last-token cos.",
        "Cosine of the prompts' last final hidden state.",
        "Cosine of the last token's final hidden state with the reference's, mean over prompts.",
        "Cosine similarity.",
        _CONTEXTS,
        _COSINE,
        estimated="prompts",
    ),
    _beside(
        "pooled_cosine",
        "pooled cos.",
        "Cosine of prompts, as an embedding model pools them.",
        "Cosine of llama.cpp's pooled embedding with the reference's, mean over prompts.",
        "Cosine similarity.",
        _CONTEXTS,
        _COSINE,
        estimated="prompts",
    ),
    _beside(
        "word_neighbour_recall",
        "word neighbours",
        "Share of the 5 nearest words that are kept.",
        "mean over words of the share of the reference's 5 nearest words, by cosine, among the candidate's.",
        "Recall at k: Jégou et al. (2011), Product Quantization for Nearest Neighbor Search.",
        _WORDS,
        _SHARE,
        "fraction",
        estimated="words",
    ),
    _beside(
        "word_rank_correlation",
        "word rank corr.",
        "Spearman of cosines of all pairs of words.",
        "Spearman's correlation of the cosines of all pairs of words in both models.",
        _SIMILARITY,
        _WORDS,
        _COSINE,
        estimated="words",
    ),
    _beside(
        "word_procrustes_error",
        "word Procrustes",
        "The same for words, in their principal components.",
        "Least |s A R - B| / |B| over rotations R and scales s, of words in their principal components.",
        _PROCRUSTES,
        _WORDS,
        _ERROR,
        better="lower",
        estimated="words",
    ),
    _beside(
        "word_cka",
        "word CKA",
        "Linear CKA of the words that both models have.",
        "|A'B|^2 / (|A'A| |B'B|), Frobenius norms, columns centred, of words that both models have.",
        _CKA,
        _WORDS,
        _SHARE,
        estimated="words",
    ),
)
