"""What a history says: its findings as sentences, verdicts as words, numbers with their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gguf_harness.errors import visible
from gguf_harness.judge.history import Change, Family, Moment, Point, Segment, Series
from gguf_harness.metrics.registry import Metric
from gguf_harness.report.numbers import format_metric

__all__ = [
    "MARKS", "Finding", "change_text", "findings", "headline", "how_text", "metric_title", "moment_text", "span",
    "value_text", "verdict",
]  # fmt: skip

MARKS: Final = {
    "worse": "worse",
    "drifted": "worse than at first",
    "better": "better",
    "another number": "same file, another number",
}
"""Words of marks."""

_ORDER: Final = ("worse", "drifted", "another number", "better")
"""Of marks, the ones that matter most first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that happened to a series.

    Attributes:
        series: what it happened to.
        point: where.
        again: whether most of a regression is undone since.
        says: a sentence without its full stop.
    """

    series: Series
    point: Point
    again: bool
    says: str


def findings(family: Family, metric: str | None = None) -> list[Finding]:
    """What happened in a family, or to one metric of it: what is still so and matters most first, then the latest."""
    found = []
    for series in family.series if metric is None else family.of_metric(metric):
        for segment in series.segments:
            for before, point in zip(segment.points, segment.points[1:], strict=False):
                if point.mark:
                    start = segment.points[0] if point.mark == "drifted" else before
                    again = _is_undone(segment, start, point)
                    says = _says(family, series, start, point)
                    says += "; most of it is undone since" if again else ""
                    found.append(Finding(series, point, again, says))
    return sorted(
        found, key=lambda one: (one.again, _ORDER.index(one.point.mark), -one.point.at, _p_value(one.point))
    )  # fmt: skip


def _p_value(point: Point) -> float:
    known = [change.p_adjusted for change in (point.previous, point.first) if change and change.p_adjusted is not None]
    return min(known, default=1.0)


def _is_undone(segment: Segment, before: Point, point: Point) -> bool:
    """Whether a regression was made good later, by more than half."""
    last = segment.points[-1]
    later = any(one.mark == "better" and one.at > point.at for one in segment.points)
    nearer = abs(last.value - before.value) < abs(last.value - point.value)
    return point.mark in {"worse", "drifted"} and later and nearer


def _says(family: Family, series: Series, start: Point, point: Point) -> str:
    name, at = visible(series.role), moment_text(family.moments[point.at])
    change = f"{metric_title(series.metric)} {_step(series.metric, start, point)}"
    if point.mark == "drifted":
        return f"{name} is worse than at first since {at}: {change}"
    if point.mark == "another number":
        told = point.previous.circumstances if point.previous is not None else ()
        why = f"changed: {', '.join(told)}" if told else "the engine or the machine changed"
        return f"{name}: same file, another number at {at}: {change}; {why}"
    return f"{name} got {point.mark} at {at}: {change}"


def _step(metric: Metric, before: Point, point: Point) -> str:
    """`0.031 → 0.044 nats`, with as many digits as the error of the second value allows."""
    plain = replace(metric, decimals=None)
    old, new = (format_metric(plain, one.value, one.se).partition(" ± ") for one in (before, point))
    percent = metric.unit == "fraction"
    old_text, new_text = (text.removesuffix(" %") for text in (old[0], new[0])) if percent else (old[0], new[0])
    unit = " %" if percent else f" {metric.unit}" if metric.unit not in {"", "bytes"} else ""
    return f"{old_text} → {new_text}{unit}"


def headline(family: Family) -> str:
    """The finding of a family in one sentence."""
    found = findings(family)
    runs = len(family.moments)
    if not found:
        if runs == 1:
            return "One run so far: nothing to compare it with"
        return f"No change beyond the errors in {runs} runs"
    bad = [one for one in found if one.point.mark in {"worse", "drifted"}]
    rest = [one for one in bad if one is not found[0]]
    return found[0].says + (f" (and {len(rest)} more)" if rest else "")


def verdict(series: Series, moments: Sequence[Moment]) -> str:
    """What is to say of the last value, in a word or a few."""
    last = series.last
    segment = next(one for one in series.segments if last in one.points)
    if last.at < len(moments) - 1:
        return "not in the last run"
    if last.previous is None or last.first is None:
        return "first value" if segment is series.segments[0] else "new conditions"
    if last.mark:
        return MARKS[last.mark]
    if last.first.outcome in {"worse", "better"}:
        return f"{last.first.outcome} than at first"
    if last.first.outcome == "another number" and last.previous.outcome == "same":
        return "same file, another number than at first"
    return {"same": "same file, same number", "another number": "same file, rounding"}.get(
        last.previous.outcome, last.previous.outcome
    )


def metric_title(metric: Metric) -> str:
    """Its title as text to show."""
    return visible(metric.title)


def moment_text(moment: Moment) -> str:
    """The commit, the time or the id of a run, as text to show."""
    return visible(moment.label)


def value_text(metric: Metric, point: Point) -> str:
    """`0.0440 ± 0.0021`, with a `?` where it is in doubt."""
    text = format_metric(replace(metric, decimals=None), point.value, point.se)
    return f"{text}{' ?' if point.doubt else ''}"


def change_text(metric: Metric, change: Change | None) -> str:
    """`+0.0130 ± 0.0008`; empty for the first point."""
    if change is None:
        return ""
    if change.difference == 0:
        return "0"
    sign = "+" if change.difference > 0 else "-"
    return f"{sign}{format_metric(replace(metric, decimals=None), abs(change.difference), change.se)}"


def how_text(change: Change) -> str:
    """How the error of a change is known, in words."""
    if change.how == "paired":
        return f"paired over {change.windows} windows"
    if change.how == "independent":
        return "two independent values"
    if change.how == "not judged":
        return f"not judged: {visible(change.reason)}"
    return "a fact of the file" if change.how == "fact" else "the same file"


def span(family: Family) -> str:
    """`6 runs, 2026-11-20 to 2026-11-28`."""
    count = len(family.moments)
    days = [moment.day for moment in family.moments if moment.day]
    runs = "1 run" if count == 1 else f"{count} runs"
    if not days:
        return runs
    return f"{runs}, {days[0]}" + (f" to {days[-1]}" if days[-1] != days[0] else "")
