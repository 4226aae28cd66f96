"""The fixture `analytics` in whole sessions: on a machine without GPUs, and when its child is killed."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from tests.plugin.conftest import INI, ReadRun

TESTS = """
import os, signal
import numpy as np
import pytest

POINTS = np.random.default_rng(0).normal(size=(30, 6))

def test_a_projection(analytics):
    found = analytics.project(POINTS)
    assert found.coordinates.shape == (30, 2)
    assert found.backend.endswith(", CPU")
    with open("pid", "w") as file:
        file.write(str(analytics.pid))

def test_killed(analytics):
    os.kill(analytics.pid, signal.SIGKILL)
    analytics.cluster(POINTS)

def test_the_next_one(analytics):
    assert analytics.cluster(POINTS, size=3).clusters == 3
    with open("pid", "a") as file:
        file.write(f" {analytics.pid}")
"""


@pytest.mark.parametrize("arguments", [(), ("-n", "1")])
def test_a_killed_child_costs_its_own_test(
    pytester: pytest.Pytester, read_run: ReadRun, llama_file: Path, arguments: tuple[str, ...]
) -> None:
    pytester.makepyfile(TESTS)
    root = ["-c", str(INI), "--rootdir", str(pytester.path), "-p", "no:cacheprovider", "-W", "error"]
    models = [f"--models={llama_file}", "--gguf-analytics-gpu=-1", "--gguf-threads=1"]
    result = pytester.run(sys.executable, "-m", "pytest", *root, *models, *arguments, timeout=120)
    result.assert_outcomes(passed=2, failed=1)
    output = str(result.stdout)
    assert "analytics: the worker process died of SIGKILL (killed from outside" in output
    assert "Traceback" not in output
    for pid in map(int, (pytester.path / "pid").read_text().split()):
        assert not psutil.pid_exists(pid)
    run = read_run()
    (backend,) = run["analytics"]
    assert backend.startswith("scikit-learn ")
    assert run["settings"]["analytics_gpu"] == -1
