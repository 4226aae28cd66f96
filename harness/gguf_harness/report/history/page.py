"""A history as one self-contained HTML file, like the report of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from gguf_harness.errors import visible
from gguf_harness.judge.history import Family, History, Moment
from gguf_harness.report.charts.base import Chart
from gguf_harness.report.history.charts import metric_chart
from gguf_harness.report.history.sentences import (
    change_text,
    findings,
    headline,
    how_text,
    metric_title,
    moment_text,
    span,
    value_text,
    verdict,
)
from gguf_harness.report.html import page_style, page_template
from gguf_harness.report.tables import Table
from gguf_harness.store.runs import write_text
from gguf_harness.views.bundle import report_script

__all__ = ["write_history"]

_TEMPLATE: Final = "history.html.j2"
_CHIPS: Final = {
    "worse": "fail",
    "worse than at first": "fail",
    "better": "pass",
    "better than at first": "pass",
    "same file, another number": "inconclusive",
}


@dataclass(frozen=True, slots=True)
class _Section:
    """A family on the page.

    Attributes:
        anchor: of its heading.
        headline: its finding.
        worse: whether that is a regression.
        compared: whether it has a reference.
        told: (sentence, anchor of its picture) of the other findings.
        notes: where other conditions begin.
        runs: (time, label, id, address of its report or None, circumstances that changed) of each run.
        summary: (role, metric, unit, last value, changes since the last and since the first run, verdict, its chip).
        values: all values, as a table that is made when it is opened.
    """

    anchor: str
    name: str
    key: str
    span: str
    headline: str
    worse: bool
    compared: bool
    told: list[tuple[str, str]]
    notes: list[str]
    runs: list[tuple[str, str, str, str | None, str]]
    summary: list[tuple[str, ...]]
    charts: list[Chart]
    values: Table


def write_history(history: History, destination: Path) -> None:
    """Write the page of a history.

    Args:
        history: what was read, with at least one family.
        destination: written atomically. Points lead to the reports of their runs, relative to it, where they are.

    Raises:
        StoreError: it cannot be written.
    """
    from markupsafe import Markup

    sections = [_section(family, number, destination) for number, family in enumerate(history)]
    page = page_template(_TEMPLATE).render(
        sections=sections,
        title=_title(sections),
        tested=history.tested,
        left_out=[visible(line) for line in history.left_out],
        css=Markup(page_style()),  # noqa: S704 - our own file
        script=Markup(report_script()),  # noqa: S704 - our own file
    )
    write_text(destination, page)


def _title(sections: Sequence[_Section]) -> str:
    if len(sections) == 1:
        return sections[0].headline
    worse = next((section for section in sections if section.worse), None)
    if worse is not None:
        return f"{worse.name}: {worse.headline}"
    return f"Nothing became worse in {len(sections)} families of files"


def _section(family: Family, number: int, destination: Path) -> _Section:
    reports = [_report(moment, destination) for moment in family.moments]
    anchor = f"family-{number}"
    anchors = {metric.name: f"{anchor}-{metric.name.replace('_', '-')}" for metric in family.metrics}
    charts = [metric_chart(family, metric, anchors[metric.name], reports) for metric in family.metrics]
    said, found = headline(family), findings(family)
    return _Section(
        anchor=anchor,
        name=visible(family.name),
        key=family.key,
        span=span(family),
        headline=said,
        worse=any(one.point.mark in {"worse", "drifted"} and not one.again for one in found),
        compared=family.compared,
        told=[(one.says, anchors[one.series.metric.name]) for one in found],
        notes=_notes(family),
        runs=[_run(family, at, report) for at, report in enumerate(reports)],
        summary=_summary(family),
        charts=charts,
        values=_values(family),
    )


def _report(moment: Moment, destination: Path) -> str | None:
    """Address of a run's report from the page; None if it is not there."""
    report = moment.file.parent / "report.html"
    if not report.is_file():
        return None
    relative = os.path.relpath(report.absolute(), destination.absolute().parent)
    # A first part with a colon would be read as a scheme.
    return f"./{quote(os.fsencode(relative))}"


def _run(family: Family, at: int, report: str | None) -> tuple[str, str, str, str | None, str]:
    moment = family.moments[at]
    time = "" if moment.started is None else f"{moment.started:%Y-%m-%d %H:%M}"
    changed: list[str] = [] if moment.finished else ["not finished"]
    if at:
        before = family.moments[at - 1].circumstances
        changed += [
            name
            for name, value in moment.circumstances.items()
            if name in before and before[name] != value
        ]  # fmt: skip
    return time, visible(moment.short_commit), visible(moment.run), report, ", ".join(changed)


def _notes(family: Family) -> list[str]:
    begins: dict[str, None] = {}
    for series in family.series:
        for segment in series.segments[1:]:
            at = moment_text(family.moments[segment.points[0].at])
            begins[f"New conditions at {at}, not compared with earlier values: {visible(segment.reason)}."] = None
    return list(begins)


def _summary(family: Family) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for series in sorted(family.series, key=lambda one: family.roles.index(one.role)):
        last, said = series.last, verdict(series, family.moments)
        metric = series.metric
        unit = metric.unit if metric.unit not in {"", "fraction", "bytes"} else ""
        rows.append(
            (
                visible(series.role),
                metric_title(metric),
                unit,
                value_text(metric, last),
                change_text(metric, last.previous),
                change_text(metric, last.first),
                said,
                _CHIPS.get(said, "none"),
            )
        )
    return rows


def _values(family: Family) -> Table:
    """Every value, with the change from the one before it and how its error is known."""
    rows: list[list[Any]] = []
    for series in family.series:
        for point in series.points:
            moment, change = family.moments[point.at], point.previous
            rows.append(
                [
                    visible(series.role),
                    metric_title(series.metric),
                    [moment_text(moment), point.at],
                    [value_text(series.metric, point), point.value],
                    "" if point.n is None else [str(point.n), point.n],
                    "" if change is None else [change_text(series.metric, change), change.difference],
                    "" if change is None else how_text(change),
                    point.mark or ("" if change is None else change.outcome),
                    "" if change is None else visible(", ".join(change.circumstances)),
                    point.content[0][:12],
                ]
            )
    heads = ["file", "metric", "run", "value", "n", "change", "its error", "verdict", "also changed", "SHA-256"]
    return {"heads": heads, "numbers": [3, 4, 5], "rows": rows}
