"""Which changes of a history are more than chance, judged together; and what that says of each point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gguf_harness.judge.history.changes import change_between
from gguf_harness.judge.history.history_records import Change, Family, Mark, Moment, Outcome, Point, Segment, Series
from gguf_harness.judge.regressions import CONFIDENCE, MATERIAL
from gguf_harness.metrics.multiple import holm

__all__ = ["LEVEL", "judge_series"]

LEVEL: Final = 1 - CONFIDENCE
"""Probability of marking anything at all as worse in a history in which nothing became worse."""


def judge_series(families: Sequence[Family]) -> tuple[list[Family], int]:
    """The families with the changes of their points, and how many changes were tested.

    Each point is compared with the one before it in its segment, and with the first. Holm's correction is over all
    tested changes of all families, separately for worse and for better.
    """
    compared = [
        replace(family, series=tuple(_compared(one, family.moments) for one in family.series)) for family in families
    ]
    changes = {id(change): change for change in _changes(compared) if change.p_worse is not None}
    worse, better = (
        dict(zip(changes, holm([getattr(change, key) or 0.0 for change in changes.values()]), strict=True))
        for key in ("p_worse", "p_better")
    )
    decided = {
        key: replace(change, p_adjusted=min(worse[key], better[key]), outcome=_outcome(worse[key], better[key]))
        for key, change in changes.items()
    }
    judged = [
        replace(family, series=tuple(_settled(one, decided) for one in family.series)) for family in compared
    ]  # fmt: skip
    return judged, len(changes)


def _outcome(worse: float, better: float) -> Outcome:
    if min(worse, better) > LEVEL:
        return "no change"
    return "worse" if worse <= better else "better"


def _compared(series: Series, moments: tuple[Moment, ...]) -> Series:
    """A series whose points have their changes, not yet judged."""
    segments = []
    for segment in series.segments:
        points = [segment.points[0]]
        for before, point in zip(segment.points, segment.points[1:], strict=False):
            previous = change_between(series.metric, before, point, moments)
            is_first = before is segment.points[0]
            first = previous if is_first else change_between(series.metric, segment.points[0], point, moments)
            points.append(replace(point, previous=previous, first=first))
        segments.append(replace(segment, points=tuple(points)))
    return replace(series, segments=tuple(segments))


def _changes(families: Sequence[Family]) -> list[Change]:
    points = [
        point for family in families for series in family.series for one in series.segments for point in one.points
    ]
    return [change for point in points for change in (point.previous, point.first) if change is not None]


def _settled(series: Series, decided: dict[int, Change]) -> Series:
    def of(change: Change | None) -> Change | None:
        return decided.get(id(change), change)

    segments = []
    for segment in series.segments:
        points = [replace(point, previous=of(point.previous), first=of(point.first)) for point in segment.points]
        segments.append(_marked(replace(segment, points=tuple(points))))
    return replace(series, segments=tuple(segments))


def _marked(segment: Segment) -> Segment:
    points: list[Point] = []
    accounted = False  # whether a mark says why later points are worse than the first
    for point in segment.points:
        mark: Mark = ""
        if point.previous is not None and point.first is not None:
            before = points[-1].value
            if point.previous.outcome == "worse":
                mark, accounted = "worse", True
            elif point.previous.outcome == "another number":
                mark = "another number" if abs(point.previous.difference) > MATERIAL * abs(before) else ""
            elif point.previous.outcome == "better":
                mark, accounted = "better", point.first.outcome == "worse"
            elif point.first.outcome == "worse" and not accounted:
                mark, accounted = "drifted", True
        points.append(replace(point, mark=mark))
    return replace(segment, points=tuple(points))
