"""The commit that a session ran at, from real repositories."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from gguf_harness.inputs.commit import commit_of
from gguf_harness.store.run_content import content_problem
from tests.history_runs import Measured, content

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "below").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "file").write_text("1")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_the_commit_and_whether_files_differ_from_it(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert commit_of(repository) == {"commit": head, "dirty": False}
    (repository / "new").write_text("git does not know it")
    assert commit_of(repository / "below") == {"commit": head, "dirty": False}
    (repository / "file").write_text("2")
    assert commit_of(repository) == {"commit": head, "dirty": True}
    git(repository, "add", "file")
    assert commit_of(repository) == {"commit": head, "dirty": True}


def test_a_worktree_has_its_own_commit(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    (tmp_path / "tree" / "file").write_text("2")
    git(tmp_path / "tree", "commit", "-q", "-am", "second")
    there = commit_of(tmp_path / "tree")
    assert there == {"commit": git(tmp_path / "tree", "rev-parse", "HEAD"), "dirty": False}
    assert there != commit_of(repository)


def test_no_repository_no_commit_no_git(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit_of(tmp_path) is None
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert commit_of(tmp_path / "empty") is None
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / ".git").write_text("nonsense")
    assert commit_of(broken) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(repository) is None


def test_variables_of_ci_come_first(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_COMMIT_SHA", "b" * 40)
    assert commit_of(repository) == {"commit": "b" * 40, "dirty": None}
    monkeypatch.setenv("GITHUB_SHA", "A" * 40)
    assert commit_of(repository) == {"commit": "a" * 40, "dirty": None}
    monkeypatch.setenv("GITHUB_SHA", "<script>")
    monkeypatch.setenv("CI_COMMIT_SHA", "main")
    assert commit_of(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}


def test_a_git_that_hangs_does_not_hold_up_a_session(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 60\n")
    slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    assert commit_of(repository) is None


@pytest.mark.parametrize("git", [None, {"commit": "a" * 40, "dirty": None}, {"commit": "a" * 40, "dirty": True}])
def test_a_run_may_have_it(git: object) -> None:
    assert content_problem(content(0, [Measured([0.1, 0.2])]) | {"git": git}) is None


@pytest.mark.parametrize(
    ("git", "problem"),
    [
        ("abc", "git is a text, expected a table or null"),
        ({"commit": 3, "dirty": None}, "git.commit is a number, expected a text"),
        ({"commit": "a"}, "git has no dirty"),
        ({"commit": "a", "dirty": 1}, "git.dirty is a number, expected true or false or null"),
    ],
)
def test_damage_to_it_is_named(git: object, problem: str) -> None:
    assert content_problem(content(0, [Measured([0.1, 0.2])]) | {"git": git}) == problem
