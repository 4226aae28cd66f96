"""Charts of suites/kv by depth: what a KV cache costs at each position of the window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.report.charts.base import Chart, Figure, make_chart, short_name
from gguf_harness.report.charts.layer_lines import Series, line_panel, metric_label, percent
from gguf_harness.report.data import RunView
from gguf_harness.report.numbers import format_metric

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["kv_depth_charts"]

_BY_POSITION: Final = ("kld_by_position", "same_top_by_position", "ppl_ratio_by_position", "delta_p_rms_by_position")
_SLOPES: Final = ("kld_relative_slope", "nll_slope")

Row = Mapping[str, Any]


def kv_depth_charts(view: RunView, _: Path) -> list[Chart]:
    """The charts that the run has numbers for."""
    return [chart for chart in (_by_position(view),) if chart is not None]


def _by_position(view: RunView) -> Chart | None:
    panels = [panel for metric in _BY_POSITION if (panel := _panel(view, metric)) is not None]
    names = [model.name for model in view.models if view.parts_of(model.name, "kld_by_position")]
    if not panels:
        return None
    return make_chart(
        "kv-depth",
        _finding(view, names),
        "Every token of the windows, against the same file with its full cache, by how many tokens it has before it.",
        panels,
        "; ".join(_told(view, name) for name in names),
        view="lines",
        how="To the right the cache holds more: each step is twice as much. A level line costs the same at any depth."
        " A line that rises to the right gets worse with depth, as where positions are turned wrongly. The first steps"
        " are a few tokens that have hardly a cache to read. Bars are one standard error, clustered by window.",
        table=_table(view, names),
    )


def _panel(view: RunView, metric: str) -> Figure | None:
    """A line for each subject over the octaves, which are numbered from 0."""
    info, octaves = metric_info(metric), dict[int, int]()
    series = []
    for model in view.models:
        points = []
        for row in view.parts_of(model.name, metric):
            start = int(str(row["part"]).partition("-")[0])
            octave = start.bit_length() - 1
            octaves[octave] = start
            points.append((octave, row["value"], row["se"], f"positions {row['part']}; n = {row['n']}"))
        if points:
            series.append(Series(model.name, None, sorted(points)))
    y: dict[str, Any] = {"label": metric_label(metric)}
    y |= {"percent": True} if info.unit == "fraction" else {"log": True} if info.unit == "nats" else {"middle": 1}
    x = {"label": "from position", "ticks": [[octave, str(start)] for octave, start in sorted(octaves.items())]}
    return line_panel(view, info.title, info.meaning, y, series, x)


def _finding(view: RunView, names: Sequence[str]) -> str:
    """The subject whose loss or KL surely rises most, or that none was found to."""
    loss = [name for name in names if _surely_rises(view.row(name, "nll_slope"))]
    growth = {name: row for name in names if (row := view.row(name, "kld_relative_slope")) is not None}
    if loss:
        worst = max(loss, key=lambda name: _value(view, name, "nll_slope"))
        cost = _value(view, worst, "nll_slope")
        more = f" (and {len(loss) - 1} more)" if len(loss) > 1 else ""
        return f"{short_name(view, worst)} gets worse with depth: {cost:.2g} nats a doubling of the context{more}"
    rising = [name for name in growth if _surely_rises(growth[name])]
    if rising:
        worst = max(rising, key=lambda name: float(growth[name]["value"]))
        rise = percent(float(growth[worst]["value"]))
        return f"No loss grows with depth; KL of {short_name(view, worst)} grows by {rise} a doubling of the context"
    return "No KV cache was found to cost more with depth" if growth else "KL by depth"


def _surely_rises(row: Row | None) -> bool:
    """Whether zero is below the interval of a slope."""
    return row is not None and row.get("low") is not None and row["low"] > 0


def _value(view: RunView, name: str, metric: str) -> float:
    row = view.row(name, metric)
    return float("nan") if row is None else float(row["value"])


def _told(view: RunView, name: str) -> str:
    rows = _by_start(view.parts_of(name, "kld_by_position"))
    first, last = (format_metric(metric_info("kld_by_position"), row["value"], None) for row in (rows[0], rows[-1]))
    return f"{short_name(view, name)}: KL {first} nats at positions {rows[0]['part']}, {last} at {rows[-1]['part']}"


def _by_start(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: int(str(row["part"]).partition("-")[0]))


def _table(view: RunView, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    starts = {row["part"]: row for name in names for row in view.parts_of(name, "kld_by_position")}
    parts = [str(row["part"]) for row in _by_start(list(starts.values()))]
    rows = []
    for name in names:
        values = {row["part"]: row for row in view.parts_of(name, "kld_by_position")}
        cells = [_cell("kld_by_position", values.get(part)) for part in parts]
        rows.append([short_name(view, name), *cells, *(_cell(metric, view.row(name, metric)) for metric in _SLOPES)])
    heads = ["subject", *(f"KL at {part}" for part in parts), *(metric_info(metric).title for metric in _SLOPES)]
    return heads, rows


def _cell(metric: str, row: Row | None) -> str:
    return "" if row is None else format_metric(metric_info(metric), row["value"], row["se"])
