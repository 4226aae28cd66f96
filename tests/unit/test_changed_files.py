"""A model's file that changes while a session runs: nothing measured of it counts, and nothing is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.errors import ModelError
from gguf_harness.inputs.ladder import PlannedSubject, plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.measurement import Job, Measurement, as_json
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line


@pytest.fixture
def file(llama_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(llama_file, tmp_path / "m.gguf"))


@pytest.fixture
def planned(file: Path, tmp_path: Path) -> tuple[Core, PlannedSubject]:
    arguments = [f"--models={file}", f"--gguf-results={tmp_path / 'results'}", "-p", "no:cacheprovider"]
    options = read_options(parse_command_line(*arguments))
    (model,) = plan_ladder(options).models
    return Core(options, SilentProgress()), model


def _in_place(file: Path) -> None:
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _by_another(file: Path) -> None:
    status = file.stat()
    other = Path(shutil.copy(file, file.with_name("other")))
    _in_place(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [_in_place, _by_another])
def test_a_changed_file_is_refused_from_then_on(
    planned: tuple[Core, PlannedSubject], file: Path, change: Callable[[Path], None]
) -> None:
    core, model = planned
    core.subject(model)
    change(file)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"m: m\.gguf changed while it was being measured"):
            core.subject(model)


def _job(subject: Subject, core: Core, work: Callable[[], object]) -> Job[dict[str, Any]]:
    """Something that a worker is asked for, during which `work` is done."""

    def task(_: object) -> dict[str, Any]:
        # What a measurement does first; the process itself starts with the first call.
        with core.new_worker(subject.model.name):
            work()
        return {"a": 1}

    measurement = Measurement("passes/test", 1, task, "steps", as_json(dict, dict), runs="in the session")
    return Job(measurement, "test", {"model": subject.sha256}, lambda _: ())


@pytest.mark.parametrize("change", [_in_place, _by_another])
def test_what_was_measured_meanwhile_is_not_kept(
    planned: tuple[Core, PlannedSubject], file: Path, change: Callable[[Path], None]
) -> None:
    core, model = planned
    job = _job(core.subject(model), core, lambda: change(file))
    for _ in range(2):
        with pytest.raises(ModelError, match="changed while it was being measured"):
            core.measure(job)
    assert core.entry(job).load() is None
    assert not list((core.cache.root / "passes").glob("*/meta.json"))


def test_a_file_that_is_gone_is_named(planned: tuple[Core, PlannedSubject], file: Path) -> None:
    core, model = planned
    core.subject(model)
    file.unlink()
    with pytest.raises(ModelError, match=r"m: m\.gguf has been missing since it was hashed"):
        core.subject(model)


def test_another_name_or_time_is_no_change(planned: tuple[Core, PlannedSubject], file: Path) -> None:
    core, model = planned
    loaded = core.subject(model)
    os.link(file, file.with_name("n.gguf"))
    os.utime(file, (1, 1))
    file.chmod(0o600)
    assert core.subject(model) == loaded


def test_others_are_still_measured(planned: tuple[Core, PlannedSubject], file: Path, llama_file: Path) -> None:
    core, model = planned
    other = plan_ladder(read_options(parse_command_line(f"--models={llama_file}"))).models[0]
    core.subject(model)
    subject = core.subject(other)
    _in_place(file)
    assert core.measure(_job(subject, core, lambda: None)) == {"a": 1}
