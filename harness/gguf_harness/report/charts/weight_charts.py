"""Charts of weights: the error of every tensor, and the cost of each group of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.report.charts.base import Chart, Figure, Models, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.charts.layer_lines import percent, show
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_estimate, format_value

__all__ = ["OUTSIDE", "Columns", "load_columns", "weight_charts"]

OUTSIDE: Final = "no layer"
"""Name of the row of tensors that belong to no layer."""

Columns = dict[str, list[Any]]
"""Arrays of a candidate as lists."""


def weight_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [
        _kinds(view),
        _error_map(view, load_columns(view, run_dir, "weight_errors")),
        _sensitivity(view, load_columns(view, run_dir, "sensitivity")),
    ]
    return [chart for chart in charts if chart is not None]


def load_columns(view: RunView, run_dir: Path, name: str) -> dict[str, Columns]:
    """Arrays of this name by candidate, in the order of the models; none if the file is missing."""
    return {
        model: {key: array.tolist() for key, array in arrays.items()}
        for model, arrays in arrays_of(view, run_dir, name).items()
    }


def _kinds(view: RunView) -> Chart | None:
    """Kinds of tensors below each other, all candidates in a row."""
    found = [
        row
        for row in view.run.get("estimates", [])
        if row["metric"] == "weight_relative_rmse" and row.get("part") and row["value"] > 0
    ]
    order = {model.name: place for place, model in enumerate(view.candidates)}
    rows = sorted((row for row in found if row["model"] in order), key=lambda row: order[row["model"]])
    if not rows:
        return None
    shown = Models(view, [model.name for model in view.candidates if any(row["model"] == model.name for row in rows)])
    worst = max(rows, key=lambda row: float(row["value"]))
    dots = [
        {
            "model": shown[row["model"]],
            "name": visible(row["part"]),
            "value": row["value"],
            "text": f"{visible(row['model'])}: {format_value(100 * row['value'])} %",
            "detail": visible(str(row.get("detail") or "")),
        }
        for row in rows
    ]
    data = {
        "x": {"label": "relative error", "log": True, "percent": True},
        "legend": True,
        "models": shown.entries,
        "rows": dots,
    }
    return make_chart(
        "weight-kinds",
        f"{short_name(view, worst['model'])} loses most in {visible(worst['part'])}: off by {percent(worst['value'])}",
        "Relative RMSE of all tensors of a kind together, against the reference's: the norm of the difference divided"
        " by the norm of the weights.",
        [make_panel("kinds", "", data)],
        f"Errors of {len({row['part'] for row in rows})} kinds of tensors in {len(shown)} candidates.",
        view="dots",
        how="Half the error is one bit more. A mark far left of the others of its candidate is a kind that its recipe"
        " gives more bits. Kinds that are exact in a candidate (norms, biases) have no mark.",
        table=(["kind", "error"], [[row["name"], row["text"]] for row in dots]),
    )


def _error_map(view: RunView, candidates: dict[str, Columns]) -> Chart | None:
    values = [rmse for columns in candidates.values() for rmse in columns["relative_rmse"] if rmse > 0]
    if not values:
        return None
    # One scale for all candidates: switching between them shows the difference.
    domain = (min(values), max(values))
    panels = [_error_panel(view, model, columns, domain) for model, columns in candidates.items()]
    model, columns, index = max(
        ((name, columns, index) for name, columns in candidates.items() for index in range(len(columns["tensor"]))),
        key=lambda cell: float(cell[1]["relative_rmse"][cell[2]]),
    )
    return make_chart(
        "weights",
        f"Tensors are off by {percent(domain[0])} at best, and by {percent(domain[1])} in {short_name(view, model)}'s"
        f" {visible(columns['tensor'][index])}",
        "Relative RMSE of each tensor against the reference's. Tensors that are exact (norms, biases) are left out.",
        [panel for panel in panels if panel is not None],
        f"Layers by kinds of tensors for {len(panels)} candidates, from {percent(domain[0])} to {percent(domain[1])}.",
        view="matrix",
        how="Layers go down, kinds of tensors to the right; the last row is tensors that belong to no layer. All"
        " candidates have the same colours. A recipe gives some kinds and layers more bits than others: these are"
        " lighter.",
    )


def _error_panel(view: RunView, model: str, columns: Columns, domain: tuple[float, float]) -> Figure | None:
    kept = [index for index, rmse in enumerate(columns["relative_rmse"]) if rmse > 0]
    if not kept:
        return None
    # What belongs to no layer comes last, in both directions: layer 0 is at the top.
    by_place = sorted(kept, key=lambda index: int(columns["layer"][index] < 0))
    kinds = list(dict.fromkeys(columns["role"][index] for index in by_place))
    layers = sorted({columns["layer"][index] for index in kept}, key=lambda layer: (layer < 0, layer))
    values: list[list[float | None]] = [[None] * len(kinds) for _ in layers]
    notes = [[""] * len(kinds) for _ in layers]
    for index in kept:
        row, column = layers.index(columns["layer"][index]), kinds.index(columns["role"][index])
        values[row][column] = columns["relative_rmse"][index]
        notes[row][column] = _notes(columns, index)
    data = {
        "x": {"label": "kind", "names": [visible(kind) for kind in kinds]},
        "y": {"label": "layer", "names": [OUTSIDE if layer < 0 else str(layer) for layer in layers]},
        "values": values,
        "notes": notes,
        "cells": [["" if value is None else percent(value) for value in row] for row in values],
        "scale": {
            "kind": "share",
            "domain": list(domain),
            "title": "relative error (logarithmic)",
            "log": True,
            "percent": True,
        },
    }
    return make_panel(short_name(view, model), f"{visible(model)}, by layer and kind of tensor.", data)


def _notes(columns: Columns, index: int) -> str:
    def number(name: str) -> str:
        value = float(columns[name][index])
        return "undefined" if math.isnan(value) else format_value(value)

    kinds = f"{columns['reference_type'][index]} to {columns['type'][index]}"
    return "\n".join([
        visible(columns["tensor"][index]),
        f"{visible(kinds)}, {columns['bits'][index]:.2f} bits per weight, {columns['weights'][index]:,} weights",
        f"signal-to-noise ratio {number('snr_db')} dB, cosine {number('cosine')}",
        f"largest error {number('max_error')}",
        f"outliers {100 * columns['outlier_share'][index]:.2g} %, farthest weight"
        f" {columns['largest_sigmas'][index]:.1f} σ",
    ])  # fmt: skip


def _sensitivity(view: RunView, candidates: dict[str, Columns]) -> Chart | None:
    if not candidates:
        return None
    sums = "; ".join(_additivity(model, columns) for model, columns in candidates.items())
    panels = [
        _dots(view, candidates, "role", "by kind", f"The reference with only these tensors quantized. {sums}."),
        _dots(
            view, candidates, "restored", "restored, per MB",
            "The candidate with the reference's tensors of one kind: reduction of the KL per megabyte that they add."
            " Where it is largest, use llama-quantize --tensor-type to spend more bits.",
        ),
        _dots(view, candidates, "layer", "by layer", "The reference with only these layers quantized."),
    ]  # fmt: skip
    present = [panel for panel in panels if panel is not None]
    if not present:
        return None
    return make_chart(
        "sensitivity",
        _cost_finding(view, candidates) or "Cost of each group of tensors",
        "KL divergence from the reference when only one group of tensors is quantized as in the candidate, and the"
        " gain when only that group is not. Bars are one standard error to each side, clustered by window; all on the"
        " same few windows.",
        present,
        sums,
        view="dots",
        how="The further right a kind, the more of the loss it causes. Per megabyte says where bits are best spent: a"
        " kind that costs much may also be large.",
        table=(
            ["kind", "cost"],
            [[row["name"], row["text"]] for panel in present[:1] for row in panel["data"]["rows"]],
        ),
    )


def _additivity(model: str, columns: Columns) -> str:
    total = sum(kld for kind, kld in zip(columns["kind"], columns["kld"], strict=True) if kind == "role")
    return f"{visible(model)}: all kinds add up to {total:.3g} nats, the candidate has {columns['candidate'][0]:.3g}"


def _cost_finding(view: RunView, candidates: Mapping[str, Columns]) -> str | None:
    """Of the smallest candidate: the kind that costs most, and where a megabyte brings most."""
    model, columns = list(candidates.items())[-1]
    costs = {columns["group"][index]: _value(columns, index, "role")[0] for index in _indices(columns, "role")}
    gains = {columns["group"][index]: _value(columns, index, "restored")[0] for index in _indices(columns, "restored")}
    told = []
    if costs:
        worst = max(costs, key=lambda group: costs[group])
        told.append(f"{visible(worst)} alone costs {short_name(view, model)} {show(costs[worst])} nats")
    if gains and max(gains.values()) > 0:
        told.append(f"a megabyte brings most in {visible(max(gains, key=lambda group: gains[group]))}")
    return "; ".join(told) or None


def _indices(columns: Columns, kind: str) -> list[int]:
    """Rows of a kind; what does not grow when it is restored has no price."""
    rows = [index for index, row_kind in enumerate(columns["kind"]) if row_kind == kind]
    return [index for index in rows if columns["growth"][index] > 0] if kind == "restored" else rows


def _dots(view: RunView, candidates: Mapping[str, Columns], kind: str, name: str, meaning: str) -> Figure | None:
    shown = Models(view, list(candidates))
    unit = "nats per MB" if kind == "restored" else "nats"
    rows = []
    for model, columns in candidates.items():
        for index in _indices(columns, kind):
            value, se = _value(columns, index, kind)
            rows.append({
                "model": shown[model],
                "name": visible(columns["group"][index]),
                "value": value,
                "low": value - (se or 0),
                "high": value + (se or 0),
                "text": f"{visible(model)}: {format_estimate(value, se)} {unit}",
                "detail": visible(columns["described"][index]),
            })  # fmt: skip
    if not rows:
        return None
    label = "KL gained (nats per MB)" if kind == "restored" else "KL (nats)"
    data = {"x": {"label": label, "middle": 0}, "legend": True, "models": shown.entries, "rows": rows}
    return make_panel(name, meaning, data)


def _value(columns: Columns, index: int, kind: str) -> tuple[float, float | None]:
    """(value, standard error) of a row; per megabyte if it is a price."""
    name, unit = ("gain", columns["growth"][index] / 1e6) if kind == "restored" else ("kld", 1.0)
    se = columns[f"{name}_se"][index]
    return columns[name][index] / unit, None if math.isnan(se) else se / unit
