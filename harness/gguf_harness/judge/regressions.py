"""Regressions: compare models with a baseline, paired by window if both decoded the same text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from gguf_harness.inputs.pairing import some_names
from gguf_harness.judge.baselines import Baseline, Facts
from gguf_harness.metrics.kernels.standard_errors import clustered_se
from gguf_harness.metrics.multiple import holm
from gguf_harness.metrics.number_format import format_estimate
from gguf_harness.metrics.records import WHOLE, Estimate, Place, Row
from gguf_harness.metrics.registry import compared_by_window, metric_info
from gguf_harness.metrics.stats import MeanEstimate, exceedance_p_value
from gguf_harness.metrics.windows import from_mean

__all__ = [
    "CONFIDENCE",
    "MATERIAL",
    "Comparison",
    "Now",
    "compare",
    "compare_row",
    "is_compared",
    "judge",
    "p_values",
]

CONFIDENCE: Final = 0.95
"""Confidence for metrics without a gate; the same as the default of gates."""

MATERIAL: Final = 0.001
"""Smallest change that counts, as a share of the baseline's value: processors round differently, and if all windows
change by the last digit, that would be significant but meaningless.
"""


@dataclass(frozen=True, slots=True)
class Now:
    """The measurement of a model in this session, and its conditions.

    Attributes:
        name: of the model.
        facts: as in a baseline, but `estimates` are not used.
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
        partner: name of the baseline's model.
        worse_by: how much worse it is now, in the metric's unit; negative if it is better.
        se: standard error of that; None if unknown.
        p_worse: p-value of the hypothesis that it is not materially worse.
        p_better: p-value of the hypothesis that it is not materially better.
        windows: number of windows that both have; 0 if not paired.
        changes: other differences from the baseline.
        layer, head, part, prompt: the place in the model; all None for the whole model.
    """

    model: str
    partner: str
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
    layer: int | None = None
    head: int | None = None
    part: str | None = None
    prompt: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self) | {"changes": list(self.changes)}


@dataclass(frozen=True, slots=True)
class _Change:
    """The two values of a comparison, and the error of their difference.

    Attributes:
        se: of `new - old`.
        clusters: number of clusters behind that; None for very many.
        windows: number of paired windows.
    """

    old: float
    new: float
    se: float
    clusters: int | None
    windows: int = 0


def compare(
    metric: str, now: Now, baseline: Baseline, confidence: float, partner: str | None = None
) -> Comparison | None:
    """Compare a metric by window with a baseline; None if the baseline does not have it.

    If text, window length and vocabulary are the same, windows that both decoded are compared in pairs: the error of
    their differences is far smaller than that of the two values. If fewer than half of the windows of the shorter pass
    are shared, the two values are compared as independent.

    Args:
        metric: its name.
        now: measurement of this session.
        baseline: the earlier one.
        confidence: confidence of the verdict.
        partner: the model of the baseline to compare with; the one of the same name if not given.
    """
    partner = partner or now.name
    before = baseline.models.get(partner)
    change = None if before is None else _of_windows(metric, now, before, baseline)
    if before is None or change is None:
        return None
    return _comparison(metric, now.name, partner, baseline, change, confidence, tuple(_changes(now, before, baseline)))


def _of_windows(metric: str, now: Now, before: Facts, baseline: Baseline) -> _Change | None:
    if now.facts.means is None:
        return None
    common = _common(now, before, baseline)
    paired = before.means is not None and metric in before.means
    if paired and common:
        old_means, new_means = (_pick(facts, metric, common) for facts in (before, now.facts))
        old, _ = from_mean(metric, float(old_means.mean()))
        new, slope = from_mean(metric, float(new_means.mean()))
        se = clustered_se((new_means - old_means)[:, None])
        return None if se is None else _Change(old, new, slope * se, len(common), len(common))
    # The means may exist even if the saved run did not record this metric.
    earlier = asdict(_from_means(metric, before)) if paired else before.estimates.get(metric)
    return _independent(earlier, _from_means(metric, now.facts))


def _independent(old: Mapping[str, Any] | None, new: MeanEstimate | Estimate) -> _Change | None:
    """Two values with an error each; None if an error is missing, since the difference could not be judged."""
    if old is None or old["se"] is None or new.se is None:
        return None
    clusters = [count for count in (old["clusters"], new.clusters) if count is not None]
    return _Change(old["value"], new.value, math.hypot(old["se"], new.se), min(clusters) if clusters else None)


def is_compared(row: Row) -> bool:
    """Whether a row of a run is compared directly with a baseline.

    Values of whole models that measure quality and have an error. Metrics of the corpus are compared by
    window, with `compare`. Speed and memory depend on the machine, and values of parts are only reported: see the
    registry entry.
    """
    metric = metric_info(row.metric)
    quality = metric.compared and metric.window_means is None and row.better != "neutral"
    return row.place == WHOLE and quality and row.se is not None and row.reference is not None


def compare_row(
    row: Row, baseline: Baseline, partner: str, confidence: float, settings: Mapping[str, str]
) -> Comparison | None:
    """Compare a row of a run with a baseline, by metric and place; None if the baseline does not have it.

    Args:
        row: the row of the run.
        baseline: the earlier measurement.
        partner: the model of the baseline to compare with.
        confidence: confidence of the verdict.
        settings: as in `Baseline.settings`.
    """
    before = baseline.models[partner]
    place = row.place
    old = before.estimates.get(row.metric) if place == WHOLE else before.placed.get((row.metric, place))
    change = _independent(old, Estimate(row.metric, row.value, row.n, row.se, row.se_iid, row.clusters))
    if change is None:
        return None
    pairs = [(name, baseline.settings[name], new) for name, new in settings.items() if name in baseline.settings]
    changes = tuple(f"{what} ({_short(old)} -> {_short(new)})" for what, old, new in pairs if old != new)
    return _comparison(row.metric, row.model, partner, baseline, change, confidence, changes, place)


def _comparison(
    metric: str,
    model: str,
    partner: str,
    baseline: Baseline,
    change: _Change,
    confidence: float,
    changes: tuple[str, ...],
    place: Place = WHOLE,
) -> Comparison:
    worse_by = (1 if metric_info(metric).better == "lower" else -1) * (change.new - change.old)
    p_worse, p_better = p_values(worse_by, change.se, change.clusters, change.old)
    origin = repr(baseline.name) + ("" if partner == model else f" ({some_names([partner])})")
    return Comparison(
        model=model,
        partner=partner,
        metric=metric,
        baseline=baseline.name,
        old=change.old,
        new=change.new,
        worse_by=worse_by,
        se=change.se,
        p_worse=p_worse,
        p_better=p_better,
        confidence=confidence,
        windows=change.windows,
        changes=changes,
        detail=_explain(metric, origin, change, worse_by, place),
        **place._asdict(),
    )


def p_values(worse_by: float, se: float, clusters: int | None, old: float) -> tuple[float, float]:
    """One-sided p-values of the hypotheses that a value is not materially worse, and not materially better.

    Args:
        worse_by: how much worse it became, in the metric's unit; negative if it became better.
        se: its standard error; 0 for a fact.
        clusters: behind `se`; None for a normal quantile.
        old: the earlier value, of which `MATERIAL` is a share.
    """
    material = MATERIAL * abs(old)
    return (
        exceedance_p_value(worse_by, se, clusters, material),
        exceedance_p_value(-worse_by, se, clusters, material),
    )


def judge(comparisons: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `p_adjusted` and `outcome` ("worse", "better" or "same") to each comparison of a run.

    Holm's correction is applied separately to comparisons of the corpus and to those of other suites' rows, which are
    less sensitive and may be many, and separately for worse and better. In each group, no model is wrongly called
    worse, with the confidence of the comparisons.

    Args:
        comparisons: `Comparison.to_json` of each; results of `missing` are left unchanged.
    """
    judged = [dict(comparison) for comparison in comparisons]
    made = [comparison for comparison in judged if comparison.get("outcome") != "missing"]
    by_window = compared_by_window()
    _settle([comparison for comparison in made if comparison["metric"] in by_window])
    _settle([comparison for comparison in made if comparison["metric"] not in by_window])
    return judged


