"""The drift chart: the error of each layer's weights, and its effect on the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, make_chart, short_name
from gguf_harness.report.charts.layer_lines import (
    Series,
    layer_rows,
    line_panel,
    percent,
    series_of,
    show,
)
from gguf_harness.report.charts.weight_charts import Columns, load_columns
from gguf_harness.report.data import RunView, visible

__all__ = ["drift_charts"]

_WEIGHTS: Final = "weight_relative_rmse"
_STREAM: Final = "resid_relative_error"
_GROWTH: Final = "error_amplification"


def drift_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The chart, if the run has errors of weights and of hidden states of a candidate."""
    weights = _weights(view, load_columns(view, run_dir, "weight_errors"))
    stream = {line.model: line for line in _positive(series_of(layer_rows(view, _STREAM), "the stream after it"))}
    both = [model.name for model in view.models if model.name in weights and model.name in stream]
    lines = [line for model in both for line in (weights[model], stream[model])]
    growth = [line for line in _positive(series_of(layer_rows(view, _GROWTH))) if line.model in both]
    axis = {"label": "relative error", "log": True, "percent": True}
    panels = [
        line_panel(
            view,
            "errors",
            "Beside the error of a layer's own weights, all together, that of the residual stream after the layer,"
            " which has the errors of all layers so far. Both are the norm of the difference from the reference's,"
            " divided by the reference's norm.",
            axis,
            # Both halves in the same order of models, whatever the order of rows.
            sorted(lines, key=lambda line: line is not weights[line.model]),
        ),
        line_panel(
            view,
            "growth in the block",
            METRICS[_GROWTH].meaning + " Above 1 the block increases the error; in the first layer it is over the error"
            " of the embeddings alone.",
            {"label": "error after / before", "log": True, "middle": 1},
            growth,
        ),
    ]
    present = [panel for panel in panels if panel is not None]
    if not both:
        return []
    rows = [[visible(model), *_ends(weights[model], stream[model])] for model in both]
    return [
        make_chart(
            "drift",
            _finding(view, weights, {model: stream[model] for model in both}),
            "Errors of weights and drift of hidden states, on the same axes. Bars are one standard error to each side,"
            " clustered by prompt.",
            present,
            "; ".join(f"{model}: weights {ours}, stream {theirs}" for model, ours, theirs in rows),
            view="lines",
            how="A layer whose weights stand out, and after which the stream's curve rises, is worth more bits. A"
            " curve that rises where the weights are no worse than elsewhere is a layer that amplifies errors of"
            " others.",
            table=(["model", "weights, mean of layers", "stream after the last layer"], rows),
        )
    ]


def _weights(view: RunView, arrays: Mapping[str, Columns]) -> dict[str, Series]:
    """By candidate: the error of each layer's weights; means over its tensors where the run has no rows of it."""
    group = "weights of the layer"
    rows = {line.model: line for line in _positive(series_of(layer_rows(view, _WEIGHTS), group))}
    means = {model: _means(model, group, columns) for model, columns in arrays.items() if model not in rows}
    return rows | {model: line for model, line in means.items() if line.points}


def _positive(lines: list[Series]) -> list[Series]:
    """The lines without layers that have no error, as of a copy of the reference: a logarithm has no zero."""
    kept = [Series(line.model, line.group, [point for point in line.points if point[1] > 0]) for line in lines]
    return [line for line in kept if line.points]


def _means(model: str, group: str, columns: Columns) -> Series:
    by_layer: dict[int, list[float]] = {}
    for layer, rmse in zip(columns["layer"], columns["relative_rmse"], strict=True):
        if layer >= 0 and rmse > 0:
            by_layer.setdefault(layer, []).append(rmse)
    said = "mean over {} tensors that are not exact"
    return Series(
        model,
        group,
        [(layer, sum(rmse) / len(rmse), None, said.format(len(rmse))) for layer, rmse in sorted(by_layer.items())],
    )


def _ends(weights: Series, stream: Series) -> tuple[str, str]:
    mean = sum(value for _, value, _, _ in weights.points) / len(weights.points)
    return percent(mean), percent(stream.points[-1][1])


def _finding(view: RunView, weights: Mapping[str, Series], stream: Mapping[str, Series]) -> str:
    """Of the candidate that is furthest off in the end: how much of it is in the weights."""
    model = max(stream, key=lambda name: stream[name].points[-1][1])
    ours = sum(point[1] for point in weights[model].points) / len(weights[model].points)
    layer, theirs, _, _ = stream[model].points[-1]
    times = f", {show(theirs / ours)} times as much" if theirs > ours else ""
    return (
        f"{short_name(view, model)}'s weights are off by {percent(ours)} in a layer, its stream by {percent(theirs)}"
        f" after layer {layer}{times}"
    )
