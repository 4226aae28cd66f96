"""Definition of measurements and jobs; `core.Core` adds the cache, a worker and progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_harness.engine.calling import TaskWorker
    from gguf_harness.inputs.subjects import Model, Subject
    from gguf_harness.store.cache import Entry

__all__ = ["ARRAYS", "Files", "Format", "Job", "Measurement", "as_json"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Format(Generic[R]):
    """How a result is stored in the cache: a description of JSON types, and arrays.

    Attributes:
        pack: converts a result to what is stored; None for no arrays.
        unpack: restores the result; if it cannot, the result is measured again.
    """

    pack: Callable[[R], tuple[dict[str, Any], Arrays | None]]
    unpack: Callable[[dict[str, Any], Arrays], R]


def _arrays_alone(_: dict[str, Any], arrays: Arrays) -> Arrays:
    if not arrays:
        raise KeyError("an entry without arrays")
    return arrays


ARRAYS: Final[Format[Arrays]] = Format(lambda arrays: ({}, arrays), _arrays_alone)
"""A result that consists only of arrays."""


def as_json(pack: Callable[[R], dict[str, Any]], unpack: Callable[[dict[str, Any]], R]) -> Format[R]:
    """The format of a result without arrays."""
    return Format(lambda result: (pack(result), None), lambda value, _: unpack(value))


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Measurement(Generic[R]):
    """A named, versioned piece of work whose result, arrays or numbers, is computed once and then cached.

    Attributes:
        kind: folder of the cache, and name: "passes/reference".
        version: part of the key. Raise it when the same inputs would give other numbers (a corrected formula, another
            constant, other windows) or another layout of arrays: older results are then measured again. Results
            computed from another entry need no raise: their key contains the name of that entry.
        task: `task(context, *arguments)`; in the session's process it gets a progress display instead of a context.
        unit: what progress counts.
        format: how the result is stored in the cache.
        runs: in the subject's worker, in a separate worker that ends with it, or in the session's process, for tasks
            that start workers themselves or need none.
        exclusive: for timings: all other loaded models are closed first.
        keep: whether later sessions may use this result.
        remembered: whether a session remembers the result; otherwise each call looks in the cache, and a failure is
            retried.
        about_machine: whether it is about the machine of the session: then it runs there, with --gguf-ray too.
        counted: whether it counts in the run's numbers of cached and new measurements.
    """

    kind: str
    version: int
    task: Callable[..., R]
    unit: str
    format: Format[R]
    runs: Literal["in a worker", "in its own worker", "in the session"] = "in a worker"
    exclusive: bool = False
    keep: Callable[[R], bool] = _always
    remembered: bool = True
    counted: bool = True
    about_machine: bool = False


@dataclass(frozen=True, slots=True)
class Files(Generic[R]):
    """Files stored with a result, which other tasks read: the result is valid only if they exist.

    Attributes:
        name: what they are; the same result may be requested with and without them.
        are_there: whether they are still in a folder, given the result.
    """

    name: str
    are_there: Callable[[Path, R], bool]


@dataclass(frozen=True, slots=True)
class Job(Generic[R]):
    """A single measurement to run.

    Attributes:
        measurement: its definition.
        label: for the line of progress: "tiny-Q4_K_M on pydoc".
        key: everything that the result depends on except the measurement's version, as JSON types.
        arguments: makes the arguments of the task; called only if the task must run, with the entry that the task may
            write files to.
        subjects: subjects whose files are read. The files must not change meanwhile; the first one's worker does the
            work.
        reads: other jobs whose files the task reads.
        files: files that must exist with the result.
        prepare: called before the measurement, to make room or to refuse.
        check: called after it, to refuse the result.
        around: context manager held during the measurement.
        worker: a worker to use instead of the first subject's.
        about: the subject, or model, that the result is about, if that is not the first of `subjects`; see `topic`.
        part: which of several measurements of its kind and topic it is, by its name in `forecast/needs.py`; None for
            the only one.
    """

    measurement: Measurement[R]
    label: str
    key: dict[str, Any]
    arguments: Callable[[Entry], tuple[Any, ...]]
    subjects: tuple[Subject, ...] = ()
    reads: tuple[Job[Any], ...] = ()
    files: Files[R] | None = None
    prepare: Callable[[Entry], None] | None = None
    check: Callable[[], None] | None = None
    around: Callable[[], contextlib.AbstractContextManager[object]] = field(default=contextlib.nullcontext)
    worker: Callable[[], TaskWorker] | None = None
    about: Subject | Model | None = None
    part: str | None = None

    @property
    def name(self) -> str:
        """What forecasts call it."""
        return self.part or self.measurement.kind

    @property
    def topic(self) -> Subject | Model | None:
        """What the result is about; None for what is about none, or not known to be."""
        return self.about or (self.subjects[0] if self.subjects else None)
