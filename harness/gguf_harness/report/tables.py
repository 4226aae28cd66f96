"""Long tables of a report, as data: the page makes their rows when they are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_harness.metrics.registry import Metric
from gguf_harness.report.data import RunView, place, visible
from gguf_harness.report.model_groups import SECTION_OF_SUITE
from gguf_harness.report.numbers import doubt_mark, format_metric, format_value

__all__ = ["Table", "estimates_table", "numbers_tables", "tests_table"]

Table = dict[str, Any]
"""{heads, numbers: columns that are numbers, rows}: a cell is its text, or its text and the value it is sorted by."""


def numbers_tables(view: RunView) -> dict[str, Table]:
    """By section, all that its suite measured of whole models: a row for each metric, a column for each model."""
    suites = {row["metric"]: str(row.get("suite")) for row in view.run.get("estimates", [])}
    by_section: dict[str, list[Metric]] = {}
    for metric in view.used_metrics():
        if view.measured(metric.name):
            suite = suites[metric.name]
            by_section.setdefault(SECTION_OF_SUITE.get(suite, suite), []).append(metric)
    return {section: _numbers_table(view, metrics) for section, metrics in by_section.items()}


def _numbers_table(view: RunView, metrics: Sequence[Metric]) -> Table:
    rows = []
    models = [model for model in view.models if any(view.row(model.name, metric.name) for metric in metrics)]
    for metric in metrics:
        cells: list[Any] = []
        for model in models:
            row = view.row(model.name, metric.name)
            told = "" if row is None else f"{format_metric(metric, row['value'], row['se'])}{doubt_mark(row)}"
            cells.append(told if row is None else [told, row["value"]])
        unit = "" if metric.unit in {"", "fraction", "bytes"} else f", {metric.unit}"
        rows.append([f"{metric.title}{unit}", *cells])
    heads = ["metric", *(visible(model.name) for model in models)]
    return {"heads": heads, "numbers": list(range(1, len(heads))), "rows": rows}


def estimates_table(view: RunView) -> Table:
    """Estimates of everything, one below the other, as many as a page can hold."""
    rows = []
    for row in view.shown_estimates():
        rank, where = _place(row)
        numbers = [row["value"], row["se"], row["se_iid"], row["n"]]
        rows.append(
            [
                visible(row["model"]),
                row["metric"],
                visible(row.get("prompt") or ""),
                where if rank is None else [where, rank],
                *("none" if value is None else [format_value(value), value] for value in numbers),
                row["unit"],
                visible(row.get("detail") or ""),
            ]
        )
    heads = ["model", "metric", "prompt", "layer, head", "value", "se", "se, iid", "n", "unit", "detail"]
    return {"heads": heads, "numbers": [3, 4, 5, 6, 7], "rows": rows}


def tests_table(run: Mapping[str, Any]) -> Table:
    """All tests; those that did not pass are on the page already."""
    rows = [
        [test["outcome"], visible(test["id"]), [f"{test['duration_s']:.2f}", test["duration_s"]], test["message"]]
        for test in sorted(run.get("tests", []), key=lambda test: str(test["outcome"]))
    ]
    return {"heads": ["outcome", "test", "seconds", "message"], "numbers": [2], "rows": rows}


def _place(row: Mapping[str, Any]) -> tuple[int | None, str]:
    """(value to sort by, text) of the layer and head of an estimate."""
    layer, head = row.get("layer"), row.get("head")
    if layer is None and head is None:
        return None, ""
    return ((layer or 0) << 20) + (0 if head is None else head + 1), place(layer, head)
