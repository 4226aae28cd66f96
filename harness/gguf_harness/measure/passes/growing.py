"""A reference's pass that goes only as far as some candidate needs (--gguf-until-decided).

Runs in the session's process, between two workers: the reference decodes a group of windows, the candidate decodes the
same, and so on until all gates of the candidate are decided. What the reference has decoded stays in its cache entry as
progress of the whole pass: the next candidate begins with it, and a run without the option goes on there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import FilesLost, HarnessError
from gguf_harness.measure.measurement import ARRAYS, Measurement
from gguf_harness.measure.memory import hold_together
from gguf_harness.measure.passes.decoding import Progress, has_codes
from gguf_harness.measure.passes.tasks import PassRequest, continue_candidate_pass, run_reference_pass
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.engine.calling import TaskWorker
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.measurement import Job
    from gguf_harness.metrics.windows import WindowLimit

__all__ = ["GrowingReference", "decide_in_turns", "planned_windows"]

_ATTEMPTS: Final = 2


def planned_windows(base: Arrays) -> int:
    """How many windows a reference's pass has when it is complete."""
    return int(base["planned"].item()) if "planned" in base else len(base["nll"])


def _is_whole(arrays: Arrays) -> bool:
    return "planned" not in arrays


class GrowingReference:
    """The pass of a reference, as far as it was made.

    Args:
        core: runs measurements.
        subject: the reference.
        job: its whole pass, with log-probabilities.
    """

    def __init__(self, core: Core, subject: Subject, job: Job[Arrays]) -> None:
        self._core = core
        self._subject = subject
        self._job = job
        self._worker: TaskWorker | None = None
        self.entry = core.entry(job)
        with self.entry.lock():
            core.forget_if_stale(self.entry)

    def read(self) -> Arrays | None:
        """Its values, as `run_reference_pass` returns them, of all windows so far; None if there is nothing."""
        stored = self.entry.load()
        if stored is not None and has_codes(self.entry.folder, stored[1]):
            return stored[1]
        return Progress(self.entry.folder, self.entry.digest).base()

    def first(self, windows: int | None) -> Arrays:
        """The same, of at least so many windows, which are decoded if need be; None for all.

        Raises:
            HarnessError: of this decode, or of an earlier one in this session: a model that fails is not tried again.
        """
        base = self.read()
        if base is not None and (_is_whole(base) or (windows is not None and len(base["nll"]) >= windows)):
            return base
        failure = ("reference's pass", str(self.entry.folder))
        self._core.once(failure, lambda: None)
        try:
            return self._core.measure(self._growth(windows, begun=base is not None))
        except HarnessError as error:
            self._core.fail(failure, error)
            raise

    def _growth(self, windows: int | None, *, begun: bool) -> Job[Arrays]:
        measurement = Measurement(
            self._job.measurement.kind, self._job.measurement.version, run_reference_pass, "windows", ARRAYS,
            # Only the whole pass is an entry of the cache; until then, its progress is on disk.
            keep=_is_whole, remembered=False, counted=not begun,
        )  # fmt: skip
        return replace(
            self._job,
            measurement=measurement,
            arguments=lambda entry: (*self._job.arguments(entry), windows),
            prepare=None if begun else self._job.prepare,
            worker=None if self._worker is None else lambda: self._loaded,
        )

    @property
    def _loaded(self) -> TaskWorker:
        if self._worker is None:
            raise RuntimeError("used outside of `beside`")
        return self._worker

    @contextlib.contextmanager
    def beside(self, model: Subject) -> Iterator[bool]:
        """Have a worker of its own for the reference during the block, if memory holds both models.

        Yields:
            Whether it does. Otherwise models can only be loaded in turn, and all windows are decoded first.
        """
        files = (*model.files, *self._subject.files)
        actors = self._core.actors
        if actors is not None:
            both = actors.has_room(model.info.bytes + self._subject.info.bytes)
        else:
            both = hold_together(files, on_gpu=model.settings.n_gpu_layers != 0)
        if not both:
            yield False
            return
        with self._core.new_worker(self._subject.model.name) as worker:
            self._worker = worker
            try:
                yield True
            finally:
                self._worker = None

    def lose(self) -> None:
        """Remove it: what is there is damaged."""
        with self.entry.lock():
            self.entry.remove()


def decide_in_turns(
    show: ProgressCallback,
    growing: GrowingReference,
    model: Subject,
    worker: Callable[[], TaskWorker],
    request: PassRequest,
    limits: tuple[WindowLimit, ...],
) -> Arrays:
    """A candidate's pass, stopped when all limits are decided; the reference decodes no more windows than it needs.

    Args:
        show: shows progress.
        growing: the reference.
        model: the candidate.
        worker: starts or returns the candidate's worker.
        request: the candidate's pass.
        limits: what is to be decided.

    Returns:
        As `run_candidate_pass`.
    """
    with growing.beside(model) as together:
        # As many windows as share a batch are decoded side by side: fewer would leave cores idle.
        step = request.settings.n_seq if together else None
        for attempt in range(_ATTEMPTS):
            try:
                return _in_turns(show, growing, worker, request, limits, step)
            except FilesLost:
                # Removed or damaged meanwhile: measured again, once.
                growing.lose()
                if attempt == _ATTEMPTS - 1:
                    raise
    raise AssertionError("unreachable")


def _in_turns(
    show: ProgressCallback,
    growing: GrowingReference,
    worker: Callable[[], TaskWorker],
    request: PassRequest,
    limits: tuple[WindowLimit, ...],
    step: int | None,
) -> Arrays:
    begun = Progress(request.folder, request.key).load()
    upto, finished, arrays = step, False, Arrays()
    if upto is not None and begun is not None:
        upto = max(upto, begun[1])
    while not finished:
        base = growing.first(upto)
        folder, file = growing.entry.folder, growing.entry.arrays_file
        arrays, finished = worker().call(continue_candidate_pass, None, request, folder, file, limits, upto)
        show(len(arrays["nll"]), planned_windows(base))
        upto = None if upto is None or step is None else len(arrays["nll"]) + step
    return arrays
