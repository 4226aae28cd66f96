"""Spaces of words: cohesion of groups, analogies, and similarity to another space.

There are few words: everything here uses a matrix of all pairs. Words of one group, or of one pair of an analogy, are
not independent: standard errors are clustered by them (CR1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.geometry import align, neighbour_recall, rank_correlation
from gguf_harness.metrics.kernels.bootstrap import bootstrap_se
from gguf_harness.metrics.kernels.directions import directions
from gguf_harness.metrics.kernels.nearest import nearest_by_cosine, row_blocks
from gguf_harness.metrics.kernels.pca import principal_axes
from gguf_harness.metrics.kernels.ranks import mean_ranks
from gguf_harness.metrics.kernels.silhouette import silhouettes
from gguf_harness.metrics.kernels.standard_errors import clustered_se_of_labels
from gguf_harness.metrics.records import Estimate

__all__ = [
    "PURITY_NEIGHBOURS",
    "analogy_answers",
    "analogy_ranks",
    "compare_words",
    "summarize_analogies",
    "summarize_groups",
    "word_cosines",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

PURITY_NEIGHBOURS: Final = 5
"""Neighbours of a word; fewer if its group has fewer other words."""
_WORDS_PER_COMPONENT: Final = 8
"""Words for each principal component in which two spaces of words are aligned. With as many components as words, a
rotation can fit anything; each number is given with its chance level.
"""
_SHUFFLES: Final = 20
"""Permutations for a chance level: the error of their mean is 1 / sqrt(20), about a fifth, of their spread."""
_RESAMPLES: Final = 200
"""Of the bootstrap: the standard error is itself known to 1 / sqrt(2 * 200), 5 %."""


def _unit_rows(vectors: Float32, what: str) -> Float64:
    units, valid = directions(vectors)
    if not valid.all():
        raise NoData(f"{what}: {int((~valid).sum())} of {len(vectors)} words have no direction.")
    return units.astype(np.float64)


def summarize_groups(vectors: Float32, groups: Sequence[str]) -> list[Estimate]:
    """Cohesion of groups of words: mean silhouette, and purity of the nearest words.

    The silhouette is that of `gguf_harness.metrics.kernels.silhouette`, with 1 - cosine as the distance. Purity: of a
    word's nearest other words, the share that is of its group: of as many as the group has others, at most 5.

    Args:
        vectors: [words, d].
        groups: [words] the group of each.

    Raises:
        NoData: fewer than two groups, a zero vector, or no group with two words.
    """
    names, labels = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(labels)
    if len(names) < 2 or sizes.max() < 2:
        raise NoData(f"word_silhouette: {len(names)} groups, the largest of {sizes.max(initial=0)} words.")
    units = _unit_rows(vectors, "word_silhouette")
    distances = np.maximum(0, 1 - units @ units.T)
    np.fill_diagonal(distances, 0)
    values = silhouettes(distances, labels)
    several = np.flatnonzero(sizes[labels] > 1)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")
    purity = []
    for word in several:
        counted = min(PURITY_NEIGHBOURS, int(sizes[labels[word]]) - 1)
        purity.append(float((labels[nearest[word, :counted]] == labels[word]).mean()))
    return [
        _clustered("word_silhouette", values, labels),
        _clustered("word_purity", np.array(purity), labels[several]),
    ]


def _clustered(metric: str, values: Float64, clusters: Ints) -> Estimate:
    error = clustered_se_of_labels(values, clusters)
    return Estimate(metric, float(values.mean()), len(values), error, clusters=len(np.unique(clusters)))


def word_cosines(vectors: Float32) -> Float32:
    """[words, words] cosines of all pairs.

    Raises:
        NoData: a zero vector.
    """
    units = _unit_rows(vectors, "word_cosines")
    return (units @ units.T).astype(np.float32)


def analogy_ranks(vectors: Float32, index: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> Ints:
    """The ranks that `analogy_answers` returns."""
    return analogy_answers(vectors, index, pairs)[0]


def analogy_answers(vectors: Float32, index: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> tuple[Ints, Ints]:
    """Ranks of the right words, and the words found.

    a is to b as c is to d, for every pair (a, b) with every other pair (c, d).

    3CosAdd: Mikolov et al. (2013), Linguistic Regularities in Continuous Space Word Representations: all words by the
    cosine of their direction with b - a + c, of directions; a, b and c are left out. Rank 1 is the nearest. Ties count
    against the right word.

    Args:
        vectors: [words, d]: all possible answers.
        index: row of each word.
        pairs: pairs of different words with the same relation.

    Returns:
        [pairs, pairs - 1] ranks of the pair (c, d) asked for, by the pair (a, b) that shows how, 0 if the right word is
        one of a, b and c; and the rows of the nearest words, -1 where the rank is 0.
    """
    units = _unit_rows(vectors, "analogies")
    ranks = np.zeros((len(pairs), max(0, len(pairs) - 1)), dtype=np.int64)
    found = np.full_like(ranks, -1)
    for row, (c, d) in enumerate(pairs):
        for column, (a, b) in enumerate(pair for place, pair in enumerate(pairs) if place != row):
            if d not in {a, b, c}:
                cosines = units @ (units[index[b]] - units[index[a]] + units[index[c]])
                right = cosines[index[d]]
                cosines[[index[word] for word in (a, b, c)]] = -np.inf
                ranks[row, column] = np.count_nonzero(cosines >= right)
                found[row, column] = np.argmax(cosines)
    return ranks, found


def summarize_analogies(families: Sequence[Ints]) -> list[Estimate]:
    """Accuracy and mean reciprocal rank over all questions; errors clustered by the pair asked for.

    Args:
        families: `analogy_ranks` of each family.

    Raises:
        NoData: no questions.
    """
    asked = [(row, rank) for family in families for row, ranks in enumerate(family) for rank in ranks if rank > 0]
    if not asked:
        raise NoData("analogy_accuracy: there are no questions.")
    clusters, count = [], 0
    for family in families:
        clusters += [count + row for row, ranks in enumerate(family) for rank in ranks if rank > 0]
        count += len(family)
    ranks = np.array([rank for _, rank in asked], dtype=np.float64)
    places = np.array(clusters, dtype=np.int64)
    return [_clustered("analogy_accuracy", (ranks == 1) * 1.0, places), _clustered("analogy_mrr", 1 / ranks, places)]


def compare_words(candidate: Float32, reference: Float32) -> list[tuple[Estimate, float]]:
    """Similarity of the positions of the same words in two models, for any vocabularies.

    Each number with its chance level.

    Recall of the nearest words, Spearman's correlation of the cosines of all pairs, Procrustes' error and CKA. With
    fewer words than dimensions a rotation can fit anything: Procrustes and CKA use the first n / 8 principal components
    of the words. Chance: of recall k / (n - 1), of the correlation 0, otherwise the mean over 20 shuffles of the
    candidate's words. The error of recall is over words, that of the correlation by bootstrap over words, since pairs
    share them; those of Procrustes and CKA are as `align` says.

    Args:
        candidate: [words, d1].
        reference: [words, d2], the same words.

    Returns:
        word_neighbour_recall, word_rank_correlation, word_procrustes_error, word_cka, each with its chance level.

    Raises:
        NoData: fewer than 16 words, or a zero vector.
    """
    count = len(reference)
    if len(candidate) != count:
        raise ValueError(f"{len(candidate)} words beside {count}")
    if count < 16:
        raise NoData(f"word_neighbour_recall: {count} words that both models have, expected at least 16.")
    own, k = np.arange(count), PURITY_NEIGHBOURS
    near = [nearest_by_cosine(side, row_blocks(side), k, own).rows for side in (candidate, reference)]
    recall = neighbour_recall(near[0], near[1], "word_neighbour_recall")
    sides = [_unit_rows(side, "word_rank_correlation") for side in (candidate, reference)]
    similar = [side @ side.T for side in sides]
    upper = np.triu_indices(count, 1)
    correlation = rank_correlation(similar[0][upper], similar[1][upper], "word_rank_correlation")
    components = [_components(side, max(2, count // _WORDS_PER_COMPONENT)) for side in (candidate, reference)]
    aligned = align(components[0], components[1], "word_procrustes_error", "word_cka")
    drawn = np.random.default_rng(0)
    shuffled = [align(components[0][drawn.permutation(count)], components[1]) for _ in range(_SHUFFLES)]
    error = bootstrap_se(_rank_correlation_of(similar[0], similar[1]), count, resamples=_RESAMPLES)
    return [
        (recall, k / (count - 1)),
        (Estimate(correlation.metric, correlation.value, count, error), 0.0),
        (aligned.procrustes_error, float(np.mean([other.procrustes_error.value for other in shuffled]))),
        (aligned.cka, float(np.mean([other.cka.value for other in shuffled]))),
    ]


def _components(vectors: Float32, count: int) -> Float32:
    """[words, count] in the first principal components."""
    mean, axes, _ = principal_axes(vectors, count)
    return np.asarray((vectors - mean) @ axes, dtype=np.float32)


def _rank_correlation_of(candidate: Float64, reference: Float64) -> Callable[[Ints], float]:
    """Correlation of the ranks among words drawn with replacement; ranks are those among all words."""
    rows, columns = np.triu_indices(len(candidate), 1)
    ranks = []
    for similar in (candidate, reference):
        ranked = np.zeros_like(similar)
        ranked[rows, columns] = ranked[columns, rows] = mean_ranks(similar[rows, columns])
        ranks.append(ranked)

    def of(drawn: Ints) -> float:
        first, second = drawn[rows], drawn[columns]
        # A word drawn twice does not form a pair with itself.
        apart = first != second
        pairs = first[apart], second[apart]
        return float(np.corrcoef(ranks[0][pairs], ranks[1][pairs])[0, 1])

    return of
