"""Attention of prompts: what heads do, and how far a candidate's are from the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import OptionError
from gguf_harness.measure.activations import ActivationReader
from gguf_harness.measure.attention import AttentionRequest, KeptPatterns, observe_attention
from gguf_harness.measure.attention_drift import compare_attention

if TYPE_CHECKING:
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.runner.core import Core, LoadedModel
    from gguf_harness.store.arrays import Arrays
    from gguf_harness.store.cache import Entry

__all__ = ["Attentions"]

_KEPT_PROMPTS: Final = 2


class Attentions:
    """Attention of a prompt set, each model's once per session and from the cache where it can."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def observe(self, model: LoadedModel, prompts: PromptSet, corpus: Corpus) -> Arrays:
        """What each head does; see `observe_attention`. The activations stay in the cache, for candidates."""
        entry = self._entry(model, prompts, corpus)

        def measure() -> Arrays:
            with self._core.progress.task(f"attention of {model.name}", "prompts") as show:
                request = self._request(model, prompts, corpus, entry)
                return self._core.shared_worker(model.name).call(observe_attention, show, request)

        def usable(_: Arrays) -> bool:
            return ActivationReader.is_there(entry.folder)

        about = {"model": model.name, "prompts": prompts.name}
        return self._core.once(
            ("attention", str(entry.folder)), lambda: self._core.stored_arrays(entry, about, measure, usable)
        )

    def compare(
        self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet, corpus: Corpus
    ) -> tuple[Arrays, Arrays]:
        """What each head of a candidate does, and how far its attention is from the reference's."""
        base = self._entry(reference, prompts, corpus)
        own = self._entry(model, prompts, corpus, "compared", reference=base.digest)
        drift = self._entry(model, prompts, corpus, "drift", reference=base.digest)

        def decode(arrays: Arrays) -> tuple[Arrays, Arrays]:
            with self._core.progress.task(f"attention of {model.name}", "prompts") as show:
                request = self._request(model, prompts, corpus, own)
                worker = self._core.shared_worker(model.name)
                return worker.call(compare_attention, show, request, base.folder, arrays)

        def measure() -> tuple[Arrays, Arrays]:
            with drift.lock():
                stored = self._core.load_arrays(own), self._core.load_arrays(drift)
                if stored[0] is not None and stored[1] is not None:
                    self._core.hits += 1
                    return stored[0], stored[1]
                found = self._core.reading(base, lambda: self.observe(reference, prompts, corpus), decode)
                self._core.misses += 1
                self._core.check_unchanged(model)
                own.save({"model": model.name, "prompts": prompts.name}, found[0])
                drift.save({"model": model.name, "reference": reference.name, "prompts": prompts.name}, found[1])
                return found

        return self._core.once(("attention drift", str(drift.folder)), measure)

    def _entry(
        self, model: LoadedModel, prompts: PromptSet, corpus: Corpus, name: str = "observed", **more: str
    ) -> Entry:
        key: dict[str, Any] = {
            "model": model.sha256,
            "prompts": prompts.sha256,
            "text": corpus.sha256,
            "settings": self._core.settings.to_json(),
            "engine": self._core.engine_key,
        }
        kept = self._kept(model)
        if (kept.layers, kept.heads) != (None, None):
            key["kept"] = {"layers": kept.layers, "heads": kept.heads}
        return self._core.cache.entry(f"attention/{name}", key | more)

    def _kept(self, model: LoadedModel) -> KeptPatterns:
        """The patterns to show, of layers and heads that the model has."""
        asked = self._core.options.layers, self._core.options.heads
        counts = model.info.n_layer, model.info.n_head
        for what, numbers, count in zip(("layer", "head"), asked, counts, strict=True):
            beyond = [number for number in numbers or () if count is not None and number >= count]
            if beyond:
                raise OptionError(
                    f"--gguf-{what}s names {what} {beyond[0]}, {model.name} has {count} {what}s.",
                    f"They are counted from 0 to {(count or 0) - 1}.",
                )
        return KeptPatterns(_KEPT_PROMPTS, *asked)

    def _request(self, model: LoadedModel, prompts: PromptSet, corpus: Corpus, entry: Entry) -> AttentionRequest:
        return AttentionRequest(
            model=model.name,
            files=model.files,
            architecture=model.info.architecture,
            n_layer=model.info.n_layer or 0,
            settings=self._core.settings,
            prompts=prompts.prompts,
            text=corpus.text,
            folder=entry.folder,
            limit_bytes=self._core.entry_limit,
            kept=self._kept(model),
        )
