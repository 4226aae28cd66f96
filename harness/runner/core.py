"""What all measurements of a session share: models on disk, the cache, worker processes, what failed before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from harness.engine.server import ServerPool
from harness.engine.tasks import describe_engine, engine_version, identify_build, quantize_task
from harness.engine.worker import ProgressCallback, Worker
from harness.errors import HarnessError
from harness.models import ModelInfo, hash_files, load_info, twins
from harness.sources import ModelSource
from harness.store import Cache, Entry

if TYPE_CHECKING:
    from harness.engine.settings import SessionSettings
    from harness.ladder import PlannedModel
    from harness.measure.observers import Arrays
    from harness.options import Options

__all__ = ["Core", "LoadedModel", "Progress"]

T = TypeVar("T")


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


class Core:
    """What all measurements of a session share.

    A failure is remembered as well: a model that makes llama.cpp abort is tried once, and every test that needs it
    fails with the same message.

    Args:
        options: what was asked for.
        progress: where progress is shown.
    """

    def __init__(self, options: Options, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self.cache = Cache(options.cache)
        self.hits = 0
        self.misses = 0
        self.servers = ServerPool()
        self._done: dict[tuple[str, ...], object | HarnessError] = {}
        self._worker: Worker | None = None
        self._started = time.time()

    # -- models -----------------------------------------------------------------------------------------------------

    def model(self, planned: PlannedModel) -> LoadedModel:
        """Make sure that a model is on disk: validate it, or quantize it first."""
        return self.once(("model", planned.name), lambda: self._load(planned))

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
        with self.progress.task(f"hashing {name}", "MB") as show:
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
                with self.progress.task(f"quantizing {name}", "tensors") as show, self.new_worker(name) as worker:
                    worker.call(quantize_task, show, source.files, destination, quant, self.options.threads, imatrix)
        return load_info(ModelSource(name, (existing or destination,), quant))

    def twin_warnings(self) -> list[str]:
        """Candidates, of those on disk so far, that came out the same."""
        loaded = [outcome for outcome in self._done.values() if isinstance(outcome, LoadedModel)]
        return twins([(model.info, model.sha256) for model in loaded])

    # -- the engine --------------------------------------------------------------------------------------

    @property
    def engine(self) -> dict[str, Any]:
        """llama.cpp's build and backends, asked once per installation."""
        return self.once(("engine",), self._describe_engine)

    def _describe_engine(self) -> dict[str, Any]:
        key = identify_build() | {"gpu": self.options.gpu}
        entry = self.cache.entry("engine", key)
        with entry.lock():
            known = entry.load_meta()
            if known is None:
                with self.new_worker("engine") as worker:
                    known = worker.call(describe_engine, None)
                entry.save(known)
            return known

    def close(self) -> None:
        """Stop the worker and the servers that are alive, if any."""
        self.stop_worker()
        self.servers.close()

    def stop_worker(self) -> None:
        """Stop the worker that is alive, if any."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    # -- for each kind of measurement -------------------------------------------------------------------------------

    @property
    def settings(self) -> SessionSettings:
        """How models are run, as the options say."""
        return self.options.session_settings

    def once(self, key: tuple[str, ...], work: Callable[[], T]) -> T:
        """What `work` returned or raised the first time, in this session, that this key came."""
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

    def shared_worker(self, name: str) -> Worker:
        """The worker of a model; only one model is kept in memory."""
        if self._worker is None or self._worker.label != name:
            self.stop_worker()
            self._worker = self.new_worker(name)
        return self._worker

    def new_worker(self, name: str) -> Worker:
        """A worker process of its own, to be closed by the caller."""
        return Worker(name, self.log(name), gpu=self.options.gpu, timeout_s=self.options.timeout_s)

    def log(self, name: str) -> Path:
        """Where a child process logs."""
        return self.options.cache / "logs" / f"{name.replace('/', '_')}.log"

    def stored(
        self,
        entry: Entry,
        measure: Callable[[], dict[str, Any]],
        keep: Callable[[dict[str, Any]], bool] | None = None,
    ) -> dict[str, Any]:
        """What an entry describes, measured where there is none.

        Args:
            entry: where it is.
            measure: called where it has to be measured.
            keep: whether the next session may have what was measured; always if not given.
        """
        with entry.lock():
            self._forget_if_stale(entry)
            value = entry.load_meta()
            if value is not None:
                self.hits += 1
                return value
            self.misses += 1
            value = measure()
            if keep is None or keep(value):
                entry.save(value)
            return value

    def stored_arrays(
        self,
        entry: Entry,
        about: dict[str, Any],
        measure: Callable[[], Arrays],
        usable: Callable[[Arrays], bool] | None = None,
    ) -> Arrays:
        """The arrays of an entry, measured where there are none.

        Args:
            entry: where they are.
            about: kept beside them.
            measure: called where they have to be measured.
            usable: whether what is there is enough: files that go with the arrays may be gone.
        """
        with entry.lock():
            arrays = self.load_arrays(entry)
            if arrays is not None and (usable is None or usable(arrays)):
                self.hits += 1
                return arrays
            self.misses += 1
            arrays = measure()
            entry.save(about, arrays)
            return arrays

    def load_arrays(self, entry: Entry) -> Arrays | None:
        """What an entry holds; None where there is nothing yet."""
        self._forget_if_stale(entry)
        return entry.load()

    def _forget_if_stale(self, entry: Entry) -> None:
        """With --gguf-fresh, what is older than this session goes, leftovers of an interrupted pass included.

        What another process of the same session (`pytest -n`) has just measured stays.
        """
        if self.options.fresh and not entry.saved_since(self._started):
            entry.remove()
