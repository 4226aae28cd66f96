"""Numbers of a run, by metric: as many digits as the uncertainty allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_harness.metrics.number_format import format_bytes, format_estimate, format_percent, format_value
from gguf_harness.metrics.registry import Metric

__all__ = [
    "doubt_mark",
    "format_bytes",
    "format_column",
    "format_estimate",
    "format_metric",
    "format_percent",
    "format_ratio",
    "format_value",
]


def doubt_mark(row: Mapping[str, Any]) -> str:
    """` ?` after an unreliable number; the run's warnings say why."""
    return " ?" if row.get("doubt") else ""


def format_metric(metric: Metric | None, value: float, se: float | None) -> str:
    """A value of a metric in a table: `105 MB`, `86.4 ± 0.5 %`, `4.85`, `12.33 ± 0.52`."""
    if metric is None:
        return format_estimate(value, se)
    if metric.unit == "bytes":
        return format_bytes(value)
    if metric.unit == "fraction":
        return format_percent(value, se)
    return format_estimate(value, se) if metric.decimals is None else f"{value:.{metric.decimals}f}"


def format_column(metric: Metric, row: Mapping[str, Any]) -> str:
    """The same for the narrow table of the terminal, with `doubt_mark`."""
    column, value = metric.column, row["value"]
    if column is not None and column.decimals is not None:
        text = f"{value:.{column.decimals}f}"
    else:
        text = format_metric(metric, value, row["se"] if column is None or column.error else None)
    return f"{text}{doubt_mark(row)}"


def format_ratio(ratio: float) -> str:
    """Three significant digits: 0.973, 1.21, 12.4."""
    return f"{ratio:.3g}"
