"""Passes over the corpus: of a reference, of a candidate against it, of a reference against itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.measure.logprobs import logprob_bytes
from gguf_harness.measure.passes import (
    CorpusText,
    PassRequest,
    check_room,
    has_codes,
    reference_shape,
    run_candidate_pass,
    run_mixture_pass,
    run_reference_pass,
)

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.metrics.windows import WindowLimit
    from gguf_harness.runner.core import Core, LoadedModel
    from gguf_harness.store.arrays import Arrays
    from gguf_harness.store.cache import Entry

__all__ = ["Mixture", "Passes"]

_FLOOR_WINDOWS: Final = 4
"""Windows of the noise floor: a check of llama.cpp and the machine, which shows in any text, and not a measurement."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A model whose files are there only while it is decoded.

    Attributes:
        model: its name, and a hash of what it is made of; its files are not its own.
        worker: name of the worker process that decodes it, the same for many mixtures.
        written: writes the files, and removes them at the end of the block.
    """

    model: LoadedModel
    worker: str
    written: Callable[[], contextlib.AbstractContextManager[Sequence[Path]]]


class Passes:
    """Passes over the corpus, each once per session and from the cache where it can."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def reference(self, model: LoadedModel, corpus: Corpus, *, logprobs: bool) -> Arrays:
        """Nll and top token of every scored token; see `run_reference_pass`.

        Args:
            model: the model to decode.
            corpus: the text.
            logprobs: also keep its distributions, for candidates to be compared with.
        """
        entry = self._reference_entry(model, corpus)
        return self._core.once(
            ("reference", str(entry.folder), str(logprobs)),
            lambda: self._decode_reference(entry, model, corpus, logprobs),
        )

    def _decode_reference(self, entry: Entry, model: LoadedModel, corpus: Corpus, logprobs: bool) -> Arrays:
        def measure() -> Arrays:
            request = self._request(model, corpus, entry)
            if logprobs:
                self._make_room(model, request, entry)
            with self._core.progress.task(f"{model.name} on {corpus.name}", "windows") as show:
                worker = self._core.shared_worker(model.name)
                return worker.call(run_reference_pass, show, request, logprobs, self._core.options.logprobs_limit)

        def usable(arrays: Arrays) -> bool:
            return not logprobs or has_codes(entry.folder, arrays)

        return self._core.stored_arrays(entry, {"model": model.name, "corpus": corpus.name}, measure, usable)

    def candidate(
        self, model: LoadedModel, reference: LoadedModel, corpus: Corpus, limits: tuple[WindowLimit, ...] = ()
    ) -> Arrays:
        """nll, top token and divergence in both directions of every scored token; see `run_candidate_pass`.

        Args:
            model: the model to decode.
            reference: what it is compared with.
            corpus: the text.
            limits: what stops the pass once all of it is decided; none for all windows.
        """
        options = self._core.options
        return self._compare(model, reference, corpus, self._core.settings, options.chunks, "candidate", limits)

    def floor(self, reference: LoadedModel, corpus: Corpus) -> Arrays:
        """The reference against itself with one window a batch and a smaller physical batch: what differs is noise."""
        settings = replace(
            self._core.settings,
            n_batch=min(self._core.settings.n_ctx, self._core.settings.n_batch),
            n_ubatch=max(8, min(self._core.settings.n_ubatch, self._core.settings.n_ctx) // 2),
        )
        chunks = min(_FLOOR_WINDOWS, self._core.options.chunks or _FLOOR_WINDOWS)
        return self._compare(reference, reference, corpus, settings, chunks, "floor")

    def mixture(self, mixture: Mixture, reference: LoadedModel, corpus: Corpus, chunks: int) -> Arrays:
        """A mixture of a candidate and its reference on the first windows of the pass; see `run_candidate_pass`."""
        settings = self._core.settings
        return self._compare(mixture.model, reference, corpus, settings, chunks, "mixture", mixture=mixture)

    def _compare(
        self,
        model: LoadedModel,
        reference: LoadedModel,
        corpus: Corpus,
        settings: SessionSettings,
        chunks: int | None,
        kind: str,
        limits: tuple[WindowLimit, ...] = (),
        mixture: Mixture | None = None,
    ) -> Arrays:
        base = self._reference_entry(reference, corpus)
        key = self._pass_key(model, corpus, settings, chunks) | {"reference": base.digest}
        if limits:
            # In whatever order a file of gates has them.
            key["until_decided"] = sorted((asdict(limit) for limit in limits), key=str)
        entry = self._core.cache.entry(f"passes/{kind}", key)

        def decode(_: Arrays) -> Arrays:
            request = self._request(model, corpus, entry, settings, chunks)
            label = f"noise floor of {model.name}" if kind == "floor" else f"{model.name} on {corpus.name}"
            with self._core.progress.task(label, "windows") as show:
                if mixture is not None:
                    return self._decode_mixture(mixture, request, base, show)
                worker = self._core.shared_worker(model.name)
                return worker.call(run_candidate_pass, show, request, base.folder, base.arrays_file, limits)

        def measure() -> Arrays:
            with entry.lock():
                arrays = self._core.load_arrays(entry)
                if arrays is not None:
                    self._core.hits += 1
                    return arrays
                arrays = self._core.reading(base, lambda: self.reference(reference, corpus, logprobs=True), decode)
                self._core.misses += 1
                if mixture is None:
                    self._core.check_unchanged(model)
                entry.save({"model": model.name, "reference": reference.name, "corpus": corpus.name}, arrays)
                return arrays

        return self._core.once((kind, str(entry.folder)), measure)

    def _decode_mixture(self, mixture: Mixture, request: PassRequest, base: Entry, show: ProgressCallback) -> Arrays:
        worker = self._core.shared_worker(mixture.worker)
        with mixture.written() as files:
            request = replace(request, files=tuple(files))
            return worker.call(run_mixture_pass, show, request, base.folder, base.arrays_file)

    def _reference_entry(self, model: LoadedModel, corpus: Corpus) -> Entry:
        key = self._pass_key(model, corpus, self._core.settings, self._core.options.chunks)
        return self._core.cache.entry("passes/reference", key)

    def _pass_key(
        self, model: LoadedModel, corpus: Corpus, settings: SessionSettings, chunks: int | None
    ) -> dict[str, Any]:
        return {
            "model": model.sha256,
            "corpus": corpus.sha256,
            "chunks": chunks,
            "windows": self._core.options.windows,
            "settings": settings.to_json(),
            "engine": self._core.engine_key,
        }

    def _request(
        self,
        model: LoadedModel,
        corpus: Corpus,
        entry: Entry,
        settings: SessionSettings | None = None,
        chunks: int | None = None,
    ) -> PassRequest:
        return PassRequest(
            model=model.name,
            files=model.files,
            settings=settings or self._core.settings,
            corpus=CorpusText(corpus.name, corpus.text),
            chunks=chunks or self._core.options.chunks,
            folder=entry.folder,
            key=entry.digest,
            order=self._core.options.windows,
        )

    def _make_room(self, model: LoadedModel, request: PassRequest, entry: Entry) -> None:
        """Room for a reference's log-probabilities, or an error before anything is decoded."""
        shape = self._core.shared_worker(model.name).call(reference_shape, None, request)
        check_room(shape, self._core.options.logprobs_limit, "--gguf-logprobs-limit")
        check_room(shape, self._core.options.cache_limit, "--gguf-cache-limit")
        self._core.cache.make_room(logprob_bytes(*shape), entry)
