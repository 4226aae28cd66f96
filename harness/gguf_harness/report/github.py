"""Output for GitHub besides the log: the step summary of a workflow, and annotations.

GitHub's documentation of workflow commands describes both: a step's summary is the markdown that it appends to the file
GITHUB_STEP_SUMMARY, at most 1 MiB; an annotation is a line `::error title=...::message` on stdout, at most ten errors
and ten warnings per step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import StoreError
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.report.data import RunView, visible, visible_lines
from gguf_harness.report.markdown import render_markdown
from gguf_harness.report.standing import failures_of

__all__ = ["SUMMARY_BYTES", "annotation_lines", "append_summary", "shortened"]

SUMMARY_BYTES: Final = 1024 * 1024
_MOST: Final = 10
_MOST_CHARACTERS: Final = 2000
_NOTE: Final = "\n_Shortened: GitHub shows 1 MiB per step. The report has the rest._\n"


def append_summary(run: Mapping[str, Any], file: Path) -> None:
    """Append the run's markdown to a step summary, shortened to the remaining space.

    Args:
        run: content of a run.json.
        file: the file that GITHUB_STEP_SUMMARY names.

    Raises:
        StoreError: it cannot be written, or is full.
    """
    try:
        held = file.stat().st_size if file.exists() else 0
        # The existing content may end within a line, but a heading needs its own line.
        text = ("\n\n" if held else "") + render_markdown(run)
        fitting = shortened(text, SUMMARY_BYTES - held)
        with file.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(fitting)
    except OSError as error:
        raise StoreError(
            f"GITHUB_STEP_SUMMARY={file} could not be written: {error.strerror or error}.",
            "The run and its report are complete; `gguf-harness report --markdown` prints the summary.",
        ) from error
    if not fitting:
        raise StoreError(
            f"GITHUB_STEP_SUMMARY={file} has {held} bytes of the {SUMMARY_BYTES} that GitHub shows: it is full.",
            "Run the harness in a separate step.",
        )


def shortened(markdown: str, room: int) -> str:
    """The first lines of a markdown text that fit, with a note if lines are missing.

    Args:
        markdown: any text.
        room: bytes of UTF-8.

    Returns:
        At most `room` bytes; "" where not even the note fits.
    """
    if len(markdown.encode()) <= room:
        return markdown
    left = room - len(_NOTE.encode())
    if left < 0:
        return ""
    kept = []
    for line in markdown.splitlines(keepends=True):
        left -= len(line.encode())
        if left < 0:
            break
        kept.append(line)
    return "".join(kept) + _NOTE


def annotation_lines(run: Mapping[str, Any]) -> list[str]:
    """Lines for stdout: errors for failures, warnings for undecided gates and notes.

    Args:
        run: content of a run.json.

    Returns:
        At most ten of each kind; if there are more, the last one says how many.
    """
    view = RunView(run)
    gates = run.get("gates", [])
    strict = run.get("settings", {}).get("inconclusive") == "fail"
    failing = {"fail", "inconclusive"} if strict else {"fail"}
    errors = [
        (f"{failure.model} could not be measured", failure.words)
        for failure in failures_of(run)
        if failure.model and failure.kind in {"measurement", "prompt"}
    ]
    errors += [_gate(view, gate) for gate in gates if gate["verdict"] in failing]
    comparisons = (run.get("baseline") or {}).get("comparisons", [])
    errors += [
        (f"{one['model']}: {_title(view, one)} is worse than the baseline", one["detail"])
        for one in comparisons
        if one.get("outcome") == "worse"
    ]
    errors += [
        (f"{one['model']} was not compared with the baseline", one["detail"])
        for one in comparisons
        if one.get("outcome") == "missing"
    ]
    errors += [
        (f"{failure.test.split('::')[-1]} failed", failure.message if failure.model is None else failure.words)
        for failure in failures_of(run)
        if failure.model is None or failure.kind in {"assertion", "fixture"}
    ]
    incomplete: list[tuple[str, str]] = []
    for model in view.models:
        # If a test ended without deciding its gate, the session failed.
        failed = any(one.outcome == "failed" for one in model.standing.undecided)
        titled = [(f"{model.name} is incomplete", sentence) for sentence in model.standing.missing]
        (errors if failed else incomplete).extend(titled)
    errors += [("gguf-harness", view.headline())] if view.interrupted else []
    undecided = [gate for gate in gates if gate["verdict"] == "inconclusive"]
    warnings = incomplete + [_gate(view, gate) for gate in undecided if not strict]
    told = tuple(f"{gate['model']}: {gate['metric']} is inconclusive." for gate in undecided)
    warnings += [("gguf-harness", text) for text in run.get("warnings", []) if not text.startswith(told)]
    return [*_commands("error", errors), *_commands("warning", warnings)]


def _gate(view: RunView, gate: Mapping[str, Any]) -> tuple[str, str]:
    verb = "fails the gate of" if gate["verdict"] == "fail" else "is undecided by the gate of"
    return f"{gate['model']} {verb} {_title(view, gate)}", gate["detail"]


def _title(view: RunView, finding: Mapping[str, Any]) -> str:
    title, place = view.title(str(finding["metric"])), Place.of(finding)
    return title if place == WHOLE else f"{title} ({place})"


def _commands(kind: str, messages: Sequence[tuple[str, str]]) -> list[str]:
    messages = list(dict.fromkeys(messages))
    if len(messages) > _MOST:
        more = len(messages) - _MOST + 1
        messages = [*messages[: _MOST - 1], ("gguf-harness", f"{more} more of this kind are in the report.")]
    return [f"::{kind} title={_property(title)}::{_data(message)}" for title, message in messages]


def _data(text: str) -> str:
    text = text.strip() or "no reason was given"
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}…"
    # A carriage return ends a line, so that only "\n" is left to escape. Percent first: escapes are made of it.
    return visible_lines("\n".join(text.splitlines())).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return visible(text).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
