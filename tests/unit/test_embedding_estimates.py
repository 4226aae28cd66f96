"""Estimates from stored arrays of embeddings: what one model lacks, what two do not share, what was packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.blas import blas_threads
from gguf_harness.metrics.embedding_estimates import (
    WordSpace,
    answer_analogies,
    compare_neighbours,
    compare_prompts,
    compare_word_spaces,
    describe_analogies,
    describe_groups,
    group_cosines,
    pack,
    unpack,
)
from gguf_harness.metrics.records import Estimate


@given(st.floats(-1e9, 1e9), st.one_of(st.none(), st.floats(0, 1e9)), st.integers(1, 10**9))
def test_packing_loses_nothing(value: float, se: float | None, n: int) -> None:
    estimate = Estimate("procrustes_error", value, n, se)
    assert unpack("procrustes_error", pack(estimate)) == estimate


def _words(count: int = 20, d: int = 6, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    tokens = np.ones(count, dtype=np.int64)
    tokens[1:3] = (2, 3)
    return {"word_vectors": random.standard_normal((count, d)).astype(np.float32), "word_tokens": tokens}


NAMES = tuple(f"w{place}" for place in range(20))


def test_a_word_that_a_model_lacks_is_not_there() -> None:
    arrays = _words()
    arrays["word_tokens"][5] = 0
    arrays["word_vectors"][6] = 0
    space = WordSpace(NAMES, arrays)
    assert space.vectors.shape == (18, 6)
    assert {"w5", "w6"} & set(space.index) == set()
    assert np.array_equal(space.take(["w7", "w0"]), arrays["word_vectors"][[7, 0]])
    assert space.detail() == "18 words, 2 of them as the mean of several tokens, 2 more cannot be written"
    groups = {name: "ab"[place % 2] for place, name in enumerate(NAMES)}
    assert [estimate.n for estimate in describe_groups(space, groups)] == [18, 18]
    # A family with a pair left has no question.
    with pytest.raises(NoData):
        describe_analogies(space, {"one": [("w0", "w1"), ("w5", "w6")]})
    accuracy, _ = describe_analogies(space, {"two": [("w0", "w1"), ("w2", "w3")], "one": [("w5", "w7")]})
    assert accuracy.n == 2


def test_answers_are_the_words_that_were_counted() -> None:
    arrays = _words()
    arrays["word_tokens"][5] = 0
    space = WordSpace(NAMES, arrays)
    families = {"a": [("w0", "w1"), ("w2", "w3"), ("w4", "w5")], "b": [("w6", "w7"), ("w8", "w7"), ("w9", "w10")]}
    (accuracy, mrr), answers = answer_analogies(space, families)
    assert [estimate.value for estimate in describe_analogies(space, families)] == [accuracy.value, mrr.value]
    # w5 is missing, and w7 cannot be the answer where it is given.
    assert len(answers["ranks"]) == accuracy.n == 2 + 4
    assert answers["families"].tolist() == ["a"] * 2 + ["b"] * 4
    assert accuracy.value == (answers["ranks"] == 1).mean()
    assert mrr.value == pytest.approx((1 / answers["ranks"]).mean())
    for (a, b, c, d), answer, rank in zip(*(answers[key].tolist() for key in ("questions", "answers", "ranks")),
                                          strict=True):  # fmt: skip
        units = space.vectors / np.linalg.norm(space.vectors, axis=1, keepdims=True)
        wanted = units[space.index[b]] - units[space.index[a]] + units[space.index[c]]
        order = [w for w in sorted(space.index, key=lambda w: -float(units[space.index[w]] @ wanted))
                 if w not in {a, b, c}]  # fmt: skip
        assert (order[0], order.index(d) + 1) == (answer, rank)


def test_cosines_are_those_of_the_words_of_groups() -> None:
    arrays = _words()
    arrays["word_tokens"][1] = 0
    cosines = group_cosines(WordSpace(NAMES, arrays), {"w3": "b", "w1": "a", "w0": "a"})
    assert (cosines["texts"].tolist(), cosines["groups"].tolist()) == (["w3", "w0"], ["b", "a"])
    one, other = arrays["word_vectors"][3], arrays["word_vectors"][0]
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert np.allclose(cosines["cosines"], [[1, expected], [expected, 1]], atol=1e-6)


def test_words_that_both_have_are_compared() -> None:
    mine, theirs = _words(), _words(seed=0)
    mine["word_tokens"][:2] = 0
    estimates = compare_word_spaces(WordSpace(NAMES, mine), WordSpace(NAMES, theirs))
    assert {estimate.n for estimate, _ in estimates} == {18}
    assert estimates[0][0].value == 1
    mine["word_tokens"][:10] = 0
    with pytest.raises(NoData, match="10 words that both models have"):
        compare_word_spaces(WordSpace(NAMES, mine), WordSpace(NAMES, theirs))


def _tokens(queries: list[int], neighbours: list[list[int]], cosines: list[float]) -> dict[str, Any]:
    return {
        "queries": np.array(queries), "neighbours": np.array(neighbours), "pair_cosines": np.array(cosines, np.float32)
    }  # fmt: skip


def test_tokens_without_a_direction_on_one_side_are_left_out() -> None:
    reference = _tokens([7, 3, 9], [[1, 2], [3, 4], [5, 6]], [0.1, 0.2, 0.3, 0.4, 0.5])
    candidate = _tokens([9, 7], [[5, 8], [2, 1]], [0.2, np.nan, 0.3, 0.4, 0.6])
    recall, correlation = compare_neighbours(candidate, reference)
    assert (recall.value, recall.n) == (0.75, 2)
    assert (correlation.value, correlation.n) == (1, 4)


def test_prompts_that_both_hold_are_compared() -> None:
    mine = {"prompt_tokens": np.array([3, 0, 4]), "prompt_mean": np.array([[1.0, 0], [0, 0], [0, 1]])}
    theirs = {"prompt_tokens": np.array([3, 5, 4]), "prompt_mean": np.array([[1.0, 1], [9, 9], [0, 2]])}
    (estimate,) = compare_prompts(mine, theirs)
    cosines = [1 / np.sqrt(2), 1.0]
    assert (estimate.metric, estimate.n, estimate.clusters) == ("contextual_cosine", 2, 2)
    assert estimate.value == pytest.approx(np.mean(cosines))
    assert estimate.se == pytest.approx(np.std(cosines, ddof=1) / np.sqrt(2))
    with pytest.raises(NoData, match="no direction"):
        compare_prompts(mine | {"prompt_tokens": np.array([3, 5, 4])}, theirs)
    with pytest.raises(NoData, match="no prompt fits"):
        compare_prompts(mine | {"prompt_tokens": np.zeros(3)}, theirs)


def test_small_matrices_take_one_thread() -> None:
    from threadpoolctl import threadpool_info

    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    np.linalg.eigh(np.eye(2))
    before = threads()
    with blas_threads(2, 256):
        assert threads() <= {1}
    with blas_threads(2, 4096):
        assert threads() <= {2}
    assert threads() == before
