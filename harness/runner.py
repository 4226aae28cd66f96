"""Runs measurements for one session: each once, from the cache where it can, in worker processes otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from harness.engine.server import Server, ServerPool
from harness.engine.tasks import describe_engine, engine_version, identify_build, quantize_task
from harness.engine.worker import ProgressCallback, Worker
from harness.errors import HarnessError
from harness.gates import early_limits, load_gates
from harness.measure import generate
from harness.measure.passes import CorpusText, PassRequest, has_codes, run_candidate_pass, run_reference_pass
from harness.measure.served import ServedResult, measure_served
from harness.measure.speed import SpeedRequest, SpeedResult, measure_speed
from harness.models import ModelInfo, hash_files, load_info, twins
from harness.sources import ModelSource
from harness.store import Cache, Entry

if TYPE_CHECKING:
    from harness.corpora import Corpus
    from harness.engine.settings import SessionSettings
    from harness.ladder import PlannedModel
    from harness.measure.generate import Generations, TextScore
    from harness.measure.observers import Arrays
    from harness.metrics.windows import WindowLimit
    from harness.options import Options
    from harness.prompts import PromptSet

__all__ = ["LoadedModel", "Progress", "Runner"]

T = TypeVar("T")

_FLOOR_WINDOWS: Final = 4


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is on disk and valid."""

    name: str
    info: ModelInfo
    sha256: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The GGUF file, or its splits."""
        return self.info.files


class Progress(Protocol):
    """Shows how far a piece of work is."""

    def task(self, label: str, unit: str) -> contextlib.AbstractContextManager[ProgressCallback]:
        """Show one piece of work while the block runs."""


class Runner:
    """Everything that a session measures.

    A failure is remembered as well: a model that makes llama.cpp abort is tried once, and every test that needs it
    fails with the same message.

    Args:
        options: what was asked for.
        progress: where progress is shown.
    """

    def __init__(self, options: Options, progress: Progress) -> None:
        self.options = options
        self.cache = Cache(options.cache)
        self.hits = 0
        self.misses = 0
        self._progress = progress
        self._done: dict[tuple[str, ...], object | HarnessError] = {}
        self._worker: Worker | None = None
        self._servers = ServerPool()
        self._started = time.time()

    # -- models -----------------------------------------------------------------------------------------------------

    def model(self, planned: PlannedModel) -> LoadedModel:
        """Make sure that a model is on disk: validate it, or quantize it first."""
        return self._once(("model", planned.name), lambda: self._load(planned))

    def _load(self, planned: PlannedModel) -> LoadedModel:
        if planned.source is not None:
            info = load_info(planned.source)
            sha256 = self._hash(planned.name, planned.source.files)
        if planned.base is not None:
            base = self.model(planned.base)
            info, sha256 = base.info, base.sha256
        if planned.quant is not None:
            info = self._quantize(planned.name, info, sha256, planned.quant, with_imatrix=planned.base is not None)
            sha256 = self._hash(planned.name, info.files)
        return LoadedModel(planned.name, replace(info, name=planned.name), sha256)

    def _hash(self, name: str, files: Sequence[Path]) -> str:
        with self._progress.task(f"hashing {name}", "MB") as show:
            return hash_files(files, self.options.cache, show)

    def _quantize(self, name: str, source: ModelInfo, sha256: str, quant: str, *, with_imatrix: bool) -> ModelInfo:
        imatrix = self.options.imatrix if with_imatrix else None
        key = {
            "source": sha256,
            "quant": quant,
            "imatrix": hash_files([imatrix], self.options.cache) if imatrix else None,
            "engine": engine_version(),
        }
        entry = self.cache.entry("models", key)
        destination = entry.folder / f"{name.replace('/', '_')}.gguf"
        with entry.lock():
            existing = next(entry.folder.glob("[!.]*.gguf"), None)
            if existing is None:
                with self._progress.task(f"quantizing {name}", "tensors") as show, self._new_worker(name) as worker:
                    worker.call(quantize_task, show, source.files, destination, quant, self.options.threads, imatrix)
        return load_info(ModelSource(name, (existing or destination,), quant))

    def twin_warnings(self) -> list[str]:
        """Candidates, of those on disk so far, that came out the same."""
        loaded = [outcome for outcome in self._done.values() if isinstance(outcome, LoadedModel)]
        return twins([(model.info, model.sha256) for model in loaded])

    # -- passes -----------------------------------------------------------------------------------------------------

    def reference_pass(self, model: LoadedModel, corpus: Corpus, *, logprobs: bool) -> Arrays:
        """Nll and top token of every scored token; see `run_reference_pass`.

        Args:
            model: the model to decode.
            corpus: the text.
            logprobs: also keep its distributions, for candidates to be compared with.
        """
        entry = self._reference_entry(model, corpus)
        return self._once(
            ("reference", str(entry.folder), str(logprobs)), lambda: self._reference(entry, model, corpus, logprobs)
        )

    def _reference(self, entry: Entry, model: LoadedModel, corpus: Corpus, logprobs: bool) -> Arrays:
        with entry.lock():
            arrays = self._load_arrays(entry)
            if arrays is not None and (not logprobs or has_codes(entry.folder, arrays)):
                self.hits += 1
                return arrays
            self.misses += 1
            if logprobs:
                self._make_room(model, entry)
            request = self._request(model, corpus, entry.folder)
            with self._progress.task(f"{model.name} on {corpus.name}", "windows") as show:
                worker = self._shared_worker(model.name)
                arrays = worker.call(run_reference_pass, show, request, logprobs, self.options.logprobs_limit)
            entry.save({"model": model.name, "corpus": corpus.name}, arrays)
            return arrays

    def candidate_pass(self, model: LoadedModel, reference: LoadedModel, corpus: Corpus) -> Arrays:
        """nll, top token and divergence in both directions of every scored token; see `run_candidate_pass`."""
        return self._compare(
            model, reference, corpus, self._settings, self.options.chunks, "candidate", self.early_limits
        )

    @property
    def early_limits(self) -> tuple[WindowLimit, ...]:
        """What stops a candidate's pass once it is decided; empty where passes are not to stop."""
        return early_limits(load_gates(self.options.gates).values()) if self.options.until_decided else ()

    def floor_pass(self, reference: LoadedModel, corpus: Corpus) -> Arrays:
        """The reference against itself with one window a batch and a smaller physical batch: what differs is noise."""
        settings = replace(
            self._settings,
            n_batch=min(self._settings.n_ctx, self._settings.n_batch),
            n_ubatch=max(8, min(self._settings.n_ubatch, self._settings.n_ctx) // 2),
        )
        chunks = min(_FLOOR_WINDOWS, self.options.chunks or _FLOOR_WINDOWS)
        return self._compare(reference, reference, corpus, settings, chunks, "floor")

    def _compare(
        self,
        model: LoadedModel,
        reference: LoadedModel,
        corpus: Corpus,
        settings: SessionSettings,
        chunks: int | None,
        kind: str,
        limits: tuple[WindowLimit, ...] = (),
    ) -> Arrays:
        base = self._reference_entry(reference, corpus)
        key = self._pass_key(model, corpus, settings, chunks) | {"reference": base.folder.name, "kind": kind}
        if limits:
            key["until_decided"] = [asdict(limit) for limit in limits]
        entry = self.cache.entry("passes", key)

        def measure() -> Arrays:
            with entry.lock():
                arrays = self._load_arrays(entry)
                if arrays is not None:
                    self.hits += 1
                    return arrays
                self.reference_pass(reference, corpus, logprobs=True)
                self.misses += 1
                request = self._request(model, corpus, entry.folder, settings, chunks)
                label = f"{model.name} on {corpus.name}" if kind == "candidate" else f"noise floor of {model.name}"
                with self._progress.task(label, "windows") as show:
                    worker = self._shared_worker(model.name)
                    arrays = worker.call(run_candidate_pass, show, request, base.folder, base.arrays_file, limits)
                entry.save({"model": model.name, "reference": reference.name, "corpus": corpus.name}, arrays)
                return arrays

        return self._once((kind, str(entry.folder)), measure)

    # -- speed ------------------------------------------------------------------------------------------------------

    def speed(self, model: LoadedModel) -> SpeedResult:
        """Speed and memory, in a process of its own."""
        request = SpeedRequest(model.files, self._settings, self.options.pp, self.options.tg, self.options.repetitions)
        key = {
            "kind": "speed",
            "model": model.sha256,
            "settings": self._settings.to_json(),
            "pp": request.n_prompt,
            "tg": request.n_gen,
            "repetitions": request.repetitions,
            "engine": self.engine,
        }

        entry = self.cache.entry("speed", key)

        def measure() -> dict[str, Any]:
            self.close()
            with (
                self._progress.task(f"speed of {model.name}", "runs") as show,
                self._new_worker(model.name) as worker,
            ):
                return worker.call(measure_speed, show, request).to_json()

        return self._once(("speed", str(entry.folder)), lambda: SpeedResult(**self._stored(entry, measure)))

    def served(self, model: LoadedModel) -> ServedResult:
        """Throughput and latency under several clients, of a server of its own."""
        options = self.options
        request = options.served_request
        key = {
            "kind": "served",
            "model": model.sha256,
            "settings": options.server_settings.to_json(),
            "request": request.to_json(),
            "engine": identify_build(options.llama_server) if options.llama_server else self.engine,
        }
        entry = self.cache.entry("speed", key)

        def measure() -> dict[str, Any]:
            self.close()
            with (
                self._progress.task(f"{model.name}, {request.concurrency} clients", "requests") as show,
                self._new_server(model) as server,
            ):
                return measure_served(server, request, show).to_json()

        return self._once(("served", str(entry.folder)), lambda: ServedResult(**self._stored(entry, measure)))

    def server(self, model: LoadedModel) -> Server:
        """A running server of a model, until that of another model is asked for or a measurement needs the machine."""
        self._stop_worker()
        return self._servers.get(model.name, lambda: self._new_server(model))

    # -- texts ------------------------------------------------------------------------------------------------------

    def generations(self, model: LoadedModel, prompts: PromptSet) -> Generations:
        """How a model continues each prompt, or why it cannot; see `generate_texts`."""
        entry = self._generations_entry(model, prompts)

        def measure() -> dict[str, Any]:
            given, limit = prompts.prompts, self.options.gen_tokens
            request = generate.GenerateRequest(model.name, model.files, self._settings, given, limit)
            with self._progress.task(f"texts of {model.name}", "prompts") as show:
                found = self._shared_worker(model.name).call(generate.generate_texts, show, request)
            return generate.generations_to_json(found)

        key = ("generations", str(entry.folder))
        return self._once(key, lambda: generate.generations_from_json(self._stored(entry, measure)))

    def text_scores(self, model: LoadedModel, reference: LoadedModel, prompts: PromptSet) -> dict[str, TextScore]:
        """What the reference says of a candidate's texts, for all prompts that both were given alike."""
        of, under = (self._generations_entry(each, prompts).folder.name for each in (model, reference))
        entry = self.cache.entry("texts", {"kind": "text_scores", "of": of, "under": under})

        def measure() -> dict[str, Any]:
            texts = generate.continuations(self.generations(reference, prompts), self.generations(model, prompts))
            request = generate.ScoreRequest(reference.files, self._settings, texts)
            with self._progress.task(f"texts of {model.name} under {reference.name}", "prompts") as show:
                scores = self._shared_worker(reference.name).call(generate.score_texts, show, request)
            return {prompt: asdict(score) for prompt, score in scores.items()}

        def load() -> dict[str, TextScore]:
            return {prompt: generate.TextScore(**score) for prompt, score in self._stored(entry, measure).items()}

        return self._once(("text_scores", str(entry.folder)), load)

    def _generations_entry(self, model: LoadedModel, prompts: PromptSet) -> Entry:
        key = {
            "kind": "generations",
            "model": model.sha256,
            "prompts": prompts.sha256,
            "tokens": self.options.gen_tokens,
            "settings": self._settings.to_json(),
            "engine": self.engine,
        }
        return self.cache.entry("texts", key)

    # -- the engine -------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> dict[str, Any]:
        """llama.cpp's build and backends, asked once per installation."""
        return self._once(("engine",), self._describe_engine)

    def _describe_engine(self) -> dict[str, Any]:
        key = identify_build() | {"gpu": self.options.gpu}
        entry = self.cache.entry("engine", key)
        with entry.lock():
            known = entry.load_meta()
            if known is None:
                with self._new_worker("engine") as worker:
                    known = worker.call(describe_engine, None)
                entry.save(known)
            return known

    def close(self) -> None:
        """Stop the worker and the servers that are alive, if any."""
        self._stop_worker()
        self._servers.close()

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> SessionSettings:
        return self.options.session_settings

    def _once(self, key: tuple[str, ...], work: Callable[[], T]) -> T:
        if key not in self._done:
            try:
                self._done[key] = work()
            except HarnessError as error:
                self._done[key] = error
        outcome = self._done[key]
        if isinstance(outcome, HarnessError):
            # The same exception object would grow a traceback with each test that meets it.
            raise outcome.with_traceback(None)
        return outcome  # type: ignore[return-value]

    def _shared_worker(self, name: str) -> Worker:
        """The worker of a model; only one model is kept in memory."""
        if self._worker is None or self._worker.label != name:
            self._stop_worker()
            self._worker = self._new_worker(name)
        return self._worker

    def _new_worker(self, name: str) -> Worker:
        return Worker(name, self._log(name), gpu=self.options.gpu, timeout_s=self.options.timeout_s)

    def _new_server(self, model: LoadedModel) -> Server:
        return Server(
            model.name,
            model.files,
            self._log(f"{model.name}.server"),
            self.options.server_settings,
            binary=self.options.llama_server,
            gpu=self.options.gpu,
            timeout_s=self.options.timeout_s,
        )

    def _log(self, name: str) -> Path:
        return self.options.cache / "logs" / f"{name.replace('/', '_')}.log"

    def _reference_entry(self, model: LoadedModel, corpus: Corpus) -> Entry:
        key = self._pass_key(model, corpus, self._settings, self.options.chunks)
        return self.cache.entry("passes", key | {"kind": "reference"})

    def _pass_key(
        self, model: LoadedModel, corpus: Corpus, settings: SessionSettings, chunks: int | None
    ) -> dict[str, Any]:
        return {
            "model": model.sha256,
            "corpus": corpus.sha256,
            "chunks": chunks,
            "settings": settings.to_json(),
            "engine": self.engine,
        }

    def _request(
        self,
        model: LoadedModel,
        corpus: Corpus,
        folder: Path,
        settings: SessionSettings | None = None,
        chunks: int | None = None,
    ) -> PassRequest:
        return PassRequest(
            model=model.name,
            files=model.files,
            settings=settings or self._settings,
            corpus=CorpusText(corpus.name, corpus.text),
            chunks=chunks or self.options.chunks,
            folder=folder,
        )

    def _stored(self, entry: Entry, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an entry describes, measured where there is none."""
        with entry.lock():
            self._forget_if_stale(entry)
            value = entry.load_meta()
            if value is not None:
                self.hits += 1
                return value
            self.misses += 1
            value = measure()
            entry.save(value)
            return value

    def _load_arrays(self, entry: Entry) -> Arrays | None:
        self._forget_if_stale(entry)
        return entry.load()

    def _forget_if_stale(self, entry: Entry) -> None:
        """With --gguf-fresh, what is older than this session goes, leftovers of an interrupted pass included.

        What another process of the same session (`pytest -n`) has just measured stays.
        """
        if self.options.fresh and not entry.saved_since(self._started):
            entry.remove()

    def _make_room(self, model: LoadedModel, entry: Entry) -> None:
        scored = self.options.ctx - 1 - self.options.ctx // 2
        needed = 2 * (self.options.chunks or 0) * scored * (model.info.n_vocab or 0)
        self.cache.make_room(needed, self.options.logprobs_limit, keep=entry.folder)
