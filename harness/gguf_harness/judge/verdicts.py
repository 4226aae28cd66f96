"""Verdicts: gates decided by a confidence bound instead of the point estimate, one by one and for a whole run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from gguf_harness.errors import GateError, NoData
from gguf_harness.judge.advice import TextSize, what_would_decide
from gguf_harness.judge.gates import Gate
from gguf_harness.metrics.multiple import holm
from gguf_harness.metrics.number_format import format_bytes, format_estimate, format_percent, format_value
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.registry import Metric, metric_info

if TYPE_CHECKING:
    from gguf_harness.metrics.sequential import EarlyDecision
    from gguf_harness.metrics.stats import MeanEstimate

__all__ = ["Outcome", "Verdict", "adjust", "decide", "name_briefly", "stopped_by"]

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Tested:
    """The value checked against a limit: the estimate itself, or its ratio to the reference's.

    Attributes:
        se: standard error, as shown.
        below: the error for a lower bound; infinite if there is no bound, None for exact values.
        above: the same for an upper bound.
        scale: value of the reference for a ratio, otherwise 1: converts a ratio to the metric's unit.
        paired: whether the ratio's error is that of shared samples.
    """

    value: float
    se: float | None
    below: float | None
    above: float | None
    n: int
    clusters: int | None
    limit: float
    scale: float = 1.0
    paired: bool = False

    @property
    def towards_limit(self) -> float | None:
        """The error on the side of the limit."""
        return self.below if self.limit < self.value else self.above


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a gate on an estimate.

    Attributes:
        limit: in the metric's unit, also if the gate's limit is relative.
        value: of the estimate; None if it is not reliable.
        bound: the confidence bound that decided, in the metric's unit: fail if beyond the limit, otherwise pass.
        p_value: of the hypothesis that the outcome rejects: "within the limit" for fail, "beyond it" for pass, that of
            the likelier outcome if inconclusive. None without a standard error.
        more_clusters: number of additional windows (repetitions) that would probably decide; None if decided, or if no
            number would.
        detail: sentences for readers, including the place.
        layer, head, part, prompt: the place in the model and its input; for an extreme, where it was found; all None
        for the whole model.
    """

    model: str
    metric: str
    value: float | None
    limit: float
    better: str
    confidence: float
    bound: float | None
    verdict: Outcome
    detail: str
    p_value: float | None = None
    more_clusters: int | None = None
    layer: int | None = None
    head: int | None = None
    part: str | None = None
    prompt: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def _tested(gate: Gate, estimate: Estimate, reference: Estimate | None, ratio: Estimate | None) -> Tested:
    """The value that `decide` checks against the gate's limit."""
    from gguf_harness.metrics.stats import ratio_with_error, side_error

    def tested(held: Estimate | MeanEstimate, limit: float, scale: float = 1.0, *, paired: bool = False) -> Tested:
        below, above = (side_error(held, upper=upper) for upper in (False, True))
        return Tested(held.value, held.se, below, above, held.n, held.clusters, limit, scale, paired)

    if gate.limit is not None:
        return tested(estimate, gate.limit)
    if reference is None or gate.limit_ratio is None:
        raise GateError(
            f"The gate of {gate.metric!r} is relative to the reference, and there is no estimate of the reference.",
            "Give the test a reference, or use an absolute `limit`.",
        )
    if not reference.value > 0:
        raise NoData(
            f"{gate.metric} of the reference is {reference.value}: a limit relative to it is meaningless, expected more"
            " than zero."
        )
    held = ratio or ratio_with_error(estimate, reference)
    return tested(held, gate.limit_ratio, reference.value, paired=ratio is not None)


