"""What happens in the layers of models, on prompts: hidden states, logit lens, patching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.measure import layers, patching
from harness.measure.states import LayersRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.measure.layers import LayersResult
    from harness.measure.observers import Arrays
    from harness.prompts import PromptSet
    from harness.runner.core import Core, LoadedModel
    from harness.store import Entry

__all__ = ["Layers"]

_FOLDER: Final = "layers"


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

        def usable() -> bool:
            return not keep or (entry.folder / layers.STATES_FOLDER / "logits.npy").is_file()

        return self._profile(entry, model, prompts, None, keep=keep, usable=usable)

    def compared(self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet) -> LayersResult:
        """A candidate beside its reference, on the reference's tokens; see `measure_layers`."""
        base = self._alone_entry(reference, prompts)
        entry = self._core.cache.entry(_FOLDER, self._key("layers", model, prompts, base))
        return self._profile(entry, model, prompts, (reference, base), keep=False, usable=lambda: True)

    def importance(
        self, model: LoadedModel, reference: LoadedModel | None, prompts: PromptSet, chosen: Sequence[int]
    ) -> Arrays:
        """Loss without each of the layers; see `measure_importance`."""
        base = None if reference is None else self._alone_entry(reference, prompts)
        key = self._key("importance", model, prompts, base) | {"layers": list(chosen)}
        entry = self._core.cache.entry(_FOLDER, key)

        def measure() -> Arrays:
            if reference is not None:
                self.alone(reference, prompts, keep=True)
            request = self._request(model, prompts, entry)
            with self._core.progress.task(f"layers of {model.name}, skipped", "layers") as show:
                worker = self._core.shared_worker(model.name)
                return worker.call(
                    patching.measure_importance, show, request, None if base is None else base.folder, chosen
                )

        return self._arrays(entry, measure)

    def interchange(
        self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet, chosen: Sequence[int]
    ) -> Arrays:
        """KL with the reference's stream put in after each of the layers; see `measure_interchange`."""
        base = self._alone_entry(reference, prompts)
        key = self._key("interchange", model, prompts, base) | {"layers": list(chosen)}
        entry = self._core.cache.entry(_FOLDER, key)

        def measure() -> Arrays:
            # Whether both fit together is found out there.
            self.compared(model, reference, prompts)
            self.alone(reference, prompts, keep=True)
            request = self._request(model, prompts, entry)
            with self._core.progress.task(f"layers of {model.name}, exchanged", "layers") as show:
                worker = self._core.shared_worker(model.name)
                return worker.call(patching.measure_interchange, show, request, base.folder, chosen)

        return self._arrays(entry, measure)

    def _profile(
        self,
        entry: Entry,
        model: LoadedModel,
        prompts: PromptSet,
        against: tuple[LoadedModel, Entry] | None,
        *,
        keep: bool,
        usable: Callable[[], bool],
    ) -> LayersResult:
        def measure() -> LayersResult:
            with entry.lock():
                arrays, facts = self._core.load_arrays(entry), entry.load_meta()
                if arrays is not None and facts is not None and usable():
                    self._core.hits += 1
                    return layers.LayersResult(arrays, facts)
                if against is not None:
                    self.alone(against[0], prompts, keep=True)
                self._core.misses += 1
                request = self._request(model, prompts, entry)
                with self._core.progress.task(f"layers of {model.name}", "contexts") as show:
                    worker = self._core.shared_worker(model.name)
                    found = worker.call(
                        layers.measure_layers, show, request, None if against is None else against[1].folder, keep
                    )
                self._core.check_unchanged(model)
                entry.save(found.facts, found.arrays)
                return found

        return self._core.once(("layers", str(entry.folder), str(keep)), measure)

    def _arrays(self, entry: Entry, measure: Callable[[], Arrays]) -> Arrays:
        return self._core.once(("layers", str(entry.folder)), lambda: self._core.stored_arrays(entry, {}, measure))

    def _alone_entry(self, model: LoadedModel, prompts: PromptSet) -> Entry:
        return self._core.cache.entry(_FOLDER, self._key("layers", model, prompts, None))

    def _key(self, kind: str, model: LoadedModel, prompts: PromptSet, base: Entry | None) -> dict[str, Any]:
        return {
            "kind": kind,
            "model": model.sha256,
            "prompts": prompts.sha256,
            "settings": self._core.settings.to_json(),
            "engine": self._core.engine,
            "reference": None if base is None else base.folder.name,
        }

    def _request(self, model: LoadedModel, prompts: PromptSet, entry: Entry) -> LayersRequest:
        return LayersRequest(
            model=model.name,
            files=model.files,
            settings=self._core.settings,
            prompts=prompts.prompts,
            folder=entry.folder / layers.STATES_FOLDER,
            limit_bytes=self._core.options.logprobs_limit,
        )
