"""Similarity of two texts: a candidate's continuation of a prompt and the reference's.

BLEU and chrF are sacrebleu's, on its scale from 0 to 100; the common subsequence of ROUGE-L and the edit distance are
rapidfuzz's. All take the reference first. A reference without text has no score: they raise NoData. A candidate without
text has the score 0.

Chinese and Japanese are written without spaces: BLEU and ROUGE-L count each of their characters as a word. Everything
else is tokenized as by sacrebleu's default (13a) and rouge-score's, the latter extended from ASCII to the
letters and digits of all scripts. Thai and other scripts without spaces are not split: use chrF for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.bootstrap import bootstrap_se
from gguf_harness.metrics.perplexity import perplexity
from gguf_harness.metrics.records import Estimate

__all__ = [
    "TextPair",
    "TextScores",
    "bleu",
    "chrf",
    "compare_text",
    "compare_texts",
    "edit_similarity",
    "exact_prefix_tokens",
    "rouge_l",
]

# Han, kana, and the punctuation that goes with them.
_WITHOUT_SPACES: Final = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_SPACELESS: Final = re.compile(f"([{_WITHOUT_SPACES}])")
_WORD: Final = re.compile(rf"(?=[^\W_])[{_WITHOUT_SPACES}]|[^\W_{_WITHOUT_SPACES}]+")


@dataclass(frozen=True, slots=True)
class TextPair:
    """Greedy continuations of one prompt.

    Attributes:
        reference: text of the reference.
        candidate: text of the candidate.
        reference_tokens: [n] its tokens.
        candidate_tokens: [m] its tokens.
        nll: [m] negative log-likelihood of each of the candidate's tokens under the reference, in nats.
        gap: where they diverge, the reference's probability of its own token minus that of the candidate's token; None
            if they do not diverge.
    """

    reference: str
    candidate: str
    reference_tokens: Sequence[int]
    candidate_tokens: Sequence[int]
    nll: Sequence[float]
    gap: float | None


@dataclass(frozen=True, slots=True)
class TextScores:
    """Estimates, and why other metrics have none."""

    estimates: list[Estimate] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


# -- one text ---------------------------------------------------------------------------------------------------------


def bleu(reference: str, candidate: str) -> float:
    """Sentence BLEU, 0 to 100: geometric mean of the precisions of 1- to 4-grams, with the brevity penalty.

    Papineni, Roukos, Ward and Zhu (2002); sacrebleu's `sentence_bleu`: exponential smoothing, and only the orders for
    which a text is long enough (Post, 2018, A Call for Clarity in Reporting BLEU Scores).
    """
    if not _scorable("bleu", reference):
        raise NoData("BLEU: the reference's text has no words.")
    # The root of a product of ones may be rounded above one.
    return min(100.0, float(_metric("bleu").sentence_score(_spaced(candidate), [_spaced(reference)]).score))


def chrf(reference: str, candidate: str) -> float:
    """Sentence chrF2, 0 to 100: F-score of character 1- to 6-grams, recall counted twice; white space is left out.

    Popović (2015), chrF: character n-gram F-score for automatic MT evaluation; sacrebleu's `sentence_chrf`.
    """
    if not _scorable("chrf", reference):
        raise NoData("chrF: the reference's text is empty or white space.")
    return float(_metric("chrf").sentence_score(candidate, [reference]).score)


def rouge_l(reference: str, candidate: str) -> float:
    """ROUGE-L, 0 to 1: F1 of the longest common subsequence of words, in lower case and without punctuation.

    Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries. As `rougeL` of the package rouge-score without
    stemming, which is not called because it imports nltk: two seconds.
    """
    from rapidfuzz.distance import LCSseq

    expected, words = _words(reference), _words(candidate)
    if not expected:
        raise NoData("ROUGE-L: the reference's text has no words.")
    common = LCSseq.similarity(expected, words)
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def exact_prefix_tokens(reference: Sequence[int], candidate: Sequence[int]) -> int:
    """Number of tokens before the first difference; all of the shorter one if it is the start of the longer."""
    if len(reference) == 0:
        raise NoData("exact prefix: the reference has no tokens.")
    pairs = zip(reference, candidate, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(reference), len(candidate)))


def edit_similarity(reference: Sequence[int], candidate: Sequence[int]) -> float:
    """1 - d / max(n, m), 0 to 1, where d is the Levenshtein distance of the tokens, rapidfuzz's. Symmetric.

    Levenshtein (1966), Binary codes capable of correcting deletions, insertions, and reversals.
    """
    from rapidfuzz.distance import Levenshtein

    longest = max(len(reference), len(candidate))
    if longest == 0:
        raise NoData("edit similarity: neither text has tokens.")
    return 1 - Levenshtein.distance(reference, candidate) / longest


def compare_text(pair: TextPair) -> TextScores:
    """All metrics of one prompt: single values without errors, except for the perplexity, whose samples are tokens.

    Raises:
        NoData: the reference has no text: there is nothing to compare with.
    """
    if len(pair.reference_tokens) == 0:
        raise NoData("The reference's text is empty: there is nothing to compare with.")
    scores = TextScores()
    for metric, value in _VALUES.items():
        try:
            scores.estimates.append(Estimate(metric, value(pair), 1))
        except NoData as error:
            scores.missing[metric] = error.message
    try:
        scores.estimates.append(replace(perplexity(pair.nll), metric="text_ppl_under_reference"))
    except NoData:
        scores.missing["text_ppl_under_reference"] = "The candidate's text is empty."
    return scores


def _gap(pair: TextPair) -> float:
    if pair.gap is None:
        raise NoData("The texts do not diverge.")
    return pair.gap


# -- many texts -------------------------------------------------------------------------------------------------------


def compare_texts(pairs: Sequence[TextPair]) -> TextScores:
    """All metrics over prompts, with standard errors by bootstrap over prompts.

    BLEU and chrF are those of the corpus: n-grams are counted over all texts, then scored. The perplexity is over all
    tokens. All other metrics are means over the prompts that have a value; `n` is their number.

    Raises:
        NoData: no prompts, or no text of the reference in any.
    """
    pairs = [pair for pair in pairs if len(pair.reference_tokens)]
    if not pairs:
        raise NoData("There is no prompt with a non-empty text of the reference.")
    scores = TextScores()
    for metric, pool in _POOLS.items():
        try:
            scores.estimates.append(pool(metric, pairs))
        except NoData as error:
            scores.missing[metric] = error.message
    return scores


def _corpus(metric: str, pairs: Sequence[TextPair]) -> Estimate:
    pairs = [pair for pair in pairs if _scorable(metric, pair.reference)]
    if not pairs:
        raise NoData(f"{metric}: no text of the reference has anything to score.")
    references, candidates = [pair.reference for pair in pairs], [pair.candidate for pair in pairs]
    if metric == "bleu":
        references, candidates = [_spaced(text) for text in references], [_spaced(text) for text in candidates]
    scorer = _metric(metric)
    counts = np.asarray(scorer.counts(candidates, [references]))
    value = min(100.0, float(scorer.corpus_score(candidates, [references]).score))
    se = bootstrap_se(lambda drawn: scorer.of_counts(counts[drawn].sum(axis=0)), len(pairs))
    return Estimate(metric, value, len(pairs), se, clusters=len(pairs))


def _mean(metric: str, pairs: Sequence[TextPair]) -> Estimate:
    values = np.array([value for pair in pairs if (value := _value_or_none(metric, pair)) is not None])
    if not len(values):
        raise NoData(
            "The texts do not diverge in any prompt." if metric == _GAP else f"{metric}: no prompt has a value."
        )
    se = bootstrap_se(lambda drawn: float(values[drawn].mean()), len(values))
    return Estimate(metric, float(values.mean()), len(values), se, clusters=len(values))


def _pooled_perplexity(metric: str, pairs: Sequence[TextPair]) -> Estimate:
    rows = [np.asarray(pair.nll, dtype=np.float64) for pair in pairs if len(pair.nll)]
    if not rows:
        raise NoData("All texts of the candidate are empty.")
    sums, lengths = np.array([row.sum() for row in rows]), np.array([row.size for row in rows])

    def of(drawn: NDArray[np.int64]) -> float:
        return math.exp(sums[drawn].sum() / lengths[drawn].sum())

    value, se = of(np.arange(len(rows))), bootstrap_se(of, len(rows))
    return Estimate(metric, value, int(lengths.sum()), se, clusters=len(rows))


def _value_or_none(metric: str, pair: TextPair) -> float | None:
    try:
        return _VALUES[metric](pair)
    except NoData:
        return None


_GAP: Final = "divergence_probability_gap"
_VALUES: Final[dict[str, Callable[[TextPair], float]]] = {
    "edit_similarity": lambda pair: edit_similarity(pair.reference_tokens, pair.candidate_tokens),
    "exact_prefix_tokens": lambda pair: exact_prefix_tokens(pair.reference_tokens, pair.candidate_tokens),
    "bleu": lambda pair: bleu(pair.reference, pair.candidate),
    "chrf": lambda pair: chrf(pair.reference, pair.candidate),
    "rouge_l": lambda pair: rouge_l(pair.reference, pair.candidate),
    _GAP: _gap,
}
_POOLS: Final[dict[str, Callable[[str, Sequence[TextPair]], Estimate]]] = {
    **dict.fromkeys(_VALUES, _mean),
    "bleu": _corpus,
    "chrf": _corpus,
    "text_ppl_under_reference": _pooled_perplexity,
}


# -- the libraries ----------------------------------------------------------------------------------------------------


@cache
def _metric(name: str) -> Any:
    """BLEU or chrF of sacrebleu, which can also score sums of counts: what its own bootstrap does."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    base: Any = {"bleu": BLEU, "chrf": CHRF}[name]

    class WithCounts(base):  # type: ignore[misc]
        def counts(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
            """[texts, counts] of n-grams."""
            return self._extract_corpus_statistics(candidates, references)

        def of_counts(self, total: NDArray[np.int64]) -> float:
            """Score of counts that were summed over texts."""
            return float(self._compute_score_from_stats(total.tolist()).score)

    # Orders for which all texts are too short are left out: otherwise a short text would not match itself.
    return WithCounts(effective_order=True) if name == "bleu" else WithCounts()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _spaced(text: str) -> str:
    return _SPACELESS.sub(r" \1 ", text)


def _scorable(metric: str, reference: str) -> bool:
    """Whether a text has anything to score: 13a drops some markup, and chrF white space."""
    return bool((_metric("bleu").tokenizer(reference) if metric == "bleu" else reference).strip())
