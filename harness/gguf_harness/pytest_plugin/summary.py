"""The summary of a session on pytest's terminal: what was measured, the verdicts, and where the results are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_harness.errors import HarnessError, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_harness.pytest_plugin.state import State

__all__ = ["write_summary"]


def write_summary(
    terminalreporter: Any, state: State, *, unstored: HarnessError | None, problems: Sequence[str]
) -> None:
    """Write the section of the harness.

    Args:
        terminalreporter: pytest's.
        state: of the session.
        unstored: why the results could not be stored.
        problems: problems that belong to no test.
    """
    if unstored is not None:
        terminalreporter.section("gguf-harness")
        terminalreporter.write_line(f"The results of this run could not be stored. {unstored}", red=True)
    if state.report is not None:
        _write_run(terminalreporter, state, state.report)
    for problem in problems:
        terminalreporter.write_line(f"gguf-harness: {visible(problem)}", red=True)


def _write_run(terminalreporter: Any, state: State, report: Path) -> None:
    from gguf_harness.report.terminal import render_terminal
    from gguf_harness.store.runs import load_run

    run = load_run(state.run_folder / "run.json")
    writer = terminalreporter._tw  # noqa: SLF001 - pytest offers no public way to its width and colours
    terminalreporter.section("gguf-harness")
    told = _failures_shown(terminalreporter)
    encoding = getattr(writer._file, "encoding", None)  # noqa: SLF001
    text = render_terminal(run, width=writer.fullwidth, color=writer.hasmarkup, told=told, encoding=encoding)
    terminalreporter.write(text + "\n")
    terminalreporter.write_line(f"report: {_shown(report)}")
    terminalreporter.write_line(f"run:    {_shown(state.run_folder / 'run.json')}")
    if state.saved_baseline is not None:
        terminalreporter.write_line(f"saved:  {_shown(state.saved_baseline)}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from gguf_harness.report.github import annotation_lines

        for line in annotation_lines(run):
            terminalreporter.write_line(line)


def _failures_shown(terminalreporter: Any) -> str:
    """The texts of the failures that pytest has printed in full: where verdicts are told, as in any session."""
    if terminalreporter.config.option.tbstyle in {"no", "line"}:
        return ""
    reports = (report for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, []))
    return "\n".join(report.longreprtext for report in reports)


def _shown(path: Path) -> str:
    """Path relative to the current folder if it is below, otherwise absolute."""
    here = Path.cwd()
    return visible(str(path.relative_to(here) if path.is_relative_to(here) else path))
