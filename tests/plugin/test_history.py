"""A history of real sessions: a candidate changes under its name, the reference is renamed, commits are recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = [pytest.mark.model, pytest.mark.shared_cache]

GATES = "[kld_mean]\nlimit = 100\n[same_top]\nlimit = 0\n[delta_p_rms]\nlimit = 1\n"


def _commit(folder: Path) -> str:
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "gates.toml"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "release"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_a_release_that_became_worse_is_marked_where_it_did(
    run_suite: RunSuite,
    read_run: ReadRun,
    pytester: pytest.Pytester,
    llama_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("GITHUB_SHA", "CI_COMMIT_SHA"):
        monkeypatch.delenv(variable, raising=False)
    gates = pytester.path / "gates.toml"
    gates.write_text(GATES)
    reference = pytester.path / "renamed.gguf"
    commits = []
    for number, noise in enumerate((0.02, 0.02, 0.2)):
        candidate = write_random_llama(pytester.path / "mine.gguf", noise=noise)
        if number == 1:
            shutil.copy(llama_file, reference)
        base = reference if number == 1 else llama_file
        commits.append(_commit(pytester.path))
        arguments = [f"--models={base},{candidate}", f"--reference={base}", f"--gguf-gates={gates}"]
        result = run_suite(*arguments, "--gguf-chunks=8", "-k", "stays_close_to_reference", tests="test_divergence.py")
        assert result.ret == 0
        assert read_run()["git"] == {"commit": commits[-1], "dirty": False}
    page = pytester.path / "history.html"
    told = pytester.run(sys.executable, "-m", "gguf_harness.cli", "history", "--json", f"--html={page}")
    assert told.ret == 0
    found = json.loads(str(told.stdout))
    (family,) = found["families"]
    assert [run["commit"] for run in family["runs"]] == commits
    series = [row for row in found["rows"] if (row["metric"], row["model"]) == ("kld_mean", "mine")]
    assert [row["commit"] for row in series] == commits
    assert [row["previous_outcome"] for row in series] == [None, "same", "worse"]
    assert [row["previous_how"] for row in series] == [None, "same file", "paired"]
    assert [row["previous_windows"] for row in series] == [None, None, 8]
    assert [row["mark"] for row in series] == [None, None, "worse"]
    assert [row["limit"] for row in series] == [100] * 3
    stored = [json.loads(file.read_text()) for file in sorted(pytester.path.glob("results/runs/*/run.json"))]
    values = [row["value"] for run in stored for row in run["estimates"] if row["metric"] == "kld_mean"]
    assert [row["value"] for row in series] == values

    assert f"got worse at {commits[2][:7]}: KL mean" in family["finding"]
    text = page.read_text(encoding="utf-8")
    assert text.count(f"runs/{stored[0]['id']}/report.html") >= 2, "from the table and from a point"
    report = pytester.path / "results" / "runs" / stored[0]["id"] / "report.html"
    assert commits[0] in report.read_text(encoding="utf-8")
