"""Texts of two models compared: the same numbers as the metrics called directly, before the cache and after it."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from gguf_harness.errors import NoData, PromptError
from gguf_harness.measure.texts.comparison import (
    ComparedTexts,
    compare_generations,
    compared_from_json,
    text_metrics_key,
    text_pair,
)
from gguf_harness.measure.texts.tasks import Generation, Generations, TextScore
from gguf_harness.metrics.text import compare_text, compare_texts


def _generation(text: str, prompt: str = "p") -> Generation:
    """Bytes as tokens."""
    tokens = list(text.encode())
    return Generation(list(prompt.encode()), tokens, [-0.5] * len(tokens), text, None, None)


REFERENCE: Generations = {
    "seine": _generation("Paris is the capital of France, and it lies on the Seine."),
    "count": _generation("one two three four five six seven"),
    "empty": _generation(""),
    "signs": _generation("?!"),
    "refused": PromptError("too long"),
    "other template": _generation("text"),
}
CANDIDATE: Generations = {
    "seine": _generation("Paris is a city in France; it lies on the Seine."),
    "count": _generation("one two three four five seven six"),
    "empty": _generation("text"),
    "signs": _generation("?!"),
    "refused": _generation("text"),
    "other template": _generation("text", prompt="q"),
}
SCORES = {
    "seine": TextScore([0.1 * index for index in range(49)], 0.25),
    "count": TextScore([1 / 3] * 33, 1e-17),
    "empty": TextScore([2.0] * 4, 0.5),
    "signs": TextScore([0.25, 0.5], None),
}


def test_numbers_are_those_of_the_metrics_called_directly() -> None:
    compared = compare_generations(REFERENCE, CANDIDATE, SCORES)
    pairs = {}
    for prompt, score in SCORES.items():
        own, other = REFERENCE[prompt], CANDIDATE[prompt]
        assert isinstance(own, Generation)
        assert isinstance(other, Generation)
        pairs[prompt] = text_pair(own, other, score)
    assert set(compared.of_prompts) == set(pairs)
    for prompt in ("seine", "count", "signs"):
        assert compared.of_prompts[prompt] == compare_text(pairs[prompt])
    empty = compared.of_prompts["empty"]
    assert isinstance(empty, NoData)
    assert "nothing to compare with" in empty.message
    assert compared.together == compare_texts(list(pairs.values()))


@pytest.mark.parametrize("prompts", [list(SCORES), ["empty"], []])
def test_the_cache_gives_back_the_same_numbers(prompts: list[str]) -> None:
    reference, candidate = ({prompt: each[prompt] for prompt in prompts} for each in (REFERENCE, CANDIDATE))
    compared = compare_generations(reference, candidate, SCORES)
    again = compared_from_json(json.loads(json.dumps(compared.to_json(), allow_nan=False)))
    assert list(again.of_prompts) == list(compared.of_prompts)
    assert _comparable(again) == _comparable(compared)
    assert isinstance(compared.together, NoData) == (prompts != list(SCORES))


def _comparable(compared: ComparedTexts) -> list[object]:
    """Errors by their words; floats by all of their digits."""
    parts = [compared.together, *compared.of_prompts.values()]
    return [(part.message, part.hint) if isinstance(part, NoData) else repr(part) for part in parts]


def test_a_key_has_the_versions_of_what_scores() -> None:
    libraries = text_metrics_key()["libraries"]
    assert libraries == {name: metadata.version(name) for name in ("numpy", "rapidfuzz", "sacrebleu")}
