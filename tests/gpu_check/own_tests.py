"""Step: our own tests of taps and numbers, with the tolerances of the device that llama.cpp finds (`tests.devices`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from gguf_harness.errors import is_installed
from tests.gpu_check.environment import ROOT, Setup
from tests.gpu_check.verdicts import Outcome

__all__ = ["TESTS", "read_junit", "run"]

TESTS: Final = ("engine", "taps", "attention", "layers", "ablation", "adapters", "generate", "cache_types", "lanes")
"""Modules of tests/integration whose numbers a device changes."""

_QUICK: Final = ("tests/integration/test_lanes.py",)


def run(setup: Setup) -> Outcome:
    """Passes where all of them pass."""
    lacking = [name for name in ("hypothesis", "pytest") if not is_installed(name)]
    if lacking:
        return Outcome("not run", f"{', '.join(lacking)} is not installed", absent=True)
    report = setup.path / "own-tests.xml"
    report.unlink(missing_ok=True)
    files = _QUICK if setup.quick else tuple(f"tests/integration/test_{name}.py" for name in TESTS)
    parallel = ["-n", "3", "--dist", "loadgroup"] if is_installed("xdist") and not setup.quick else []
    command = [
        *(
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--tb=short",
            "-m",
            "not exclusive",
            *parallel,
        ),
        f"--junitxml={report}",
        *files,
    ]
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, env=dict(os.environ) | _device(setup))
    if not report.is_file():
        return Outcome("fail", f"the session ended with exit code {done.returncode} and left no results")
    numbers = read_junit(report)
    failed = numbers["failed"]
    if failed:
        return Outcome("fail", f"{len(failed)} of {numbers['tests']} tests failed, such as {failed[0]}", numbers)
    if not numbers["passed"] or done.returncode != 0:
        return Outcome("fail", f"{numbers['passed']} tests passed, exit code {done.returncode}", numbers)
    return Outcome("pass", f"{numbers['passed']} tests passed, {numbers['skipped']} skipped", numbers)


def _device(setup: Setup) -> dict[str, str]:
    # These tests run llama.cpp in their own process, which sees every GPU: one is enough.
    if not setup.gpu:
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUDA_VISIBLE_DEVICES": re.split(r"\s*,\s*", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))[0]}


def read_junit(file: Path) -> dict[str, Any]:
    """Counts, and names of the tests that failed with the first line of why."""
    cases = list(ET.parse(file).getroot().iter("testcase"))  # noqa: S314 - pytest has just written it
    failed, skipped = [], 0
    for case in cases:
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            why = (problem.get("message") or "").splitlines()
            failed.append(f"{case.get('classname')}.{case.get('name')}: {why[0][:200] if why else 'no message'}")
        elif case.find("skipped") is not None:
            skipped += 1
    passed = len(cases) - len(failed) - skipped
    return {"tests": len(cases), "passed": passed, "skipped": skipped, "failed": failed}
