"""Meanings and definitions of metrics, for the terminal and as markdown."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from typing import Final

from gguf_harness.errors import encodable
from gguf_harness.metrics.registry import ESTIMATED, Metric

__all__ = ["render_glossary", "render_metric", "render_metrics_markdown"]

_TABLE_WIDTH: Final = 100
"""Less leaves the meanings a column of a few words."""


def render_glossary(metrics: Iterable[Metric], *, width: int, color: bool, encoding: str | None = None) -> str:
    """A list of metrics, one line each; a paragraph each where a line has no room for the meaning.

    Characters that the encoding of a terminal lacks are written out before lines are laid out.
    """
    if width < _TABLE_WIDTH:
        return "\n".join(_paragraph(metric, width, encoding) for metric in metrics)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("metric", "title", "unit", "better", "meaning"):
        table.add_column(head, no_wrap=head == "metric")
    for metric in metrics:
        better = "" if metric.better == "neutral" else metric.better
        cells = (metric.name, metric.title, metric.unit, better, metric.meaning)
        table.add_row(*(Text(cell) for cell in cells))
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=color).print(table)
    return file.getvalue()


def _paragraph(metric: Metric, width: int, encoding: str | None) -> str:
    better = "" if metric.better == "neutral" else f"{metric.better} is better"
    facts = ", ".join(fact for fact in (metric.unit, better) if fact)
    head = f"{metric.name}: {metric.title}{f' ({facts})' if facts else ''}"
    meaning = textwrap.fill(encodable(metric.meaning, encoding), width, initial_indent="  ", subsequent_indent="  ")
    return f"{textwrap.fill(encodable(head, encoding), width)}\n{meaning}\n"


def render_metric(metric: Metric, *, width: int) -> str:
    """Everything known about a metric."""
    lines = [f"{metric.name}: {metric.title}", ""]
    for head, words in _facts(metric):
        lines.append(textwrap.fill(words, width, initial_indent=f"{head:<12}", subsequent_indent=" " * 12))
    return "\n".join(lines) + "\n"


def render_metrics_markdown(metrics: Iterable[Metric]) -> str:
    """A table with the definitions and their sources."""
    lines = ["| metric | unit | better | meaning | definition | source |", "|---|---|---|---|---|---|"]
    for metric in metrics:
        better = "" if metric.better == "neutral" else metric.better
        cells = (f"`{metric.name}`", metric.unit, better, metric.meaning, metric.definition, metric.source)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _facts(metric: Metric) -> list[tuple[str, str]]:
    """(heading, text) pairs with the facts about a metric."""
    least, most = (f"{value:g}" if math.isfinite(value) else "" for value in metric.values)
    ends = [*([f"at least {least}"] if least else []), *([f"at most {most}"] if most else [])]
    better = "neither direction" if metric.better == "neutral" else metric.better
    facts = [
        ("meaning", metric.meaning),
        ("definition", metric.definition),
        ("source", metric.source),
        ("unit", metric.unit or "none: a pure number"),
        ("better", better),
        ("values", ", ".join(ends) or "any"),
        ("estimated", ESTIMATED[metric.estimated]),
        ("recorded of", ", ".join(("models", *metric.parts))),
        ("shown in", ", ".join([*(["terminal"] if metric.column else []), *sorted(metric.tables)]) or "all estimates"),
    ]
    gate = metric.gate
    if gate is None:
        facts.append(("gate", "none"))
    else:
        who = "any model" if gate.any_model else "candidates"
        relative = "; a limit may be relative to the reference" if gate.relative else ""
        facts.append(("gate", f"{gate.test} of {gate.suite} decides on it, for {who}{relative}"))
    early = "no, it needs all windows" if metric.early is None else "yes, with --gguf-until-decided"
    facts += [("early", early)] if metric.of_corpus else []
    compared = "no" if not metric.compared or metric.better == "neutral" else "by its value and error"
    facts.append(("baseline", "window by window" if metric.window_means is not None else compared))
    return facts
