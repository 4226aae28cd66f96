"""What the charts of the quant suite found, in a title each: computed, and no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_harness.judge.claims import speed_ratio
from gguf_harness.metrics.registry import metric_info
from gguf_harness.report.charts.base import short_name
from gguf_harness.report.charts.layer_lines import percent, show
from gguf_harness.report.data import Candidate, RunView
from gguf_harness.report.numbers import format_bytes, format_metric, format_ratio

__all__ = ["files_finding", "memory_finding", "speed_finding", "tail_finding", "texts_finding"]

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""By model: (share of tokens, the KL divergence that this share stays below)."""


def tail_finding(view: RunView, curves: Curves) -> str:
    """How far the worst hundredth of the tokens is off, in the candidates that are off most and least."""
    tails = {name: next((value for share, value in curve if share >= 0.99), None) for name, curve in curves.items()}
    known = {name: value for name, value in tails.items() if value is not None}
    if not known:
        return "Where texts go wrong: the divergence of single tokens"
    worst, best = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
    told = f"The worst 1 % of tokens are off by {show(known[worst])} nats or more in {short_name(view, worst)}"
    return told if worst == best else f"{told}, by {show(known[best])} in {short_name(view, best)}"


def texts_finding(view: RunView) -> str:
    """How alike continuations are, in the candidates that differ most and least."""
    info = metric_info("edit_similarity")
    scores = {model.name: row for model in view.candidates if (row := view.row(model.name, info.name))}
    if not scores:
        return "How alike the continuations are"
    ranked = sorted(scores, key=lambda name: float(scores[name]["value"]))
    if scores[ranked[0]]["value"] == 1:
        return "Every candidate continues every prompt as the reference does"
    told = [format_metric(info, scores[name]["value"], scores[name]["se"]) for name in ranked]
    best = f", {short_name(view, ranked[-1])}'s {told[-1]}" if len(ranked) > 1 else ""
    return f"{short_name(view, ranked[0])}'s texts are {told[0]} like the reference's{best} (edit similarity)"


def speed_finding(view: RunView) -> str:
    """How fast the file to take writes, over the reference, with its interval: timed in turns, or not told at all."""
    model = _to_take(view)
    ratio = None if model is None else speed_ratio(view.run, model.name)
    if model is None or ratio is None:
        return "Speed on this machine"
    name, interval = short_name(view, model.name), f"{format_ratio(ratio.low)} to {format_ratio(ratio.high)}"
    if ratio.low <= 1 <= ratio.high:
        return f"{name} writes neither faster nor slower than the reference, as far as this shows ({interval} times)"
    return f"{name} writes {format_ratio(ratio.value)} times as fast as the reference (95 % interval {interval})"


def memory_finding(view: RunView) -> str:
    """What the file to take needs, beside the reference."""
    model = _to_take(view)
    for metric, words in (("peak_memory_bytes", "of memory at its peak"), ("weights_bytes", "for its weights")):
        row = None if model is None else view.row(model.name, metric)
        if model is None or row is None:
            continue
        base = view.row(view.reference, metric) if view.reference else None
        beside = "" if base is None else f", the reference {format_bytes(base['value'])}"
        return f"{short_name(view, model.name)} takes {format_bytes(row['value'])} {words}{beside}"
    return "Memory"


def files_finding(view: RunView) -> str:
    """Of which types most of the file to take is."""
    model = _to_take(view)
    types: Mapping[str, Any] = {} if model is None or not model.facts else model.facts["tensor_types"]
    total = sum(row["bytes"] for row in types.values())
    if model is None or not total:
        return "What the files are made of"
    ranked = sorted(types, key=lambda kind: -int(types[kind]["bytes"]))[:2]
    parts = ", ".join(f"{percent(types[kind]['bytes'] / total)} {kind}" for kind in ranked)
    return f"{short_name(view, model.name)} is {parts}, by bytes"


def _to_take(view: RunView) -> Candidate | None:
    """The recommended file; else the smallest candidate, or the only model."""
    return view.recommended or next(iter(reversed(view.candidates)), None) or view.alone
