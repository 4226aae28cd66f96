"""How long suites/quant takes when everything is in the cache, and how much of that is the processor.

    python -m tests.bench.cached_suite [--runs 5] [--folder .cache/bench/cached] [PYTEST OPTION ...]

The first run measures, unless the folder has what it measures already; then it is run until nothing is left to measure
(timings that others disturbed are not cached), and that many times more. Beside it: one test of it, --collect-only and
--help. All are processes from start to end, as /usr/bin/time counts them; the median of the runs counts. The aim is of
two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

AIM_S = 3.0
_TRIES = 4
_ONE_TEST = "suites/quant/test_file.py::test_file"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench/cached"))
    known, options = parser.parse_known_args()
    options += [f"--gguf-results={known.folder.absolute()}", "-q", "-p", "no:cacheprovider"]
    # A plugin of ours only where we test: it imports hypothesis at the end of every session.
    options += ["-p", "no:hypothesispytest"]
    suite = ["suites/quant", *options]
    print("first run:  " + _told(_timed(suite)), flush=True)
    for _ in range(_TRIES):
        if not (left := _measured_anew(known.folder)):
            break
        print(f"            {left} measurements were not in the cache after all (timings in doubt); again", flush=True)
        _timed(suite)
    else:
        sys.exit("Others use this machine: timings stay in doubt and are not cached. Try again when it is quiet.")
    _report("cached run", suite, known.runs, f"aim < {AIM_S:.0f} s")
    _report("one test", [_ONE_TEST, *options], known.runs)
    _report("collect only", [*suite, "--collect-only"], known.runs)
    _report("help", ["--help"], known.runs)


def _report(what: str, arguments: list[str], runs: int, aim: str = "") -> None:
    seen = [_timed(arguments) for _ in range(runs)]
    wall, cpu = (statistics.median(column) for column in zip(*seen, strict=True))
    print(f"{what + ':':<13} {_told((wall, cpu))}, median of {runs}  {aim}", flush=True)


def _told(seconds: tuple[float, float]) -> str:
    return f"{seconds[0]:7.2f} s wall {seconds[1]:7.2f} s CPU"


def _timed(arguments: list[str]) -> tuple[float, float]:
    """(wall, CPU) seconds of a session, its children included.

    Raises:
        SystemExit: it ended in another way than with passed and failed tests.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pytest", *arguments], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in {0, 1}:  # some candidates fail their gates: that is a finding
        sys.exit(f"pytest {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _measured_anew(results: Path) -> int:
    """How many measurements the last run did not find in the cache."""
    run = max((results / "runs").glob("*/run.json"))
    return int(json.loads(run.read_text(encoding="utf-8"))["cache"]["misses"])


if __name__ == "__main__":
    main()
