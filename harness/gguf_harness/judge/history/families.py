"""Runs to families, and their rows to series and segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from gguf_harness.judge.history.history_records import Family, History, Moment, Point, Segment, Series
from gguf_harness.judge.history.identity import (
    OF_PASS,
    circumstances_of,
    conditions_of,
    content_of,
    describe_differences,
    family_keys,
    roles_of,
)
from gguf_harness.judge.history.means import Means, means_of_run
from gguf_harness.judge.history.verdicts import judge_series
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.registry import METRICS, Metric, metrics_of_run

__all__ = ["StoredContent", "build_history"]

_MOST: Final = 1e100
"""Of a value: a run from elsewhere may hold any number, and differences of such ones overflow."""
_BIASED: Final = "the pass stopped when its gates were decided, and leans towards that decision"


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A run that was read.

    Attributes:
        file: its run.json.
        content: of it, in the current version.
    """

    file: Path
    content: Mapping[str, Any]


@dataclass(slots=True)
class _Group:
    """A segment while its points are collected."""

    conditions: dict[str, str]
    reason: str
    points: list[Point] = field(default_factory=list)

    def takes(self, conditions: Mapping[str, str]) -> bool:
        """Whether nothing that both know differs."""
        return all(self.conditions.get(name, value) == value for name, value in conditions.items())


def build_history(
    runs: Iterable[StoredContent],
    *,
    metrics: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    left_out: Sequence[str] = (),
) -> History:
    """All families of some runs, with their changes judged together.

    Args:
        runs: in any order.
        metrics: names of those to show; None for all.
        models: roles or names of subjects to show; None for all.
        left_out: a sentence for each run that could not be read.
    """
    ordered = sorted(runs, key=_time)
    missing = list(left_out)
    by_family: dict[str, list[StoredContent]] = {}
    for run in ordered:
        keys = family_keys(run.content)
        if not keys:
            missing.append(f"{run.content['id']}: the content of its reference, or of its files, is not known")
        for key in keys:
            # The latest family last.
            by_family[key] = [*by_family.pop(key, []), run]
    families = [_family(key, members, metrics, models) for key, members in by_family.items()]
    judged, tested = judge_series([family for family in families if family.series])
    return History(tuple(judged), tuple(missing), tested)


def _time(run: StoredContent) -> tuple[datetime, str]:
    """Runs that do not say when they started are the oldest."""
    return _started(run.content) or datetime.min.replace(tzinfo=UTC), run.content["id"]


def _started(content: Mapping[str, Any]) -> datetime | None:
    started = content.get("started")
    return None if started is None else datetime.fromisoformat(started).astimezone(UTC)


def _family(
    key: str, runs: Sequence[StoredContent], metrics: Sequence[str] | None, models: Sequence[str] | None
) -> Family:
    subjects = [_subjects(run.content, family_keys(run.content)[key]) for run in runs]
    roles = roles_of([list(of_run.values()) for of_run in subjects])
    entries: dict[str, Metric] = {}
    groups: dict[tuple[str, str], list[_Group]] = {}
    sizes: dict[str, tuple[bool, int]] = {}
    for at, (run, of_run, role_of) in enumerate(zip(runs, subjects, roles, strict=True)):
        known = metrics_of_run(run.content)
        means, early = means_of_run(run.file, run.content), _stopped(run.content)
        for row in _whole_rows(run.content):
            model, metric = of_run.get(row["model"]), known.get(row["metric"])
            if model is None or metric is None or (metrics is not None and metric.name not in metrics):
                continue
            role = role_of[model["name"]]
            if models is not None and role not in models and model["name"] not in models:
                continue
            entries[metric.name] = metric
            sizes[role] = (not model.get("reference"), -int(model["bytes"]))
            point = _point(at, row, model, means.get(model["name"], {}))
            if model["name"] in early and metric.estimated in OF_PASS:
                point = replace(point, doubt=point.doubt or _BIASED)
            _add(groups.setdefault((role, metric.name), []), conditions_of(run.content, model, metric), point)
    order = [name for name in _known_order(entries) if name in entries]
    ranked = sorted(sizes, key=lambda role: (*sizes[role], role))
    series = [
        Series(role, not sizes[role][0], entries[name], tuple(map(_segment, groups[role, name])))
        for name in order
        for role in ranked
        if (role, name) in groups
    ]
    return Family(
        key=key,
        name=_name(key, subjects[-1]),
        compared=any(model.get("reference") for of_run in subjects for model in of_run.values()),
        moments=tuple(_moment(run, of_run) for run, of_run in zip(runs, subjects, strict=True)),
        roles=tuple(ranked),
        metrics=tuple(entries[name] for name in order),
        series=tuple(series),
    )


