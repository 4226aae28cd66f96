"""Is a model worse than a baseline says it was? Paired by window where both decoded the same text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.baselines import Baseline, Facts
from harness.metrics.multiple import holm
from harness.metrics.stats import MeanEstimate, clustered_se, exceedance_p_value
from harness.metrics.windows import from_mean
from harness.names import metric_info

__all__ = ["MATERIAL", "Comparison", "Now", "compare", "judge"]

MATERIAL = 0.001
"""Smallest change that counts, as a share of the baseline's value: another processor rounds differently, and windows
that all move by the last digit would be a significant change of nothing."""


@dataclass(frozen=True, slots=True)
class Now:
    """What this session measured of a model, and with what.

    Attributes:
        name: of the model.
        facts: as in a baseline; `estimates` are not used.
        engine: llama.cpp's build.
        corpus: hash of the text and length of its windows in tokens.
        reference: hash of the reference's file.
    """

    name: str
    facts: Facts
    engine: str | None
    corpus: tuple[str, int]
    reference: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of a model, now and in the baseline.

    Attributes:
        worse_by: how much worse it is now, in the metric's unit; negative where it is better.
        se: standard error of that; None where there is none.
        p_worse: of the hypothesis that it is not materially worse.
        p_better: of the hypothesis that it is not materially better.
        windows: number of windows that both have, 0 where they are not paired.
        changes: what else differs from the baseline.
    """

    model: str
    metric: str
    baseline: str
    old: float
    new: float
    worse_by: float
    se: float | None
    p_worse: float
    p_better: float
    confidence: float
    windows: int
    changes: tuple[str, ...]
    detail: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self) | {"changes": list(self.changes)}


def compare(metric: str, now: Now, baseline: Baseline, confidence: float) -> Comparison | None:
    """A metric of `COMPARED`, now and in a baseline; None where the baseline does not have it.

    Where text, window length and vocabulary are the same, windows that both decoded are compared one by one: the error
    is that of their differences, which is far smaller than that of the two values. Otherwise the values are compared,
    taken as independent.
    """
    before = baseline.models.get(now.name)
    if before is None or now.facts.means is None:
        return None
    sign = 1 if metric_info(metric).better == "lower" else -1
    common = sorted(set(before.windows) & set(now.facts.windows)) if _same_text(now, before, baseline) else []
    if before.means is not None and len(common) > 1:
        old_means, new_means = (_pick(facts, metric, common) for facts in (before, now.facts))
        old, _ = from_mean(metric, float(old_means.mean()))
        new, slope = from_mean(metric, float(new_means.mean()))
        se = clustered_se((new_means - old_means)[:, None])
        se, clusters = None if se is None else slope * se, len(common)
    elif metric in before.estimates:
        common = []
        found = before.estimates[metric]
        estimate = _now(metric, now.facts)
        old, new = found["value"], estimate.value
        errors = [error for error in (found["se"], estimate.se) if error is not None]
        se = math.hypot(*errors) if errors else None
        clusters = min(count for count in (found["clusters"], estimate.clusters) if count)
    else:
        return None
    worse_by, material = sign * (new - old), MATERIAL * abs(old)
    p_worse, p_better = (exceedance_p_value(change, se or 0.0, clusters, material) for change in (worse_by, -worse_by))
    return Comparison(
        model=now.name,
        metric=metric,
        baseline=baseline.name,
        old=old,
        new=new,
        worse_by=worse_by,
        se=se,
        p_worse=p_worse,
        p_better=p_better,
        confidence=confidence,
        windows=len(common),
        changes=tuple(_changes(now, before, baseline)),
        detail=_explain(metric, baseline.name, old, new, worse_by, se, len(common)),
    )


def judge(comparisons: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `p_adjusted` and `outcome` ("worse", "better" or "same") to each comparison of a run.

    Holm's correction over all of them, for getting worse and for getting better each: no model of the run is called
    worse that is not, with the comparisons' confidence.

    Args:
        comparisons: `Comparison.to_json` of each.
    """
    found = [dict(comparison) for comparison in comparisons]
    worse, better = (holm([comparison[key] for comparison in found]) for key in ("p_worse", "p_better"))
    for comparison, p_worse, p_better in zip(found, worse, better, strict=True):
        outcome: Literal["worse", "better", "same"] = "same"
        level = 1 - comparison["confidence"]
        if p_worse <= level or p_better <= level:
            outcome = "worse" if p_worse <= p_better else "better"
        comparison |= {"p_adjusted": min(p_worse, p_better), "outcome": outcome}
    return found


def _same_text(now: Now, before: Facts, baseline: Baseline) -> bool:
    vocabularies = [facts.family["vocab_sha256"] for facts in (now.facts, before)]
    return baseline.corpus == now.corpus and vocabularies[0] == vocabularies[1]


def _pick(facts: Facts, metric: str, windows: Sequence[int]) -> NDArray[np.float64]:
    means = facts.means[metric] if facts.means is not None else ()
    by_window = dict(zip(facts.windows, means, strict=True))
    return np.array([by_window[window] for window in windows])


def _now(metric: str, facts: Facts) -> MeanEstimate:
    means = _pick(facts, metric, facts.windows)
    value, slope = from_mean(metric, float(means.mean()))
    se = clustered_se(means[:, None])
    return MeanEstimate(value, None if se is None else slope * se, None, len(means), len(means))


def _changes(now: Now, before: Facts, baseline: Baseline) -> list[str]:
    """What differs between the two measurements beside the values."""

    def shown(corpus: tuple[str, int] | None) -> str | None:
        return None if corpus is None else f"{corpus[0][:12]} in windows of {corpus[1]}"

    family, earlier = now.facts.family, before.family
    pairs: list[tuple[str, str | None, str | None]] = [
        ("corpus", shown(baseline.corpus), shown(now.corpus)),
        ("llama.cpp", baseline.engine, now.engine),
        ("reference", baseline.reference, now.reference),
        ("architecture", earlier["architecture"], family["architecture"]),
        ("parameters", earlier["parameters"], family["parameters"]),
        ("vocabulary", earlier["vocab_sha256"], family["vocab_sha256"]),
        ("file", before.sha256, now.facts.sha256),
    ]
    return [f"{what} ({_short(old)} -> {_short(new)})" for what, old, new in pairs if old != new]


def _short(text: str | None) -> str:
    """A hash by its beginning."""
    return "none" if text is None else text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _explain(
    metric: str, baseline: str, old: float, new: float, worse_by: float, se: float | None, windows: int
) -> str:
    info = metric_info(metric)
    factor, unit = (100, " %") if info.unit == "fraction" else (1, f" {info.unit}" if info.unit else "")
    how = f"paired over {windows} windows" if windows else "not paired: the two did not decode the same windows"
    error = "" if se is None else f" ± {factor * se:.2g}"
    direction = "worse" if worse_by > 0 else "better"
    return (
        f"{info.title} is {factor * new:.4g}{unit}, in the baseline {baseline!r} it was {factor * old:.4g}{unit}:"
        f" {direction} by {factor * abs(worse_by):.3g}{error}{unit} ({how})."
    )
