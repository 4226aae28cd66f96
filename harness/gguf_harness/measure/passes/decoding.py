"""The decode of a pass, window by window, with its progress on disk.

Progress is kept every few seconds: a killed pass resumes at the window where it was. The progress of a reference is
also what candidates are compared with while its pass is not complete: `load_base`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.errors import FilesLost
from gguf_harness.store.arrays import Arrays, load_arrays, save_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.measure.passes.observers import Observer
    from gguf_harness.measure.passes.tasks import PassRequest

__all__ = ["CODES_FILE", "Plan", "Progress", "decode", "has_codes", "in_one_context", "load_base"]

CODES_FILE: Final = "logprobs.u16"
_PARTIAL_FILE: Final = "partial.npz"
_SAVE_EVERY_S: Final = 10.0
_CUT: Final = ("tokens", "window", "available")
_OF_WINDOWS: Final = ("nll", "top", "scale", "total", "tokens", "window")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call decodes.

    Attributes:
        request: the model, and how it is run.
        windows: [windows, n_ctx] tokens; those that can be decoded now.
        facts: arrays that are stored beside the observer's.
        upto: stop after so many windows, and leave contexts open for the next call; None for all.
        total: windows of the whole pass; None for all of `windows`.
        alone: in one context with all threads, as for a pass that is in step with another one.
    """

    request: PassRequest
    windows: Tokens
    facts: Arrays = field(default_factory=dict)
    upto: int | None = None
    total: int | None = None
    alone: bool = False


class Progress:
    """What was decoded of a pass so far, in its folder.

    Args:
        folder: of the pass.
        key: hash of what the pass depends on: progress of another is not taken over.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._file = folder / _PARTIAL_FILE
        self._key = key

    def load(self) -> tuple[Arrays, int] | None:
        """(arrays, number of windows that are done); None where what is there is damaged, or of another pass."""
        try:
            stored = load_arrays(self._file)
            done, of = int(stored.pop("done").item()), str(stored.pop("key").item())
        except (FilesLost, KeyError, ValueError):
            return None
        return (stored, done) if of == self._key else None

    def cut(self) -> Arrays | None:
        """The windows as they were cut from the text, so that it need not be tokenized again."""
        loaded = self.load()
        if loaded is None or not all(name in loaded[0] for name in _CUT):
            return None
        return {name: loaded[0][name] for name in _CUT}

    def resume(self, observer: Observer) -> int:
        """Windows that an earlier call finished; their values go into the observer."""
        loaded = self.load()
        if loaded is None:
            return 0
        stored, done = loaded
        kept, wanted = (
            {name: (arrays[name].shape, arrays[name].dtype) for name in observer.arrays if name in arrays}
            for arrays in (stored, observer.arrays)
        )
        if kept != wanted:
            return 0
        for name, array in observer.arrays.items():
            array[...] = stored[name]
        return done

    def save(self, arrays: Arrays, done: int) -> None:
        """Keep it."""
        save_arrays(self._file, {**arrays, "done": np.array([done]), "key": np.array([self._key])})

    def forget(self) -> None:
        """Remove it."""
        self._file.unlink(missing_ok=True)

    @staticmethod
    def first(arrays: Arrays, done: int) -> Arrays:
        """Arrays of the first windows only, and planned, [1]: how many there will be."""
        cut = {name: array[:done] if name in _OF_WINDOWS else array for name, array in arrays.items()}
        return cut | {"planned": np.array([len(arrays["nll"])], dtype=np.int64)}

    def base(self) -> Arrays | None:
        """A reference's values of the windows so far, as `run_reference_pass` returns them, if its codes are there."""
        loaded = self.load()
        if loaded is None or "vocabulary" not in loaded[0]:
            return None
        return Progress.first(*loaded) if has_codes(self._file.parent, loaded[0]) else None


def has_codes(folder: Path, arrays: Arrays) -> bool:
    """Whether the distributions of a reference's pass are (still) there, whole."""
    if "total" not in arrays:
        return False
    expected = 2 * arrays["scale"].size * int(arrays["vocabulary"].item())
    try:
        return (folder / CODES_FILE).stat().st_size == expected
    except OSError:
        return False


def load_base(folder: Path, arrays_file: Path) -> Arrays:
    """A reference's values, those of its first windows where its pass is not complete.

    Args:
        folder: of its pass.
        arrays_file: its arrays, if the pass is complete.

    Raises:
        FilesLost: there are none.
    """
    if arrays_file.is_file():
        return load_arrays(arrays_file)
    stored = load_arrays(folder / _PARTIAL_FILE)
    done = int(stored.pop("done").item())
    del stored["key"]
    return Progress.first(stored, done)


def decode(
    worker: WorkerContext,
    model: Model,
    plan: Plan,
    observer: Observer,
    progress: Progress,
    decided: Callable[[int], bool] | None = None,
) -> int:
    """Decode windows in their order until all are done, or `decided` says so of the first ones; how many are done."""
    count, settings = 1, in_one_context(plan.request.settings)
    if not plan.alone:
        count = count_lanes(plan.request.settings)
        settings = plan.request.settings.lane(count)
    total = plan.total or len(plan.windows)
    start, stop, size = progress.resume(observer), min(total, plan.upto or total, len(plan.windows)), settings.n_seq

    def measure(context: Context, group: range) -> int:
        for block in context.score(plan.windows, group.start, group.stop, plan.request.score_from):
            observer.observe(block)
        return group.stop

    done, saved, over, whole = start, time.monotonic(), False, False
    worker.progress(done, total)
    groups = [range(first, min(first + size, stop)) for first in range(start, stop, size)]
    try:
        with _contexts(worker, model, settings, count, keep=plan.upto is not None) as lanes:
            for done in lanes.map(measure, groups):
                worker.progress(done, total)
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    progress.save(observer.arrays | plan.facts, done)
                    saved = time.monotonic()
                if over := decided is not None and decided(done):
                    break
            whole = not over
    finally:
        if not whole:
            # In the middle: what other contexts have begun is awaited, as nothing may observe after this call.
            worker.drop_kept()
    if over or (done == total and plan.upto is None):
        progress.forget()
    else:
        progress.save(observer.arrays | plan.facts, done)
    return done


def in_one_context(settings: SessionSettings) -> SessionSettings:
    """Settings of a context with all threads, and the batches of one of several side by side: with their numbers."""
    return replace(settings.lane(count_lanes(settings)), threads=settings.threads)


@contextlib.contextmanager
def _contexts(
    worker: WorkerContext, model: Model, settings: SessionSettings, count: int, *, keep: bool
) -> Iterator[Lanes[Context]]:
    """Contexts side by side: for one call, or kept open in the worker for the next ones."""
    from gguf_harness.engine.context import Context

    def open_lanes() -> Lanes[Context]:
        return Lanes(count, lambda: Context(model, settings))

    if keep:
        yield worker.keep(("passes", settings, count), open_lanes)
    else:
        with open_lanes() as lanes:
            yield lanes