def _known_order(entries: Mapping[str, Metric]) -> list[str]:
    """Names of metrics in the order of the registry; those of plugins come last."""
    return [*METRICS, *(name for name in entries if name not in METRICS)]


def _subjects(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    return {model["name"]: model for model in content.get("models") or [] if model["name"] in names}


def _name(key: str, subjects: Mapping[str, Mapping[str, Any]]) -> str:
    return next((name for name, model in subjects.items() if model.get("sha256") == key), key)


def _whole_rows(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of whole subjects, without absurd numbers; of several of one metric the first, as in reports."""
    rows: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in content["estimates"]:
        if Place.of(row) == WHOLE and max(abs(row["value"]), abs(row["se"] or 0)) < _MOST:
            rows.setdefault((row["model"], row["metric"]), row)
    return list(rows.values())


def _stopped(content: Mapping[str, Any]) -> set[str]:
    """Subjects whose pass stopped when its gates were decided (--gguf-until-decided)."""
    return {one["model"] for one in content.get("early") or [] if one.get("saved_tokens")}


def _point(at: int, row: Mapping[str, Any], model: Mapping[str, Any], means: Mapping[str, Means]) -> Point:
    return Point(
        at=at,
        model=model["name"],
        content=content_of(model),
        value=float(row["value"]),
        se=row.get("se"),
        n=row.get("n"),
        clusters=row.get("clusters"),
        doubt=row.get("doubt"),
        means=means,
    )


def _add(groups: list[_Group], conditions: dict[str, str], point: Point) -> None:
    """Add a point to the segment of the same conditions that was used last, else to a new one."""
    latest = sorted(groups, key=lambda group: group.points[-1].at, reverse=True)
    for group in latest:
        if group.takes(conditions):
            # From here on it is known what an older run did not say.
            group.conditions |= conditions
            group.points.append(point)
            return
    reason = "; ".join(describe_differences(latest[0].conditions, conditions)) if latest else ""
    groups.append(_Group(conditions, reason, [point]))


def _segment(group: _Group) -> Segment:
    return Segment(group.conditions, group.reason, tuple(group.points))


def _moment(run: StoredContent, subjects: Mapping[str, Mapping[str, Any]]) -> Moment:
    content = run.content
    git = content.get("git") or {}
    return Moment(
        run=content["id"],
        started=_started(content),
        commit=git.get("commit"),
        dirty=git.get("dirty"),
        file=run.file,
        finished=bool(content.get("finished", True)),
        circumstances=circumstances_of(content),
        limits=_limits(content, subjects),
    )


def _limits(content: Mapping[str, Any], subjects: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Limits on whole subjects by metric, where it is one for all of them: relative ones differ."""
    found: dict[str, set[float]] = {}
    for gate in content.get("gates") or []:
        if gate["model"] in subjects and gate.get("limit") is not None and Place.of(gate) == WHOLE:
            found.setdefault(gate["metric"], set()).add(float(gate["limit"]))
    return {metric: limits.pop() for metric, limits in found.items() if len(limits) == 1}
