"""What all measurements of a session share: models on disk, the cache, worker processes, what failed before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gguf_harness.engine.machine import identify_machine
from gguf_harness.engine.server import ServerPool
from gguf_harness.engine.tasks import build_files, describe_engine, ggml_environment, identify_engine, quantize_task
from gguf_harness.engine.worker import ProgressCallback, Worker
from gguf_harness.errors import FilesLost, HarnessError, ModelError
from gguf_harness.inputs.models import ModelInfo, load_info, twins
from gguf_harness.inputs.sources import ModelSource
from gguf_harness.store.cache import Cache, Entry
from gguf_harness.store.cache_space import cap_log
from gguf_harness.store.file_hashes import FileState, file_states, hash_files
from gguf_harness.store.paths import file_name

if TYPE_CHECKING:
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.inputs.ladder import PlannedModel
    from gguf_harness.inputs.options import Options
    from gguf_harness.store.arrays import Arrays

__all__ = ["Core", "LoadedModel", "Progress"]

T = TypeVar("T")
U = TypeVar("U")

_OF_ANOTHER_SHAPE = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What reading a stored value raises where it is not what is expected."""


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

    def __repr__(self) -> str:
        """Short: pytest shows it in messages of failed assertions."""
        return f"<model {self.name}>"


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
        session: name that all processes of a session share; None for one of its own.
    """

    def __init__(self, options: Options, progress: Progress, session: str | None = None) -> None:
        self.options = options
        self.progress = progress
        self.cache = Cache(options.cache, options.cache_limit, session)
        self.hits = 0
        self.misses = 0
        self.servers = ServerPool()
        self._done: dict[tuple[str, ...], object | HarnessError] = {}
        self._states: dict[tuple[Path, ...], tuple[FileState | None, ...]] = {}
        self._loaded: dict[str, LoadedModel] = {}
        self._used: set[str] = set()
        self._worker: Worker | None = None

    # -- models -----------------------------------------------------------------------------------------------------

    def model(self, planned: PlannedModel) -> LoadedModel:
        """Make sure that a model is on disk: validate it, or quantize it first.

        Raises:
            ModelError: a file changed since it was hashed.
        """
        loaded = self._loaded[planned.name] = self.once(("model", planned.name), lambda: self._load(planned))
        self.check_unchanged(loaded)
        return loaded

    def _load(self, planned: PlannedModel) -> LoadedModel:
        if planned.source is not None:
            info, sha256 = self._read(planned.name, planned.source)
        if planned.base is not None:
            base = self.model(planned.base)
            info, sha256 = base.info, base.sha256
        if planned.quant is not None:
            info, sha256 = self._quantize(
                planned.name, info, sha256, planned.quant, with_imatrix=planned.base is not None
            )
        return LoadedModel(planned.name, replace(info, name=planned.name), sha256)

    def _read(self, name: str, source: ModelSource) -> tuple[ModelInfo, str]:
        """What files hold and their hash, of the same bytes."""
        before = file_states(source.files)
        info = load_info(source)
        with self.progress.task(f"hashing {name}", "MB") as show:
            sha256 = hash_files(source.files, self.options.cache, show)
        if file_states(source.files) != before:
            raise ModelError(
                f"{name}: its file changed while it was being read.", "Run again when nothing writes to it any more."
            )
        self._states[source.files] = before
        return info, sha256

    def _quantize(
        self, name: str, source: ModelInfo, sha256: str, quant: str, *, with_imatrix: bool
    ) -> tuple[ModelInfo, str]:
        """The quantized model and its hash; where the cache has another content than was once put there, made again."""
        imatrix = self.options.imatrix if with_imatrix else None
        imatrix_state = file_states([imatrix] if imatrix else [])
        key = {
            "source": sha256,
            "quant": quant,
            "imatrix": hash_files([imatrix], self.options.cache) if imatrix else None,
            "engine": self.engine_key,
        }
        entry = self.cache.entry("models/quantized", key)
        # Not the model's name: names may be longer than a file's may be.
        destination = entry.folder / f"{quant}.gguf"
        made = ModelSource(name, (destination,), quant)
        with entry.lock():
            kept = self._kept(entry, made)
            if kept is not None:
                self.cache.keep(entry)
                return kept
            entry.remove()
            # Few are larger than their source; the rest of the room is made when the entry is stored.
            self.cache.make_room(source.bytes, entry)
            with self.progress.task(f"quantizing {name}", "tensors") as show, self.new_worker(name) as worker:
                worker.call(quantize_task, show, source.files, destination, quant, self.options.threads, imatrix)
            self._check_files(source.name, source.files, sha256)
            if imatrix and file_states([imatrix]) != imatrix_state:
                raise ModelError(f"{imatrix.name} changed while {name} was quantized with it.", "Run again.")
            info, digest = self._read(name, made)
            entry.save({"sha256": digest})
            self.cache.keep(entry)
            return info, digest

    def _kept(self, entry: Entry, made: ModelSource) -> tuple[ModelInfo, str] | None:
        """What was quantized before, if it still is what was written then."""
        meta = entry.load_meta()
        if meta is None or not made.files[0].is_file():
            return None
        try:
            info, digest = self._read(made.name, made)
        except ModelError:
            return None
        return (info, digest) if digest == meta.get("sha256") else None

    def check_unchanged(self, *models: LoadedModel) -> None:
        """Refuse what was measured of files that are no longer what was hashed: it would be kept under a wrong key.

        Raises:
            ModelError: names the model and the file. Everything that needs the model fails with it from then on.
        """
        for model in models:
            try:
                self._check_files(model.name, model.files, model.sha256)
            except ModelError as error:
                self._done["model", model.name] = error
                raise

    def _check_files(self, name: str, files: tuple[Path, ...], sha256: str) -> None:
        before, now = self._states.get(files), file_states(files)
        if before is None or before == now:
            return
        for file, old, new in zip(files, before, now, strict=True):
            if new is None:
                raise ModelError(f"{name}: {file.name} is gone since it was hashed.", f"Put it back to {file.parent}.")
            # A new name or new permissions change the state, and not the content.
            if old != new and hash_files(files, self.options.cache) != sha256:
                raise ModelError(
                    f"{name}: {file.name} changed while it was being measured.",
                    "What was measured of it does not count. Run again when nothing writes to it any more.",
                )
        self._states[files] = now

    def _check_used(self) -> None:
        """The same for each model that a worker was asked for since this was last asked."""
        used, self._used = self._used, set()
        self.check_unchanged(*(self._loaded[name] for name in used if name in self._loaded))

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
        # It names the processor and the memory: what it says holds for this machine.
        key = {
            "build": self.build_hash(),
            "machine": self.machine_key,
            "gpu": self.options.gpu,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "environment": ggml_environment(),
        }
        entry = self.cache.entry("engine/description", key)
        with entry.lock():
            known = entry.load_meta()
            if known is None:
                with self.new_worker("engine") as worker:
                    known = worker.call(describe_engine, None)
                entry.save(known)
            return known

    @property
    def engine_key(self) -> dict[str, Any]:
        """What of llama.cpp numbers depend on, for the keys of measurements."""
        return self.once(("engine key",), lambda: identify_engine(self.engine, self.build_hash()))

    @property
    def machine_key(self) -> dict[str, Any]:
        """What of the machine timings depend on, for the keys of measurements."""
        return self.once(("machine key",), identify_machine)

    def build_hash(self, binary: Path | None = None) -> str:
        """Hash of the content of a build of llama.cpp: of a program, or llama-cpp-python's."""
        return self.once(("build", str(binary)), lambda: hash_files(build_files(binary), self.options.cache))

    @property
    def entry_limit(self) -> int:
        """Most bytes that may be stored of one reference."""
        return min(self.options.logprobs_limit, self.options.cache_limit)

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
        self._used.add(name)
        if self._worker is None or self._worker.label != name:
            self.stop_worker()
            self._worker = self.new_worker(name)
        return self._worker

    def new_worker(self, name: str) -> Worker:
        """A worker process of its own, to be closed by the caller."""
        self._used.add(name)
        return Worker(name, self.log(name), gpu=self.options.gpu, timeout_s=self.options.timeout_s)

    def log(self, name: str) -> Path:
        """Where a child process logs."""
        log = self.options.cache / "logs" / f"{file_name(name)}.log"
        cap_log(log)
        return log

    def stored(
        self,
        entry: Entry,
        measure: Callable[[], dict[str, Any]],
        read: Callable[[dict[str, Any]], T],
        keep: Callable[[T], bool] | None = None,
    ) -> T:
        """What an entry describes, measured where there is none.

        Args:
            entry: where it is.
            measure: called where it has to be measured.
            read: makes the result of what is stored; where it cannot, that is measured again.
            keep: whether the next session may have what was measured; always if not given.
        """
        with entry.lock():
            self._forget_if_stale(entry)
            value = entry.load_meta()
            if value is not None:
                with contextlib.suppress(*_OF_ANOTHER_SHAPE):
                    result = read(value)
                    self.hits += 1
                    return result
            self.misses += 1
            value = measure()
            self._check_used()
            result = read(value)
            if keep is None or keep(result):
                entry.save(value)
            return result

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
            else:
                self.misses += 1
                arrays = measure()
                self._check_used()
                entry.save(about, arrays)
            if usable is not None:
                self.cache.keep(entry)
            return arrays

    def reading(self, entry: Entry, prepare: Callable[[], U], work: Callable[[U], T]) -> T:
        """Do work that reads the files of another entry, and once more where they are gone or damaged.

        Another session may have removed them, or a person.

        Args:
            entry: whose files are read.
            prepare: sees to it that the entry is there.
            work: is given what `prepare` returned.
        """
        prepared, before = prepare(), entry.stamp
        try:
            return work(prepared)
        except FilesLost:
            with entry.lock():
                # Unless somebody has measured it again by now.
                if entry.stamp == before:
                    entry.remove()
            self._done = {key: outcome for key, outcome in self._done.items() if str(entry.folder) not in key}
            return work(prepare())

    def load_arrays(self, entry: Entry) -> Arrays | None:
        """What an entry holds; None where there is nothing yet."""
        self._forget_if_stale(entry)
        return entry.load()

    def _forget_if_stale(self, entry: Entry) -> None:
        """With --gguf-fresh, what another session has stored goes, leftovers of an interrupted pass included.

        What another process of the same session (`pytest -n`) has measured stays.
        """
        if self.options.fresh and not entry.is_of_this_session:
            entry.remove()
