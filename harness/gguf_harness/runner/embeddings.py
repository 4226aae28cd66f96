"""Embeddings: of a model, and of a candidate beside its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gguf_harness.measure.embeddings import (
    AlignRequest,
    ContextRequest,
    EmbeddingRequest,
    align_embeddings,
    measure_contexts,
    measure_embeddings,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.words import WordList
    from gguf_harness.runner.core import Core, LoadedModel
    from gguf_harness.store.cache import Entry

    Arrays = dict[str, NDArray[Any]]

__all__ = ["Embeddings"]


class Embeddings:
    """Embedding spaces, each once per session and from the cache where it can."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def space(self, model: LoadedModel, words: WordList) -> Arrays:
        """A model's token embeddings and words; see `measure_embeddings`."""
        settings = self._core.settings
        entry = self._space_entry(model, words)

        def measure() -> Arrays:
            request = EmbeddingRequest(model.files, settings, words.words)
            with self._core.progress.task(f"embeddings of {model.name}", "tokens") as show:
                return self._core.shared_worker(model.name).call(measure_embeddings, show, request)

        return self._cached(entry, model, measure)

    def contexts(self, model: LoadedModel, prompts: PromptSet) -> Arrays:
        """A vector for each prompt; see `measure_contexts`."""
        settings = self._core.settings
        key = self._key(model) | {"prompts": prompts.sha256, "settings": settings.to_json()}

        def measure() -> Arrays:
            info = model.info
            request = ContextRequest(model.files, info.architecture, info.n_layer or 0, settings, prompts.prompts)
            with self._core.progress.task(f"prompts in {model.name}", "prompts") as show:
                return self._core.shared_worker(model.name).call(measure_contexts, show, request)

        return self._cached(self._core.cache.entry("embeddings/contexts", key), model, measure)

    def aligned(self, model: LoadedModel, reference: LoadedModel, words: WordList) -> Arrays:
        """A candidate's space laid over its reference's; see `align_embeddings`."""
        of, over = (self._space_entry(each, words).digest for each in (model, reference))
        entry = self._core.cache.entry("embeddings/aligned", {"of": of, "over": over})

        def measure() -> Arrays:
            import numpy as np

            own = self.space(model, words)
            vectors = np.concatenate([own["word_vectors"], own["map_vectors"]])
            request = AlignRequest(model.files, reference.files, vectors, self._core.settings.threads)
            with self._core.progress.task(f"{model.name} over {reference.name}", "steps") as show:
                arrays = self._core.shared_worker(model.name).call(align_embeddings, show, request)
            self._core.check_unchanged(model, reference)
            return arrays

        return self._cached(entry, model, measure)

    def _space_entry(self, model: LoadedModel, words: WordList) -> Entry:
        return self._core.cache.entry("embeddings/space", self._key(model) | {"words": words.sha256})

    def _key(self, model: LoadedModel) -> dict[str, Any]:
        return {"model": model.sha256, "engine": self._core.engine_key}

    def _cached(self, entry: Entry, model: LoadedModel, measure: Callable[[], Arrays]) -> Arrays:
        about = {"model": model.name}
        return self._core.once(
            ("embeddings", str(entry.folder)), lambda: self._core.stored_arrays(entry, about, measure)
        )
