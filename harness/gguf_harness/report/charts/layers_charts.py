"""Charts of the layers suite: states by token, updates of blocks, the logit lens, errors by layer, patching."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, Figure, label, make_chart, short, style
from gguf_harness.report.data import Candidate, RunView, visible
from gguf_harness.report.numbers import format_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_harness.store.arrays import Arrays

__all__ = ["layers_charts"]

_LENS_TOKENS: Final = 16
_CELL_CHARACTERS: Final = 9
_MOST_TICKS: Final = 16
_SHARES: Final = (("attn_share", "attention"), ("mlp_share", "MLP"))
_DIRECT: Final = (("direct_attn", "attention"), ("direct_mlp", "MLP"))
_ERRORS: Final = (
    ("resid_relative_error", "log"),
    ("attn_out_relative_error", "log"),
    ("mlp_out_relative_error", "log"),
    ("resid_cosine", "linear"),
    ("resid_cka", "linear"),
    ("error_amplification", "log"),
)
_PATCHING: Final = (("layer_importance", "linear"), ("layer_kl_left", "linear"))
_BY_PROMPT: Final = "Bars are one standard error to each side, clustered by prompt."

Rows = dict[str, list[Mapping[str, Any]]]
"""By model, the rows of a metric in the order of their layers."""


def layers_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    drawn = _drawn(view, run_dir)
    charts = [
        _curves(
            view,
            "layer-errors",
            "Errors by layer",
            _ERRORS,
            "Distance of a candidate's hidden states from the reference's after each layer, and by how much each "
            "layer changes the incoming error.",
        ),
        _curves(
            view,
            "layer-patching",
            "What single layers do",
            _PATCHING,
            "Importance: rise of the loss on the prompts when a block is skipped. KL left: the part of the "
            "candidate's divergence that remains when its stream after a layer is replaced by the reference's; a "
            "layer causes the drop of the curve at that layer.",
        ),
        _contributions(view),
        _states(view, drawn),
        _lens(view, drawn),
    ]
    return [chart for chart in charts if chart is not None]


def _rows(view: RunView, metric: str) -> Rows:
    rows_by_model: Rows = {}
    for row in view.run.get("estimates", []):
        alone = row.get("prompt") is None and row.get("head") is None
        if row["metric"] == metric and row.get("layer") is not None and alone:
            rows_by_model.setdefault(row["model"], []).append(row)
    return {
        model.name: sorted(rows_by_model[model.name], key=lambda row: int(row["layer"]))
        for model in view.models
        if model.name in rows_by_model
    }


def _drawn(view: RunView, run_dir: Path) -> dict[str, Arrays]:
    """Arrays of the drawn prompt by model, in the order of the models."""
    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    files = {
        entry["model"]: run_file(run_dir, entry["file"])
        for entry in view.run.get("arrays", [])
        if entry["name"] == "layers"
    }
    names = [model.name for model in view.models if model.name in files and files[model.name].is_file()]
    return {name: load_arrays(files[name]) for name in names}


def _curves(
    view: RunView, identifier: str, title: str, metrics: tuple[tuple[str, str], ...], meaning: str
) -> Chart | None:
    figures = [
        {
            "name": METRICS[metric].title,
            "meaning": METRICS[metric].meaning,
            "traces": [_curve(view, model, rows) for model, rows in metric_rows.items()],
            "layout": _by_layer(metric, scale, max(len(rows) for rows in metric_rows.values())),
        }
        for metric, scale in metrics
        if (metric_rows := _rows(view, metric))
    ]
    if not figures:
        return None
    return make_chart(identifier, title, f"{meaning} {_BY_PROMPT}", figures, "Curves over layers, one per model.")


def _curve(view: RunView, model: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    look, errors = style(view, model), [row["se"] or 0 for row in rows]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(short(model, view.models)),
        "x": [row["layer"] for row in rows],
        "y": [row["value"] for row in rows],
        "error_y": {"type": "data", "array": errors, "visible": any(errors), "thickness": 1},
        "line": {"color": look["color"], "width": 2},
        "marker": {"color": look["color"], "symbol": look["symbol"], "size": 7},
        "text": [_row_hover(model, row) for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _row_hover(model: str, row: Mapping[str, Any]) -> str:
    lines = [f"<b>{label(model)}</b>, layer {row['layer']}", f"{METRICS[row['metric']].title}: {_number(row)}"]
    if row.get("detail"):
        lines.append(label(str(row["detail"])))
    return "<br>".join([*lines, f"n = {row['n']}"])


def _number(row: Mapping[str, Any]) -> str:
    error = "" if row["se"] is None else f" ± {format_value(row['se'])}"
    return f"{format_value(row['value'])}{error}"


def _by_layer(metric: str, scale: str, layers: int) -> dict[str, Any]:
    unit = METRICS[metric].unit
    return {
        "xaxis": {"title": {"text": "layer"}, "tickformat": "d", "dtick": -(-layers // _MOST_TICKS)},
        "yaxis": {
            "title": {"text": METRICS[metric].title + (f" ({unit})" if unit else "")},
            "type": scale,
            **({"exponentformat": "power", "dtick": "D2"} if scale == "log" else {}),
        },
        "legend": {"orientation": "h", "y": -0.25},
    }


def _contributions(view: RunView) -> Chart | None:
    figures = []
    for model in view.models:
        for name, parts, scale in (("size", _SHARES, "log"), ("logit", _DIRECT, "linear")):
            rows = [(title, _rows(view, metric).get(model.name)) for metric, title in parts]
            traces = [_bars(title, title_rows) for title, title_rows in rows if title_rows]
            if traces:
                figures.append(_contribution_figure(view, model, name, scale, traces))
    if not figures:
        return None
    return make_chart(
        "layer-contributions",
        "What blocks add",
        "Size: norm of the updates of attention and MLP divided by that of the stream they are added to. Logit: "
        "their contribution to the logit of the predicted token, with the final norm's scale held fixed. "
        f"{_BY_PROMPT}",
        figures,
        "Bars by layer for attention and MLP.",
    )


def _contribution_figure(
    view: RunView, model: Candidate, name: str, scale: str, traces: list[dict[str, Any]]
) -> Figure:
    title = {"size": "size of the update / the stream", "logit": "logits of the predicted token"}[name]
    return {
        "name": f"{visible(short(model.name, view.models))}: {name}",
        "meaning": visible(model.name),
        "traces": traces,
        "layout": {
            "barmode": "group",
            "xaxis": {"title": {"text": "layer"}, "tickformat": "d"},
            "yaxis": {"title": {"text": title}, "type": scale, **({"dtick": 1} if scale == "log" else {})},
            "legend": {"orientation": "h", "y": -0.25},
        },
    }


def _bars(title: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    color = "#0072B2" if title == "attention" else "#E69F00"
    return {
        "type": "bar",
        "name": title,
        "x": [row["layer"] for row in rows],
        "y": [row["value"] for row in rows],
        "error_y": {"type": "data", "array": [row["se"] or 0 for row in rows], "thickness": 1.5},
        "marker": {"color": color},
        "hovertemplate": f"{title}, layer %{{x}}: %{{y:.4g}}<extra></extra>",
    }


def _states(view: RunView, drawn: dict[str, Arrays]) -> Chart | None:
    figures = []
    for name, title in (("error_resid_post", "error"), ("norm", "norm")):
        for model, arrays in drawn.items():
            if name in arrays:
                figures.append(
                    _heatmap(
                        f"{visible(short(model, view.models))}: {title}",
                        f"{visible(model)}: {'relative error' if title == 'error' else 'norm'} of the residual stream",
                        arrays[name],
                        _texts(arrays["text"]),
                        None,
                        {"colorscale": "Viridis", "colorbar": {"title": {"text": title}}},
                    )
                )
    if not figures:
        return None
    return make_chart(
        "layer-states",
        "Residual stream by token",
        "The first tokens of one prompt. Errors are the norm of the difference from the reference's stream divided "
        "by its norm.",
        figures,
        "Heatmaps of layers and tokens.",
    )


def _lens(view: RunView, drawn: dict[str, Arrays]) -> Chart | None:
    figures = [
        _heatmap(
            visible(short(model, view.models)),
            f"{visible(model)}: the next token that each layer would predict after the token below",
            arrays["lens_p"][:, :_LENS_TOKENS],
            _texts(arrays["text"][:_LENS_TOKENS]),
            [_texts(row) for row in arrays["lens_text"][:, :_LENS_TOKENS]],
            {"colorscale": "Blues", "reversescale": True, "zmin": 0, "zmax": 1, "colorbar": {"title": {"text": "p"}}},
        )
        for model, arrays in drawn.items()
        if "lens_text" in arrays
    ]
    if not figures:
        return None
    return make_chart(
        "logit-lens",
        "Logit lens",
        "The most likely next token after each layer, as if it were the last one; the colour is its probability.",
        figures,
        "Tables of layers and tokens.",
    )


def _texts(tokens: NDArray[Any]) -> list[str]:
    return [visible(str(token)) for token in tokens.tolist()]


def _heatmap(
    name: str,
    meaning: str,
    values: NDArray[Any],
    tokens: list[str],
    cells: list[list[str]] | None,
    look: dict[str, Any],
) -> Figure:
    """A heat map with layers upwards and tokens to the right; cells with texts show them."""
    rows = [[round(float(value), 6) for value in row] for row in values.tolist()]

    def hover(layer: int, place: int) -> str:
        said = "" if cells is None else f": {label(cells[layer][place])}"
        return f"layer {layer}, token {place} ({label(tokens[place])}){said}<br>{format_value(rows[layer][place])}"

    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": rows,
        "x": list(range(len(tokens))),
        "y": list(range(len(rows))),
        "hovertext": [[hover(layer, place) for place in range(len(tokens))] for layer in range(len(rows))],
        "hoverinfo": "text",
        "xgap": 1,
        "ygap": 1,
        **look,
    }
    if cells is not None:
        trace |= {"text": [[_cut(cell) for cell in row] for row in cells], "texttemplate": "%{text}"}
    return {
        "name": name,
        "meaning": meaning,
        "traces": [trace],
        "layout": {
            "height": max(360, 24 * len(rows) + 140),
            "xaxis": {
                "tickvals": list(range(len(tokens))),
                "ticktext": [_cut(token) for token in tokens],
                "tickangle": -60,
                "showgrid": False,
            },
            "yaxis": {
                "title": {"text": "layer"},
                "tickformat": "d",
                "dtick": -(-len(rows) // _MOST_TICKS),
                "showgrid": False,
            },
        },
    }


def _cut(token: str) -> str:
    """A token as shown in a cell: spaces stay visible, and markup is escaped for Plotly."""
    shown = token.replace(" ", "·")
    return label(shown if len(shown) <= _CELL_CHARACTERS else f"{shown[: _CELL_CHARACTERS - 1]}…")
