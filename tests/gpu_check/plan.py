"""The steps, their order and their limits; one after the other until the time is over."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.gpu_check.environment import Setup, child_environment
from tests.gpu_check.running import run_child
from tests.gpu_check.verdicts import Outcome, StepResult

__all__ = ["STEPS", "Step", "run_steps"]

_END_S: Final = 5.0
"""Kept for writing the results."""


@dataclass(frozen=True, slots=True)
class Step:
    """One of the steps.

    Attributes:
        name: short, as in the JSON.
        title: what it is about.
        where: MODULE:FUNCTION, called with the setup.
        limit_s: most seconds.
        least_s: with fewer left, it is not begun.
        needs: steps that must have passed.
        stands_in: on the CPU, whether the step can be tried out, or why it cannot.
        before_install: whether it runs before there is a llama.cpp, with the interpreter of this process.
    """

    name: str
    title: str
    where: str
    limit_s: float
    least_s: float
    needs: tuple[str, ...] = ("devices",)
    stands_in: bool | str = True
    before_install: bool = False


def _step(name: str, title: str, where: str, limit_s: float, least_s: float, **more: object) -> Step:
    return Step(name, title, f"tests.gpu_check.{where}", limit_s, least_s, **more)  # type: ignore[arg-type]


_NO_GPU: Final = "needs a GPU"

STEPS: Final = (
    _step("machine", "Driver, GPUs, toolkit", "machine:look", 30, 5, needs=(), before_install=True),
    _step("install", "llama.cpp with CUDA", "cuda_build:install", 330, 20, needs=("machine",), before_install=True),
    _step("devices", "llama.cpp's devices", "devices:look", 40, 5, needs=("install",)),
    _step("numbers-tiny", "CPU against GPU, tiny", "divergence:tiny", 90, 15),
    _step("memory", "GPU memory", "memory:compare", 60, 10, stands_in=_NO_GPU),
    _step("suites-tiny-gpu", "Five suites on tiny, GPU", "suites:tiny_gpu", 150, 40),
    _step("suites-tiny-cpu", "Five suites on tiny, CPU", "suites:tiny_cpu", 120, 40),
    _step(
        "compare-tiny",
        "Estimates and verdicts, tiny",
        "suites:compare_tiny",
        20,
        5,
        needs=("suites-tiny-gpu", "suites-tiny-cpu"),
    ),
    _step("analytics", "Analyses by cuML", "analyses:compare", 90, 20),
    _step("two-gpus", "Models on GPU 0, analyses on GPU 1", "two_gpus:look", 90, 20, stands_in=_NO_GPU),
    _step("own-tests", "Our tests of taps and numbers", "own_tests:run", 150, 45),
    _step("numbers-smollm2", "CPU against GPU, SmolLM2", "divergence:smollm2", 60, 15),
    _step("suites-smollm2-gpu", "Five suites on SmolLM2, GPU", "suites:smollm2_gpu", 120, 40),
    _step("suites-smollm2-cpu", "Five suites on SmolLM2, CPU", "suites:smollm2_cpu", 150, 40),
    _step(
        "compare-smollm2",
        "Estimates and verdicts, SmolLM2",
        "suites:compare_smollm2",
        20,
        5,
        needs=("suites-smollm2-gpu", "suites-smollm2-cpu"),
    ),
)
"""What decides most comes first: later steps are those that a slow machine has no time for."""

Show = Callable[[StepResult], None]
Begin = Callable[[Step, float], None]


def run_steps(
    steps: Sequence[Step], setup: Setup, total_s: float, begin: Begin, show: Show, only: frozenset[str] = frozenset()
) -> list[StepResult]:
    """Run the steps, whatever becomes of each; the result of every one of them.

    Args:
        steps: in order.
        setup: of the check.
        total_s: seconds for all of them.
        begin: told of each step that starts, with its limit.
        show: told of each result.
        only: names of the steps to run besides those before the installation; empty for all.
    """
    end = time.monotonic() + total_s
    results: dict[str, StepResult] = {}
    for step in steps:
        left = end - time.monotonic() - _END_S
        limit_s = min(max(step.limit_s, setup.build_s + 30) if step.name == "install" else step.limit_s, left)
        reason = _why_not(step, setup, results, left, only)
        if reason is not None:
            result = StepResult(step.name, step.title, reason, 0.0, 0.0, _device(step, setup))
        else:
            begin(step, limit_s)
            result = _run(step, setup, limit_s)
        results[step.name] = result
        show(result)
        numbers = result.outcome.numbers
        setup = replace(setup, found=setup.found | {step.name: numbers})
        if step.name == "install" and result.outcome.verdict == "pass":
            setup = replace(setup, python=numbers["python"])
    return list(results.values())


def _why_not(
    step: Step, setup: Setup, results: dict[str, StepResult], left: float, only: frozenset[str]
) -> Outcome | None:
    """Why a step is not begun; None if it is."""
    if only and step.name not in only and step.name not in ("machine", "install", "devices"):
        return Outcome("not run", "not asked for (--only)", absent=True)
    if not setup.gpu and step.stands_in is not True:
        return Outcome("not run", str(step.stands_in), absent=True)
    stopped = [name for name in step.needs if results[name].outcome.verdict != "pass"]
    if stopped:
        # What is not here cannot be compared either; what failed makes the next one fail to pass, too.
        absent = all(results[name].outcome.absent for name in stopped)
        return Outcome("not run", f"{', '.join(stopped)} did not pass", absent=absent)
    if left < step.least_s:
        return Outcome("not run", f"out of time: {max(0.0, left):.0f} s are left, it needs {step.least_s:.0f} s")
    return None


def _run(step: Step, setup: Setup, limit_s: float) -> StepResult:
    folder = setup.path
    told, result, log = (folder / f"{step.name}.{end}" for end in ("setup.json", "result.json", "log"))
    setup.write(told)
    python = sys.executable if step.before_install else setup.python
    command = [python, "-P", "-m", "tests.gpu_check.child", step.where, str(told), str(result)]
    outcome, seconds = run_child(command, result, log, limit_s, child_environment(python))
    # A step may refuse by itself, and then has no numbers that the next ones could take.
    json.dumps(outcome.to_json(), allow_nan=False)
    return StepResult(step.name, step.title, outcome, seconds, limit_s, _device(step, setup), Path(log).name)


def _device(step: Step, setup: Setup) -> str:
    if step.name.endswith("-cpu"):
        return "CPU"
    return "GPU" if setup.gpu else "CPU stand-in"