def decide(
    gate: Gate,
    estimate: Estimate,
    model: str,
    *,
    reference: Estimate | None = None,
    ratio: Estimate | None = None,
    watched: bool = False,
    early: EarlyDecision | None = None,
    stopped: str | None = None,
    text: TextSize | None = None,
) -> Verdict:
    """Decide a gate: pass if the confidence bound is on the good side of the limit, fail if it is beyond it.

    One-sided bounds at `gate.confidence`, t with the clusters' degrees of freedom and the errors of each side. Passing
    needs the bad-side bound to be within the limit; failing needs the good-side bound to be beyond it; anything else is
    inconclusive, including too few samples for a bound. Values without an error (a file size, a maximum) are compared
    directly. Estimates in doubt decide nothing.

    Args:
        gate: the limit.
        estimate: estimate of the model, with its place.
        model: its name.
        reference: the reference's estimate of the same metric; needed for a relative limit.
        ratio: the ratio of both with its paired error, if their samples are shared; by default it is computed from the
            two estimates as independent, by the delta method.
        watched: whether the gate could be decided early: half of its error probability is for early decisions.
        early: the early decision; it is final, whatever the bound is.
        stopped: why the measurement ended before this gate was decided, worded to follow a colon: then it is not, since
            when it ended depended on what was measured.
        text: the text that windows are taken from, for advice.

    Raises:
        GateError: a relative limit without a reference.
        NoData: the reference's value is not positive.
    """
    from gguf_harness.metrics.stats import confidence_bound

    tested = _tested(gate, estimate, reference, ratio)
    held_against = [estimate] if gate.limit is not None else [ratio] if ratio is not None else [estimate, reference]
    doubt = next((known.doubt for known in held_against if known is not None and known.doubt), None)
    if doubt := doubt or (stopped if early is None else None):
        return _undecided(gate, estimate, model, tested, doubt)
    bounded = gate.half_of_the_error() if watched else gate
    lower_is_better = gate.lower_is_better

    def within(value: float) -> bool:
        return value <= tested.limit if lower_is_better else value >= tested.limit

    def bound_of(*, upper: bool) -> float:
        error = tested.above if upper else tested.below
        if error is None:
            return tested.value
        return confidence_bound(tested.value, error, tested.clusters, bounded.confidence, upper=upper)

    bad, good = bound_of(upper=lower_is_better), bound_of(upper=not lower_is_better)
    outcome: Outcome = "pass" if within(bad) else "inconclusive" if within(good) else "fail"
    bound = good if outcome == "fail" else bad
    p_value = _p_value(gate, tested, outcome)
    more = _more_clusters(bounded, tested) if outcome == "inconclusive" else None
    reason = _reason(bounded, tested, outcome, bound, more, text)
    if early is not None:
        outcome, bound, p_value, more = early.outcome, math.inf, early.p_value, None
        reason = f" Decided after {early.windows} windows, by a test that may be stopped at any time."
    return Verdict(
        model=model,
        metric=gate.metric,
        value=estimate.value,
        limit=tested.limit * tested.scale,
        better=estimate.better,
        confidence=gate.confidence,
        bound=bound * tested.scale if math.isfinite(bound) else None,
        verdict=outcome,
        detail=_statement(gate, estimate, tested) + reason,
        p_value=min(1.0, 2 * p_value) if watched and p_value is not None else p_value,
        more_clusters=more,
        **estimate.found_at._asdict(),
    )


def stopped_by(watched: Mapping[str, EarlyDecision | None], metric: str) -> str | None:
    """Why a pass ended before the gate of a metric was decided: another had failed; None if none had.

    Args:
        watched: early decisions of the pass, by gate.
        metric: of the gate in question.
    """
    failed = [(one.windows, gate) for gate, one in watched.items() if one is not None and one.outcome == "fail"]
    if watched.get(metric, ...) is not None or not failed:
        return None
    windows, gate = min(failed)
    return f"the pass stopped after {windows} windows, when {metric_info(gate).title} had failed"


def _undecided(gate: Gate, estimate: Estimate, model: str, tested: Tested, doubt: str) -> Verdict:
    """The verdict on an unreliable measurement: its sentences contain no measured numbers."""
    side = "at most" if gate.lower_is_better else "at least"
    return Verdict(
        model=model,
        metric=gate.metric,
        value=None,
        limit=tested.limit * tested.scale,
        better=estimate.better,
        confidence=gate.confidence,
        bound=None,
        verdict="inconclusive",
        detail=(
            f"{metric_info(gate.metric).title} was not checked against its limit, {side} {_show(gate, tested.limit)}:"
            f" {doubt}."
        ),
        **estimate.found_at._asdict(),
    )


def _p_value(gate: Gate, tested: Tested, outcome: Outcome) -> float | None:
    from gguf_harness.metrics.stats import exceedance_p_value

    error = tested.towards_limit
    if error is None:
        return None
    above = exceedance_p_value(tested.value, error, tested.clusters, tested.limit)
    fail = above if gate.lower_is_better else 1 - above
    return {"fail": fail, "pass": 1 - fail, "inconclusive": min(fail, 1 - fail)}[outcome]


def _more_clusters(gate: Gate, tested: Tested) -> int | None:
    from gguf_harness.metrics.stats import clusters_needed

    error = tested.towards_limit
    if error is None or tested.clusters is None:
        return None
    needed = clusters_needed(tested.value, error, tested.clusters, tested.limit, gate.confidence)
    return None if needed is None else max(1, needed - tested.clusters)


def _statement(gate: Gate, estimate: Estimate, tested: Tested) -> str:
    """The sentence with the estimate and the limit."""
    where = f" ({estimate.where})" if estimate.where else ""
    text = f"{metric_info(gate.metric).title}{where} is {_with_unit(gate, estimate.value, estimate.se)}"
    if estimate.se == 0:
        text += f" (no variation, n = {estimate.n})"
    if gate.limit is None:
        kind = ", paired" if tested.paired else ""
        ratio = format_estimate(tested.value, tested.se)
        text += f", {ratio}{kind} times the reference's {_with_unit(gate, tested.scale, None)}"
    side = "at most" if gate.lower_is_better else "at least"
    return f"{text}; the limit is {side} {_show(gate, tested.limit)}."


