"""The change between two points of a segment, and the error of it: in pairs of windows where both have them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.judge.history.history_records import Change, How, Moment, Outcome, Point
from gguf_harness.judge.history.identity import SAMPLED, describe_differences
from gguf_harness.judge.regressions import p_values
from gguf_harness.metrics.kernels.standard_errors import clustered_se
from gguf_harness.metrics.registry import METRICS, Metric
from gguf_harness.metrics.windows import from_mean, to_mean

__all__ = ["change_between"]

_MISMATCH: Final = 0.05
"""Most that a difference of stored means may be off from that of the recorded values, in standard errors."""
_ROUNDING: Final = 1e-7


def change_between(metric: Metric, before: Point, after: Point, moments: tuple[Moment, ...]) -> Change:
    """How a number changed, and the p-values of it as far as it can be judged.

    The same file under the same conditions gives the same number, but for timings and memory: a change of it is no
    change of the file, and is not tested. A fact of files is certain. Otherwise the error is that of the differences of
    windows where both runs stored the means of the same ones (CR1, one value a cluster), and else that of two
    independent values: the root of the sum of both squares, which is too large where the windows were the same.

    Args:
        metric: the entry.
        before: a point of a segment.
        after: a later one of the same.
        moments: runs of the family.
    """
    circumstances = describe_differences(moments[before.at].circumstances, moments[after.at].circumstances)
    difference = after.value - before.value
    if before.content == after.content and metric.estimated not in SAMPLED:
        outcome: Outcome = "same" if difference == 0 else "another number"
        return Change(before.at, difference, None, None, "same file", circumstances=circumstances, outcome=outcome)
    error = _error_of(metric, before, after)
    reason = _not_judged(metric, before, after) or ("" if error.se is not None else "its error is not known")
    change = Change(
        since=before.at,
        difference=difference,
        se=None if error.how == "fact" else error.se,
        clusters=error.clusters,
        how="not judged" if reason else error.how,
        windows=error.windows,
        reason=reason,
        circumstances=circumstances,
    )
    if reason or error.se is None:
        return change
    worse_by = difference if metric.better == "lower" else -difference
    p_worse, p_better = p_values(worse_by, error.se, error.clusters, before.value)
    if error.how == "fact":
        # Nothing to test: it is so, or it is not.
        return replace(change, outcome="worse" if p_worse == 0 else "better" if p_better == 0 else "no change")
    return replace(change, p_worse=p_worse, p_better=p_better)


@dataclass(frozen=True, slots=True)
class _Error:
    """The error of a change: 0 of a fact, None if unknown."""

    se: float | None
    clusters: int | None
    how: How
    windows: int = 0


def _error_of(metric: Metric, before: Point, after: Point) -> _Error:
    if metric.is_fact:
        return _Error(0.0, None, "fact")
    paired = _paired(metric, before, after)
    if paired is not None:
        se, windows = paired
        return _Error(se, windows, "paired", windows)
    clusters = min((point.clusters for point in (before, after) if point.clusters is not None), default=None)
    known = before.se is not None and after.se is not None
    return _Error(math.hypot(before.se or 0.0, after.se or 0.0) if known else None, clusters, "independent")


def _not_judged(metric: Metric, before: Point, after: Point) -> str:
    """Why a change decides nothing; "" if it may."""
    if metric.better == "neutral":
        return "neither direction is better"
    if metric.is_time:
        return "times of two runs are not compared; ratios to the reference are"
    doubt = before.doubt or after.doubt
    return f"in doubt: {doubt}" if doubt else ""


def _paired(metric: Metric, before: Point, after: Point) -> tuple[float, int] | None:
    """(standard error of the difference, windows), if both runs stored the means of the same windows.

    They are not used where they do not give the recorded values: the reference's loss must cancel, for one.
    """
    if not METRICS.is_built_in(metric.name):
        return None
    old, new = before.means.get(metric.name), after.means.get(metric.name)
    if old is None or new is None or old.keys() != new.keys() or len(old) < 2:
        return None
    differences: NDArray[np.float64] = np.array([new[window] - old[window] for window in sorted(old)])
    se = clustered_se(differences[:, None])
    try:
        at, earlier = (to_mean(metric.name, point.value) for point in (after, before))
    except ValueError:
        return None
    if se is None or abs(float(differences.mean()) - (at - earlier)) > _MISMATCH * se + _ROUNDING:
        return None
    _, slope = from_mean(metric.name, at)
    return slope * se, len(old)
