"""What heads do: scores of each head, and their means by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, Figure, make_chart, make_panel, short_name
from gguf_harness.report.charts.head_maps import Place, Row, head_rows, layer_rows, told
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_estimate

__all__ = ["PROFILE", "evolution", "profiles"]

PROFILE: Final = (
    "head_previous_token",
    "head_current_token",
    "head_first_token",
    "head_local",
    "head_entropy_normalized",
    "head_induction",
    "head_duplicate_token",
    "head_same_word",
    "head_punctuation",
    "head_delimiter",
    "head_copy_score",
)
"""Scores that are shown of a head. All are from 0 to 1, but for the last, which has a sign."""

_SIGNED: Final = "head_copy_score"

Scores = Mapping[str, Mapping[Place, Row]]


def profiles(view: RunView) -> Chart | None:
    """Heads by scores; None if none were measured."""
    panels = []
    for model in view.models:
        scores = {
            metric: {(row["layer"], row["head"]): row for row in head_rows(view, model.name, metric)}
            for metric in PROFILE
        }
        scores = {metric: rows for metric, rows in scores.items() if rows}
        if scores:
            panels.append(_profile(view, model.name, scores))
    if not panels:
        return None
    return make_chart(
        "head-profiles",
        _kinds(view),
        "A row is a head, a column a score. Shares of a position's attention, averaged over the positions of all"
        " prompts; induction and duplicate-token scores are measured on a repeated random sequence.",
        panels,
        f"Heads by scores, for {len(panels)} models.",
        view="matrix",
        how="Most scores are shares of the attention, from 0 to 1. Copying has a scale of its own, from -1 to 1: below"
        " 0 a head tends to make the tokens that it attends to less likely. The word beside a head is its kind.",
    )


def _profile(view: RunView, model: str, scores: Scores) -> Figure:
    places = sorted({place for rows in scores.values() for place in rows})
    kinds = {(row["layer"], row["head"]): row["kind"] for row in view.run.get("heads", []) if row["model"] == model}
    table = [[scores[metric].get(place) for metric in scores] for place in places]
    data: dict[str, Any] = {
        "x": {"label": "", "names": [METRICS[metric].title for metric in scores]},
        "y": {"label": "head", "names": [f"{told(place)} {visible(kinds.get(place, ''))}".strip() for place in places]},
        "values": [[round(row["value"], 4) if row else None for row in line] for line in table],
        "notes": [[_error(row) for row in line] for line in table],
        "scale": {"kind": "share", "domain": [0, 1], "title": "share"},
        "scroll": True,
    }
    if _SIGNED in scores:
        columns = [list(scores).index(_SIGNED)]
        data["scales"] = [{"kind": "signed", "domain": [-1, 1], "title": "copying", "columns": columns}]
    return make_panel(short_name(view, model), f"The {len(places)} heads of {visible(model)}, layer.head.", data)


def _error(row: Row | None) -> str:
    return "" if row is None or row["se"] is None else format_estimate(row["value"], row["se"])


def _kinds(view: RunView) -> str:
    """What the heads of the reference, or of the first model, are."""
    rows = view.run.get("heads", [])
    models = [model.name for model in view.models if any(row["model"] == model.name for row in rows)]
    name = view.reference if view.reference in models else next(iter(models), None)
    if name is None:
        return "What heads do"
    kinds = Counter(visible(row["kind"]) for row in rows if row["model"] == name)
    return f"What heads do: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common(5))}"


def evolution(view: RunView) -> Chart | None:
    """The scores by layer; None if there are fewer than two layers."""
    panels, peaks = [], []
    for model in view.models:
        lines = []
        for metric in PROFILE:
            rows = layer_rows(view, model.name, metric)
            if len(rows) > 1:
                title = METRICS[metric].title
                lines.append({"name": title, "points": [[row["layer"], row["value"], None, None] for row in rows]})
                top, mean = max(rows, key=lambda row: row["value"]), sum(row["value"] for row in rows) / len(rows)
                peaks.append((model.is_reference, top["value"] - mean, title, top["layer"], top["value"]))
        if lines:
            data = {"x": {"label": "layer"}, "y": {"label": "mean over heads"}, "models": [], "lines": lines}
            meaning = f"Scores of {visible(model.name)}, mean over the heads of each layer."
            panels.append(make_panel(short_name(view, model.name), meaning, data))
    if not panels:
        return None
    _, _, score, layer, value = max(peaks)
    return make_chart(
        "head-evolution",
        f"Layer {layer} stands out: {score} {value:.2f}, mean over its heads",
        "The scores above, from the first layer to the last.",
        panels,
        f"Lines over layers, one for each score, for {len(panels)} models.",
        view="lines",
        how="Each line is a score, averaged over the heads of a layer. Dashed lines take up the colours again.",
    )
