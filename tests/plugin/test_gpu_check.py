"""`make gpu-check` tried out on the CPU, whole: all steps that a CPU can stand in for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_check.environment import ROOT
from tests.gpu_check.plan import STEPS
from tests.gpu_check.verdicts import PASSED

pytestmark = pytest.mark.model


@pytest.mark.timeout(300)
def test_every_step_that_a_cpu_can_stand_in_for_passes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_check", "--cpu", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == PASSED, done.stdout + done.stderr
    content = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))
    steps = {step["name"]: step for step in content["steps"]}
    assert list(steps) == [step.name for step in STEPS]
    assert content["headline"].startswith("NO GPU WAS CHECKED")
    assert content["headline"] in done.stdout
    verdicts = {name: step["outcome"]["verdict"] for name, step in steps.items()}
    needs_gpu = {step.name for step in STEPS if step.stands_in is not True}
    smollm2 = {name for name in steps if "smollm2" in name}
    assert needs_gpu == {"memory", "two-gpus"}
    assert {verdicts[name] for name in needs_gpu} == {"not run"}
    assert {verdict for name, verdict in verdicts.items() if name not in needs_gpu | smollm2} == {"pass"}
    # The stand-in computes in another way: what is compared is not the same numbers twice.
    files = steps["numbers-tiny"]["outcome"]["numbers"]["files"]
    assert files
    assert all(0 < found["kld_max"] < 1e-2 for found in files.values())
    assert steps["compare-tiny"]["outcome"]["numbers"]["estimates"] > 100
    assert steps["suites-tiny-cpu"]["device"] == "CPU"
    assert steps["suites-tiny-gpu"]["device"] == "CPU stand-in"
