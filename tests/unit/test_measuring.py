"""The one way to measure: once, from the cache where it can, with failures remembered and lost files measured again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.errors import EngineError, FilesLost
from gguf_harness.inputs.options import read_options
from gguf_harness.measure.measurement import ARRAYS, Files, Format, Job, Measurement, as_json
from gguf_harness.measure.measuring import Measuring
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from tests.command_line import parse_command_line

Start = Callable[..., Measuring]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`start("--gguf-fresh")`: what measures in a session of its own; all of them share a cache."""

    def new(*arguments: str) -> Measuring:
        options = read_options(parse_command_line(f"--gguf-cache={tmp_path / 'cache'}", *arguments))
        return Measuring(options, SilentProgress())

    return new


def _job(task: Callable[..., Any], format_: Format[Any] | None = None, **more: Any) -> Job[Any]:
    measurement = Measurement("passes/test", 1, task, "steps", format_ or as_json(dict, dict), runs="in the session")
    return Job(measurement, "test", {"x": 1}, lambda _: (), **more)


def test_it_is_measured_once_and_found_by_the_next_session(start: Start) -> None:
    calls = []

    def task(_: object) -> dict[str, Any]:
        calls.append(1)
        return {"value": 0.1}

    job = _job(task)
    first = start()
    assert [first.measure(job), first.measure(job)] == [{"value": 0.1}] * 2
    assert (first.hits, first.misses, len(calls)) == (0, 1, 1)
    second = start()
    assert second.measure(job) == {"value": 0.1}
    assert (second.hits, second.misses, len(calls)) == (1, 0, 1)
    assert start("--gguf-fresh").measure(job) == {"value": 0.1}
    assert len(calls) == 2


def test_another_version_and_another_key_are_other_results(start: Start) -> None:
    session, job = start(), _job(lambda _: {"value": 1})
    session.measure(job)
    newer = replace(job, measurement=replace(job.measurement, version=2, task=lambda _: {"value": 2}))
    other = replace(newer, measurement=replace(newer.measurement, version=1), key={"x": 2})
    assert [session.measure(each)["value"] for each in (newer, other, job)] == [2, 2, 1]


def test_a_failure_is_remembered_for_the_session_and_kept_nowhere(start: Start) -> None:
    calls = []

    def fail(_: object) -> dict[str, Any]:
        calls.append(1)
        raise EngineError("no such luck")

    session, job = start(), _job(fail)
    for _ in range(2):
        with pytest.raises(EngineError, match="no such luck"):
            session.measure(job)
    assert len(calls) == 1
    assert session.entry(job).load() is None
    again = replace(job, measurement=replace(job.measurement, remembered=False))
    for _ in range(2):
        with pytest.raises(EngineError):
            session.measure(again)
    assert len(calls) == 3


def test_a_result_that_is_not_to_be_kept_is_measured_by_the_next_session(start: Start) -> None:
    calls = []

    def task(_: object) -> dict[str, Any]:
        calls.append(1)
        return {"disturbed": True}

    job = _job(task)
    job = replace(job, measurement=replace(job.measurement, keep=lambda result: not result["disturbed"]))
    for _ in range(2):
        start().measure(job)
    assert len(calls) == 2


def test_files_that_are_lost_meanwhile_are_measured_again(start: Start) -> None:
    made: list[Path] = []

    def write(_: object, folder: Path) -> Arrays:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "codes").write_text("whole")
        made.append(folder)
        return {"nll": np.arange(3.0)}

    def read(_: object, folder: Path) -> dict[str, Any]:
        if (folder / "codes").read_text() != "whole":
            raise FilesLost("The codes are damaged.")
        return {"read": True}

    there: Files[Arrays] = Files("codes", lambda folder, _: (folder / "codes").is_file())
    base = replace(_job(write, ARRAYS, files=there), arguments=lambda entry: (entry.folder,))
    session = start()
    folder = session.entry(base).folder
    reader = replace(_job(read, reads=(base,)), key={"x": 2}, arguments=lambda _: (folder,))
    session.measure(base)
    (folder / "codes").write_text("harmed")
    assert session.measure(reader) == {"read": True}
    assert len(made) == 2
    # Without its files the same result does not count.
    (folder / "codes").unlink()
    start().measure(base)
    assert len(made) == 3


def test_what_is_exclusive_closes_all_else_first(start: Start) -> None:
    session, closed = start(), []
    session.at_close(lambda: closed.append(1))
    job = _job(lambda _: {"seconds": float(len(closed))})
    session.measure(job)
    assert closed == []
    timed = replace(job, measurement=replace(job.measurement, exclusive=True), key={"x": 3})
    assert session.measure(timed) == {"seconds": 1.0}


@pytest.mark.parametrize("stored", [{"other": 1}, {}])
def test_a_value_of_another_shape_is_measured_again(start: Start, stored: dict[str, Any]) -> None:
    session = start()
    job = _job(lambda _: 0.5, as_json(lambda value: {"value": value}, lambda value: float(value["value"])))
    session.entry(job).save(stored)
    assert session.measure(job) == 0.5
    arrays = replace(_job(lambda _: {"a": np.ones(1)}, ARRAYS), key={"x": 4})
    session.entry(arrays).save(stored)
    assert session.measure(arrays)["a"].tolist() == [1.0]
