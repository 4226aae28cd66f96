"""Gates: limits on estimates, decided by a confidence bound and not by the point."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from harness.errors import GateError, NoData
from harness.metrics.multiple import holm
from harness.names import PER_MODEL, metric_info
from harness.records import Estimate

__all__ = ["Gate", "Outcome", "Verdict", "adjust", "decide", "load_gates"]

Outcome = Literal["pass", "fail", "inconclusive"]

_KEYS = frozenset({"limit", "limit_relative", "confidence", "source"})


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on a metric: an absolute one, or one relative to what the reference has.

    Attributes:
        metric: a name from `harness.names.METRICS`; its direction says which side of the limit is good.
        limit: in the metric's unit; None for a relative one.
        confidence: probability with which a bound must hold, in (0.5, 1).
        source: where the limit comes from.
        limit_relative: share by which a candidate may be worse than the reference: 0.05 allows 5 % more where lower
            is better, 5 % less where higher is; negative where it has to be better.
    """

    metric: str
    limit: float | None = None
    confidence: float = 0.95
    source: str = ""
    limit_relative: float | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether the limit is the most that is allowed; otherwise it is the least."""
        return metric_info(self.metric).better == "lower"

    @property
    def limit_ratio(self) -> float | None:
        """A relative limit as a ratio to the reference's value."""
        if self.limit_relative is None:
            return None
        return 1 + self.limit_relative if self.lower_is_better else 1 - self.limit_relative


@dataclass(frozen=True, slots=True)
class Tested:
    """What is held against a limit: the estimate itself, or its ratio to the reference's.

    Attributes:
        scale: value of the reference for a ratio, otherwise 1: turns a ratio into the metric's unit.
        paired: whether the ratio's error is that of shared samples.
    """

    value: float
    se: float | None
    n: int
    clusters: int | None
    limit: float
    scale: float = 1.0
    paired: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says about an estimate.

    Attributes:
        limit: in the metric's unit, also where the gate's limit is relative.
        bound: the confidence bound that decided, in the metric's unit: beyond the limit it fails, short of it it
            passes.
        p_value: of the hypothesis that an outcome contradicts: "within the limit" for fail, "beyond it" for pass, the
            likelier of both outcomes where it is inconclusive. None without a standard error.
        more_clusters: how many more windows (repetitions) would probably decide; None where it is decided, or where
            no number would.
        detail: sentences for people.
    """

    model: str
    metric: str
    value: float
    limit: float
    better: str
    confidence: float
    bound: float | None
    verdict: Outcome
    detail: str
    p_value: float | None = None
    more_clusters: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def load_gates(path: Path | None) -> dict[str, Gate]:
    """Built-in limits, with those of a TOML file in their place: tables `[metric]` with `limit` or `limit_relative`.

    Raises:
        GateError: malformed file, unknown metric, a limit that is no number, or one that cannot decide anything.
    """
    built_in = resources.files("harness.fixtures").joinpath("data/gates.toml").read_text(encoding="utf-8")
    gates = _parse(built_in, "the built-in gates")
    if path is not None:
        try:
            gates |= _parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise GateError(f"{path}: the gates file cannot be read: {error}.") from error
    return gates


def _parse(text: str, origin: str) -> dict[str, Gate]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GateError(
            f"{origin}: not valid TOML: {error}.", "Expected tables such as [kld_mean] with limit = 0.1."
        ) from None
    return {metric: _gate(metric, table, origin) for metric, table in tables.items()}


def _gate(metric: str, table: object, origin: str) -> Gate:
    if metric_info(metric).better == "neutral":
        raise GateError(f"{origin}: {metric} cannot be gated: neither direction is better.")
    if not isinstance(table, dict) or not set(table) <= _KEYS or len({"limit", "limit_relative"} & set(table)) != 1:
        raise GateError(
            f"{origin}: [{metric}] is {table!r}.",
            "Expected `limit` or `limit_relative` (one of them), and if you like `confidence` and `source`.",
        )
    numbers = {"confidence": 0.95} | {key: value for key, value in table.items() if key != "source"}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise GateError(f"{origin}: {name} of [{metric}] is {number!r}, expected a finite number.")
    numbers = {name: float(number) for name, number in numbers.items()}
    if not 0.5 < numbers["confidence"] < 1:
        raise GateError(f"{origin}: confidence of [{metric}] is {numbers['confidence']}, expected between 0.5 and 1.")
    gate = Gate(metric, source=str(table.get("source", "")), **numbers)
    _check_relative(gate, origin)
    return gate


def _check_relative(gate: Gate, origin: str) -> None:
    ratio = gate.limit_ratio
    if ratio is None:
        return
    if gate.metric not in PER_MODEL:
        raise GateError(
            f"{origin}: limit_relative of [{gate.metric}] has nothing to relate to: the reference has no {gate.metric}"
            " of its own.",
            f"Use `limit`; `limit_relative` is for {', '.join(sorted(PER_MODEL))}.",
        )
    if ratio <= 0:
        every = "no candidate can keep" if gate.lower_is_better else "every candidate keeps"
        raise GateError(
            f"{origin}: limit_relative of [{gate.metric}] is {gate.limit_relative}: a limit that {every}.",
            "Expected a share such as 0.05 for `at most 5 % worse than the reference`.",
        )


def _tested(gate: Gate, estimate: Estimate, reference: Estimate | None, ratio: Estimate | None) -> Tested:
    """What `decide` holds against the gate's limit."""
    from harness.metrics.stats import ratio_with_error

    if gate.limit is not None:
        return Tested(estimate.value, estimate.se, estimate.n, estimate.clusters, gate.limit)
    if reference is None or gate.limit_ratio is None:
        raise GateError(
            f"The gate of {gate.metric!r} is relative to the reference, and there is no estimate of the reference.",
            "Give the test a reference, or use an absolute `limit`.",
        )
    if not reference.value > 0:
        raise NoData(
            f"{gate.metric} of the reference is {reference.value}: a limit relative to it means nothing, expected more"
            " than zero."
        )
    found = ratio or ratio_with_error(estimate, reference)
    return Tested(
        found.value, found.se, found.n, found.clusters, gate.limit_ratio, reference.value, paired=ratio is not None
    )


