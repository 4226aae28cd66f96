"""A plugin for sessions whose forecasts are fitted: seconds are those of processors, of this process and its children.

So they are nearly the same while others use the machine, if the session decodes with one thread:

    python -m tests.bench.forecast --fit --processor-times

Whatever waits for others, such as a server that is asked, takes less so than by the clock.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest
from _pytest import timing

from gguf_harness.measure import measuring
from gguf_harness.measure.forecast import calibration
from gguf_harness.pytest_plugin import foresight

if TYPE_CHECKING:
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker_context import WorkerContext

_THIS = psutil.Process()


def processor_s() -> float:
    """Seconds of this process, of its children that live, and of those that ended."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for child in _THIS.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used = child.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


def costs_by_processor(
    worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, output: float, enough_s: float
) -> dict[str, float]:
    """As `measure_costs`; runs in a worker."""
    calibration.time = cast("Any", SimpleNamespace(perf_counter=time.process_time))  # type: ignore[attr-defined]
    return calibration.measure_costs(worker, files, settings, output, enough_s)


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Change what is timed, and foresee short sessions, too."""
    measuring.time = cast("Any", SimpleNamespace(monotonic=processor_s))  # type: ignore[attr-defined]
    timing.perf_counter = processor_s
    calibration._COSTS = replace(calibration._COSTS, task=costs_by_processor)  # type: ignore[misc]
    foresight._WORTH_S = 0.0  # type: ignore[misc]
