"""Charts of the heads suite: importance of each head, and how many can be removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.importance import NEGLIGIBLE_RISE
from gguf_harness.metrics.stats import signed_root
from gguf_harness.report.charts.base import Chart, Figure, label, make_chart, short, style
from gguf_harness.report.data import Candidate, RunView, visible
from gguf_harness.report.numbers import format_estimate, format_value

__all__ = ["head_charts"]

_SHOWN: Final = {
    "head_importance": "rise of the loss with the head set to zero: +",
    "head_importance_mean": "rise of the loss with the head set to its mean: +",
    "head_importance_kl": "KL with the head set to zero: ",
    "head_importance_mean_kl": "KL with the head set to its mean: ",
    "head_importance_screen": "screen (an estimate): +",
    "head_interchange_share": "share of the KL from the reference that restoring this head removes: ",
}
"""Values shown when hovering over a cell, in this order."""

Place = tuple[int, int]
Rows = Mapping[str, Mapping[str, Any]]


def head_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [_importance(view), _removal(view, run_dir)]
    return [chart for chart in charts if chart is not None]


def _importance(view: RunView) -> Chart | None:
    cells: dict[str, dict[Place, dict[str, Mapping[str, Any]]]] = {}
    for row in view.run.get("estimates", []):
        if row["metric"] in _SHOWN and row.get("layer") is not None and row.get("head") is not None:
            of_model = cells.setdefault(row["model"], {})
            of_model.setdefault((row["layer"], row["head"]), {})[row["metric"]] = row
    models = [model for model in view.models if any("head_importance" in c for c in cells.get(model.name, {}).values())]
    if not models:
        return None
    measured = [rows["head_importance"]["value"] for m in models for rows in cells[m.name].values() if _has(rows)]
    # One scale for all models. Some heads matter a hundred times more than others: colours use the square root.
    top = max(abs(value) for value in measured) or 1.0
    return make_chart(
        "head-importance",
        "Which heads matter",
        "The output of each head alone is set to zero, which makes the following tokens less likely: the colour "
        "shows by how much, on a square-root scale that is the same for all models. A cell is empty if the head "
        "was not ablated. Heads that can replace each other all look unimportant.",
        [_map(model, short(model.name, models), cells[model.name], top) for model in models],
        "; ".join(_most_important(model, cells[model.name]) for model in models),
    )


def _has(rows: Rows) -> bool:
    return "head_importance" in rows


def _map(model: Candidate, name: str, cells: Mapping[Place, Rows], top: float) -> Figure:
    layers, heads = sorted({layer for layer, _ in cells}), sorted({head for _, head in cells})
    values = [[_value(cells.get((layer, head), {})) for head in heads] for layer in layers]
    hover = [[_hover(layer, head, cells.get((layer, head), {})) for head in heads] for layer in layers]
    ticks = [-top, -top / 4, 0.0, top / 4, top]
    trace = {
        "type": "heatmap",
        "x": heads,
        "y": layers,
        "z": [[None if value is None else signed_root(value) for value in row] for row in values],
        "text": hover,
        "zmin": -signed_root(top),
        "zmax": signed_root(top),
        "zmid": 0,
        "colorscale": "RdBu",
        "reversescale": True,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": "%{text}<extra></extra>",
        "colorbar": {
            "title": {"text": "nats"},
            "tickvals": [signed_root(tick) for tick in ticks],
            "ticktext": [format_value(tick) for tick in ticks],
        },
    }
    layout = {
        "xaxis": {"title": {"text": "head"}, "dtick": 1 if len(heads) <= 16 else 4, "showgrid": False},
        "yaxis": {"title": {"text": "layer"}, "dtick": 1 if len(layers) <= 16 else 4, "showgrid": False},
    }
    return {
        "name": name,
        "meaning": f"Importance of the heads of {visible(model.name)}.",
        "traces": [trace],
        "layout": layout,
    }


def _value(rows: Rows) -> float | None:
    return float(rows["head_importance"]["value"]) if _has(rows) else None


def _hover(layer: int, head: int, rows: Rows) -> str:
    lines = [f"layer {layer}, head {head}"]
    for metric, words in _SHOWN.items():
        if metric in rows:
            row = rows[metric]
            sign = "" if row["value"] < 0 else "+" if words.endswith("+") else ""
            lines.append(f"{words.removesuffix('+')}{sign}{format_estimate(row['value'], row['se'])}")
    return "<br>".join(label(line) for line in lines)


def _most_important(model: Candidate, cells: Mapping[Place, Rows]) -> str:
    values = {place: value for place, rows in cells.items() if (value := _value(rows)) is not None}
    best = sorted(values, key=lambda place: -values[place])[:3]
    return f"{visible(model.name)}: " + ", ".join(
        f"layer {layer} head {head} {format_value(values[layer, head])} nats" for layer, head in best
    )


def _removal(view: RunView, run_dir: Path) -> Chart | None:
    import numpy as np

    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    traces, longest = [], 0
    for entry in view.run.get("arrays", []):
        if entry["name"] != "head_removal" or not run_file(run_dir, entry["file"]).is_file():
            continue
        arrays = load_arrays(run_file(run_dir, entry["file"]))
        losses = arrays["nll"].astype(np.float64).mean(axis=1)
        rises = (losses - losses[0]).tolist()
        heads = [f"layer {layer}, head {head}" for layer, head in arrays["heads"].tolist()]
        look, name = style(view, entry["model"]), label(entry["model"])
        longest = max(longest, len(heads))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": list(range(len(rises))),
                "y": rises,
                "text": ["all heads", *heads],
                "line": {"color": look["color"], "width": 2},
                "marker": {"symbol": look["symbol"], "size": 6},
                "hovertemplate": f"{name}<br>%{{x}} removed, the last: %{{text}}<br>+%{{y:.3g}} nats<extra></extra>",
            }
        )
    if not traces:
        return None
    limit = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, longest],
        "y": [NEGLIGIBLE_RISE, NEGLIGIBLE_RISE],
        "line": {"dash": "dot", "width": 1.5, "color": "#7F7F7F"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    layout = {
        "xaxis": {"title": {"text": "heads removed"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "rise of the loss (nats per token)"}},
        "legend": {"orientation": "h", "y": -0.25},
    }
    return make_chart(
        "head-removal",
        "Heads that can be removed",
        "Heads are removed one by one, always the one that costs the reference least; for candidates in the "
        f"same order. The dotted line is a rise of {NEGLIGIBLE_RISE} nats. The order was chosen on the same "
        "tokens, so the curve is slightly optimistic.",
        [
            {
                "name": "loss",
                "meaning": "Rise of the loss on the next tokens.",
                "traces": [limit, *traces],
                "layout": layout,
            }
        ],
        f"Curves of the loss over heads removed of {len(traces)} models.",
    )
