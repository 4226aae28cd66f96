"""Estimates of a model's embeddings, and of a candidate's compared with its reference's, from the measured arrays.

The arrays are those of `gguf_harness.measure.embeddings.tasks`. Tokens and pairs are a random sample of the vocabulary,
the same for all models of its size; vectors that are zero in one of the models are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.blas import blas_threads
from gguf_harness.metrics.geometry import (
    estimate_intrinsic_dimension,
    neighbour_recall,
    rank_correlation,
    summarize_anisotropy,
)
from gguf_harness.metrics.kernels.directions import cosine
from gguf_harness.metrics.kernels.standard_errors import iid_se
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.word_spaces import (
    analogy_answers,
    compare_words,
    summarize_analogies,
    summarize_groups,
    word_cosines,
)

__all__ = [
    "POOLINGS",
    "WordSpace",
    "answer_analogies",
    "compare_neighbours",
    "compare_prompts",
    "compare_word_spaces",
    "describe_analogies",
    "describe_groups",
    "describe_space",
    "group_cosines",
    "pack",
    "unpack",
]

Arrays = Mapping[str, NDArray[Any]]

POOLINGS: Final = {"mean": "contextual_cosine", "last": "last_token_cosine", "pooled": "pooled_cosine"}
"""Ways to pool the tokens of a prompt into one vector, and the metric of its cosine."""


def pack(estimate: Estimate) -> NDArray[np.float64]:
    """[value, standard error, n] of an estimate computed in a worker, for a file of arrays; NaN for no error."""
    return np.array([estimate.value, np.nan if estimate.se is None else estimate.se, estimate.n])


def unpack(metric: str, packed: NDArray[Any]) -> Estimate:
    """The estimate that was packed."""
    value, se, n = packed.tolist()
    return Estimate(metric, value, int(n), None if np.isnan(se) else se)


def describe_space(arrays: Arrays) -> list[Estimate]:
    """Anisotropy, variance in the first components and intrinsic dimension of the token embeddings.

    Raises:
        NoData: too few tokens with distinct directions.
    """
    cosines = arrays["pair_cosines"]
    return [
        summarize_anisotropy(cosines[np.isfinite(cosines)]),
        unpack("embedding_variance_pc1", arrays["variance_pc1"]),
        unpack("embedding_variance_pc10", arrays["variance_pc10"]),
        estimate_intrinsic_dimension(arrays["neighbour_cosines"]),
    ]


class WordSpace:
    """The words that a model has, with a vector each.

    Args:
        words: all requested words.
        arrays: what was measured: `word_vectors` [words, d], and `word_tokens` [words], 0 if the model lacks a word.

    Attributes:
        vectors: [words there, d].
        index: row of each word that the model has.
        several: number of words with several tokens.
    """

    def __init__(self, words: Sequence[str], arrays: Arrays) -> None:
        tokens = arrays["word_tokens"]
        there = np.flatnonzero((tokens > 0) & np.abs(arrays["word_vectors"]).any(axis=1))
        self.vectors: NDArray[np.float32] = arrays["word_vectors"][there]
        self.index = {words[place]: row for row, place in enumerate(there.tolist())}
        self.several = int((tokens[there] > 1).sum())
        self._asked = len(words)

    def detail(self) -> str:
        """Number of words, and of those that are means of several tokens."""
        missing = self._asked - len(self.index)
        lacking = f", {missing} more cannot be written" if missing else ""
        return f"{len(self.index)} words, {self.several} of them as the mean of several tokens{lacking}"

    def take(self, words: Sequence[str]) -> NDArray[np.float32]:
        """[words, d] vectors of words that the model has."""
        return self.vectors[np.array([self.index[word] for word in words], dtype=np.int64)]


def describe_groups(space: WordSpace, group_of: Mapping[str, str]) -> list[Estimate]:
    """Silhouette and purity of the groups of words.

    Raises:
        NoData: too few words.
    """
    words = [word for word in group_of if word in space.index]
    return summarize_groups(space.take(words), [group_of[word] for word in words])


def group_cosines(space: WordSpace, group_of: Mapping[str, str]) -> Arrays:
    """Cosines of all pairs of words of groups, for a picture.

    Returns:
        texts, groups: [words], group after group.
        cosines: [words, words].
    """
    words = [word for word in group_of if word in space.index]
    return {
        "texts": np.array(words, dtype=np.str_),
        "groups": np.array([group_of[word] for word in words], dtype=np.str_),
        "cosines": word_cosines(space.take(words)),
    }


def describe_analogies(space: WordSpace, families: Mapping[str, Sequence[tuple[str, str]]]) -> list[Estimate]:
    """Accuracy and mean reciprocal rank, among all words, of the analogies whose words the model has.

    Raises:
        NoData: no question.
    """
    return answer_analogies(space, families)[0]


def answer_analogies(
    space: WordSpace, families: Mapping[str, Sequence[tuple[str, str]]]
) -> tuple[list[Estimate], Arrays]:
    """The same estimates, and every question with its answer, as words.

    Returns:
        the estimates; and families: [questions] names, questions: [questions, 4] words: a is to b as c is to d,
        answers: [questions] the nearest word, ranks: [questions] rank of d.

    Raises:
        NoData: no question.
    """
    words = list(space.index)
    ranks, asked = [], []
    with blas_threads(1, 0):
        for family, pairs in families.items():
            there = [pair for pair in pairs if all(word in space.index for word in pair) and pair[0] != pair[1]]
            if len(there) < 2:
                continue
            rank, found = analogy_answers(space.vectors, space.index, there)
            ranks.append(rank)
            for row, pair in enumerate(there):
                shown = [other for place, other in enumerate(there) if place != row]
                asked += [
                    (family, [*other, *pair], words[answer], place)
                    for other, answer, place in zip(shown, found[row].tolist(), rank[row].tolist(), strict=True)
                    if place > 0
                ]
    estimates = summarize_analogies(ranks)
    return estimates, {
        "families": np.array([family for family, *_ in asked], dtype=np.str_),
        "questions": np.array([question for _, question, *_ in asked], dtype=np.str_),
        "answers": np.array([answer for *_, answer, _ in asked], dtype=np.str_),
        "ranks": np.array([place for *_, place in asked], dtype=np.int64),
    }


def compare_neighbours(candidate: Arrays, reference: Arrays) -> list[Estimate]:
    """Recall of the nearest tokens, and Spearman's correlation of the cosines of the same pairs.

    Raises:
        NoData: nothing in common.
    """
    _, mine, theirs = np.intersect1d(candidate["queries"], reference["queries"], return_indices=True)
    a, b = candidate["pair_cosines"], reference["pair_cosines"]
    both = np.isfinite(a) & np.isfinite(b)
    return [
        neighbour_recall(candidate["neighbours"][mine], reference["neighbours"][theirs]),
        rank_correlation(a[both], b[both]),
    ]


def compare_prompts(candidate: Arrays, reference: Arrays) -> list[Estimate]:
    """Mean cosine of the prompts' vectors, for each pooling that both have; errors over prompts.

    Raises:
        NoData: no prompt, or a zero vector.
    """
    both = candidate["prompt_tokens"].astype(bool) & reference["prompt_tokens"].astype(bool)
    if not both.any():
        raise NoData("contextual_cosine: no prompt fits both models.", "Raise --gguf-ctx, or give shorter prompts.")
    estimates = []
    for pooling, metric in POOLINGS.items():
        name = f"prompt_{pooling}"
        if name in candidate and name in reference:
            cosines = cosine(candidate[name][both], reference[name][both])
            if not np.isfinite(cosines).all():
                raise NoData(f"{metric}: the vector of some prompt has no direction.")
            estimates.append(
                Estimate(metric, float(cosines.mean()), len(cosines), iid_se(cosines), clusters=len(cosines))
            )
    return estimates


def compare_word_spaces(candidate: WordSpace, reference: WordSpace) -> list[tuple[Estimate, float]]:
    """`compare_words` for the words that both models have, also with different vocabularies.

    Raises:
        NoData: too few words that both have.
    """
    shared = [word for word in reference.index if word in candidate.index]
    with blas_threads(1, 0):
        return compare_words(candidate.take(shared), reference.take(shared))
