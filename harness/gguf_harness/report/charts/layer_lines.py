"""Metrics by layer as lines, a colour for each model: what the charts of layers, drift and weights share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Figure, Models, make_panel
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_value

__all__ = [
    "LAYER", "Compare", "Rows", "Series", "change_panel", "changes", "layer_rows", "line_panel", "metric_label",
    "percent", "series_of", "show",
]  # fmt: skip

LAYER: Final = {"label": "layer"}

Rows = dict[str, list[Mapping[str, Any]]]
"""By model, the rows of a metric in the order of their layers."""

Compare = Callable[[float, float], float]
"""A candidate's value and the reference's to how they differ."""


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a picture: a model's values by layer.

    Attributes:
        group: the part of the picture that it is drawn in, beside others; None if there is only one.
        points: (layer, value, standard error, what else is said of the point).
    """

    model: str
    group: str | None
    points: Sequence[tuple[int, float, float | None, str]]


def percent(share: float) -> str:
    """`38 %`, `7.3 %`, `0.50 %`: for titles, which say no more digits than one can keep in mind."""
    size = abs(100 * share)
    digits = ".0f" if size >= 9.95 or not size else ".1f" if size >= 0.995 else "#.2g"
    return f"{100 * share:{digits}} %"


def show(value: float) -> str:
    """Three significant digits, for titles."""
    short_value = float(f"{value:.3g}")
    return f"{short_value:,.0f}" if abs(short_value) >= 1000 else f"{value:.3g}"


def layer_rows(view: RunView, metric: str) -> Rows:
    """Rows of single layers over all prompts and heads, by model in the order of models."""
    rows = {
        model.name: sorted(
            (
                row
                for row in view.rows_of(model.name, metric)
                if row.get("layer") is not None and row.get("head") is None
            ),
            key=lambda row: int(row["layer"]),
        )
        for model in view.models
    }
    return {model: found for model, found in rows.items() if found}


def series_of(rows: Rows, group: str | None = None) -> list[Series]:
    """A line for each model."""
    return [
        Series(model, group, [(int(row["layer"]), row["value"], row["se"], _said(row)) for row in found])
        for model, found in rows.items()
    ]


def _said(row: Mapping[str, Any]) -> str:
    detail = visible(str(row["detail"])) if row.get("detail") else ""
    return "; ".join(filter(None, (detail, f"n = {row['n']}" if row.get("n") else "")))


def line_panel(
    view: RunView, name: str, meaning: str, y: Mapping[str, Any], series: Sequence[Series], x: Mapping[str, Any] = LAYER
) -> Figure | None:
    """A panel of the lines view; None without any point. `log` of y is ignored where a value is not positive."""
    if not any(line.points for line in series):
        return None
    models = Models(view, list(dict.fromkeys(line.model for line in series)))
    positive = all(value > 0 for line in series for _, value, _, _ in line.points)
    lines = [
        {
            "model": models[line.model],
            "name": visible(line.model),
            **({} if line.group is None else {"group": line.group}),
            "points": [list(point) for point in line.points],
        }
        for line in series
    ]
    axis = dict(y) if positive else {key: value for key, value in y.items() if key != "log"}
    return make_panel(name, meaning, {"x": dict(x), "y": axis, "models": models.entries, "lines": lines})


def changes(view: RunView, metric: str, compare: Compare, group: str | None = None) -> list[Series]:
    """A line for each candidate: its values against the reference's of the same layer."""
    rows = layer_rows(view, metric)
    base = {int(row["layer"]): row["value"] for row in rows.get(view.reference or "", [])}
    return [
        Series(model, group, list(_compared(found, base, compare)))
        for model, found in rows.items()
        if base and model != view.reference
    ]


def _compared(
    rows: Sequence[Mapping[str, Any]], base: Mapping[int, float], compare: Compare
) -> Iterator[tuple[int, float, float | None, str]]:
    for row in rows:
        layer, value = int(row["layer"]), row["value"]
        if layer in base and (compare is not _ratio or base[layer]):
            said = f"{format_value(value)}, the reference {format_value(base[layer])}"
            yield layer, compare(value, base[layer]), None, said


def change_panel(
    view: RunView, name: str, label: str, parts: Sequence[tuple[str, str]], *, ratio: bool
) -> Figure | None:
    """How candidates differ from the reference by layer, for (metric, what it is of) side by side."""
    compare = _ratio if ratio else _difference
    series = [line for metric, title in parts for line in changes(view, metric, compare, title)]
    how = "divided by the reference's: 1 is no change" if ratio else "minus the reference's: 0 is no change"
    meaning = (
        f"The candidate's value {how}. The errors of both are correlated, and that of the difference was not measured."
    )
    return line_panel(view, name, meaning, {"label": label, "middle": 1 if ratio else 0}, series)


def _ratio(value: float, base: float) -> float:
    return value / base


def _difference(value: float, base: float) -> float:
    return value - base


def metric_label(metric: str) -> str:
    """Title of a metric with its unit, for an axis."""
    info = METRICS[metric]
    return info.title + (f" ({info.unit})" if info.unit and info.unit != "fraction" else "")
