"""A history as rows: for DataFrames, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gguf_harness.judge.history import Change, Family, History, Point, Segment, Series
from gguf_harness.report.history.sentences import headline
from gguf_harness.store.run_tables import NUMBER, TEXT, TRUTH, WHOLE, Kind

__all__ = ["COLUMNS", "history_csv", "history_json", "history_rows"]

_CHANGE: Final[Mapping[str, Kind]] = {
    "run": TEXT,
    "change": NUMBER,
    "se": NUMBER,
    "how": TEXT,
    "windows": WHOLE,
    "p": NUMBER,
    "outcome": TEXT,
    "also_changed": TEXT,
    "reason": TEXT,
}

COLUMNS: Final[Mapping[str, Kind]] = {
    "family": TEXT,
    "reference": TEXT,
    "role": TEXT,
    "metric": TEXT,
    "unit": TEXT,
    "better": TEXT,
    "run": TEXT,
    "started": TEXT,
    "commit": TEXT,
    "dirty": TRUTH,
    "model": TEXT,
    "sha256": TEXT,
    "segment": WHOLE,
    "segment_reason": TEXT,
    "value": NUMBER,
    "se": NUMBER,
    "n": WHOLE,
    "clusters": WHOLE,
    "doubt": TEXT,
    "limit": NUMBER,
    "mark": TEXT,
    **{f"{since}_{name}": kind for since in ("previous", "first") for name, kind in _CHANGE.items()},
}
"""Columns of a history, a row for each value, in this order:

family: hash of the reference's content; reference: its name in the latest run. role, metric, unit, better: the series.
run, started (ISO 8601), commit, dirty: the run; model, sha256: the subject in it, and hash of its file. segment: number
of the segment of the series, from 0; segment_reason: why it begins. value, se, n, clusters, doubt: the estimate. limit:
of the gate. mark: "worse", "drifted" (worse than at first, without a single step), "better", "another number" (of the
same file), or empty.

previous_* is the change from the point before it in its segment, first_* that from the segment's first point; empty for
that point. run: the earlier run; change: the value less the earlier one; se: its standard error; how: "paired" by
window, "independent", "fact", "same file", "not judged"; windows: how many were paired; p: one-sided p-value, the
smaller of worse and better, after Holm's correction over all rows of the history; outcome: "worse", "better",
"no change"; "same" and "another number" of the same file; "not judged"; also_changed: llama.cpp, machine, threads;
reason: why it is not judged.
"""


def history_rows(history: History) -> list[dict[str, Any]]:
    """A row for each value, with the columns of `COLUMNS`; what is unknown is None."""
    return [row for family in history for row in _rows(family)]


def _rows(family: Family) -> Iterator[dict[str, Any]]:
    for series in family.series:
        placed = [
            (point, number, segment) for number, segment in enumerate(series.segments) for point in segment.points
        ]
        for point, number, segment in sorted(placed, key=lambda one: one[0].at):
            yield _row(family, series, segment, number, point)


def _row(family: Family, series: Series, segment: Segment, number: int, point: Point) -> dict[str, Any]:
    moment, metric = family.moments[point.at], series.metric
    row = {
        "family": family.key,
        "reference": family.name,
        "role": series.role,
        "metric": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "run": moment.run,
        "started": None if moment.started is None else moment.started.isoformat(),
        "commit": moment.commit,
        "dirty": moment.dirty,
        "model": point.model,
        "sha256": point.content[0],
        "segment": number,
        "segment_reason": segment.reason or None,
        "value": point.value,
        "se": point.se,
        "n": point.n,
        "clusters": point.clusters,
        "doubt": point.doubt,
        "limit": moment.limits.get(metric.name),
        "mark": point.mark or None,
    }
    return row | _change(family, "previous", point.previous) | _change(family, "first", point.first)


def _change(family: Family, since: str, change: Change | None) -> dict[str, Any]:
    if change is None:
        return {f"{since}_{name}": None for name in _CHANGE}
    values = {
        "run": family.moments[change.since].run,
        "change": change.difference,
        "se": change.se,
        "how": change.how,
        "windows": change.windows or None,
        "p": change.p_adjusted,
        "outcome": change.outcome,
        "also_changed": "; ".join(change.circumstances) or None,
        "reason": change.reason or None,
    }
    return {f"{since}_{name}": value for name, value in values.items()}


def history_json(history: History) -> dict[str, Any]:
    """All of it as JSON types: families with their runs and finding, rows, and what was left out."""
    families = [
        {
            "family": family.key,
            "reference": family.name,
            "finding": headline(family),
            "roles": list(family.roles),
            "runs": [
                {
                    "run": moment.run,
                    "started": None if moment.started is None else moment.started.isoformat(),
                    "commit": moment.commit,
                    "dirty": moment.dirty,
                    "finished": moment.finished,
                    "file": str(moment.file),
                }
                for moment in family.moments
            ],
        }
        for family in history
    ]
    return {
        "families": families,
        "rows": history_rows(history),
        "tested": history.tested,
        "left_out": list(history.left_out),
    }


def history_csv(history: History) -> str:
    """The rows as CSV with a head; a missing value is an empty field."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for row in history_rows(history):
        writer.writerow({name: _field(value) for name, value in row.items()})
    return file.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
