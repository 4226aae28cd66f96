"""How a test ended, and of what kind its failure is: a gate, a baseline, a measurement, a prompt, the test itself.

pytest's reports say "failed" to all of them. What is known of the exception where the report is made travels with the
report as attributes, through xdist as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import pytest

# What `pytest.fail` raises; pytest names it publicly as an attribute only, which no type checker takes for a class.
from _pytest.outcomes import Failed

from gguf_harness.errors import HarnessError, NoPrompt, PromptError

__all__ = ["BaselineFailed", "GateFailed", "Kind", "attempt_of", "begin_attempt", "describe_failure", "message_of"]

Kind = Literal["gate", "baseline", "measurement", "prompt", "assertion", "fixture", "undecided"]
"""Of a failure: a limit was not kept; it is worse than its baseline; something could not be measured; a prompt could
not be given; the test failed by itself; what surrounds the test did; a gate was not decided though its test ran."""

_ATTEMPT: Final = pytest.StashKey[int]()


class GateFailed(Failed):
    """The fixture `gate` fails a test."""

    # As pytest's own: its summary then says `GateFailed: ...` without where the class is.
    __module__ = "builtins"


class BaselineFailed(Failed):
    """The fixture `baseline` fails a test."""

    __module__ = "builtins"


def begin_attempt(item: pytest.Item, ours: frozenset[str]) -> None:
    """Forget what an earlier attempt at the same test has found: --reruns keeps the item and its properties.

    Args:
        item: about to be set up.
        ours: names of properties that hold findings.
    """
    item.stash[_ATTEMPT] = item.stash.get(_ATTEMPT, 0) + 1
    item.user_properties[:] = [found for found in item.user_properties if found[0] not in ours]


def attempt_of(item: pytest.Item) -> int:
    """Which attempt at the test this is, from 1."""
    return item.stash.get(_ATTEMPT, 1)


def describe_failure(report: pytest.TestReport, call: pytest.CallInfo[None], *, of_prompt: bool) -> None:
    """Say of a report what kind of failure it is, in `gguf_kind`, and why in a line, in `gguf_summary`.

    Our own errors are shown as the message that they are. A prompt that a model cannot have costs that prompt: the test
    of it is skipped.

    Args:
        report: changed in place.
        call: what was raised.
        of_prompt: whether the test is of a single prompt.
    """
    if not report.failed:
        return
    if call.excinfo is None:
        # A test that was expected to fail and passed, strictly.
        _set(report, "assertion", report.longreprtext)
        return
    error = call.excinfo.value
    if isinstance(error, HarnessError):
        report.longrepr = str(error)
        _set(report, "measurement", error.message)
        if isinstance(error, PromptError) and not isinstance(error, NoPrompt) and of_prompt:
            path, line, _ = report.location
            report.outcome = "skipped"
            report.longrepr = (str(Path(path)), (line or 0) + 1, f"Skipped: {error.message}")
            _set(report, "prompt", error.message)
    elif isinstance(error, GateFailed):
        _set(report, "gate", str(error))
    elif isinstance(error, BaselineFailed):
        _set(report, "baseline", str(error))
    else:
        kind: Kind = "assertion" if report.when == "call" else "fixture"
        _set(report, kind, _crash_line(report, error))


def message_of(report: pytest.TestReport) -> str:
    """Why a test was skipped, or all that pytest shows of its failure; empty where it passed."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return "" if report.passed else report.longreprtext


def _set(report: pytest.TestReport, kind: Kind, summary: str) -> None:
    report.gguf_kind, report.gguf_summary = kind, summary  # type: ignore[attr-defined]


def _crash_line(report: pytest.TestReport, error: BaseException) -> str:
    """`AssertionError: assert 23.1 < 20`, as pytest says it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else f"{type(error).__name__}: {error}").strip()
    return text.splitlines()[0] if text else type(error).__name__
