"""Attention charts: patterns of all heads on a prompt, changes of heads, behaviour of heads."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, Figure, label, make_chart, style
from gguf_harness.report.data import RunView, visible

__all__ = ["attention_charts"]

_DRAWN_TOKENS: Final = 48
_DRAWN_CELLS: Final = 4_000_000
_TILE: Final = 64
_SCALE: Final = "Viridis"
_PROFILE: Final = (
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
_VECTORS: Final = ("attn_cosine", "attn_scores_error", "attn_q_error", "attn_k_error", "attn_v_error")


def attention_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [_grid(view, run_dir), _moved(view), _by_layer(view), _profiles(view), _evolution(view)]
    return [chart for chart in charts if chart is not None]


def _grid(view: RunView, run_dir: Path) -> Chart | None:
    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    order = {model.name: place for place, model in enumerate(view.models)}
    entries = [entry for entry in view.run.get("arrays", []) if entry["name"] == "attention"]
    budget = _DRAWN_CELLS // max(1, len(entries))
    figures = [
        _grid_figure(entry["model"], load_arrays(run_file(run_dir, entry["file"])), budget)
        for entry in sorted(entries, key=lambda entry: order.get(entry["model"], 0))
        if run_file(run_dir, entry["file"]).is_file()
    ]
    if not figures:
        return None
    return make_chart(
        "attention",
        "Attention of every head",
        "A tile per head: rows are the tokens of the prompt, columns the tokens they attend to, both starting "
        "with the first. Colour is the square root of the weight, so that weak attention is visible. Measured "
        "while llama.cpp decoded the prompt with this file. Click a tile, or choose a head, to see it over the tokens.",
        figures,
        f"Attention patterns of all heads of {len(figures)} models.",
    )


def _grid_figure(model: str, arrays: Mapping[str, Any], budget: int) -> Figure:
    pattern, heads = arrays["pattern_0"].astype(np.float32), arrays["kept"]
    tokens = [piece.decode("utf-8", "replace") for piece in arrays["pieces_0"].tolist()]
    layers, numbers = (sorted(set(heads[:, axis].tolist())) for axis in (0, 1))
    side = max(2, int((budget / max(1, len(layers) * len(numbers))) ** 0.5) - 1)
    n = min(pattern.shape[1], _DRAWN_TOKENS, side)
    step = n + 1
    tiles = np.zeros((len(layers) * step, len(numbers) * step), dtype=np.uint8)
    for (layer, head), weights in zip(heads.tolist(), pattern, strict=True):
        top, left = layers.index(layer) * step, numbers.index(head) * step
        tiles[top : top + n, left : left + n] = np.round(255 * np.sqrt(np.clip(weights[:n, :n], 0, 1)))
    middle = [index * step + n / 2 for index in range(max(len(layers), len(numbers)))]
    trace = {
        "type": "heatmap",
        "z": {
            "dtype": "u1",
            "bdata": base64.b64encode(tiles.tobytes()).decode(),
            "shape": f"{tiles.shape[0]}, {tiles.shape[1]}",
        },
        "colorscale": _SCALE,
        "showscale": False,
        "hoverinfo": "none",
    }
    layout = {
        "xaxis": {
            "title": {"text": "head"},
            "tickvals": middle[: len(numbers)],
            "ticktext": [str(h) for h in numbers],
            "showgrid": False,
        },
        "yaxis": {
            "title": {"text": "layer"},
            "tickvals": middle[: len(layers)],
            "ticktext": [str(k) for k in layers],
            "autorange": "reversed",
            "showgrid": False,
        },
    }
    return {
        "name": visible(model),
        "meaning": f"{visible(model)} on the prompt {visible(str(arrays['kept_prompts'][0]))!r}: its first {n} tokens"
        f" of {len(tokens)}.",
        "traces": [trace],
        "layout": layout,
        "height": max(260, min(60 + _TILE * len(layers), 1400)),
        "zoom": {
            "side": n,
            "tokens": [label(visible(token)) for token in tokens[:n]],
            "layers": layers,
            "heads": numbers,
        },
    }


def _moved(view: RunView) -> Chart | None:
    figures = []
    for model in view.candidates:
        rows = _head_rows(view, model.name, "attn_cosine")
        if rows:
            figures.append(
                _map_figure(
                    visible(model.name),
                    "Mean cosine of the head's patterns with the reference's: 1 means no change.",
                    rows,
                    "cosine",
                )
            )
    if not figures:
        return None
    return make_chart(
        "attention-moved",
        "Which heads changed",
        "Each cell is a head: the cosine between its attention patterns in the candidate and in the reference, "
        "averaged over the prompts. Hover for the standard error, by prompt.",
        figures,
        f"Layers by heads, for {len(figures)} candidates.",
    )


def _map_figure(name: str, meaning: str, rows: Iterable[Mapping[str, Any]], what: str) -> Figure:
    """Layers by heads as colours."""
    cells = {(row["layer"], row["head"]): row for row in rows}
    layers, heads = sorted({layer for layer, _ in cells}), sorted({head for _, head in cells})
    table = [[cells.get((layer, head)) for head in heads] for layer in layers]
    trace = {
        "type": "heatmap",
        "x": [str(head) for head in heads],
        "y": [str(layer) for layer in layers],
        "z": [[row["value"] if row else None for row in line] for line in table],
        "text": [[_error(row) for row in line] for line in table],
        "hovertemplate": f"layer %{{y}}, head %{{x}}<br>{what} %{{z:.4f}} %{{text}}<extra></extra>",
        "colorscale": _SCALE,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }
    layout = {
        "xaxis": {"title": {"text": "head"}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": "layer"}, "type": "category", "autorange": "reversed", "showgrid": False},
    }
    return {
        "name": name,
        "meaning": meaning,
        "traces": [trace],
        "layout": layout,
        "height": max(240, min(120 + 26 * len(layers), 1200)),
    }


def _error(row: Mapping[str, Any] | None) -> str:
    return "" if row is None or row["se"] is None else f"± {row['se']:.2g}"


def _by_layer(view: RunView) -> Chart | None:
    figures = []
    for metric in _VECTORS:
        traces = []
        for model in view.candidates:
            rows = _layer_rows(view, model.name, metric)
            if rows:
                look = style(view, model.name)
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        "name": label(model.name),
                        "x": [row["layer"] for row in rows],
                        "y": [row["value"] for row in rows],
                        "error_y": {"type": "data", "array": [row["se"] or 0 for row in rows], "thickness": 1},
                        "line": {"color": look["color"]},
                        "marker": {"symbol": look["symbol"], "size": 8},
                        "hovertemplate": f"{label(model.name)}<br>layer %{{x}}: %{{y:.4g}}<extra></extra>",
                    }
                )
        if traces:
            info = METRICS[metric]
            layout = {
                "xaxis": {"title": {"text": "layer"}, "dtick": max(1, max(len(trace["x"]) for trace in traces) // 16)},
                "yaxis": {
                    "title": {"text": info.title},
                    "rangemode": "normal" if info.better == "higher" else "tozero",
                },
                "legend": {"orientation": "h", "y": -0.25},
            }
            figures.append({"name": info.title, "meaning": info.meaning, "traces": traces, "layout": layout})
    if not figures:
        return None
    return make_chart(
        "attention-layers",
        "Attention by layer",
        "Relative distance of queries, keys, values and scores from the reference's, on the same tokens. Error bars "
        "are one standard error to each side, clustered by prompt.",
        figures,
        "Lines over layers, one per candidate.",
    )


def _profiles(view: RunView) -> Chart | None:
    figures = []
    for model in view.models:
        scores = {
            metric: {(row["layer"], row["head"]): row for row in _head_rows(view, model.name, metric)}
            for metric in _PROFILE
        }
        scores = {metric: rows for metric, rows in scores.items() if rows}
        if scores:
            figures.append(_profile_figure(view, model.name, scores))
    if not figures:
        return None
    return make_chart(
        "head-profiles",
        "What heads do",
        "A row per head, a column per score, from 0 to 1 (copying: from -1 to 1). Shares of a position's attention, "
        "averaged over the positions of all prompts; induction and duplicate-token scores are measured on a "
        "repeated random sequence.",
        figures,
        f"Heads by scores, for {len(figures)} models.",
    )


def _profile_figure(
    view: RunView, model: str, scores: Mapping[str, Mapping[tuple[int, int], Mapping[str, Any]]]
) -> Figure:
    places = sorted({place for rows in scores.values() for place in rows})
    kinds = {(row["layer"], row["head"]): row for row in view.run.get("heads", []) if row["model"] == model}
    names = [
        f"{layer}.{head}" + (f" {kinds[layer, head]['kind']}" if (layer, head) in kinds else "")
        for layer, head in places
    ]
    table = [[scores[metric].get(place) for metric in scores] for place in places]
    trace = {
        "type": "heatmap",
        "x": [METRICS[metric].title for metric in scores],
        "y": [label(name) for name in names],
        "z": [[row["value"] if row else None for row in line] for line in table],
        "text": [[_error(row) for row in line] for line in table],
        "hovertemplate": "head %{y}<br>%{x}: %{z:.3f} %{text}<extra></extra>",
        "colorscale": _SCALE,
        "zmin": 0,
        "zmax": 1,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }
    layout = {
        "xaxis": {"side": "top", "tickangle": -35, "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "dtick": 1},
    }
    return {
        "name": visible(model),
        "meaning": f"The {len(places)} heads of {visible(model)}, layer.head.",
        "traces": [trace],
        "layout": layout,
        "height": min(160 + 17 * len(places), 4000),
    }


def _evolution(view: RunView) -> Chart | None:
    figures = []
    for model in view.models:
        traces = []
        for metric in _PROFILE:
            rows = _layer_means(_head_rows(view, model.name, metric))
            if len(rows) > 1:
                rows = sorted(rows, key=lambda row: int(row["layer"]))
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        "name": METRICS[metric].title,
                        "x": [row["layer"] for row in rows],
                        "y": [row["value"] for row in rows],
                        "hovertemplate": f"{METRICS[metric].title}<br>layer %{{x}}: %{{y:.3f}}<extra></extra>",
                    }
                )
        if traces:
            layout = {
                "xaxis": {"title": {"text": "layer"}, "dtick": max(1, len(traces[0]["x"]) // 16)},
                "yaxis": {"title": {"text": "mean over heads"}},
                "legend": {"orientation": "h", "y": -0.25},
            }
            meaning = f"Scores of {visible(model.name)}, mean over the heads of each layer."
            figures.append({"name": label(model.name), "meaning": meaning, "traces": traces, "layout": layout})
    if not figures:
        return None
    return make_chart(
        "head-evolution",
        "What heads do, by layer",
        "The scores above, from the first layer to the last.",
        figures,
        f"Lines over layers, one per score, for {len(figures)} models.",
    )


def _head_rows(view: RunView, model: str, metric: str) -> list[Mapping[str, Any]]:
    return [row for row in view.rows_of(model, metric) if row.get("head") is not None]


def _layer_rows(view: RunView, model: str, metric: str) -> list[Mapping[str, Any]]:
    rows = [row for row in view.rows_of(model, metric) if row.get("layer") is not None]
    whole = [row for row in rows if row.get("head") is None]
    return sorted(whole or _layer_means(rows), key=lambda row: int(row["layer"]))


def _layer_means(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Means over the heads of each layer, without errors: the errors of single heads are not independent."""
    layers: dict[int, list[float]] = {}
    for row in rows:
        layers.setdefault(int(row["layer"]), []).append(float(row["value"]))
    return [{"layer": layer, "value": sum(values) / len(values), "se": None} for layer, values in layers.items()]
