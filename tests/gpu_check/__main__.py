"""`python -m tests.gpu_check`: see the package."""

from __future__ import annotations

import argparse
import datetime as dt
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.gpu_check.environment import ROOT, Setup
from tests.gpu_check.machine import find_gpus
from tests.gpu_check.plan import STEPS, Step, run_steps
from tests.gpu_check.table import headline, report, table, write_report
from tests.gpu_check.verdicts import NO_GPU, StepResult, exit_code


def main(arguments: list[str] | None = None) -> int:
    """Run all steps, write gpu-check.json, print a table; returns the exit code."""
    known = _parse(arguments)
    try:
        gpus, problem = find_gpus()
    except subprocess.TimeoutExpired:
        gpus, problem = [], "nvidia-smi does not answer"
    if not gpus and not known.cpu:
        print(f"There is no NVIDIA GPU here: {problem}.\n  Nothing was checked. --cpu tries out the steps on the CPU.")
        return NO_GPU
    folder = known.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        str(folder),
        str(known.cache.absolute() if known.cache else folder / "cache"),
        gpu=not known.cpu,
        quick=known.quick,
        python=sys.executable,
        wheels=str(known.wheels.absolute()) if known.wheels else None,
        sdist=str(known.sdist.absolute()) if known.sdist else None,
        build_s=known.build_seconds,
    )
    Path(setup.cache).mkdir(parents=True, exist_ok=True)
    start, results = time.monotonic(), list[StepResult]()
    context: dict[str, Any] = {
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "gpu": setup.gpu,
        "quick": setup.quick,
        "seconds_allowed": known.seconds,
    }

    def keep(result: StepResult) -> None:
        # Whatever ends this process, what is known by then is on disk.
        results.append(result)
        spent = {"seconds": round(time.monotonic() - start, 1)}
        write_report(folder / "gpu-check.json", report(results, context | spent))
        print(table([result]), flush=True)

    run_steps(STEPS, setup, known.seconds, _announce, keep, frozenset(known.only or ()))
    print(f"\n{table(results)}\n\n{headline(results, gpu=setup.gpu)}\n{folder / 'gpu-check.json'}")
    return exit_code(results)


def _announce(step: Step, limit_s: float) -> None:
    print(f"... {step.title} (at most {limit_s:.0f} s)", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__)
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels: llama-cpp-python with CUDA, what is missing"
    )
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="sdist of llama-cpp-python, to be built with CUDA")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "gpu-check", help="where results go")
    parser.add_argument("--cache", type=Path, help="what later checks find again (default: cache in --folder)")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all steps together (default: 600)")
    parser.add_argument("--build-seconds", type=float, default=300.0, help="of these, for compiling (default: 300)")
    parser.add_argument("--only", action="append", metavar="STEP", help="run this step and what comes before all")
    parser.add_argument("--cpu", action="store_true", help="try out the steps on the CPU; checks no GPU")
    parser.add_argument("--quick", action="store_true", help="smallest sizes; says little")
    known = parser.parse_args(arguments)
    names = {step.name for step in STEPS}
    for step in known.only or ():
        if step not in names:
            parser.error(f"there is no step {step!r}; expected one of {', '.join(sorted(names))}")
    if known.wheels and not known.wheels.is_dir():
        parser.error(f"--wheels={known.wheels}: there is no such folder")
    if known.sdist and not known.sdist.is_file():
        parser.error(f"--sdist={known.sdist}: there is no such file")
    if known.seconds <= 0 or known.build_seconds <= 0:
        parser.error("--seconds and --build-seconds must be above 0")
    return known


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
