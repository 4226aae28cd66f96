"""What heads do, by changing them: importance, interchange with the reference, removal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.measure import ablation
from gguf_harness.measure.passes import CorpusText
from gguf_harness.measure.patched import read_layout
from gguf_harness.metrics.importance import Head, main_effects, window_rises

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker import ProgressCallback, Worker
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.runner.core import Core, LoadedModel
    from gguf_harness.store.arrays import Arrays
    from gguf_harness.store.cache import Entry

__all__ = ["WINDOW", "Ablation"]

WINDOW: Final = 96
"""Tokens of a window: 40 heads of the model tiny, four windows, zero and mean are 31 000 tokens."""

_SEQUENCES: Final = 4
"""Of a batch of one context: one alone takes 6 % more processor time, and more than four take no less."""

_MOST_LOGITS: Final = 1 << 28
"""Bytes of logits in flight, of all contexts together."""

_MOST_SEQUENCES: Final = 64
"""Of a batch: llama.cpp has room for 256."""

_TRIES: Final = 4
_MOST_RISE: Final = 1.0
"""Of the greedy removal: heads measured again at each step, and the rise of the loss in nats at which it ends."""


class Ablation:
    """Heads changed and their effects, each once per session and from the cache where it can."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def all_heads(self, model: LoadedModel) -> list[Head]:
        """(layer, head) of every head of a model."""
        return self._core.once(("heads", model.name, model.sha256), lambda: read_layout(model.files[0]).all)

    def heads(self, model: LoadedModel, corpus: Corpus) -> list[Head]:
        """The heads that are ablated one by one: all, or where there are too many those that the screen puts first."""
        found, limit = self.all_heads(model), self._core.options.head_limit
        if limit is None or len(found) <= limit:
            return found
        screen = self.screen(model, corpus)
        effects = [e.value for e in main_effects("head_importance_screen", screen["subsets"] != 0, screen["rises"])]
        best = sorted(zip(effects, found, strict=True), reverse=True)[:limit]
        return sorted(head for _, head in best)

    def screen(self, model: LoadedModel, corpus: Corpus) -> Arrays:
        """Random subsets of heads ablated together; see `run_head_screen`."""

        def measure(show: ProgressCallback) -> Arrays:
            return self._worker(model).call(ablation.run_head_screen, show, self._request(model, corpus))

        return self._arrays(self._entry("screen", model, corpus), f"screen of heads of {model.name}", measure)

    def sweep(self, model: LoadedModel, corpus: Corpus, heads: list[Head]) -> Arrays:
        """Each head ablated alone; see `run_head_sweep`."""

        def measure(show: ProgressCallback) -> Arrays:
            return self._worker(model).call(ablation.run_head_sweep, show, self._request(model, corpus), heads)

        entry = self._entry("sweep", model, corpus, heads=heads)
        return self._arrays(entry, f"ablating heads of {model.name}", measure)

    def interchange(self, model: LoadedModel, reference: LoadedModel, corpus: Corpus, heads: list[Head]) -> Arrays:
        """The reference's heads in a candidate; see `run_head_interchange`."""
        theirs = self._entry("values", reference, corpus)

        def keep(show: ProgressCallback) -> Arrays:
            return self._worker(reference).call(ablation.run_head_values, show, self._request(reference, corpus))

        def values() -> Arrays:
            arrays = self._arrays(theirs, f"heads of {reference.name}", keep)
            self._core.cache.keep(theirs)
            return arrays

        def measure(show: ProgressCallback) -> Arrays:
            request = self._request(model, corpus)

            def exchange(_: Arrays) -> Arrays:
                worker = self._worker(model)
                return worker.call(ablation.run_head_interchange, show, request, theirs.arrays_file, heads)

            return self._core.reading(theirs, values, exchange)

        entry = self._entry("interchange", model, corpus, heads=heads, reference=theirs.digest)

        def both() -> Arrays:
            # The reference's values are large, and only needed where there is something to measure.
            if self._core.load_arrays(entry) is None:
                values()
            return self._arrays(entry, f"interchanging heads of {model.name}", measure)

        return self._core.once(("interchange", str(entry.folder)), both)

    def removal(self, model: LoadedModel, corpus: Corpus, heads: list[Head]) -> Arrays:
        """Heads removed greedily; see `run_head_removal`."""

        def measure(show: ProgressCallback) -> Arrays:
            sweep = self.sweep(model, corpus, heads)
            rises = window_rises(sweep["nll_zero"], sweep["nll"]).mean(axis=1)
            costs = {head: float(rise) for head, rise in zip(heads, rises, strict=True)}
            request = self._request(model, corpus)
            return self._worker(model).call(ablation.run_head_removal, show, request, costs, _TRIES, _MOST_RISE)

        sweep = self._entry("sweep", model, corpus, heads=heads).digest
        entry = self._entry("removal", model, corpus, heads=heads, sweep=sweep, tries=_TRIES, most_rise=_MOST_RISE)
        return self._arrays(entry, f"removing heads of {model.name}", measure)

    def path(self, model: LoadedModel, corpus: Corpus, path: list[Head]) -> Arrays:
        """Heads removed in another model's order; see `run_head_path`."""

        def measure(show: ProgressCallback) -> Arrays:
            return self._worker(model).call(ablation.run_head_path, show, self._request(model, corpus), path)

        return self._arrays(self._entry("path", model, corpus, path=path), f"removing heads of {model.name}", measure)

    def _worker(self, model: LoadedModel) -> Worker:
        return self._core.shared_worker(model.name)

    def _arrays(self, entry: Entry, label: str, measure: Callable[[ProgressCallback], Arrays]) -> Arrays:
        def shown() -> Arrays:
            with self._core.progress.task(label, "sequences") as show:
                return measure(show)

        return self._core.once(
            ("heads", str(entry.folder)), lambda: self._core.stored_arrays(entry, {"what": label}, shown)
        )

    def _entry(self, name: str, model: LoadedModel, corpus: Corpus, **more: Any) -> Entry:
        key = {
            "model": model.sha256,
            "corpus": corpus.sha256,
            "windows": self._core.options.head_windows,
            "settings": self._settings(model).to_json(),
            "engine": self._core.engine_key,
        }
        return self._core.cache.entry(f"heads/{name}", key | more)

    def _request(self, model: LoadedModel, corpus: Corpus) -> ablation.HeadRequest:
        text = CorpusText(corpus.name, corpus.text)
        return ablation.HeadRequest(
            model.name, model.files, self._settings(model), text, self._core.options.head_windows
        )

    def _settings(self, model: LoadedModel) -> SessionSettings:
        """Short windows, and batches that are decoded at once: rows of z are told apart by where they stand."""
        given = self._core.settings
        n_ctx = min(WINDOW, given.n_ctx)
        room = max(1, _MOST_LOGITS // (4 * n_ctx * (model.info.n_vocab or 1)))
        per_lane = min(_SEQUENCES, max(1, room // given.threads), max(1, _MOST_SEQUENCES // given.threads))
        n_batch = n_ctx * min(per_lane * given.threads, room, _MOST_SEQUENCES)
        return replace(given, n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_batch)
