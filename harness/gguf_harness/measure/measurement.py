"""What a measurement is, and what it takes to make one: the cache, a worker and progress are `core.Core`'s."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_harness.engine.worker import Worker
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.store.cache import Entry

__all__ = ["ARRAYS", "Files", "Format", "Job", "Measurement", "as_json"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Format(Generic[R]):
    """How a result lies in the cache: a description of JSON types, and arrays.

    Attributes:
        pack: what is stored of a result; None for no arrays.
        unpack: the result again. What it cannot read is measured again.
    """

    pack: Callable[[R], tuple[dict[str, Any], Arrays | None]]
    unpack: Callable[[dict[str, Any], Arrays], R]


def _arrays_alone(_: dict[str, Any], arrays: Arrays) -> Arrays:
    if not arrays:
        raise KeyError("an entry without arrays")
    return arrays


ARRAYS: Final[Format[Arrays]] = Format(lambda arrays: ({}, arrays), _arrays_alone)
"""A result that is arrays and nothing else."""


def as_json(pack: Callable[[R], dict[str, Any]], unpack: Callable[[dict[str, Any]], R]) -> Format[R]:
    """The format of a result without arrays."""
    return Format(lambda result: (pack(result), None), lambda value, _: unpack(value))


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Measurement(Generic[R]):
    """A named, versioned piece of work that ends in arrays or numbers, done once and then cached.

    Attributes:
        kind: family, which is a folder of the cache, and name: "passes/reference".
        version: part of the key. Raise it when the same inputs would give other numbers (a corrected formula, another
            constant, other windows) or arrays of another layout: what was stored before is then measured again. What is
            computed from another entry needs no raise: its key holds the name of that entry.
        task: `task(context, *arguments)`; in the session's process it gets what shows progress in place of a context.
        unit: what progress counts.
        format: how the result lies in the cache.
        runs: in the subject's worker, in a worker that ends with it, or in the session's process, for what starts its
            own workers or needs none.
        exclusive: timing: whatever else is loaded is closed first.
        keep: whether the next session may have this result.
        remembered: whether a session asks once; otherwise each call looks into the cache, and a failure is tried again.
        counted: whether it is one of the measurements that a run says it took from the cache, or made.
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


@dataclass(frozen=True, slots=True)
class Files(Generic[R]):
    """Files beside a result, which others read: the result counts only where they are there.

    Attributes:
        name: what they are; the same result may be asked for with them and without.
        are_there: whether a folder still has them, given the result.
    """

    name: str
    are_there: Callable[[Path, R], bool]


@dataclass(frozen=True, slots=True)
class Job(Generic[R]):
    """One thing to measure.

    Attributes:
        measurement: what.
        label: for the line of progress: "tiny-Q4_K_M on pydoc".
        key: everything that the result depends on but the measurement's version, as JSON types.
        arguments: of the task; called only where it has to run, with the entry that the task may write files to.
        subjects: whose files are read. They must not change meanwhile; the first one's worker does the work.
        reads: another job, whose files the task reads.
        files: that have to be there beside the result.
        prepare: called before anything is measured, to make room or to refuse.
        check: called after it, to refuse what came of it.
        around: held open while it is measured.
        worker: does the work in place of the first subject's.
    """

    measurement: Measurement[R]
    label: str
    key: dict[str, Any]
    arguments: Callable[[Entry], tuple[Any, ...]]
    subjects: tuple[Subject, ...] = ()
    reads: Job[Any] | None = None
    files: Files[R] | None = None
    prepare: Callable[[Entry], None] | None = None
    check: Callable[[], None] | None = None
    around: Callable[[], contextlib.AbstractContextManager[object]] = field(default=contextlib.nullcontext)
    worker: Callable[[], Worker] | None = None
