"""examples/slurm-shards.sbatch and examples/github-matrix.yml: their scripts run, with programs of ours for theirs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gguf_harness
from gguf_harness.cli import main
from gguf_harness.cli.commands import _parser
from gguf_harness.inputs.command_line import option_attributes, short_name
from gguf_harness.store.runs import load_run
from tests.random_llama import write_random_llama
from tests.workflows import EXAMPLES, read_workflow, script_of, steps_of

QUICK = "--gguf-ctx=32 --gguf-chunks=12 --gguf-batch=64 -k 'not served and not text and not speed' -p no:cacheprovider"
SLURM = EXAMPLES / "slurm-shards.sbatch"


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return read_workflow("github-matrix.yml")


def test_the_workflow_asks_for_little_and_ends(workflow: dict[Any, Any]) -> None:
    assert workflow["permissions"] == {}
    assert all(job["permissions"] == {"contents": "read"} for job in workflow["jobs"].values())
    assert all(0 < job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())
    used = [step["uses"] for step in steps_of(workflow) if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z/-]+@v\d+", action) for action in used), used
    assert workflow["env"]["HARNESS"] == f"gguf-harness=={gguf_harness.__version__}"


def test_the_workflow_merges_all_that_it_measures(workflow: dict[Any, Any]) -> None:
    measure, merge = workflow["jobs"]["measure"], workflow["jobs"]["merge"]
    shards = measure["strategy"]["matrix"]["shard"]
    assert shards == list(range(1, len(shards) + 1))
    assert measure["strategy"]["fail-fast"] is False
    assert merge["needs"] == "measure"
    # Whatever the shards say, the whole is decided.
    assert merge["if"] == "${{ !cancelled() }}"
    uploads, downloads = (
        next(step["with"] for step in job["steps"] if step.get("uses", "").startswith(f"actions/{what}-artifact"))
        for job, what in ((measure, "upload"), (merge, "download"))
    )
    assert re.fullmatch(downloads["pattern"].replace("*", ".*"), uploads["name"])
    shard = next(step["env"]["SHARD"] for step in measure["steps"] if step.get("name") == "Measure")
    assert shard == "${{ matrix.shard }}/${{ strategy.job-total }}"


def test_no_expression_stands_in_ascript_of(workflow: dict[Any, Any]) -> None:
    scripts = [step["run"] for step in steps_of(workflow) if "run" in step]
    assert not [script for script in scripts if "${{" in script]
    for script in scripts:
        assert "$" not in re.sub(r'"[^"]*"', "", script), script


def test_every_option_exists(workflow: dict[Any, Any]) -> None:
    known = {name for option in option_attributes() for name in (option, short_name(option))}
    merge_options = {"--gguf-results", "--gguf-save-baseline", "--gguf-baseline"}
    slurm = SLURM.read_text(encoding="utf-8")
    for script in (script_of(workflow, "Measure"), script_of(workflow, "Merge"), slurm):
        used = set(re.findall(r"(--(?:gguf-[a-z-]+|models|reference)\b)", script))
        assert used <= known, used - known
    assert set(re.findall(r"(--gguf-[a-z-]+)", script_of(workflow, "Merge"))) == merge_options
    _parser().parse_args(["merge", "shards", *(f"{option}=a" for option in sorted(merge_options))])
    directives = dict(re.findall(r"(?m)^#SBATCH --([a-z-]+)(?:=(.+))?$", slurm))
    assert directives.keys() >= {"array", "cpus-per-task", "mem", "time"}
    # Counted from 1, as --gguf-shard counts.
    assert re.fullmatch(r"1-\d+", directives["array"])
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What the scripts see: this checkout as the installed harness, a local release, and a queue for Slurm's jobs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {
        "gguf-harness": f'exec {shlex.quote(sys.executable)} -m gguf_harness.cli "$@"',
        "gh": 'mkdir -p models; cp "$RELEASE"/*.gguf models',
        "sbatch": 'for word; do case "$word" in --wrap=*) echo "${word#--wrap=}" >> "$QUEUE";; esac; done',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)
    release = tmp_path / "release"
    release.mkdir()
    model = write_random_llama(tmp_path / "model-F32.gguf", text=True)
    assert main(["quantize", str(model), "F16,Q8_0,Q6_K", "--out", str(release)]) == 0
    path = ":".join([str(EXAMPLES.parent / "harness"), str(EXAMPLES.parent)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB", "SLURM"))}
    return kept | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": path,
        "PYTEST_ADDOPTS": QUICK,
        "RELEASE": str(release),
        "MODELS": str(release),
        "REFERENCE": str(release / "model-F16.gguf"),
        "QUEUE": str(tmp_path / "queue"),
        "TAG": "v1",
        "GITHUB_REPOSITORY": "owner/repository",
    }


def _bash(script: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", *script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@pytest.mark.model
def test_the_tasks_of_a_slurm_array_are_merged(tmp_path: Path, environment: dict[str, str]) -> None:
    work = tmp_path / "work"
    array = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    # The second is preempted, and begins again.
    for task in ("1", "2", "2"):
        done = _bash([str(SLURM)], work, environment | array | {"SLURM_ARRAY_TASK_ID": task})
        assert done.returncode == 0, done.stdout + done.stderr
    (queued,) = (tmp_path / "queue").read_text().splitlines()
    done = _bash(["-c", queued], work, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (merged,) = work.glob("results/17/whole/runs/*/run.json")
    run = load_run(merged)
    assert run["finished"]
    assert [model["name"] for model in run["models"]] == ["model-F16", "model-Q6_K", "model-Q8_0"]
    # Begun again, the second task found what it had measured in the cache.
    second = next(work.glob("results/17/parts/2/runs/*/run.json"))
    assert load_run(second)["cache"]["misses"] == 0


@pytest.mark.model
def test_the_shards_of_the_workflow_are_merged(
    tmp_path: Path, workflow: dict[Any, Any], environment: dict[str, str]
) -> None:
    environment["REFERENCE"] = workflow["env"]["REFERENCE"]
    shell = ["-eo", "pipefail", "-c"]
    shards = workflow["jobs"]["measure"]["strategy"]["matrix"]["shard"]
    whole = tmp_path / "merge"
    for shard in shards:
        # Each on a machine of its own, as far as folders can be that.
        machine = tmp_path / f"machine-{shard}"
        for name in ("Download", "Measure"):
            done = _bash(
                [*shell, script_of(workflow, name)], machine, environment | {"SHARD": f"{shard}/{len(shards)}"}
            )
            assert done.returncode == 0, done.stdout + done.stderr
        shutil.copytree(machine / "results" / "runs", whole / "shards" / f"shard-{shard}")
    told = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    done = _bash([*shell, script_of(workflow, "Merge")], whole, environment | told)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "summary.md").read_text().startswith("## Smallest candidate that passes every gate: model-Q6")
    baseline = json.loads((whole / "results" / "baselines" / "measured.json").read_text())
    assert set(baseline["models"]) == {"model-F16", "model-Q8_0", "model-Q6_K"}
    # A shard that is missing fails the job.
    shutil.rmtree(whole / "shards" / "shard-2")
    done = _bash([*shell, script_of(workflow, "Merge")], whole, environment | told)
    assert done.returncode == 1
    assert "shard 2 of 3 is missing" in done.stdout
    assert "::error title=gguf-harness::Incomplete" in done.stdout
