"""Gates: limits on metrics, built in or from the user's file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import GateError
from gguf_harness.metrics.registry import METRICS, metric_info, possible_values
from gguf_harness.store.text_files import parse_toml, read_bytes

if TYPE_CHECKING:
    from gguf_harness.metrics.windows import WindowLimit

__all__ = ["Gate", "early_limits", "load_gates"]

_KEYS: Final = frozenset({"limit", "limit_relative", "confidence", "source"})


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on a metric: absolute, or relative to the reference's value.

    Attributes:
        metric: a name from `gguf_harness.metrics.registry.METRICS`; its direction gives the good side of the limit.
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
        """Whether the limit is a maximum; otherwise it is a minimum."""
        return metric_info(self.metric).better == "lower"

    def half_of_the_error(self) -> Gate:
        """The same gate with half the probability of a wrong verdict."""
        return replace(self, confidence=1 - (1 - self.confidence) / 2)

    @property
    def limit_ratio(self) -> float | None:
        """A relative limit as a ratio to the reference's value."""
        if self.limit_relative is None:
            return None
        return 1 + self.limit_relative if self.lower_is_better else 1 - self.limit_relative


def load_gates(path: Path | None) -> dict[str, Gate]:
    """Built-in limits, overridden by a TOML file with tables `[metric]` that have `limit` or `limit_relative`.

    Raises:
        GateError: malformed file, unknown metric, or a limit that is not a number or cannot decide anything.
    """
    built_in = resources.files("gguf_harness.fixtures").joinpath("data/gates.toml").read_bytes()
    gates = _parse(built_in, "the built-in gates")
    if path is not None:
        gates |= _parse(read_bytes(path, "Gates file", GateError), str(path))
    return gates


def _parse(raw: bytes, origin: str) -> dict[str, Gate]:
    tables = parse_toml(raw, origin, GateError, "tables such as [kld_mean] with limit = 0.1.")
    return {metric: _gate(metric, table, origin) for metric, table in tables.items()}


def _gate(metric: str, table: object, origin: str) -> Gate:
    try:
        info = metric_info(metric)
    except GateError as error:
        raise GateError(f"{origin}: {error.message}", error.hint) from None
    if info.better == "neutral":
        raise GateError(f"{origin}: {metric} cannot be gated: neither direction is better.")
    if not isinstance(table, dict) or not set(table) <= _KEYS or len({"limit", "limit_relative"} & set(table)) != 1:
        raise GateError(
            f"{origin}: [{metric}] is {table!r}.",
            "Expected `limit` or `limit_relative` (one of them), and optionally `confidence` and `source`.",
        )
    numbers = {"confidence": 0.95} | {key: value for key, value in table.items() if key != "source"}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise GateError(f"{origin}: {name} of [{metric}] is {number!r}, expected a finite number.")
    numbers = {name: float(number) for name, number in numbers.items()}
    if not 0.5 < numbers["confidence"] < 1:
        raise GateError(f"{origin}: confidence of [{metric}] is {numbers['confidence']}, expected between 0.5 and 1.")
    gate = Gate(metric, source=str(table.get("source", "")), **numbers)
    _check_possible(gate, origin)
    _check_relative(gate, origin)
    return gate


def _check_possible(gate: Gate, origin: str) -> None:
    """Refuse a limit outside the range of a metric: it would pass everything, or nothing."""
    least, most = possible_values(gate.metric)
    if gate.limit is None or least <= gate.limit <= most:
        return
    share = metric_info(gate.metric).unit == "fraction" and least <= gate.limit / 100 <= most
    hint = (
        f"Shares are fractions: {gate.limit:g} % is {gate.limit / 100:g}." if share else "Choose a limit within that."
    )
    raise GateError(
        f"{origin}: limit of [{gate.metric}] is {gate.limit:g}, and {gate.metric} lies between {least:g} and {most:g}.",
        hint,
    )


def _check_relative(gate: Gate, origin: str) -> None:
    ratio = gate.limit_ratio
    if ratio is None:
        return
    relative = sorted(name for name, metric in METRICS.items() if metric.gate is not None and metric.gate.relative)
    if gate.metric not in relative:
        raise GateError(
            f"{origin}: limit_relative of [{gate.metric}] has no value to relate to: the reference itself has no "
            f"{gate.metric}.",
            f"Use `limit`; `limit_relative` is for {', '.join(relative)}.",
        )
    if ratio <= 0:
        every = "no candidate can keep" if gate.lower_is_better else "every candidate keeps"
        raise GateError(
            f"{origin}: limit_relative of [{gate.metric}] is {gate.limit_relative}: a limit that {every}.",
            "Expected a share such as 0.05 for `at most 5 % worse than the reference`.",
        )


def early_limits(gates: Iterable[Gate]) -> tuple[WindowLimit, ...]:
    """Limits that a pass over the corpus can decide early; empty if one of its gates needs all windows.

    That is a gate on a corpus metric whose limit cannot be expressed as one on a mean over windows.

    Half of a gate's error probability is for early decisions at any window, the other half for the bound after the
    last.
    """
    from gguf_harness.metrics.windows import WindowLimit

    limits = []
    for gate in gates:
        metric = metric_info(gate.metric)
        if not metric.of_corpus:
            continue
        confidence = gate.half_of_the_error().confidence
        if gate.limit is not None and metric.early is not None:
            limits.append(WindowLimit(gate.metric, gate.limit, confidence, gate.metric))
        elif metric.ratio and gate.limit_ratio is not None:
            limits.append(WindowLimit(metric.ratio, gate.limit_ratio, confidence, gate.metric))
        else:
            return ()
    return tuple(limits)
