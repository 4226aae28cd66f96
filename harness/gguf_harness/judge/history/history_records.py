"""Records of a history: frozen, and without anything that stands in no run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from gguf_harness.metrics.registry import Metric

__all__ = ["Change", "Family", "History", "How", "Mark", "Moment", "Outcome", "Point", "Segment", "Series"]

How = Literal["paired", "independent", "fact", "same file", "not judged"]
"""What is known of a change: its error from pairs of windows, or from the errors of two independent values; a fact of
files, which has none; nothing, because the file is the same; nothing, for the reason that the change gives.
"""

Outcome = Literal["worse", "better", "no change", "same", "another number", "not judged"]
"""Of a change. The first three are decided by a test; "same" and "another number" are of the same file."""

Mark = Literal["", "worse", "drifted", "better", "another number"]
"""Of a point: what happened there. "drifted" is worse than at first, without a single step that is."""

_SHORT: Final = 7


@dataclass(frozen=True, slots=True)
class Moment:
    """A run, as a place on the axis of time.

    Attributes:
        run: its id.
        started: None if the run does not say.
        commit: of the folder that it ran in; None if unknown.
        dirty: whether files there differed from the commit; None if unknown.
        file: its run.json.
        finished: whether all its tests ran.
        circumstances: llama.cpp, machine and the like, as text by name.
        limits: of gates on whole models, by metric; without those that differ between models.
    """

    run: str
    started: datetime | None
    commit: str | None
    dirty: bool | None
    file: Path
    finished: bool
    circumstances: Mapping[str, str]
    limits: Mapping[str, float]

    @property
    def short_commit(self) -> str:
        """`3f2a91c`, with a `+` if files differed from it; empty if unknown."""
        return "" if self.commit is None else self.commit[:_SHORT] + ("+" if self.dirty else "")

    @property
    def day(self) -> str:
        """`2026-11-28`; empty if unknown."""
        return "" if self.started is None else f"{self.started:%Y-%m-%d}"

    @property
    def label(self) -> str:
        """The commit, else the time, else the id of the run."""
        time = "" if self.started is None else f"{self.started:%Y-%m-%d %H:%M}"
        return self.short_commit or time or self.run


@dataclass(frozen=True, slots=True)
class Change:
    """From an earlier point of a segment to a later one.

    Attributes:
        since: place of the earlier run in its family.
        difference: the later value less the earlier one.
        se: its standard error; None if unknown, or of a fact.
        clusters: behind `se`; None for a normal quantile.
        how: how the error is known.
        windows: windows that were paired; 0 if none.
        reason: why it is not judged, or why its windows were not paired; "" if neither.
        circumstances: what else changed: `llama.cpp (a -> b)`.
        p_worse: one-sided p-value of "not materially worse"; None if it is not tested.
        p_better: the same of "not materially better".
        p_adjusted: the smaller of the two after Holm's correction over all tested changes of the history.
        outcome: what it amounts to.
    """

    since: int
    difference: float
    se: float | None
    clusters: int | None
    how: How
    windows: int = 0
    reason: str = ""
    circumstances: tuple[str, ...] = ()
    p_worse: float | None = None
    p_better: float | None = None
    p_adjusted: float | None = None
    outcome: Outcome = "not judged"


@dataclass(frozen=True, slots=True)
class Point:
    """A metric of a subject in one run.

    Attributes:
        at: place of its run in the family.
        model: name of the subject in that run.
        content: hashes of its file and its adapters.
        value, se, n, clusters, doubt: as in `gguf_harness.metrics.records.Estimate`.
        means: by metric, the mean of each window, of the windows' own number.
        previous: change from the point before it in its segment; None for the first one.
        first: change from the first point of its segment; the same as `previous` for the second one.
        mark: what happened here.
    """

    at: int
    model: str
    content: tuple[str, ...]
    value: float
    se: float | None
    n: int | None
    clusters: int | None
    doubt: str | None
    means: Mapping[str, Mapping[int, float]] = field(compare=False, repr=False)
    previous: Change | None = None
    first: Change | None = None
    mark: Mark = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """Points of a series that can be compared.

    Attributes:
        conditions: under which they were measured, as text by name.
        reason: why it begins: `windows (16 -> 32)`; "" for the first one.
        points: in order of time, at least one.
    """

    conditions: Mapping[str, str]
    reason: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """A metric of a role.

    Attributes:
        role: as people call it: `Q4_K_M`.
        reference: whether it is that of the reference.
        metric: its entry.
        segments: in the order in which they begin.
    """

    role: str
    reference: bool
    metric: Metric
    segments: tuple[Segment, ...]

    @property
    def points(self) -> list[Point]:
        """All points in order of time, whatever their segment."""
        return sorted((point for segment in self.segments for point in segment.points), key=lambda point: point.at)

    @property
    def last(self) -> Point:
        """The latest point."""
        return self.points[-1]


@dataclass(frozen=True, slots=True)
class Family:
    """Files that were compared with one reference, over all runs.

    Attributes:
        key: hash of the reference's content.
        name: of the reference in the latest run: for people, it identifies nothing.
        compared: whether it has a reference; else it is a file that was measured alone.
        moments: its runs, in order of time.
        roles: all roles with a series, biggest file first; that of the reference first of all.
        metrics: those with a series, in the order of the registry.
        series: by metric in their order, then by role.
    """

    key: str
    name: str
    compared: bool
    moments: tuple[Moment, ...]
    roles: tuple[str, ...]
    metrics: tuple[Metric, ...]
    series: tuple[Series, ...]

    def of_metric(self, metric: str) -> list[Series]:
        """Its series of a metric."""
        return [series for series in self.series if series.metric.name == metric]

    @property
    def reference(self) -> str | None:
        """The role of the reference; None if nothing of it is a series."""
        return next((series.role for series in self.series if series.reference), None)


@dataclass(frozen=True, slots=True)
class History:
    """Everything that was read.

    Attributes:
        families: those with the latest runs last.
        left_out: a sentence for each run that takes no part.
        tested: number of changes that were tested together.
    """

    families: tuple[Family, ...]
    left_out: tuple[str, ...] = ()
    tested: int = 0

    def __iter__(self) -> Iterator[Family]:
        return iter(self.families)