def decide(
    gate: Gate, estimate: Estimate, model: str, *, reference: Estimate | None = None, ratio: Estimate | None = None
) -> Verdict:
    """Pass when the confidence bound is on the good side of the limit, fail when it is beyond it.

    One-sided bounds at `gate.confidence`, t with the clusters' degrees of freedom. Passing needs the bad-side bound
    to be within the limit; failing needs the good-side bound to be beyond it; anything else is inconclusive. An
    estimate without a standard error (a file size, a maximum) is compared as it is.

    Args:
        gate: the limit.
        estimate: the model's.
        model: its name.
        reference: the reference's estimate of the same metric; needed for a relative limit.
        ratio: the ratio of both with its paired error, where their samples are shared; by default it is computed from
            the two estimates, taken as independent, by the delta method.

    Raises:
        GateError: a relative limit without a reference.
        NoData: the reference's value is not positive.
    """
    from harness.metrics.stats import confidence_bound

    tested = _tested(gate, estimate, reference, ratio)
    lower_is_better = gate.lower_is_better

    def within(value: float) -> bool:
        return value <= tested.limit if lower_is_better else value >= tested.limit

    if tested.se is None:
        good = bad = tested.value
    else:
        bad, good = (
            confidence_bound(tested.value, tested.se, tested.clusters, gate.confidence, upper=upper)
            for upper in (lower_is_better, not lower_is_better)
        )
    outcome: Outcome = "pass" if within(bad) else "inconclusive" if within(good) else "fail"
    bound = good if outcome == "fail" else bad
    more = _more_clusters(gate, tested) if outcome == "inconclusive" else None
    return Verdict(
        model=model,
        metric=gate.metric,
        value=estimate.value,
        limit=tested.limit * tested.scale,
        better=estimate.better,
        confidence=gate.confidence,
        bound=bound * tested.scale if math.isfinite(bound) else None,
        verdict=outcome,
        detail=_explain(gate, estimate, tested, outcome, bound, more),
        p_value=_p_value(gate, tested, outcome),
        more_clusters=more,
    )


