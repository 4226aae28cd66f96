"""Texts that models write, and what the reference says of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gguf_harness.measure import compared_texts, generate

if TYPE_CHECKING:
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.measure.compared_texts import ComparedTexts
    from gguf_harness.measure.generate import Generations, TextScore
    from gguf_harness.runner.core import Core, LoadedModel
    from gguf_harness.store.cache import Entry

__all__ = ["Texts"]


class Texts:
    """Generated texts, each model's once per session and from the cache where it can."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._entries: dict[tuple[str, str], Entry] = {}

    def generations(self, model: LoadedModel, prompts: PromptSet) -> Generations:
        """How a model continues each prompt, or why it cannot; see `generate_texts`."""
        entry = self._entry(model, prompts)

        def measure() -> dict[str, Any]:
            given, limit = prompts.prompts, self._core.options.gen_tokens
            request = generate.GenerateRequest(model.name, model.files, self._core.settings, given, limit)
            with self._core.progress.task(f"texts of {model.name}", "prompts") as show:
                found = self._core.shared_worker(model.name).call(generate.generate_texts, show, request)
            return generate.generations_to_json(found)

        key = ("generations", str(entry.folder))
        return self._core.once(key, lambda: self._core.stored(entry, measure, generate.generations_from_json))

    def scores(self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet) -> dict[str, TextScore]:
        """What the reference says of a candidate's texts, for all prompts that both were given alike."""
        entry = self._scores_entry(model, reference, prompts)

        def measure() -> dict[str, Any]:
            texts = generate.continuations(self.generations(reference, prompts), self.generations(model, prompts))
            request = generate.ScoreRequest(reference.files, self._core.settings, texts)
            with self._core.progress.task(f"texts of {model.name} under {reference.name}", "prompts") as show:
                scores = self._core.shared_worker(reference.name).call(generate.score_texts, show, request)
            return {prompt: asdict(score) for prompt, score in scores.items()}

        def read(stored: dict[str, Any]) -> dict[str, TextScore]:
            return {prompt: generate.TextScore(**score) for prompt, score in stored.items()}

        return self._core.once(("text_scores", str(entry.folder)), lambda: self._core.stored(entry, measure, read))

    def compared(self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet) -> ComparedTexts:
        """A candidate's texts beside the reference's by every metric of texts, prompt by prompt and together."""
        # Its digest stands for both models' texts as well.
        scores = self._scores_entry(model, reference, prompts).digest
        key = {"scores": scores, "metrics": compared_texts.text_metrics_key()}
        entry = self._core.cache.entry("texts/compared", key)

        def measure() -> dict[str, Any]:
            own, other = (self.generations(each, prompts) for each in (reference, model))
            scores = self.scores(model, reference, prompts)
            return compared_texts.compare_generations(own, other, scores).to_json()

        read = compared_texts.compared_from_json
        return self._core.once(("compared_texts", str(entry.folder)), lambda: self._core.stored(entry, measure, read))

    def _scores_entry(self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet) -> Entry:
        of, under = (self._entry(each, prompts).digest for each in (model, reference))
        return self._core.cache.entry("texts/scores", {"of": of, "under": under})

    def _entry(self, model: LoadedModel, prompts: PromptSet) -> Entry:
        # Every test of a prompt asks for that of all prompts.
        known = model.sha256, prompts.sha256
        if known not in self._entries:
            self._entries[known] = self._new_entry(model, prompts)
        return self._entries[known]

    def _new_entry(self, model: LoadedModel, prompts: PromptSet) -> Entry:
        key = {
            "model": model.sha256,
            "prompts": prompts.sha256,
            "tokens": self._core.options.gen_tokens,
            "settings": self._core.settings.to_json(),
            "engine": self._core.engine_key,
        }
        return self._core.cache.entry("texts/generations", key)
