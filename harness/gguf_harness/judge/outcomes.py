"""Outcomes of tests, and kinds of failures: a gate, a baseline, a measurement, a prompt, the test itself.

pytest reports all of them as "failed". The kind is determined from the exception when the report is made, and travels
as attributes of the report, also through xdist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import pytest
from _pytest._code.code import ReprFileLocation, TerminalRepr
from _pytest._io import TerminalWriter

# The exception of `pytest.fail`; publicly it is only an attribute, which type checkers do not accept as a class.
from _pytest.outcomes import Failed

from gguf_harness.errors import HarnessError, NoPrompt, PromptError

__all__ = [
    "BaselineFailed",
    "FailedLater",
    "GateFailed",
    "Kind",
    "attempt_of",
    "begin_attempt",
    "describe_failure",
    "message_of",
]

Kind = Literal["gate", "baseline", "measurement", "prompt", "assertion", "fixture", "undecided"]
"""Of a failure: a limit was not kept; it is worse than its baseline; something could not be measured; a prompt could
not be given; the test failed by itself; what surrounds the test did; a gate was not decided though its test ran."""

_ATTEMPT: Final = pytest.StashKey[int]()


class GateFailed(Failed):
    """The fixture `gate` fails a test.

    Args:
        sentences: what pytest shows among the failures.
        named: the gates in a few words, for pytest's line about the test at its end.
    """

    # Like pytest's own exceptions: the summary then says `GateFailed: ...` without the module.
    __module__ = "builtins"

    def __init__(self, sentences: str, named: str) -> None:
        super().__init__(sentences, pytrace=False)
        self.named = named


class FailedLater(TerminalRepr):
    """Why a test that had passed fails after all, at the end of the session.

    Args:
        sentences: what pytest shows among the failures.
        named: the same in a few words, for pytest's line about the test at its end.
        path: the test's file.
    """

    def __init__(self, sentences: str, named: str, path: str) -> None:
        self._sentences = sentences
        self.reprcrash = ReprFileLocation(path, 0, named)

    def toterminal(self, tw: TerminalWriter) -> None:
        """Write the sentences."""
        tw.line(self._sentences)


class BaselineFailed(Failed):
    """The fixture `baseline` fails a test."""

    __module__ = "builtins"


def begin_attempt(item: pytest.Item, ours: frozenset[str]) -> None:
    """Discard results of an earlier attempt at the same test: --reruns keeps the item and its properties.

    Args:
        item: about to be set up.
        ours: names of the properties that hold results.
    """
    item.stash[_ATTEMPT] = item.stash.get(_ATTEMPT, 0) + 1
    item.user_properties[:] = [entry for entry in item.user_properties if entry[0] not in ours]


def attempt_of(item: pytest.Item) -> int:
    """Which attempt at the test this is, from 1."""
    return item.stash.get(_ATTEMPT, 1)


def describe_failure(report: pytest.TestReport, call: pytest.CallInfo[None], *, of_prompt: bool) -> None:
    """Add the kind of a failure to a report, as `gguf_kind`, and a one-line summary, as `gguf_summary`.

    Errors of the harness are shown as their message. If a model cannot take a prompt, the test of that prompt is
    skipped.

    Args:
        report: changed in place.
        call: pytest's record of the call, with its exception.
        of_prompt: whether the test is of a single prompt.
    """
    if not report.failed:
        return
    if call.excinfo is None:
        # A strict xfail test that passed.
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
        if (crash := getattr(report.longrepr, "reprcrash", None)) is not None:
            crash.message = f"{type(error).__name__}: {error.named}"
    elif isinstance(error, BaselineFailed):
        _set(report, "baseline", str(error))
    else:
        kind: Kind = "assertion" if report.when == "call" else "fixture"
        _set(report, kind, _crash_line(report, error))


def message_of(report: pytest.TestReport) -> str:
    """Why a test was skipped, or pytest's full text of its failure; empty if it passed."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return "" if report.passed else report.longreprtext


def _set(report: pytest.TestReport, kind: Kind, summary: str) -> None:
    report.gguf_kind, report.gguf_summary = kind, summary  # type: ignore[attr-defined]


def _crash_line(report: pytest.TestReport, error: BaseException) -> str:
    """The error line as pytest shows it: `AssertionError: assert 23.1 < 20`."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else f"{type(error).__name__}: {error}").strip()
    return text.splitlines()[0] if text else type(error).__name__
