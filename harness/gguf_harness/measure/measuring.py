"""The one way to measure: once per session, from the cache if possible, otherwise in a worker process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gguf_harness.engine.calling import TaskWorker
from gguf_harness.engine.server import ServerPool
from gguf_harness.engine.worker import ProgressCallback, Worker
from gguf_harness.errors import FilesLost, HarnessError
from gguf_harness.measure.notes import NoNotes, Notes
from gguf_harness.store.cache import Cache
from gguf_harness.store.cache_space import cap_log
from gguf_harness.store.paths import file_name

if TYPE_CHECKING:
    from gguf_harness.cluster.actors import Actors
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.measurement import Job
    from gguf_harness.store.cache import Entry

__all__ = ["Measuring", "Progress"]

R = TypeVar("R")
T = TypeVar("T")

_OF_ANOTHER_SHAPE = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""Errors raised when a stored value has an unexpected form."""


class Progress(Protocol):
    """Shows the progress of a piece of work."""

    def task(self, label: str, unit: str) -> contextlib.AbstractContextManager[ProgressCallback]:
        """Show one piece of work while the block runs."""


class Measuring:
    """Runs the measurements of one session.

    A failure is remembered as well: a model that makes llama.cpp abort is tried once, and every test that needs it
    fails with the same message.

    Args:
        options: the checked options.
        progress: where progress is shown.
        session: name that all processes of a session share; None for one of its own.
        notes: receives notes on the run besides its numbers.
        actors: run the workers on a Ray cluster; None for child processes.

    Attributes:
        on_measured: called with each job that was measured, not found, and the seconds that it took.
    """

    def __init__(
        self,
        options: Options,
        progress: Progress,
        session: str | None = None,
        notes: Notes | None = None,
        actors: Actors | None = None,
    ) -> None:
        self.options = options
        self.progress = progress
        self.notes: Notes = notes or NoNotes()
        self.actors = actors
        self.cache = Cache(options.cache, options.cache_limit, session)
        self.hits = 0
        self.misses = 0
        self.servers = ServerPool()
        self._done: dict[tuple[str, ...], object | HarnessError] = {}
        self._worker: TaskWorker | None = None
        self._at_close: list[Callable[[], None]] = []
        self.on_measured: Callable[[Job[Any], float], None] | None = None
        self._within_s = 0.0

    # -- measuring --------------------------------------------------------------------------------------------------

    def entry(self, job: Job[Any]) -> Entry:
        """The cache entry of a job."""
        return self.cache.entry(job.measurement.kind, job.measurement.version, job.key)

    def measure(self, job: Job[R]) -> R:
        """The result of a job.

        Raises:
            HarnessError: the error of the task, now or at the first call in this session.
        """
        entry = self.entry(job)
        if not job.measurement.remembered:
            return self._cached(job, entry)
        what = job.files.name if job.files is not None else ""
        return self.once(("measured", str(entry.folder), what), lambda: self._cached(job, entry))

    def _cached(self, job: Job[R], entry: Entry) -> R:
        with entry.lock(self.actors.wait_for_others if self.actors is not None else None):
            self.forget_if_stale(entry)
            stored = self._load(job, entry)
            if stored is not None:
                self.hits += job.measurement.counted
                (result,) = stored
            else:
                self.misses += job.measurement.counted
                result = self._measured(job, entry)
            if job.files is not None:
                self.cache.keep(entry)
            return result

    def _load(self, job: Job[R], entry: Entry) -> tuple[R] | None:
        stored = entry.load()
        if stored is None:
            return None
        with contextlib.suppress(*_OF_ANOTHER_SHAPE):
            result = job.measurement.format.unpack(*stored)
            if job.files is None or job.files.are_there(entry.folder, result):
                return (result,)
        return None

    def _measured(self, job: Job[R], entry: Entry) -> R:
        with self._timed(job):
            measured = self._run_reading(job, entry) if job.reads else self._run(job, entry)
        self.check_read(job.subjects)
        if job.check is not None:
            job.check()
        value, arrays = job.measurement.format.pack(measured)
        # In the form in which the next session will read it.
        result = job.measurement.format.unpack(value, arrays or {})
        if job.measurement.keep(result):
            entry.save(value, arrays, job.label)
        return result

    @contextlib.contextmanager
    def _timed(self, job: Job[Any]) -> Iterator[None]:
        """Tell `on_measured` how long a job took, without the jobs that it asked for meanwhile; not if it failed."""
        outer, self._within_s = self._within_s, 0.0
        begun = time.monotonic()
        took = own = 0.0
        try:
            yield
            took = time.monotonic() - begun
            own = took - self._within_s
        finally:
            self._within_s = outer + (took or time.monotonic() - begun)
        if self.on_measured is not None:
            self.on_measured(job, own)

    def _run_reading(self, job: Job[R], entry: Entry) -> R:
        """Run a job that reads the files of others; retry once if these are missing or damaged.

        Another session or a user may have removed them.
        """
        bases = [self.entry(each) for each in job.reads]
        for each in job.reads:
            self.measure(each)
        stamps = [base.stamp for base in bases]
        try:
            return self._run(job, entry)
        except FilesLost:
            for base, before in zip(bases, stamps, strict=True):
                with base.lock():
                    # Unless another process has measured it again by now.
                    if base.stamp == before:
                        base.remove()
                self._done = {key: outcome for key, outcome in self._done.items() if str(base.folder) not in key}
            for each in job.reads:
                self.measure(each)
            return self._run(job, entry)

    def _run(self, job: Job[R], entry: Entry) -> R:
        measurement = job.measurement
        if measurement.exclusive:
            self.close()
        if job.prepare is not None:
            job.prepare(entry)
        with job.around(), contextlib.ExitStack() as stack:
            arguments = job.arguments(entry)
            show = stack.enter_context(self.progress.task(job.label, measurement.unit))
            if measurement.runs == "in the session":
                return measurement.task(show, *arguments)
            if measurement.runs == "in its own worker":
                start = self.own_worker if measurement.about_machine else self.new_worker
                worker = stack.enter_context(start(self._worker_name(job)))
            else:
                worker = job.worker() if job.worker is not None else self.shared_worker(self._worker_name(job))
            return worker.call(measurement.task, show, *arguments)

    def _worker_name(self, job: Job[Any]) -> str:
        return job.subjects[0].model.name if job.subjects else job.measurement.kind.partition("/")[0]

    def forget_if_stale(self, entry: Entry) -> None:
        """With --gguf-fresh, remove results of other sessions, including leftovers of an interrupted pass.

        Results of other processes of the same session (`pytest -n`) are kept.
        """
        if self.options.fresh and not entry.is_of_this_session:
            entry.remove()
            entry.claim()

    def once(self, key: tuple[str, ...], work: Callable[[], T]) -> T:
        """Call `work` once per key and session; later calls return its result or raise its error again."""
        if key not in self._done:
            try:
                self._done[key] = work()
            except HarnessError as error:
                self._done[key] = error
        outcome = self._done[key]
        if isinstance(outcome, HarnessError):
            # The same exception object would collect tracebacks of every test that raises it.
            raise outcome.with_traceback(None)
        return outcome  # type: ignore[return-value]

    def fail(self, key: tuple[str, ...], error: HarnessError) -> None:
        """Have `once` raise an error for a key from now on."""
        self._done[key] = error

    @property
    def entry_limit(self) -> int:
        """Most bytes that may be stored for one reference."""
        return min(self.options.logprobs_limit, self.options.cache_limit)

    # -- processes --------------------------------------------------------------------------------------------------

    def shared_worker(self, model: str) -> TaskWorker:
        """The worker of a model; only one model is kept in memory."""
        self.will_read(model)
        if self._worker is None or self._worker.label != model:
            self.stop_worker()
            self._worker = self.new_worker(model)
        return self._worker

    def new_worker(self, model: str) -> TaskWorker:
        """A separate worker process, to be closed by the caller."""
        if self.actors is None:
            return self.own_worker(model)
        from gguf_harness.cluster.ray_worker import RayWorker

        self.will_read(model)
        return RayWorker(self.actors, model, self.bytes_of(model))

    def own_worker(self, model: str) -> Worker:
        """A separate worker process on this machine, whatever measures the rest: for timings."""
        self.will_read(model)
        return Worker(model, self.log(model), gpu=self.options.gpu, timeout_s=self.options.timeout_s)

    def log(self, name: str) -> Path:
        """Log file of a child process."""
        log = self.options.cache / "logs" / f"{file_name(name)}.log"
        cap_log(log)
        return log

    def stop_worker(self) -> None:
        """Stop the running worker, if any."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def bytes_of(self, model: str) -> int:  # noqa: ARG002 - for those who know models
        """Size of the files that a worker of this name will load."""
        return 0

    def will_read(self, model: str) -> None:
        """Note that a worker was asked for a model."""

    def check_read(self, subjects: Sequence[Subject]) -> None:
        """Refuse results if the files have changed meanwhile: they would be stored under a wrong key."""

    def at_close(self, close: Callable[[], None]) -> None:
        """Register something to stop at the end and before each timing that needs the machine to itself."""
        self._at_close.append(close)

    def close(self) -> None:
        """Stop the worker, the servers and everything else that runs."""
        self.stop_worker()
        if self.actors is not None:
            self.actors.close()
        self.servers.close()
        for close in self._at_close:
            close()
