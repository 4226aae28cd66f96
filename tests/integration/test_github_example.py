"""examples/github-gate.yml: its steps are run in a folder of their own, with a random model's release."""

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
from xml.etree import ElementTree as ET

import pytest

import gguf_harness
from gguf_harness.cli import main
from gguf_harness.cli.commands import _parser
from gguf_harness.inputs.command_line import short_name
from tests.random_llama import write_random_llama
from tests.workflows import read_workflow, script_of, steps_of

ROOT = Path(__file__).parent.parent.parent
QUICK = (
    "--gguf-ctx=32 --gguf-chunks=12 --gguf-batch=64 --gguf-pp=8 --gguf-tg=4 --gguf-repetitions=1"
    " -k 'not served and not text and not speed'"
)


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return read_workflow("github-gate.yml")


def test_it_asks_for_little_and_ends(workflow: dict[Any, Any]) -> None:
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow[True]) == {"release", "workflow_dispatch"}
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["group"]
    jobs = workflow["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "gate": {"contents": "read"},
        "badge": {"contents": "write"},
    }
    assert all(0 < job["timeout-minutes"] <= 120 for job in jobs.values())
    used = [step["uses"] for step in steps_of(workflow) if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z/-]+@v\d+", action) for action in used), used


def test_no_expression_stands_in_ascript_of(workflow: dict[Any, Any]) -> None:
    """A tag is anybody's text: the shell gets it as a variable, and quotes it."""
    scripts = [step["run"] for step in steps_of(workflow) if "run" in step]
    assert len(scripts) == 5
    assert not [script for script in scripts if "${{" in script]
    for script in scripts:
        assert "$" not in re.sub(r'"[^"]*"', "", script), script


def test_it_installs_this_version(workflow: dict[Any, Any]) -> None:
    assert workflow["env"]["HARNESS"] == f"gguf-harness=={gguf_harness.__version__}"


def test_every_option_exists(workflow: dict[Any, Any]) -> None:
    script = script_of(workflow, "Gate")
    used = set(re.findall(r"(?<=[\s(\"])(--[a-z][a-z-]+)", script))
    assert {"--models", "--reference", "--junit-xml", "--gguf-baseline", "--gguf-save-baseline"} <= used
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "gguf_harness.pytest_plugin.plugin", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # An option's names begin its line, before what they mean.
    heads = re.findall(r"(?m)^  (-\S.*?)(?:\s{2}|$)", done.stdout)
    known = {name for head in heads for name in re.findall(r"--[a-z][a-z-]+", head)}
    assert used <= known | {short_name(name) for name in known}
    for line in script_of(workflow, "Collect").splitlines():
        if line.startswith("gguf-harness"):
            _parser().parse_args(shlex.split(line)[1:])


@pytest.fixture
def environment(tmp_path: Path, workflow: dict[Any, Any]) -> dict[str, str]:
    """What the scripts see: this checkout as the installed harness, and a `gh` whose release is a local folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    gh = 'case "$1" in release) mkdir models; cp "$RELEASE"/*.gguf models;; auth) ;; *) exit 9;; esac'
    for name, script in (
        ("gguf-harness", f'exec {shlex.quote(sys.executable)} -m gguf_harness.cli "$@"'),
        ("gh", gh),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    fixed = {name: value for name, value in workflow["env"].items() if "${{" not in value}
    return os.environ | fixed | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTEST_ADDOPTS": f"{QUICK} -p no:cacheprovider",
        "RELEASE": str(tmp_path / "release"),
        "TAG": "v1.0; exit 7",
        "GITHUB_ACTIONS": "true",
        "GITHUB_REPOSITORY": "owner/repository",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }  # fmt: skip


def _release(folder: Path, version: str, noise: float = 0.0) -> Path:
    """The files of a release, whose names hold its version; Q8_0 is made of a model with some noise."""
    release = folder / version
    release.mkdir()
    for types, amount in (("F16", 0.0), ("Q8_0", noise)):
        model = write_random_llama(folder / f"model-{version}-F32.gguf", text=True, noise=amount)
        assert main(["quantize", str(model), types, "--out", str(release)]) == 0
    return release


@pytest.mark.model
def test_its_steps_gate_a_release(tmp_path: Path, workflow: dict[Any, Any], environment: dict[str, str]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    environment["RELEASE"] = str(_release(tmp_path, "v1"))

    def run(name: str) -> subprocess.CompletedProcess[str]:
        # As GitHub starts a step with `shell: bash`.
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script_of(workflow, name)]
        return subprocess.run(
            shell, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=180
        )

    def told(done: subprocess.CompletedProcess[str]) -> str:
        return done.stdout + done.stderr

    done = run("Download")
    assert done.returncode == 0, told(done)
    assert re.fullmatch(r"digest=[0-9a-f]{16}\n", (tmp_path / "output").read_text())
    assert {file.name for file in (work / "models").iterdir()} == {"model-v1-F16.gguf", "model-v1-Q8_0.gguf"}

    done = run("Gate")
    assert done.returncode == 0, told(done)
    assert "model-v1-F16 is the reference, as requested" in done.stdout
    assert "::error" not in done.stdout
    assert (tmp_path / "summary.md").read_text().startswith("## Smallest candidate that passes every gate: model-v1-Q8")

    done = run("Collect")
    assert done.returncode == 0, told(done)
    assert {file.name for file in (work / "gate").iterdir()} == {
        "badge.svg", "report.html", "run.json", "junit.xml", "release.json",
    }  # fmt: skip
    command = json.loads((work / "gate" / "run.json").read_text())["command"]
    name, _, added = command[1].partition("=")
    assert (command[0], name) == ("env", "PYTEST_ADDOPTS")
    assert shlex.split(added) == shlex.split(environment["PYTEST_ADDOPTS"])
    assert command[2:5] == ["gguf-harness", "run", "quant"]
    assert not any("suites/quant" in word for word in command)
    assert "gguf-harness: Q8_0 passes" in (work / "gate" / "badge.svg").read_text()
    assert ET.parse(work / "gate" / "junit.xml").getroot().find("testsuite") is not None  # noqa: S314 - our own
    assert not list(work.glob("results/cache/passes/*/logprobs.u16"))

    # The repository of the person, where the badge goes.
    remote = tmp_path / "remote" / "owner" / "repository.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(remote)], check=True)
    environment |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/remote/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }
    done = run("Publish")
    assert done.returncode == 0, told(done)
    shown = subprocess.run(
        ["git", "-C", str(remote), "show", "gguf-badge:badge.svg"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == (work / "gate" / "badge.svg").read_text()

    # Later releases have other file names, and are compared with the baseline that the first one left.
    for version, noise, code in (("v2", 0.001, 0), ("v3", 0.5, 1)):
        shutil.rmtree(work / "models")
        environment["RELEASE"] = str(_release(tmp_path, version, noise))
        assert run("Download").returncode == 0
        done = run("Gate")
        assert done.returncode == code, told(done)
        before = "v1" if version == "v2" else "v2"
        pair = (
            f"model-{version}-Q8_0 was compared with model-{before}-Q8_0 of the baseline: same type Q8_0, same family"
        )
        assert pair in " ".join(done.stdout.split()), told(done)
    assert re.search(r"(?m)^::error title=model-v3-Q8_0 fails the gate of KL mean::", done.stdout), told(done)
    assert re.search(r"(?m)^::error title=model-v3-Q8_0%3A KL mean is worse than the baseline::", done.stdout)
