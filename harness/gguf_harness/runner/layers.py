"""What happens in the layers of models, on prompts: hidden states, logit lens, patching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_harness.measure import layers, patching
from gguf_harness.measure.states import LayersRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.measure.layers import LayersResult
    from gguf_harness.runner.core import Core, LoadedModel
    from gguf_harness.store.arrays import Arrays
    from gguf_harness.store.cache import Entry

__all__ = ["Layers"]


class Layers:
    """Measurements of layers, each once per session and from the cache where it can."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def alone(self, model: LoadedModel, prompts: PromptSet, *, keep: bool) -> LayersResult:
        """A model by itself; see `measure_layers`.

        Args:
            model: the model.
            prompts: what it reads.
            keep: leave its hidden states in the cache, for candidates to be compared with.
        """
        entry = self._alone_entry(model, prompts)

        def usable(facts: dict[str, Any]) -> bool:
            return not keep or layers.has_states(entry.folder, facts)

        return self._profile(entry, model, prompts, None, keep=keep, usable=usable)

    def compared(self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet) -> LayersResult:
        """A candidate beside its reference, on the reference's tokens; see `measure_layers`."""
        base = self._alone_entry(reference, prompts)
        entry = self._core.cache.entry("layers/compared", self._key(model, prompts, base))
        return self._profile(entry, model, prompts, (reference, base), keep=False, usable=lambda _: True)

    def importance(
        self, model: LoadedModel, reference: LoadedModel | None, prompts: PromptSet, chosen: Sequence[int]
    ) -> Arrays:
        """Loss without each of the layers; see `measure_importance`."""
        base = None if reference is None else self._alone_entry(reference, prompts)
        key = self._key(model, prompts, base) | {"layers": list(chosen)}
        entry = self._core.cache.entry("layers/importance", key)

        def skip(_: object) -> Arrays:
            request = self._request(model, prompts, entry)
            with self._core.progress.task(f"layers of {model.name}, skipped", "layers") as show:
                worker = self._core.shared_worker(model.name)
                return worker.call(
                    patching.measure_importance, show, request, None if base is None else base.folder, chosen
                )

        def measure() -> Arrays:
            if reference is None or base is None:
                return skip(None)
            return self._core.reading(base, lambda: self.alone(reference, prompts, keep=True), skip)

        return self._arrays(entry, measure)

    def interchange(
        self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet, chosen: Sequence[int]
    ) -> Arrays:
        """KL with the reference's stream put in after each of the layers; see `measure_interchange`."""
        base = self._alone_entry(reference, prompts)
        key = self._key(model, prompts, base) | {"layers": list(chosen)}
        entry = self._core.cache.entry("layers/interchange", key)

        def exchange(_: object) -> Arrays:
            request = self._request(model, prompts, entry)
            with self._core.progress.task(f"layers of {model.name}, exchanged", "layers") as show:
                worker = self._core.shared_worker(model.name)
                return worker.call(patching.measure_interchange, show, request, base.folder, chosen)

        def measure() -> Arrays:
            # Whether both fit together is found out there.
            self.compared(model, reference, prompts)
            return self._core.reading(base, lambda: self.alone(reference, prompts, keep=True), exchange)

        return self._arrays(entry, measure)

    def _profile(
        self,
        entry: Entry,
        model: LoadedModel,
        prompts: PromptSet,
        against: tuple[LoadedModel, Entry] | None,
        *,
        keep: bool,
        usable: Callable[[dict[str, Any]], bool],
    ) -> LayersResult:
        def decode(_: object) -> LayersResult:
            request = self._request(model, prompts, entry)
            with self._core.progress.task(f"layers of {model.name}", "contexts") as show:
                worker = self._core.shared_worker(model.name)
                return worker.call(
                    layers.measure_layers, show, request, None if against is None else against[1].folder, keep
                )

        def measure() -> LayersResult:
            with entry.lock():
                arrays, facts = self._core.load_arrays(entry), entry.load_meta()
                if arrays is not None and facts is not None and usable(facts):
                    self._core.hits += 1
                    result = layers.LayersResult(arrays, facts)
                else:
                    if against is None:
                        result = decode(None)
                    else:
                        reference, base = against
                        result = self._core.reading(base, lambda: self.alone(reference, prompts, keep=True), decode)
                    self._core.misses += 1
                    self._core.check_unchanged(model)
                    entry.save(result.facts, result.arrays)
                if keep:
                    self._core.cache.keep(entry)
                return result

        return self._core.once(("layers", str(entry.folder), str(keep)), measure)

    def _arrays(self, entry: Entry, measure: Callable[[], Arrays]) -> Arrays:
        return self._core.once(("layers", str(entry.folder)), lambda: self._core.stored_arrays(entry, {}, measure))

    def _alone_entry(self, model: LoadedModel, prompts: PromptSet) -> Entry:
        return self._core.cache.entry("layers/alone", self._key(model, prompts, None))

    def _key(self, model: LoadedModel, prompts: PromptSet, base: Entry | None) -> dict[str, Any]:
        return {
            "model": model.sha256,
            "prompts": prompts.sha256,
            "settings": self._core.settings.to_json(),
            "engine": self._core.engine_key,
            "reference": None if base is None else base.digest,
        }

    def _request(self, model: LoadedModel, prompts: PromptSet, entry: Entry) -> LayersRequest:
        return LayersRequest(
            model=model.name,
            files=model.files,
            settings=self._core.settings,
            prompts=prompts.prompts,
            folder=entry.folder / layers.STATES_FOLDER,
            limit_bytes=self._core.entry_limit,
        )
