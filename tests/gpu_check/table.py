"""Results as a table for a person, and as JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.gpu_check.verdicts import PASSED, StepResult, exit_code

__all__ = ["headline", "report", "table", "write_report"]

_SCHEMA: Final = 1


def report(results: Sequence[StepResult], context: dict[str, Any]) -> dict[str, Any]:
    """Everything as JSON types: when, how, machine, versions, and each step with its verdict and numbers.

    Args:
        results: of all steps.
        context: of the check: started, seconds, arguments, commit, whether a GPU was checked.
    """
    found = {result.name: result.outcome.numbers for result in results}
    return {
        "schema_version": _SCHEMA,
        **context,
        "verdict": "pass" if exit_code(results) == PASSED else "fail",
        "headline": headline(results, gpu=bool(context["gpu"])),
        "machine": found.get("machine", {}),
        "engine": found.get("devices", {}),
        "steps": [result.to_json() for result in results],
    }


def headline(results: Sequence[StepResult], *, gpu: bool) -> str:
    """What it comes to, in one line. Without a GPU it never sounds as if there had been one."""
    counts = dict.fromkeys(("pass", "fail", "not run"), 0)
    for result in results:
        counts[result.outcome.verdict] += 1
    numbers = f"{counts['pass']} passed, {counts['fail']} failed, {counts['not run']} not run"
    if not gpu:
        return f"NO GPU WAS CHECKED: the CPU stood in to try out the steps. {numbers}."
    late = [result.name for result in results if result.outcome.verdict == "not run" and not result.outcome.absent]
    return f"GPU check: {numbers}{'; without a verdict: ' + ', '.join(late) if late else ''}."


def table(results: Sequence[StepResult], width: int | None = None) -> str:
    """A line for each step, and what it said."""
    width = width or max(80, min(140, shutil.get_terminal_size().columns))
    longest = max(len(result.title) for result in results)
    lines = []
    for result in results:
        outcome = result.outcome
        mark = outcome.verdict.upper() if outcome.verdict == "fail" else outcome.verdict
        head = f"{mark:<8}{result.title:<{longest}}  {result.device:<13}{result.seconds:>6.1f} s  "
        first, *rest = textwrap.wrap(outcome.reason, max(30, width - len(head))) or [""]
        lines += [head + first, *(" " * len(head) + line for line in rest)]
    return "\n".join(lines)


def write_report(file: Path, content: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    draft = file.with_name(f"{file.name}.part")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(file)
