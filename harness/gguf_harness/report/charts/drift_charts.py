"""The drift chart: the error of each layer's weights, and its effect on the residual stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, Figure, label, make_chart, short
from gguf_harness.report.charts.weight_charts import Columns, load_columns
from gguf_harness.report.data import Candidate, RunView, visible
from gguf_harness.report.numbers import format_value

__all__ = ["drift_charts"]

_MOST_TICKS: Final = 16
_WEIGHTS: Final = "weight_relative_rmse"
_STREAM: Final = "resid_relative_error"
_GROWTH: Final = "error_amplification"
# Colours of `base`, which distinguishes models with them; here each figure has only one model.
_LOOKS: Final[dict[str, dict[str, str]]] = {
    _WEIGHTS: {"color": "#0072B2", "symbol": "square"},
    _STREAM: {"color": "#D55E00", "symbol": "circle"},
    _GROWTH: {"color": "#009E73", "symbol": "diamond"},
}
_NAMES: Final = {
    _WEIGHTS: "error of the weights",
    _STREAM: "error of the residual stream",
    _GROWTH: "growth of the error in the block",
}


@dataclass(frozen=True, slots=True)
class _Point:
    layer: int
    value: float
    se: float | None
    said: str


def drift_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The chart, if the run has errors of weights and of hidden states of a candidate."""
    arrays = load_columns(view, run_dir, "weight_errors")
    figures = [_figure(view, model, arrays.get(model.name)) for model in view.models]
    present = [figure for figure in figures if figure is not None]
    if not present:
        return []
    chart = make_chart(
        "drift",
        "Errors of weights and drift of hidden states",
        "Left axis: relative error of a layer's weights, and of the residual stream after it, each the norm of the "
        "difference from the reference's divided by the reference's norm. Right axis: the stream's relative error "
        "after the block divided by that before it; above 1 the block increases the error. The weights' error is each "
        "layer's own, the stream's comes from all layers so far, and the growth in the first layer is over the error"
        " of the embeddings alone. Bars are one standard error to each side, clustered by prompt.",
        present,
        f"Curves over layers for {len(present)} candidates: weights, residual stream, growth.",
    )
    return [chart]


def _figure(view: RunView, model: Candidate, columns: Columns | None) -> Figure | None:
    weights, stream, growth = (_points(view, model.name, metric) for metric in (_WEIGHTS, _STREAM, _GROWTH))
    how = "all weights of a layer together"
    if not weights and columns is not None:
        weights, how = _means(columns), "mean over the tensors of a layer that are not exact"
    if not weights or not stream:
        return None
    curves = [(_WEIGHTS, weights), (_STREAM, stream), *([(_GROWTH, growth)] if growth else [])]
    layers = [point.layer for _, points in curves for point in points]
    errors = [point.value for point in (*weights, *stream)]
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": "layer"},
            "tickformat": "d",
            "dtick": -(-(max(layers) - min(layers) + 1) // _MOST_TICKS),
        },
        "yaxis": {"title": {"text": "relative error"}, **_logarithmic(errors)},
        "legend": {"orientation": "h", "y": -0.25},
        "showlegend": True,
    }
    if growth:
        # One grid is enough: the second axis would draw its lines between those of the first.
        layout["yaxis2"] = {
            "title": {"text": "growth in the block"},
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            **_logarithmic([point.value for point in growth]),
        }
    return {
        "name": visible(short(model.name, view.models)),
        "meaning": f"{visible(model.name)}. Weights: relative RMSE, {how}.",
        "traces": [_trace(metric, points) for metric, points in curves],
        "layout": layout,
    }


def _logarithmic(values: list[float]) -> dict[str, Any]:
    """A logarithmic axis with fully written ticks: Plotly omits the powers of minor ticks."""
    low, high = math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1
    decades = math.log10(max(values) / min(values))
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
    ticks = [step * 10.0**power for power in range(low, high) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def _points(view: RunView, model: str, metric: str) -> list[_Point]:
    """Values of single layers over all prompts and heads; only positive ones, for the logarithmic axis."""
    rows = [row for row in view.rows_of(model, metric) if row.get("head") is None and row["value"] > 0]
    points = [_Point(int(row["layer"]), row["value"], row["se"], _said(row)) for row in rows]
    return sorted(points, key=lambda point: point.layer)


def _said(row: Mapping[str, Any]) -> str:
    return label(str(row["detail"])) if row.get("detail") else ""


def _means(columns: Columns) -> list[_Point]:
    by_layer: dict[int, list[float]] = {}
    for layer, rmse in zip(columns["layer"], columns["relative_rmse"], strict=True):
        if layer >= 0 and rmse > 0:
            by_layer.setdefault(layer, []).append(rmse)
    return [
        _Point(layer, sum(values) / len(values), None, f"{len(values)} tensors")
        for layer, values in sorted(by_layer.items())
    ]


def _trace(metric: str, points: list[_Point]) -> dict[str, Any]:
    look, errors = _LOOKS[metric], [point.se or 0 for point in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": _NAMES[metric],
        "x": [point.layer for point in points],
        "y": [point.value for point in points],
        "error_y": {"type": "data", "array": errors, "visible": any(errors), "thickness": 1},
        "line": {"color": look["color"], "width": 2, "dash": "dot" if metric == _GROWTH else "solid"},
        "marker": {"color": look["color"], "symbol": look["symbol"], "size": 7},
        "text": [_hover(metric, point) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        **({"yaxis": "y2"} if metric == _GROWTH else {}),
    }


def _hover(metric: str, point: _Point) -> str:
    error = "" if point.se is None else f" ± {format_value(point.se)}"
    lines = [f"layer {point.layer}", f"{METRICS[metric].title}: {format_value(point.value)}{error}", point.said]
    return "<br>".join(line for line in lines if line)
