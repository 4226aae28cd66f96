"""A run as GitHub markdown: for a step summary or a pull request."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.registry import Metric
from gguf_harness.report.data import Candidate, RunView, describe_windows, visible
from gguf_harness.report.model_groups import Group, groups_of
from gguf_harness.report.numbers import doubt_mark, format_bytes, format_metric, format_value
from gguf_harness.report.standing import failures_of
from gguf_harness.report.terminal import verdict_line

__all__ = ["render_markdown"]

_MARKS: Final = {
    "pass": "✅ pass",
    "fail": "❌ fail",
    "inconclusive": "⚠️ inconclusive",
    "incomplete": "⚠️ incomplete",
    "error": "💥 error",
    "worse": "❌ worse",
    "better": "✅ better",
    "missing": "❌ not compared",
}
_UNMEASURED: Final = frozenset({"measurement", "prompt"})
_BY_ITSELF: Final = frozenset({"assertion", "fixture"})
_MOST_CHARACTERS: Final = 2000


def render_markdown(run: Mapping[str, Any]) -> str:
    """Headline, table, failures with reasons, the baseline, warnings, and what was run.

    Args:
        run: content of a run.json.
    """
    view = RunView(run)
    interrupted = ["This run was interrupted: results up to then are shown.", ""]
    if run.get("merged"):
        interrupted = ["Parts of this run are missing: what there is is shown.", ""]
    lines = [f"## {_safe(view.headline())}", "", *(interrupted if view.interrupted else [])]
    for place, group in enumerate(groups_of(view)):
        lines += [*([""] if place else []), *_table(view, group)]
    good = _items(verdict_line(view, model) for model in view.candidates if model.verdict in {"pass", ""})
    lines += ["", *good] if good else []
    failures = failures_of(run)
    for kinds, title in ((_UNMEASURED, "Could not be measured"), (_BY_ITSELF, "Failed tests")):
        chosen = (failure for failure in failures if failure.kind in kinds)
        lines += _section(title, dict.fromkeys(f"{one.model or 'no model'}: {one.words}" for one in chosen))
    missing = [(model, told) for model in view.models for told in model.standing.missing]
    lines += _section("Not decided", (f"{model.name}: {told}" for model, told in missing))
    for verdict, title in (("fail", "Failed gates"), ("inconclusive", "Undecided gates")):
        gates = [gate for gate in run.get("gates", []) if gate["verdict"] == verdict]
        lines += _section(title, (f"{gate['model']}: {gate['detail']}" for gate in gates))
    lines += _baseline(view)
    lines += _section("Warnings", (*_warnings(run), *view.correction_notes()))
    lines += _section("What was run", (*_what_was_run(view), *view.attempt_notes(), *view.early_notes()))
    return "\n".join(lines) + "\n"


def _table(view: RunView, group: Group) -> list[str]:
    metrics = group.columns(view, "markdown")
    heads = [group.head, "size", *(_safe(metric.title) for metric in metrics), "verdict"]
    lines = [_row(heads), _row(["---", *["---:"] * (len(heads) - 2), "---"])]
    return [*lines, *(_row(_cells(view, model, metrics)) for model in group.models)]


def _cells(view: RunView, model: Candidate, metrics: list[Metric]) -> list[str]:
    size = format_bytes(model.facts["bytes"]) if model.facts else "no data"
    cells = [_cell(view, model.name, metric) for metric in metrics]
    return [_safe(model.name), size, *cells, _MARKS.get(model.verdict, model.label)]


def _cell(view: RunView, model: str, metric: Metric) -> str:
    row = view.row(model, metric.name)
    return "–" if row is None else f"{format_metric(metric, row['value'], row['se'])}{doubt_mark(row)}"


def _baseline(view: RunView) -> list[str]:
    """The notes, and every comparison."""
    notes = view.baseline_notes()
    if not notes:
        return []
    lines = ["", f"### Baseline {_safe(view.run['baseline']['name'])}", "", *_items(notes), ""]
    comparisons = [one for one in view.run["baseline"]["comparisons"] if one["metric"]]
    if not comparisons:
        return lines
    lines += [_row(["model", "metric", "baseline", "now", "windows", "outcome"])]
    lines += [_row(["---", "---", "---:", "---:", "---:", "---"])]
    for comparison in comparisons:
        metric = comparison["metric"]
        known = view.metrics.get(metric)
        numbers = [format_metric(known, comparison[key], None) if key in comparison else "–" for key in ("old", "new")]
        title = view.title(metric)
        title += f" ({place})" if (place := Place.of(comparison)) != WHOLE else ""
        windows = format_value(comparison["windows"]) if comparison.get("windows") else "not paired"
        outcome = str(comparison.get("outcome", "–"))
        cells = [_safe(comparison["model"]), _safe(title), *numbers, windows, _MARKS.get(outcome, _safe(outcome))]
        lines.append(_row(cells))
    return lines


def _warnings(run: Mapping[str, Any]) -> list[str]:
    """Warnings of the run, except those about undecided gates, which have their own section."""
    undecided = {(gate["model"], gate["metric"]) for gate in run.get("gates", []) if gate["verdict"] == "inconclusive"}
    told = tuple(f"{model}: {metric} is inconclusive." for model, metric in undecided)
    return [warning for warning in run.get("warnings", []) if not warning.startswith(told)]


def _what_was_run(view: RunView) -> list[str]:
    run = view.run
    lines = [f"run {run['id']}, {run['started']}, gguf-harness {run.get('harness', '?')}: {shlex.join(run['command'])}"]
    if reason := run.get("reference_reason"):
        lines.append(reason)
    if corpus := run.get("corpus"):
        lines.append(f"{corpus['name']}, {describe_windows(corpus)}; ± is one standard error, clustered by window")
    if engine := run.get("engine"):
        backends = ", ".join(str(backend.get("name")) for backend in engine.get("backends", []))
        lines.append(
            f"llama.cpp {engine.get('llama_cpp')} (llama-cpp-python {engine.get('llama_cpp_python')}), {backends}"
        )
    merged = run.get("merged") or {}
    lines += [
        f"shard {part['index']} of {merged['of']}: run {part['run']}, {part['started']}"
        for part in merged.get("shards", [])
    ]
    if machine := run.get("machine"):
        lines.append(_machine(machine))
    lines += [
        f"Ray node {node['node']}: {_machine(node)}; {node['calls']} calls of workers"
        for node in run.get("nodes") or []
    ]
    return lines


def _machine(machine: Mapping[str, Any]) -> str:
    gpus = [f"{gpu['name']} ({format_bytes(gpu['memory_bytes'])})" for gpu in machine.get("gpus", [])]
    parts = [machine["cpu"], f"{machine['cores']} cores", format_bytes(machine["memory_bytes"]), *gpus]
    return ", ".join([*parts, machine["system"], f"Python {machine['python']}"])


def _section(title: str, lines: Iterable[str]) -> list[str]:
    items = _items(lines)
    return ["", f"### {title}", "", *items] if items else []


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {_safe(line)}" for line in lines]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _safe(text: str) -> str:
    """Escape and shorten names: no HTML, markdown, formulas, table separators or line breaks."""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}…"
    line = visible(" ".join(text.splitlines()) if "\n" in text else text)
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", html.escape(line, quote=False))
