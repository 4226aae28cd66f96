"""Step: with two GPUs, models are on the first and analyses on the second, by the driver's lists of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import is_installed
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.analyses.calls import Analytics
from gguf_harness.measure.core import Core
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.gpu_check.analyses import made_points
from tests.gpu_check.environment import Setup
from tests.gpu_check.memory import load_and_read
from tests.gpu_check.verdicts import Outcome

__all__ = ["judge", "look"]


def look(setup: Setup) -> Outcome:
    """A model in one worker and an analysis in another, both alive while the driver is asked."""
    gpus = setup.found["machine"]["gpus"]
    if len(gpus) < 2:
        return Outcome("not run", f"{len(gpus)} GPU is here, it takes two", absent=True)
    (source,) = expand("tiny")
    options = read_options(parse_command_line("--models=tiny", f"--gguf-cache={setup.path / 'two-gpus'}"))
    core = Core(options, SilentProgress())
    try:
        with Worker("model", setup.path / "two-gpus-worker.log", gpu=options.gpu, timeout_s=40) as worker:
            worker.call(load_and_read, None, source.files, SessionSettings(n_ctx=512, n_batch=512, threads=1))
            with Analytics(core) as analytics:
                analytics.project(made_points()[0], "pca")
                pids = {"model": worker.pid, "analyses": analytics.pid}
                return judge(_processes(), pids, analytics.gpu, cuml=is_installed("cuml"))
    finally:
        core.close()


def judge(processes: Mapping[int, set[int]], pids: Mapping[str, int | None], chosen: int, *, cuml: bool) -> Outcome:
    """Whether each is where it should be.

    Args:
        processes: ids by GPU, as the driver lists them.
        pids: of the model's worker and of that of analyses.
        chosen: index of the GPU that analyses were given.
        cuml: whether analyses use a GPU at all.
    """
    where = {name: sorted(gpu for gpu, known in processes.items() if pid in known) for name, pid in pids.items()}
    numbers: dict[str, Any] = {"model": where["model"], "analyses": where["analyses"], "chosen": chosen, "cuml": cuml}
    if not any(processes.values()):
        return Outcome("not run", "the driver names no processes here (a container, or WSL)", numbers, absent=True)
    if where["model"] != [0]:
        return Outcome("fail", f"the model is on GPUs {where['model']}, expected 0 alone", numbers)
    if chosen != 1:
        return Outcome("fail", f"analyses were given GPU {chosen}, expected 1", numbers)
    if not cuml:
        reason = "the model is on GPU 0 alone, analyses were given GPU 1; without cuML they do not use it"
        return Outcome("not run", reason, numbers, absent=True)
    if where["analyses"] != [1]:
        return Outcome("fail", f"analyses are on GPUs {where['analyses']}, expected 1 alone", numbers)
    return Outcome("pass", "the model is on GPU 0 alone, analyses on GPU 1 alone", numbers)


def _processes() -> dict[int, set[int]]:
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {
            index: {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
            for index, handle in enumerate(handles)
        }
    finally:
        pynvml.nvmlShutdown()
