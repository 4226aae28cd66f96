"""The git commit that a session ran at: what a history shows beside the time."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

__all__ = ["commit_of"]

_FROM_CI: Final = ("GITHUB_SHA", "CI_COMMIT_SHA")
_HASH: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_MOST_S: Final = 0.5
"""A folder on a slow disk must not hold up a session; git answers in milliseconds elsewhere."""


def commit_of(folder: Path) -> dict[str, Any] | None:
    """`{"commit": hash, "dirty": whether files that git knows differ from it, or None if unknown}`.

    The variables of GitHub and GitLab come first: what they build may be a merge that no branch has. Else git is asked,
    if the folder or one above it has a `.git`. None without a commit.

    Args:
        folder: the one that the session was started in.
    """
    for variable in _FROM_CI:
        if _HASH.fullmatch(commit := os.environ.get(variable, "").lower()):
            return {"commit": commit, "dirty": None}
    if not any((above / ".git").exists() for above in (folder, *folder.parents)):
        return None
    # Both at once: each takes a few milliseconds, most of them to start.
    asked = _ask(folder, "rev-parse", "--verify", "HEAD")
    compared = _ask(folder, "diff", "--quiet", "--no-ext-diff", "--ignore-submodules", "HEAD", "--")
    status, commit = _answer(asked)
    differs, _ = _answer(compared)
    if status != 0 or not _HASH.fullmatch(commit):
        return None
    return {"commit": commit, "dirty": None if differs is None else {0: False, 1: True}.get(differs)}


def _ask(folder: Path, *words: str) -> subprocess.Popen[str] | None:
    try:
        return subprocess.Popen(
            ["git", "-C", str(folder), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except OSError:  # there is no git
        return None


def _answer(process: subprocess.Popen[str] | None) -> tuple[int | None, str]:
    """(exit status, output); None for a git that is not there, or takes too long."""
    if process is None:
        return None, ""
    with process:
        try:
            output, _ = process.communicate(timeout=_MOST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return None, ""
    return process.returncode, output.strip()