def _p_value(gate: Gate, tested: Tested, outcome: Outcome) -> float | None:
    from harness.metrics.stats import exceedance_p_value

    if tested.se is None:
        return None
    above = exceedance_p_value(tested.value, tested.se, tested.clusters, tested.limit)
    fail = above if gate.lower_is_better else 1 - above
    return {"fail": fail, "pass": 1 - fail, "inconclusive": min(fail, 1 - fail)}[outcome]


def _more_clusters(gate: Gate, tested: Tested) -> int | None:
    from harness.metrics.stats import clusters_needed

    if tested.se is None or tested.clusters is None:
        return None
    needed = clusters_needed(tested.value, tested.se, tested.clusters, tested.limit, gate.confidence)
    return None if needed is None else max(1, needed - tested.clusters)


def _explain(gate: Gate, estimate: Estimate, tested: Tested, outcome: Outcome, bound: float, more: int | None) -> str:
    info = metric_info(gate.metric)
    factor, unit = (100, " %") if info.unit == "fraction" else (1, f" {info.unit}" if info.unit else "")
    error = f" ± {factor * estimate.se:.2g}" if estimate.se is not None else ""
    side = "at most" if gate.lower_is_better else "at least"
    text = f"{info.title} is {factor * estimate.value:.4g}{error}{unit}"

    def show(number: float) -> str:
        return f"{factor * number:.4g}{unit}" if gate.limit is not None else f"{number:.4g} times the reference's"

    if gate.limit is None:
        error = f" ± {tested.se:.2g}" if tested.se is not None else ""
        kind = ", paired" if tested.paired else ""
        text += f", {tested.value:.4g}{error}{kind} times the reference's {factor * tested.scale:.4g}{unit}"
    text += f"; the limit is {side} {show(tested.limit)}."
    if outcome == "inconclusive":
        text += f" Its {gate.confidence:.0%} bound is {show(bound)}: {_what_would_decide(tested, more)}"
    elif outcome == "fail" and tested.se is not None:
        text += f" Even its {gate.confidence:.0%} bound, {show(bound)}, is beyond it."
    return text


def _what_would_decide(tested: Tested, more: int | None) -> str:
    if more is None or tested.clusters is None:
        return "it cannot be told how much more data would decide."
    total = tested.clusters + more
    if tested.n == tested.clusters:
        what = f"{more} more repetitions (--gguf-repetitions={total})"
    else:
        tokens = more * (tested.n // tested.clusters)
        what = f"{more} more windows ({tokens} more scored tokens, --gguf-chunks={total})"
    return f"about {what} would decide, estimated from the error so far."


def adjust(verdicts: Iterable[dict[str, Any]], *, enforce: bool) -> list[dict[str, Any]]:
    """Holm's correction over all gates of a run: adds `p_adjusted` and `verdict_adjusted` to each verdict.

    Two families, each with its own guarantee: the passes (the hypotheses that a metric is beyond its limit) and the
    failures (that it is within). Each hypothesis that a gate could contradict counts in its family, undecided gates
    in the one that they are nearer to with their p-value and in the other with its complement. Gates without a
    standard error are facts, and count nowhere. A pass or failure whose adjusted p-value is above 1 - confidence is
    inconclusive after the correction.

    Args:
        verdicts: `Verdict.to_json` of each, in any order.
        enforce: whether the adjusted verdict becomes the verdict.
    """
    found = [dict(verdict) for verdict in verdicts]
    tested = [verdict for verdict in found if verdict.get("p_value") is not None]
    fails = [verdict["p_value"] if _points_to_fail(verdict) else 1 - verdict["p_value"] for verdict in tested]
    families = zip(tested, holm(fails), holm([1 - p for p in fails]), strict=True)
    for verdict in found:
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
    return found


def _points_to_fail(verdict: dict[str, Any]) -> bool:
    if verdict["verdict"] != "inconclusive":
        return bool(verdict["verdict"] == "fail")
    within = (
        verdict["value"] <= verdict["limit"] if verdict["better"] == "lower" else verdict["value"] >= verdict["limit"]
    )
    return not within
