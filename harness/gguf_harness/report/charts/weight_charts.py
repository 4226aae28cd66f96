"""Charts of weights: the error of every tensor, and the cost of each group of tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from gguf_harness.report.charts.base import Chart, Figure, label, make_chart, style
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_value

__all__ = ["Columns", "load_columns", "weight_charts"]

_OUTSIDE: Final = "no layer"
_TICKS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

Columns = dict[str, list[Any]]
"""Arrays of a candidate as lists."""


def weight_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [
        _error_map(load_columns(view, run_dir, "weight_errors")),
        _sensitivity(view, load_columns(view, run_dir, "sensitivity")),
    ]
    return [chart for chart in charts if chart is not None]


def load_columns(view: RunView, run_dir: Path, name: str) -> dict[str, Columns]:
    """Arrays of this name by candidate, in the order of the models; none if the file is missing."""
    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    columns = {}
    for entry in view.run.get("arrays", []):
        if entry["name"] == name and run_file(run_dir, entry["file"]).is_file():
            arrays = load_arrays(run_file(run_dir, entry["file"]))
            columns[entry["model"]] = {key: array.tolist() for key, array in arrays.items()}
    order = [model.name for model in view.models if model.name in columns]
    return {model: columns[model] for model in order}


def _error_map(candidates: dict[str, Columns]) -> Chart | None:
    values = [math.log10(rmse) for columns in candidates.values() for rmse in columns["relative_rmse"] if rmse > 0]
    if not values:
        return None
    # One scale for all candidates: switching between them shows the difference.
    scale = min(values), max(values)
    figures = [_error_figure(model, columns, scale) for model, columns in candidates.items()]
    return make_chart(
        "weights",
        "Error of the weights",
        "Relative RMSE of each tensor against the reference's: the norm of the difference divided by the norm of "
        "the weights. A recipe gives some tensors and layers more bits than others: these stand out. Exact tensors "
        "(norms, biases) are left out.",
        [figure for figure in figures if figure is not None],
        f"Heat maps of {len(figures)} candidates, layers by roles.",
    )


def _error_figure(model: str, columns: Columns, scale: tuple[float, float]) -> Figure | None:
    kept = [index for index, rmse in enumerate(columns["relative_rmse"]) if rmse > 0]
    if not kept:
        return None
    roles = list(dict.fromkeys(columns["role"][index] for index in kept))
    layers = sorted({columns["layer"][index] for index in kept})
    z: list[list[float | None]] = [[None] * len(roles) for _ in layers]
    text = [[""] * len(roles) for _ in layers]
    for index in kept:
        row, column = layers.index(columns["layer"][index]), roles.index(columns["role"][index])
        z[row][column] = math.log10(columns["relative_rmse"][index])
        text[row][column] = _error_hover(columns, index)
    trace = {
        "type": "heatmap",
        "x": [label(role) for role in roles],
        "y": [_OUTSIDE if layer < 0 else str(layer) for layer in layers],
        "z": z,
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "zmin": scale[0],
        "zmax": scale[1],
        "xgap": 1,
        "ygap": 1,
        "colorscale": "Cividis",
        "colorbar": {
            "title": {"text": "relative RMSE"},
            "tickvals": [math.log10(tick) for tick in _TICKS],
            "ticktext": [f"{tick:.1%}" for tick in _TICKS],
        },
    }
    layout = {
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"type": "category", "title": {"text": "layer"}, "autorange": "reversed", "automargin": True},
    }
    return {
        "name": label(model),
        "meaning": f"{visible(model)}, by layer and role.",
        "traces": [trace],
        "layout": layout,
    }


def _error_hover(columns: Columns, index: int) -> str:
    def number(name: str) -> str:
        value = float(columns[name][index])
        return "undefined" if math.isnan(value) else format_value(value)

    kinds = f"{columns['reference_type'][index]} to {columns['type'][index]}"
    return "<br>".join(
        [
            f"<b>{label(columns['tensor'][index])}</b>",
            f"{label(kinds)}, {columns['bits'][index]:.2f} bits per weight, {columns['weights'][index]} weights",
            f"relative RMSE {100 * columns['relative_rmse'][index]:.3g} %, signal-to-noise ratio {number('snr_db')} dB",
            f"largest error {number('max_error')}, cosine {number('cosine')}",
            f"outliers {100 * columns['outlier_share'][index]:.2g} %, farthest weight"
            f" {columns['largest_sigmas'][index]:.1f} σ",
        ]
    )


def _sensitivity(view: RunView, candidates: dict[str, Columns]) -> Chart | None:
    if not candidates:
        return None
    sums = "; ".join(_additivity(model, columns) for model, columns in candidates.items())
    figures = [
        _bars(
            view,
            candidates,
            "role",
            "By role",
            "mean KL (nats)",
            f"The reference with only these tensors quantized. {sums}.",
        ),
        _bars(
            view, candidates, "layer", "By layer", "mean KL (nats)", "The reference with only these layers quantized."
        ),
        _bars(
            view,
            candidates,
            "restored",
            "Restored, per MB",
            "KL gained per MB (nats)",
            "The candidate with the reference's tensors of one role: reduction of the KL per megabyte. Where it is "
            "largest, use llama-quantize --tensor-type to spend more bits.",
        ),
    ]
    return make_chart(
        "sensitivity",
        "Cost of each group of tensors",
        "KL divergence from the reference when only one group of tensors is quantized as in the candidate, and "
        "the gain when only that group is not. Error bars are one standard error to each side, clustered by "
        "window; all on the same few windows.",
        [figure for figure in figures if figure is not None],
        sums,
    )


def _additivity(model: str, columns: Columns) -> str:
    total = sum(kld for kind, kld in zip(columns["kind"], columns["kld"], strict=True) if kind == "role")
    return f"{visible(model)}: all roles add up to {total:.3g} nats, the candidate has {columns['candidate'][0]:.3g}"


def _bars(
    view: RunView, candidates: dict[str, Columns], kind: str, name: str, axis: str, meaning: str
) -> Figure | None:
    traces = []
    for model, columns in candidates.items():
        rows = [index for index, row_kind in enumerate(columns["kind"]) if row_kind == kind]
        if kind == "restored":
            rows = [index for index in rows if columns["growth"][index] > 0]
        bars = [_bar(columns, index, priced=kind == "restored") for index in rows]
        if not bars:
            continue
        errors = [0.0 if math.isnan(se) else se for _, se in bars]
        traces.append(
            {
                "type": "bar",
                "name": label(model),
                "x": [label(columns["group"][index]) for index in rows],
                "y": [value for value, _ in bars],
                "error_y": {"type": "data", "array": errors, "visible": any(errors), "thickness": 1.2},
                "marker": {"color": style(view, model)["color"]},
                "text": [label(columns["described"][index]) for index in rows],
                "textposition": "none",
                "hovertemplate": "%{text}<br>" + axis + ": %{y:.3g}<extra>%{fullData.name}</extra>",
            }
        )
    if not traces:
        return None
    layout = {
        "barmode": "group",
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"title": {"text": axis}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": -0.25},
        "showlegend": True,
    }
    return {"name": name, "meaning": meaning, "traces": traces, "layout": layout}


def _bar(columns: Columns, index: int, *, priced: bool) -> tuple[float, float]:
    """(value, standard error)."""
    if not priced:
        return columns["kld"][index], columns["kld_se"][index]
    megabytes = columns["growth"][index] / 1e6
    return columns["gain"][index] / megabytes, columns["gain_se"][index] / megabytes
