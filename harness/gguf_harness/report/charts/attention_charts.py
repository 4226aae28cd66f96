"""Charts of attention: patterns of all heads, which heads changed, where vectors changed, what heads do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.attention_grid import attention_grid
from gguf_harness.report.charts.base import Chart, Models, make_chart, make_panel, short_name
from gguf_harness.report.charts.head_maps import Place, Row, frame_of, head_map, head_rows, layer_rows, told
from gguf_harness.report.charts.head_profiles import evolution, profiles
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_estimate, format_percent

__all__ = ["attention_charts"]

_ERRORS: Final = {
    "attn_scores_error": "scores",
    "attn_q_error": "queries",
    "attn_k_error": "keys",
    "attn_v_error": "values",
}


def attention_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [attention_grid(view, run_dir), _moved(view), _by_layer(view), profiles(view), evolution(view)]
    return [chart for chart in charts if chart is not None]


def _moved(view: RunView) -> Chart | None:
    cells: dict[str, dict[Place, Row]] = {}
    for model in view.candidates:
        rows = {(row["layer"], row["head"]): row for row in head_rows(view, model.name, "attn_cosine")}
        if rows:
            cells[model.name] = rows
    if not cells:
        return None
    frame = frame_of(place for rows in cells.values() for place in rows)
    changes = {name: {place: 1 - row["value"] for place, row in rows.items()} for name, rows in cells.items()}
    most = {name: max(of_model, key=lambda place: of_model[place]) for name, of_model in changes.items()}
    worst = max(most, key=lambda name: changes[name][most[name]])
    scale = {
        "kind": "share",
        "domain": [0, max(changes[worst][most[worst]], 1e-6)],
        "title": "1 - cosine with the reference",
        "root": True,
    }
    panels = []
    for name, rows in cells.items():
        notes = {place: f"cosine {format_estimate(row['value'], row['se'])}" for place, row in rows.items()}
        place = most[name]
        meaning = f"{visible(name)}: head {told(place)} changed most, {notes[place]}."
        data = head_map(frame, changes[name], notes, scale)
        panels.append(make_panel(short_name(view, name), meaning, data, opens=name == worst))
    lowest = {name: cells[name][most[name]] for name in cells}
    table = [[visible(n), told(most[n]), format_estimate(row["value"], row["se"])] for n, row in lowest.items()]
    return make_chart(
        "attention-moved",
        f"Head {told(most[worst])} of {short_name(view, worst)} changed most: cosine"
        f" {format_estimate(lowest[worst]['value'], lowest[worst]['se'])}",
        "How far each head's attention patterns are from the reference's: one minus their cosine, mean over the"
        " prompts.",
        panels,
        "; ".join(f"{name}: head {head}, cosine {cosine}" for name, head, cosine in table),
        view="matrix",
        how="0 is no change at all. The colours mean the same numbers in the panels of all candidates. They use the"
        " square root, so that small changes can be seen. The standard errors are by prompt.",
        table=(["model", "head that changed most", "cosine"], table),
    )


def _by_layer(view: RunView) -> Chart | None:
    panels = []
    for metric in (*_ERRORS, "attn_cosine"):
        rows = {model.name: layer_rows(view, model.name, metric) for model in view.candidates}
        rows = {name: of_model for name, of_model in rows.items() if of_model}
        if rows:
            shown, info = Models(view, list(rows)), METRICS[metric]
            data: dict[str, Any] = {
                "x": {"label": "layer"},
                "y": {"label": info.title} | ({"zero": True} if info.better != "higher" else {}),
                "models": shown.entries,
                "lines": [
                    {
                        "model": shown[name],
                        "name": visible(name),
                        "points": [[row["layer"], row["value"], row["se"], None] for row in of_model],
                    }
                    for name, of_model in rows.items()
                ],
            }
            panels.append(make_panel(info.title, info.meaning, data))
    if not panels:
        return None
    return make_chart(
        "attention-layers",
        _worst_layer(view),
        "Relative distance of queries, keys, values and scores from the reference's, on the same tokens.",
        panels,
        f"Lines over layers of {len(panels[0]['data']['lines'])} candidates.",
        view="lines",
        how="Scores are the products of queries and keys before the softmax. Bars are one standard error to each side,"
        " clustered by prompt. The cosine of patterns is a mean over the heads of each layer, without an error, since"
        " heads are not independent.",
    )


def _worst_layer(view: RunView) -> str:
    """Where a vector changed most: the first metric that was measured decides."""
    for metric, what in _ERRORS.items():
        rows = [
            (row["value"], row["layer"], m.name) for m in view.candidates for row in layer_rows(view, m.name, metric)
        ]
        if rows:
            value, layer, name = max(rows)
            share = format_percent(float(f"{value:.2g}"), None)
            return f"The {what} of layer {layer} of {short_name(view, name)} are furthest off: by {share}"
    return "How far attention is off, by layer"
