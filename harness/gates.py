"""Gates: limits on estimates, decided by a confidence bound and not by the point."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from harness.errors import GateError
from harness.names import metric_info
from harness.records import Estimate

__all__ = ["Gate", "Verdict", "decide", "load_gates"]

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on a metric.

    Attributes:
        metric: a name from `harness.names.METRICS`; its direction says which side of the limit is good.
        limit: in the metric's unit.
        confidence: probability with which a bound must hold, in (0.5, 1).
        source: where the limit comes from.
    """

    metric: str
    limit: float
    confidence: float = 0.95
    source: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says about an estimate.

    Attributes:
        bound: the confidence bound that decided: beyond the limit it fails, short of it it passes.
        detail: one sentence for people.
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

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def load_gates(path: Path | None) -> dict[str, Gate]:
    """Built-in limits, with those of a TOML file in their place: tables `[metric]` with `limit` and `confidence`.

    Raises:
        GateError: malformed file, unknown metric, or a limit that is no number.
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
    if not isinstance(table, dict) or not set(table) <= {"limit", "confidence", "source"} or "limit" not in table:
        raise GateError(
            f"{origin}: [{metric}] is {table!r}.", "Expected `limit`, and if you like `confidence` and `source`."
        )
    limit, confidence = table["limit"], table.get("confidence", 0.95)
    for name, number in (("limit", limit), ("confidence", confidence)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise GateError(f"{origin}: {name} of [{metric}] is {number!r}, expected a finite number.")
    if not 0.5 < confidence < 1:
        raise GateError(f"{origin}: confidence of [{metric}] is {confidence}, expected between 0.5 and 1.")
    return Gate(metric, float(limit), float(confidence), str(table.get("source", "")))


def decide(gate: Gate, estimate: Estimate, model: str) -> Verdict:
    """Pass when the confidence bound is on the good side of the limit, fail when it is beyond it.

    One-sided bounds at `gate.confidence`, t with the clusters' degrees of freedom. Passing needs the bad-side bound
    to be within the limit; failing needs the good-side bound to be beyond it; anything else is inconclusive. An
    estimate without a standard error (a file size, a maximum) is compared as it is.
    """
    from harness.metrics.stats import confidence_bound

    lower_is_better = estimate.better == "lower"

    def within(value: float) -> bool:
        return value <= gate.limit if lower_is_better else value >= gate.limit

    if estimate.se is None:
        good = bad = estimate.value
    else:
        bad, good = (
            confidence_bound(estimate.value, estimate.se, estimate.clusters, gate.confidence, upper=upper)
            for upper in (lower_is_better, not lower_is_better)
        )
    outcome: Outcome = "pass" if within(bad) else "inconclusive" if within(good) else "fail"
    bound = good if outcome == "fail" else bad
    return Verdict(
        model=model,
        metric=gate.metric,
        value=estimate.value,
        limit=gate.limit,
        better=estimate.better,
        confidence=gate.confidence,
        bound=bound if math.isfinite(bound) else None,
        verdict=outcome,
        detail=_explain(gate, estimate, outcome, bound, lower_is_better),
    )


def _explain(gate: Gate, estimate: Estimate, outcome: Outcome, bound: float, lower_is_better: bool) -> str:
    info = metric_info(gate.metric)
    percent = info.unit == "fraction"
    factor, unit = (100, " %") if percent else (1, f" {info.unit}" if info.unit else "")

    def show(number: float) -> str:
        return f"{factor * number:.4g}{unit}"

    error = f" ± {factor * estimate.se:.2g}" if estimate.se is not None else ""
    side = "at most" if lower_is_better else "at least"
    text = f"{info.title} is {factor * estimate.value:.4g}{error}{unit}; the limit is {side} {show(gate.limit)}."
    if outcome == "inconclusive":
        text += f" Its {gate.confidence:.0%} bound is {show(bound)}: more --gguf-chunks would decide."
    elif outcome == "fail" and estimate.se is not None:
        text += f" Even its {gate.confidence:.0%} bound, {show(bound)}, is beyond it."
    return text
