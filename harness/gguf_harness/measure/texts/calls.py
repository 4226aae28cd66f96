"""Texts that models write, once per subject, and their scores under the reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import HarnessError, ModelError, NoPrompt, PromptError
from gguf_harness.measure.measurement import Format, Job, Measurement, as_json
from gguf_harness.measure.texts import comparison, tasks
from gguf_harness.measure.texts.comparison import ComparedTexts, text_pair
from gguf_harness.measure.texts.next_tokens import beside_reference
from gguf_harness.measure.texts.tasks import Generation, Generations, TextScore, Written
from gguf_harness.metrics.survival import part_time
from gguf_harness.metrics.text import TextPair

if TYPE_CHECKING:
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.inputs.prompts import Prompt, PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.store.arrays import Arrays

__all__ = ["Texts"]

_SHOWN_CHARACTERS: Final = 2000
_SHOWN_PROMPTS: Final = 4
"""Prompts whose next tokens are shown."""


def _scores_to_json(scores: dict[str, TextScore]) -> dict[str, Any]:
    return {prompt: asdict(score) for prompt, score in scores.items()}


def _scores_from_json(stored: dict[str, Any]) -> dict[str, TextScore]:
    return {prompt: TextScore(**score) for prompt, score in stored.items()}


def _pack(written: Written) -> tuple[dict[str, Any], Arrays | None]:
    return tasks.generations_to_json(written.generations), written.next_tokens or None


def _unpack(stored: dict[str, Any], arrays: Arrays) -> Written:
    return Written(tasks.generations_from_json(stored), arrays)


_GENERATIONS: Final = Measurement("texts/generations", 3, tasks.generate_texts, "prompts", Format(_pack, _unpack))
_SCORES: Final = Measurement(
    "texts/scores", 2, tasks.score_texts, "prompts", as_json(_scores_to_json, _scores_from_json)
)


def _compare(show: ProgressCallback, of: Generations, to: Generations, scores: dict[str, TextScore]) -> ComparedTexts:
    compared = comparison.compare_generations(of, to, scores)
    show(1, 1)
    return compared


_COMPARED: Final = Measurement(
    "texts/compared", 2, _compare, "steps", as_json(ComparedTexts.to_json, comparison.compared_from_json),
    runs="in the session",
)  # fmt: skip


class Texts:
    """Continuations of a set of prompts, greedy.

    Args:
        core: runs measurements.
        prompts: prompts to continue.
    """

    def __init__(self, core: Core, prompts: PromptSet) -> None:
        self._core = core
        self._prompts = prompts
        self._told: set[str] = set()

    def __call__(self, model: Subject, prompt: Prompt) -> Generation:
        """How a subject continues a prompt.

        Raises:
            PromptError: the model cannot take this prompt.
        """
        continued = self._all(model)[prompt.id]
        if isinstance(continued, PromptError):
            raise continued.with_traceback(None)
        return continued

    def compare(self, candidate: Subject, reference: Subject, prompt: Prompt) -> TextPair:
        """A candidate's continuation of a prompt and the reference's.

        Raises:
            PromptError: one of them cannot take this prompt.
            ModelError: their chat templates give different prompts.
            NoPrompt: none of the prompts can be compared.
        """
        problems = self._problems(candidate, reference)
        if prompt.id in problems:
            raise problems[prompt.id].with_traceback(None)
        own, other = self(reference, prompt), self(candidate, prompt)
        score = self.scores(candidate, reference)[prompt.id]
        return text_pair(own, other, score)

    def compare_all(
        self, candidate: Subject, reference: Subject
    ) -> tuple[dict[str, TextPair], dict[str, HarnessError]]:
        """All prompts by id: (those that can be compared, reasons for those that cannot)."""
        problems = self._problems(candidate, reference)
        left = [prompt for prompt in self._prompts.prompts if prompt.id not in problems]
        return {prompt.id: self.compare(candidate, reference, prompt) for prompt in left}, dict(problems)

    def compared(self, candidate: Subject, reference: Subject) -> ComparedTexts:
        """All text metrics, by prompt and over all prompts.

        Raises:
            NoPrompt: none of the prompts can be compared.
        """
        self._problems(candidate, reference)
        # The digest of the scores also covers the texts of both models.
        scores = self._core.entry(self._scores(candidate, reference)).digest
        key = {"scores": scores, "metrics": comparison.text_metrics_key()}

        def arguments(_: object) -> tuple[Generations, Generations, dict[str, TextScore]]:
            return self.generations(reference), self.generations(candidate), self.scores(candidate, reference)

        label = f"scores of texts of {candidate.name}"
        return self._core.measure(Job(_COMPARED, label, key, arguments, about=candidate))

    def part_times(self, candidate: Subject, reference: Subject) -> dict[str, tuple[int, bool]]:
        """Tokens up to and with the first that differs, by prompt, and whether one does; see `part_time`.

        Of prompts that both continued. Nothing is scored.
        """
        own, other = self.generations(reference), self.generations(candidate)
        texts = tasks.continuations(own, other)
        return {prompt: part_time(text.reference, text.candidate) for prompt, text in texts.items() if text.reference}

    def generations(self, model: Subject) -> Generations:
        """How a subject continues each prompt, or why it cannot; see `generate_texts`."""
        return self._written(model).generations

    def _written(self, model: Subject) -> Written:
        return self._core.measure(self._generations(model))

    def scores(self, candidate: Subject, reference: Subject) -> dict[str, TextScore]:
        """Scores of a candidate's texts under the reference, for all prompts with the same tokens for both."""
        return self._core.measure(self._scores(candidate, reference))

    def _scores(self, candidate: Subject, reference: Subject) -> Job[dict[str, TextScore]]:
        of, under = (self._core.entry(self._generations(each)).digest for each in (candidate, reference))

        def arguments(_: object) -> tuple[tasks.ScoreRequest]:
            texts = tasks.continuations(self.generations(reference), self.generations(candidate))
            return (tasks.ScoreRequest(reference.files, reference.settings, texts),)

        label = f"texts of {candidate.name} under {reference.name}"
        return Job(_SCORES, label, {"of": of, "under": under}, arguments, subjects=(reference,), about=candidate)

    def _generations(self, model: Subject) -> Job[Written]:
        limit = self._core.options.gen_tokens
        request = tasks.GenerateRequest(
            model.name, model.files, model.settings, self._prompts.prompts, limit, _SHOWN_PROMPTS
        )
        key = self._core.key(model) | {"prompts": self._prompts.sha256, "tokens": limit}
        return Job(_GENERATIONS, f"texts of {model.name}", key, lambda _: (request,), subjects=(model,))

    def _problems(self, candidate: Subject, reference: Subject) -> dict[str, HarnessError]:
        """Why prompts cannot be compared; if none can, that is an error of the pair."""
        key = ("text problems", candidate.name, reference.name, self._prompts.sha256)
        return self._core.once(key, lambda: self._find_problems(candidate, reference))

    def _find_problems(self, candidate: Subject, reference: Subject) -> dict[str, HarnessError]:
        problems: dict[str, HarnessError] = {}
        own, other = self._all(reference), self._all(candidate)
        for prompt in self._prompts.prompts:
            ours, theirs = own[prompt.id], other[prompt.id]
            if isinstance(ours, PromptError):
                problems[prompt.id] = ours
            elif isinstance(theirs, PromptError):
                problems[prompt.id] = theirs
            elif ours.prompt_tokens != theirs.prompt_tokens:
                # Not a problem of this prompt: the files differ in more than their weights.
                problems[prompt.id] = ModelError(
                    f"Prompt {prompt.id!r}: the chat templates of {candidate.name} and {reference.name} make different"
                    " prompts of it.",
                    "Give both files the same template: texts are only compared if just the weights differ.",
                )
        if len(problems) == len(self._prompts.prompts):
            first = problems[self._prompts.prompts[0].id]
            raise NoPrompt(
                f"None of the {len(problems)} prompts can be compared between {candidate.name} and {reference.name}."
                f" {first.message}",
                first.hint,
            )
        self._keep_next_tokens(candidate, reference, set(own) - set(problems))
        return problems

    def _keep_next_tokens(self, candidate: Subject, reference: Subject, prompts: set[str]) -> None:
        of, to = (self._written(each).next_tokens for each in (candidate, reference))
        kept = beside_reference(of, to, prompts)
        if kept:
            told = "likeliest tokens after some prompts, in reference and candidate"
            self._core.notes.add_arrays(candidate.name, "next_tokens", told, kept)

    def _all(self, model: Subject) -> Generations:
        generations, notes = self.generations(model), self._core.notes
        if model.name in self._told:
            return generations
        refused = [each for each in generations.values() if isinstance(each, PromptError)]
        if len(refused) == len(generations):
            message = f"None of the {len(generations)} prompts can be given to {model.name}. {refused[0].message}"
            raise NoPrompt(message, refused[0].hint)
        notes.warn_of_prompts(model.name, [each.message for each in refused], len(generations))
        self._core.note_prompts(self._prompts)
        notes.add_texts(model.name, [_row(prompt, generations[prompt.id]) for prompt in self._prompts.prompts])
        self._told.add(model.name)
        return generations


def _row(prompt: Prompt, generation: Generation | PromptError) -> dict[str, object]:
    """The row of run.json for a continuation."""
    given = prompt.plain()
    if len(given) > _SHOWN_CHARACTERS:
        given = f"{given[:_SHOWN_CHARACTERS]}… ({len(given)} characters)"
    row: dict[str, object] = {"prompt": prompt.id, "given": given, "text": None, "tokens": None, "templated": None}
    if isinstance(generation, PromptError):
        return row | {"problem": generation.message}
    return row | {
        "text": generation.text, "tokens": len(generation.tokens), "templated": generation.templated, "problem": None
    }  # fmt: skip