def _reason(gate: Gate, tested: Tested, outcome: Outcome, bound: float, more: int | None, text: TextSize | None) -> str:
    """The sentence on the bound behind the verdict, and on how to decide the gate."""
    if outcome == "inconclusive":
        if not math.isfinite(bound):
            return f" {tested.n} samples are too few for a confidence bound."
        advice = "cannot estimate how much more data is needed."
        if more is not None and tested.clusters is not None:
            advice = what_would_decide(
                gate.metric, tested.clusters, tested.clusters + more, tested.n // tested.clusters, text
            )
        return f" Its {100 * gate.confidence:.4g} % bound is {_show(gate, bound)}: {advice}"
    if outcome == "fail" and tested.towards_limit is not None:
        return f" Even its {100 * gate.confidence:.4g} % bound, {_show(gate, bound)}, is beyond it."
    return ""


def _show(gate: Gate, number: float) -> str:
    return f"{number:.4g} times the reference's" if gate.limit is None else _with_unit(gate, number, None)


def _with_unit(gate: Gate, number: float, se: float | None) -> str:
    """`0.0829 ± 0.0031 nats`, `81.00 ± 0.63 %`."""
    unit = metric_info(gate.metric).unit
    if unit == "fraction":
        return format_percent(number, se)
    # A limit is shown as it was given.
    text = f"{number:.4g}" if se is None else format_estimate(number, se)
    return f"{text} {unit}" if unit else text


def name_briefly(gate: Mapping[str, Any], metric: Metric | None) -> str:
    """A verdict in a few words, where its sentence is told elsewhere: `KL mean 0.0829, limit 0.0001 nats`.

    Args:
        gate: `Verdict.to_json`.
        metric: the entry of its metric, if there is one.
    """
    title, unit = (metric.title, metric.unit) if metric is not None else (str(gate["metric"]), "")
    where = str(Place.of(gate))
    value, limit = gate["value"], gate["limit"]
    if unit == "fraction":
        shown, given = "-" if value is None else format_percent(value, None), f"{100 * limit:.4g} %"
    elif unit == "bytes":
        shown, given = "-" if value is None else format_bytes(value), format_bytes(limit)
    else:
        shown, given = "-" if value is None else format_value(value), f"{limit:.4g} {unit}".rstrip()
    return f"{title}{f' ({where})' if where else ''} {shown}, limit {given}"


def adjust(verdicts: Iterable[dict[str, Any]], *, enforce: bool) -> list[dict[str, Any]]:
    """Apply Holm's correction over all gates of a run: add `p_adjusted` and `verdict_adjusted` to each verdict.

    There are two families, each with its own guarantee: passes (hypotheses that a metric is beyond its limit) and
    failures (that it is within). Each hypothesis that a gate could reject counts in its family; undecided gates count
    in the nearer one with their p-value and in the other with its complement. Gates without a standard error are facts
    and are not counted. A pass or failure whose adjusted p-value is above 1 - confidence is inconclusive after the
    correction.

    Args:
        verdicts: `Verdict.to_json` of each, in any order.
        enforce: whether the adjusted verdict becomes the verdict.
    """
    adjusted_verdicts = [dict(verdict) for verdict in verdicts]
    tested = [verdict for verdict in adjusted_verdicts if verdict.get("p_value") is not None]
    fails = [verdict["p_value"] if _points_to_fail(verdict) else 1 - verdict["p_value"] for verdict in tested]
    families = zip(tested, holm(fails), holm([1 - p for p in fails]), strict=True)
    for verdict in adjusted_verdicts:
        verdict |= {"p_adjusted": None, "verdict_adjusted": verdict["verdict"]}
    for verdict, fail, passing in families:
        adjusted = fail if _points_to_fail(verdict) else passing
        stands = adjusted <= 1 - verdict["confidence"]
        verdict["p_adjusted"] = adjusted
        if stands or verdict["verdict"] == "inconclusive":
            continue
        verdict["verdict_adjusted"] = "inconclusive"
        if enforce:
            verdict["verdict"] = "inconclusive"
            verdict["detail"] += (
                f" Holm's correction over {len(tested)} gates makes it inconclusive: p = {adjusted:.2g}."
            )
    return adjusted_verdicts


def _points_to_fail(verdict: dict[str, Any]) -> bool:
    if verdict["verdict"] != "inconclusive":
        return bool(verdict["verdict"] == "fail")
    within = (
        verdict["value"] <= verdict["limit"] if verdict["better"] == "lower" else verdict["value"] >= verdict["limit"]
    )
    return not within
