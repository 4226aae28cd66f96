"""Compare a candidate's texts with the reference's by all text metrics; pure functions, so the results can be cached.

BLEU, chrF and ROUGE-L come from libraries that take a second to import, and their errors from a thousand resamples.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import metadata
from typing import Any, Final

from gguf_harness.errors import NoData
from gguf_harness.measure.texts.tasks import Generation, Generations, TextScore, continuations
from gguf_harness.metrics.kernels.bootstrap import RESAMPLES
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.text import TextPair, TextScores, compare_text, compare_texts

__all__ = ["ComparedTexts", "compare_generations", "compared_from_json", "text_metrics_key", "text_pair"]

_LIBRARIES: Final = ("numpy", "rapidfuzz", "sacrebleu")


@dataclass(frozen=True, slots=True)
class ComparedTexts:
    """Estimates by prompt and over all prompts; NoData if there is nothing to compare.

    Attributes:
        of_prompts: by id of the prompt, for all prompts that can be compared.
        together: over all of them, with errors by bootstrap over prompts.
    """

    of_prompts: dict[str, TextScores | NoData]
    together: TextScores | NoData

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return {
            "of_prompts": {prompt: _to_json(scores) for prompt, scores in self.of_prompts.items()},
            "together": _to_json(self.together),
        }


@cache
def text_metrics_key() -> dict[str, Any]:
    """What text metrics depend on besides the code of this package, for cache keys.

    Versions of the libraries that score and resample, and of the Unicode tables that define letters.
    """
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return {"libraries": versions, "unicode": unicodedata.unidata_version, "resamples": RESAMPLES}


def text_pair(reference: Generation, candidate: Generation, score: TextScore) -> TextPair:
    """Continuations of one prompt, and the score of the candidate's under the reference."""
    return TextPair(reference.text, candidate.text, reference.tokens, candidate.tokens, score.nll, score.gap)


def compare_generations(
    reference: Generations, candidate: Generations, scores: Mapping[str, TextScore]
) -> ComparedTexts:
    """Compare the texts of all prompts that both continued, with the same prompt tokens.

    Args:
        reference: texts of the reference.
        candidate: texts of the candidate.
        scores: scores of the candidate's texts under the reference, by prompt.
    """
    pairs = {}
    for prompt in continuations(reference, candidate):
        own, other = reference[prompt], candidate[prompt]
        if isinstance(own, Generation) and isinstance(other, Generation):
            pairs[prompt] = text_pair(own, other, scores[prompt])
    return ComparedTexts(
        {prompt: _scores_or_problem(partial(compare_text, pair)) for prompt, pair in pairs.items()},
        _scores_or_problem(partial(compare_texts, list(pairs.values()))),
    )


def compared_from_json(value: Mapping[str, Any]) -> ComparedTexts:
    """Inverse of `ComparedTexts.to_json`."""
    return ComparedTexts(
        {prompt: _from_json(stored) for prompt, stored in value["of_prompts"].items()}, _from_json(value["together"])
    )


def _scores_or_problem(compare: Callable[[], TextScores]) -> TextScores | NoData:
    try:
        return compare()
    except NoData as error:
        return error.with_traceback(None)


def _to_json(scores: TextScores | NoData) -> dict[str, Any]:
    return {"problem": [scores.message, scores.hint]} if isinstance(scores, NoData) else asdict(scores)


def _from_json(stored: Mapping[str, Any]) -> TextScores | NoData:
    if "problem" in stored:
        return NoData(*stored["problem"])
    return TextScores([Estimate.from_json(estimate) for estimate in stored["estimates"]], dict(stored["missing"]))
