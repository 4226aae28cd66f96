"""A run as GitHub markdown: for a step summary or a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any, Final

from harness.names import METRICS
from harness.report.data import RunView, visible
from harness.report.numbers import format_bytes, format_estimate, format_percent
from harness.report.terminal import verdict_line

__all__ = ["render_markdown"]

_METRICS: Final = ("bits_per_weight", "ppl", "kld_mean", "same_top", "tg_tokens_per_s", "peak_memory_bytes")
_MARKS: Final = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive", "error": "💥 error"}


def render_markdown(run: Mapping[str, Any]) -> str:
    """Headline, table, and a line per candidate."""
    view = RunView(run)
    metrics = [metric for metric in _METRICS if view.measured(metric)]
    heads = ["model", "size", *(METRICS[metric].title for metric in metrics), "verdict"]
    lines = [f"## {_safe(view.headline())}", "", _row(heads), _row(["---", *["---:"] * (len(heads) - 2), "---"])]
    for model in view.models:
        size = format_bytes(model.facts["bytes"]) if model.facts else "no data"
        cells = [_cell(view, model.name, metric) for metric in metrics]
        lines.append(_row([_safe(model.name), size, *cells, _MARKS.get(model.verdict, model.verdict or "not gated")]))
    lines += ["", *(f"- {_safe(verdict_line(view, model))}" for model in view.candidates)]
    lines += [f"- note: {_safe(note)}" for note in (*run.get("warnings", []), *view.correction_notes())]
    lines += [f"- {_safe(note)}" for note in (*view.early_notes(), *view.baseline_notes())]
    if corpus := run.get("corpus"):
        lines += [
            "",
            f"{_safe(corpus['name'])}, {corpus['windows']} windows of {corpus['n_ctx']} tokens;"
            " ± is one standard error, clustered by window.",
        ]
    return "\n".join(lines) + "\n"


def _cell(view: RunView, model: str, metric: str) -> str:
    row = view.row(model, metric)
    if row is None:
        return "–"
    unit = METRICS[metric].unit
    if unit == "bytes":
        return format_bytes(row["value"])
    if unit == "fraction":
        return format_percent(row["value"], row["se"])
    return f"{row['value']:.2f}" if metric == "bits_per_weight" else format_estimate(row["value"], row["se"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _safe(text: str) -> str:
    """Names are text: no HTML, no markdown, no table separators."""
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", html.escape(visible(text), quote=False))