def _settle(comparisons: Sequence[dict[str, Any]]) -> None:
    """Decide a group of comparisons that are corrected together."""
    worse, better = (holm([comparison[key] for comparison in comparisons]) for key in ("p_worse", "p_better"))
    for comparison, p_worse, p_better in zip(comparisons, worse, better, strict=True):
        outcome: Literal["worse", "better", "same"] = "same"
        level = 1 - comparison["confidence"]
        if p_worse <= level or p_better <= level:
            outcome = "worse" if p_worse <= p_better else "better"
        comparison |= {"p_adjusted": min(p_worse, p_better), "outcome": outcome}


def _same_text(now: Now, before: Facts, baseline: Baseline) -> bool:
    vocabularies = [facts.family["vocab_sha256"] for facts in (now.facts, before)]
    return baseline.corpus == now.corpus and vocabularies[0] == vocabularies[1]


def _common(now: Now, before: Facts, baseline: Baseline) -> list[int]:
    """Windows to pair: those that both decoded, if they are at least half of the shorter pass."""
    common = sorted(set(before.windows) & set(now.facts.windows)) if _same_text(now, before, baseline) else []
    shorter = min(len(before.windows), len(now.facts.windows))
    return common if len(common) > 1 and 2 * len(common) >= shorter else []


def _pick(facts: Facts, metric: str, windows: Sequence[int]) -> NDArray[np.float64]:
    means = facts.means[metric] if facts.means is not None else ()
    by_window = dict(zip(facts.windows, means, strict=True))
    return np.array([by_window[window] for window in windows])


def _from_means(metric: str, facts: Facts) -> MeanEstimate:
    means = _pick(facts, metric, facts.windows)
    value, slope = from_mean(metric, float(means.mean()))
    se = clustered_se(means[:, None])
    return MeanEstimate(value, None if se is None else slope * se, None, len(means), len(means))


def _changes(now: Now, before: Facts, baseline: Baseline) -> list[str]:
    """Other differences between the two measurements."""

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
        ("type", before.quantization, now.facts.quantization),
        ("file", before.sha256, now.facts.sha256),
    ]
    changes = [f"{what} ({_short(old)} -> {_short(new)})" for what, old, new in pairs if old != new]
    if before.windows and _same_text(now, before, baseline) and not _common(now, before, baseline):
        both = len(set(before.windows) & set(now.facts.windows))
        changes.append(f"windows of the text (of the baseline's {len(before.windows)}, {both} are in this run)")
    return changes


def _short(text: str | None) -> str:
    """The beginning of a hash."""
    return "none" if text is None else text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _explain(metric: str, origin: str, change: _Change, worse_by: float, place: Place) -> str:
    info = metric_info(metric)
    factor, unit = (100, " %") if info.unit == "fraction" else (1, f" {info.unit}" if info.unit else "")
    how = f"paired over {change.windows} windows" if change.windows else "not paired: two independent measurements"
    where = f" ({place})" if place != WHOLE else ""
    direction = "worse" if worse_by > 0 else "better"
    amount = f"{format_estimate(factor * abs(worse_by), factor * change.se)}{unit}"
    return (
        f"{info.title}{where} is {factor * change.new:.4g}{unit}, in the baseline {origin} it was"
        f" {factor * change.old:.4g}{unit}: {direction} by {amount} ({how})."
    )
