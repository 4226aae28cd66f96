"""Text metrics against sacrebleu and rouge-score called directly, closed forms, and what must hold for any texts."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.bootstrap import bootstrap_se
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.text import (
    TextPair,
    bleu,
    chrf,
    compare_text,
    compare_texts,
    edit_similarity,
    exact_prefix_tokens,
    rouge_l,
)

REFERENCE = 'The quick brown fox, born in 1999., jumps over the lazy dog; "why not?" it says.'
CANDIDATES = [
    "The quick brown fox, born in 1999., jumps over a lazy dog; it says nothing.",
    "A fox jumps.",
    "Nothing in common at all, or nearly so: 12.5 %!",
    "",
]
TEXTS = [
    ("Paris is the capital of France, and it lies on the Seine.", "Paris is a city in France; it lies on the Seine."),
    ("def f(x):\n    return x + 1\n", "def f(x):\n    return x + 2\n\nprint(f(3))\n"),
    ("one two three four five six seven", "one two three four five seven six"),
    ("2 + 2 = 4. 3 + 3 = 6.", "2 + 2 = 4. 3 + 3 = 7."),
    ("Once upon a time there was a king.", "Once upon a time there was a king."),
]

tokens = st.lists(st.integers(0, 4), max_size=12)
some_tokens = st.lists(st.integers(0, 4), min_size=1, max_size=12)
texts = st.text(max_size=40)
ascii_texts = st.text(string.ascii_letters + string.digits + " .,_-", max_size=40)


def _pair(
    reference: str, candidate: str, nll: Sequence[float] | None = None, gap: float | None = None, parted: bool = True
) -> TextPair:
    """Bytes as tokens."""
    own, other = list(reference.encode()), list(candidate.encode())
    if own != other and parted and gap is None:
        gap = 0.25
    return TextPair(reference, candidate, own, other, [0.5] * len(other) if nll is None else nll, gap)


def _by_metric(estimates: list[Estimate]) -> dict[str, Estimate]:
    return {estimate.metric: estimate for estimate in estimates}


# -- against the libraries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_single_texts_equal_the_libraries(candidate: str) -> None:
    assert bleu(REFERENCE, candidate) == pytest.approx(sacrebleu.sentence_bleu(candidate, [REFERENCE]).score)
    assert chrf(REFERENCE, candidate) == pytest.approx(sacrebleu.sentence_chrf(candidate, [REFERENCE]).score)
    expected = RougeScorer(["rougeL"]).score(REFERENCE, candidate)["rougeL"].fmeasure
    assert rouge_l(REFERENCE, candidate) == pytest.approx(expected)


def test_corpora_equal_the_libraries() -> None:
    estimates = _by_metric(compare_texts([_pair(*texts) for texts in TEXTS]).estimates)
    references, candidates = [a for a, _ in TEXTS], [b for _, b in TEXTS]
    assert estimates["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(candidates, [references]).score)
    assert estimates["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(candidates, [references]).score)
    scorer = RougeScorer(["rougeL"])
    expected = np.mean([scorer.score(a, b)["rougeL"].fmeasure for a, b in TEXTS])
    assert estimates["rouge_l"].value == pytest.approx(expected)
    for metric in ("bleu", "chrf", "rouge_l", "edit_similarity", "exact_prefix_tokens"):
        assert (estimates[metric].n, estimates[metric].clusters) == (len(TEXTS), len(TEXTS))


@pytest.mark.parametrize(("metric", "corpus"), [("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)])
def test_errors_of_corpora_equal_a_bootstrap_by_hand(metric: str, corpus: object) -> None:
    """Texts are drawn, put together and scored by sacrebleu, a thousand times."""
    estimate = _by_metric(compare_texts([_pair(*texts) for texts in TEXTS]).estimates)[metric]
    drawn = np.random.default_rng(0).integers(len(TEXTS), size=(1000, len(TEXTS)))
    scores = [corpus([TEXTS[i][1] for i in row], [[TEXTS[i][0] for i in row]]).score for row in drawn]  # type: ignore[operator]
    assert estimate.se == pytest.approx(np.std(scores, ddof=1), rel=1e-9)


@given(ascii_texts, ascii_texts)
def test_rouge_of_ascii_equals_the_default_tokenizer(reference: str, candidate: str) -> None:
    expected = RougeScorer(["rougeL"]).score(reference, candidate)["rougeL"].fmeasure
    if not any(character.isalnum() for character in reference):
        with pytest.raises(NoData, match="no words"):
            rouge_l(reference, candidate)
    else:
        assert rouge_l(reference, candidate) == expected


def test_other_scripts_have_words() -> None:
    """rouge-score alone would drop all of these, and 13a would see one word per sentence."""
    assert rouge_l("Größe zählt", "Größe fehlt") == pytest.approx(0.5)
    assert rouge_l("القاهرة مدينة كبيرة", "القاهرة مدينة صغيرة") == pytest.approx(2 / 3)
    assert rouge_l("长城很长。", "长城很短!") == pytest.approx(0.75)
    assert bleu("长城很长很长", "长城很长很短") == pytest.approx(
        sacrebleu.sentence_bleu("长 城 很 长 很 短", ["长 城 很 长 很 长"]).score
    )


# -- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "candidate", "prefix", "distance"),
    [
        ("kitten", "sitting", 0, 3),
        ("sunday", "saturday", 1, 3),
        ("same", "same", 4, 0),
        ("start", "starting", 5, 3),
        ("abc", "", 0, 3),
    ],
)
def test_known_distances(reference: str, candidate: str, prefix: int, distance: int) -> None:
    own, other = list(reference.encode()), list(candidate.encode())
    assert exact_prefix_tokens(own, other) == prefix
    assert edit_similarity(own, other) == pytest.approx(1 - distance / max(len(own), len(other)))


@given(tokens, some_tokens)
def test_edit_similarity_equals_the_recursive_definition(first: list[int], second: list[int]) -> None:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if min(i, j) == 0:
            return max(i, j)
        replaced = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replaced)

    expected = 1 - distance(len(first), len(second)) / max(len(first), len(second))
    assert edit_similarity(first, second) == pytest.approx(expected)


def _by_rows(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """Least number of insertions, deletions and substitutions (Wagner and Fischer, 1974), one row at a time."""
    columns = np.arange(len(second) + 1)
    row = columns
    for number, token in enumerate(first, 1):
        below = np.empty_like(row)
        below[0] = number
        below[1:] = np.minimum(row[1:] + 1, row[:-1] + (second != token))
        # Insertions run along the row: the minimum of below[k] + (j - k) over k <= j.
        row = np.minimum.accumulate(below - columns) + columns
    return int(row[-1])


@given(
    st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 3), max_size=200),
    st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 3), max_size=200),
    st.integers(0, 100),
)
def test_edit_similarity_equals_the_table_of_wagner_and_fischer(first: list[int], second: list[int], kept: int) -> None:
    # Texts that part somewhere, as continuations do, and texts that have little in common.
    for own, other in ((first, second), (first, first[:kept] + second)):
        if own or other:
            expected = 1 - _by_rows(np.array(own, np.int64), np.array(other, np.int64)) / max(len(own), len(other))
            assert edit_similarity(own, other) == expected


def test_perplexity_is_over_all_tokens() -> None:
    pairs = [_pair("abc", "ab", [1.0, 2.0]), _pair("abc", "xyz", [0.0, 1.0, 0.0])]
    pooled = _by_metric(compare_texts(pairs).estimates)["text_ppl_under_reference"]
    assert pooled.value == pytest.approx(math.exp(4 / 5))
    assert (pooled.n, pooled.clusters) == (5, 2)
    single = _by_metric(compare_text(pairs[0]).estimates)["text_ppl_under_reference"]
    assert single.value == pytest.approx(math.exp(1.5))
    assert (single.n, single.se) == (2, None)


def test_the_gap_is_a_mean_over_the_prompts_that_part() -> None:
    pairs = [_pair("abc", "abd", gap=0.5), _pair("abc", "abc"), _pair("abc", "xbc", gap=0.1)]
    pooled = _by_metric(compare_texts(pairs).estimates)["divergence_probability_gap"]
    assert pooled.value == pytest.approx(0.3)
    assert pooled.n == 2
    assert _by_metric(compare_text(pairs[0]).estimates)["divergence_probability_gap"].value == 0.5


# -- what holds for any texts -----------------------------------------------------------------------------------------


@given(texts, texts)
def test_scores_are_within_bounds(reference: str, candidate: str) -> None:
    for score, top in ((bleu, 100), (chrf, 100), (rouge_l, 1)):
        try:
            assert 0 <= score(reference, candidate) <= top
        except NoData:
            continue
        assert score(reference, reference) == pytest.approx(top)


@given(tokens, tokens)
def test_edit_similarity_is_symmetric_and_bounded(first: list[int], second: list[int]) -> None:
    if not first and not second:
        with pytest.raises(NoData):
            edit_similarity(first, second)
        return
    similarity = edit_similarity(first, second)
    assert 0 <= similarity <= 1
    assert similarity == edit_similarity(second, first)
    assert (similarity == 1) == (first == second)


@given(some_tokens, tokens)
def test_the_exact_prefix_is_the_longest_common_one(reference: list[int], candidate: list[int]) -> None:
    length = exact_prefix_tokens(reference, candidate)
    assert reference[:length] == candidate[:length]
    assert reference[length : length + 1] != candidate[length : length + 1] or len(reference) == length


def test_the_same_texts_have_no_error_and_no_gap() -> None:
    scores = compare_texts([_pair(reference, reference) for reference, _ in TEXTS])
    estimates = _by_metric(scores.estimates)
    for metric, best in (("bleu", 100), ("chrf", 100), ("rouge_l", 1), ("edit_similarity", 1)):
        assert estimates[metric].value == pytest.approx(best)
        assert estimates[metric].se == pytest.approx(0, abs=1e-9)
    assert scores.missing == {"divergence_probability_gap": "The texts do not diverge in any prompt."}


# -- no data is never a number ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["", " \n\t"])
@pytest.mark.parametrize("score", [bleu, chrf, rouge_l])
def test_a_reference_without_text_has_no_score(score: object, reference: str) -> None:
    with pytest.raises(NoData):
        score(reference, "some text")  # type: ignore[operator]


def test_markup_that_the_tokenizer_drops_is_no_text() -> None:
    with pytest.raises(NoData, match="no words"):
        bleu("<skipped>", "<skipped>")


def test_a_candidate_without_text_has_one() -> None:
    assert bleu(REFERENCE, "") == chrf(REFERENCE, "") == rouge_l(REFERENCE, "") == 0
    scores = compare_text(_pair(REFERENCE, ""))
    assert _by_metric(scores.estimates)["edit_similarity"].value == 0
    assert scores.missing == {"text_ppl_under_reference": "The candidate's text is empty."}


def test_what_is_missing_has_a_reason() -> None:
    scores = compare_text(_pair("?!", "?!"))
    assert set(scores.missing) == {"rouge_l", "divergence_probability_gap"}
    assert "no words" in scores.missing["rouge_l"]
    pooled = compare_texts([_pair("?!", "?!"), _pair("", "text"), _pair(" ", "")])
    assert set(pooled.missing) == {"rouge_l"}
    assert _by_metric(pooled.estimates)["bleu"].n == 1
    assert _by_metric(pooled.estimates)["edit_similarity"].n == 2


def test_no_texts_are_no_data() -> None:
    with pytest.raises(NoData, match="nothing to compare with"):
        compare_text(_pair("", "text"))
    for pairs in ([], [_pair("", "text")]):
        with pytest.raises(NoData, match="There is no prompt"):
            compare_texts(pairs)
    with pytest.raises(NoData):
        exact_prefix_tokens([], [1])
    with pytest.raises(NoData):
        bootstrap_se(float, 0)


# -- the bootstrap ----------------------------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_agrees_with_theory() -> None:
    values = np.random.default_rng(1).standard_normal(50)
    se = bootstrap_se(lambda drawn: float(values[drawn].mean()), 50, resamples=20_000)
    assert se == pytest.approx(float(np.std(values)) / math.sqrt(50), rel=0.02)


def test_bootstrap_has_a_seed_and_needs_two_samples() -> None:
    values = np.arange(10.0)

    def mean(drawn: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        return float(values[drawn].mean())

    assert bootstrap_se(mean, 10) == bootstrap_se(mean, 10)
    assert bootstrap_se(mean, 10) != bootstrap_se(mean, 10, seed=1)
    assert bootstrap_se(mean, 1) is None
    assert all(estimate.se is None for estimate in compare_texts([_pair("ab", "ac")]).estimates)
