"""The picture of a metric over the runs of a family, as plain data for the view `history`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from gguf_harness.errors import visible
from gguf_harness.judge.history import Family, Point, Series
from gguf_harness.metrics.registry import Metric
from gguf_harness.report.charts.base import Chart, make_chart, make_panel
from gguf_harness.report.history.sentences import (
    MARKS,
    change_text,
    findings,
    how_text,
    metric_title,
    moment_text,
    value_text,
    verdict,
)
from gguf_harness.report.numbers import format_metric
from gguf_harness.views.model_entries import model_entries

__all__ = ["metric_chart"]

_WIDE: Final = 8.0
"""Ratio of the largest to the smallest value from which on a logarithmic axis shows both."""

_HOW: Final = (
    "From left to right the runs, the latest last, with the commit that they ran at. A bar is one standard error. A"
    " line is broken where a run did not measure the file, or measured it on another text, in other windows or with"
    " other settings: these cannot be compared. A triangle marks a value that is worse than in the run before it by"
    " more than chance and by more than a thousandth, a circle one that is better. Tests are over all values of the"
    " page together: if nothing became worse, the probability of any triangle is at most 5 %. A square marks another"
    " number of the very same file: then llama.cpp, the machine or a setting changed. Points lead to the reports of"
    " their runs."
)


def metric_chart(family: Family, metric: Metric, identifier: str, reports: Sequence[str | None]) -> Chart:
    """A line for each role of a family.

    Args:
        family: the family.
        metric: one of its metrics.
        identifier: of the chart.
        reports: for each run, the address of its report; None where there is none.
    """
    series = family.of_metric(metric.name)
    values = [point.value for one in series for point in one.points]
    unit = f", {metric.unit}" if metric.unit not in {"", "fraction", "bytes"} else ""
    scale = _bytes(max(values)) if metric.unit == "bytes" else (1.0, "")
    y: dict[str, Any] = {"label": f"{metric_title(metric)}{unit}{scale[1]}"}
    y |= {"percent": True} if metric.unit == "fraction" else {}
    y |= {"log": True} if min(values) > 0 and max(values) / min(values) > _WIDE else {}
    data = {
        "runs": [
            {"label": moment_text(moment), "day": moment.day if moment.short_commit else ""}
            | ({} if report is None else {"href": report})
            for moment, report in zip(family.moments, reports, strict=True)
        ],
        "y": y,
        "models": model_entries(family.roles, family.reference),
        "lines": [
            {
                "model": family.roles.index(one.role),
                "points": [_point(one, point, scale[0]) for point in stretch],
            }
            for one in series
            for stretch in _stretches(one)
        ],
        "limits": _limits(family, metric, scale[0]),
    }
    told = "; ".join(
        f"{visible(one.role)} {value_text(metric, one.last)}, {verdict(one, family.moments)}" for one in series
    )
    return make_chart(
        identifier,
        _title(family, metric),
        metric.meaning,
        [make_panel(metric_title(metric), metric.definition, data)],
        told,
        view="history",
        how=_HOW,
        table=_table(family, series),
    )


def _title(family: Family, metric: Metric) -> str:
    found = findings(family, metric.name)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{found[0].says}{more}"
    if len(family.moments) == 1:
        return f"{metric_title(metric)}: one run so far"
    return f"{metric_title(metric)}: no change beyond the errors in {len(family.moments)} runs"


def _stretches(series: Series) -> Iterator[list[Point]]:
    """Points of a segment that are drawn as one line: those without a run between them that did not measure it."""
    measured = {point.at for point in series.points}
    for segment in series.segments:
        stretch: list[Point] = []
        for point in segment.points:
            if stretch and not all(at in measured for at in range(stretch[-1].at, point.at)):
                yield stretch
                stretch = []
            stretch.append(point)
        yield stretch


def _point(series: Series, point: Point, scale: float) -> list[Any]:
    told = [f"n = {point.n}"] if point.n is not None else []
    if (change := point.previous) is not None:
        told.append(f"{change_text(series.metric, change)} since the value before it ({how_text(change)})")
        told += [f"also changed: {visible(', '.join(change.circumstances))}"] if change.circumstances else []
    segment = next(one for one in series.segments if point in one.points)
    if segment.reason and point is segment.points[0]:
        told.append(f"new conditions: {visible(segment.reason)}")
    if point.doubt:
        told.append(f"in doubt: {visible(point.doubt)}")
    se = None if point.se is None else point.se / scale
    return [point.at, point.value / scale, se, "\n".join(told), point.mark or None]


def _limits(family: Family, metric: Metric, scale: float) -> list[dict[str, Any]]:
    """Limits of gates, each from the first to the last of the runs in a row that had it."""
    limits: list[dict[str, Any]] = []
    side = {"lower": "at most", "higher": "at least"}.get(metric.better, "limit")
    for at, moment in enumerate(family.moments):
        value = moment.limits.get(metric.name)
        if value is None:
            continue
        if limits and limits[-1]["to"] == at - 1 and limits[-1]["value"] == value / scale:
            limits[-1]["to"] = at
            continue
        text = f"limit: {side} {format_metric(metric, value, None)}"
        limits.append({"from": at, "to": at, "value": value / scale, "text": text})
    return limits


def _bytes(largest: float) -> tuple[float, str]:
    """A unit in which sizes are numbers of a few digits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= size:
            return size, f", {unit}"
    return 1.0, ", B"


def _table(family: Family, series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """A row for each run, a column for each role."""
    by_role = [{point.at: point for point in one.points} for one in series]
    rows = []
    for at, moment in enumerate(family.moments):
        cells = []
        for one, points in zip(series, by_role, strict=True):
            point = points.get(at)
            word = "" if point is None or not point.mark else f" ({MARKS[point.mark]})"
            cells.append("not measured" if point is None else f"{value_text(one.metric, point)}{word}")
        rows.append([moment_text(moment), moment.day, *cells])
    return ["run", "day", *(visible(one.role) for one in series)], rows
