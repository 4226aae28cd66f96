"""Charts of plugins: drawn once, at the end of a session, and stored next to run.json for later reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import HarnessError, StoreError, visible
from gguf_harness.report.charts.base import Chart, make_chart
from gguf_harness.report.data import RunView
from gguf_harness.store.runs import run_file, write_json
from gguf_harness.store.text_files import read_json

__all__ = ["keep_charts", "kept_charts"]

_FILE: Final = "charts.json"
_PREFIX: Final = "plugin-"
"""Prefix of the ids of plugin charts on the page, to keep them apart from our ids."""

_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,63}")
_TEXTS: Final = ("title", "meaning", "summary")


def keep_charts(
    builders: Mapping[str, Sequence[Callable[[RunView, Path], Iterable[Chart]]]], view: RunView, folder: Path
) -> list[str]:
    """Draw the charts of plugins and store them with the run.

    Args:
        builders: functions that draw them, by plugin.
        view: the run.
        folder: of its run.json.

    Returns:
        A sentence for each plugin whose charts could not be drawn.

    Raises:
        StoreError: they cannot be written.
    """
    charts: dict[str, Chart] = {}
    problems = []
    for plugin, functions in builders.items():
        try:
            drawn = [_checked(chart) for function in functions for chart in function(view, folder)]
            names = [chart["id"] for chart in drawn]
            taken = [name for index, name in enumerate(names) if name in charts or name in names[:index]]
            if taken:
                raise ValueError(f"there is a chart {taken[0]!r} already")  # noqa: TRY301
        # An error in a plugin only loses its own charts, not the run.
        except Exception as error:
            told = str(error) if isinstance(error, HarnessError | ValueError) else f"{type(error).__name__}: {error}"
            problems.append(f"The charts of the plugin {plugin} could not be drawn: {visible(told)}.")
            continue
        charts |= {chart["id"]: chart for chart in drawn}
    if charts:
        write_json(folder / _FILE, {"charts": list(charts.values())})
    return problems


def kept_charts(folder: Path) -> list[Chart]:
    """The stored plugin charts of a run, if any.

    Raises:
        StoreError: the file is damaged, or not a file of the run.
    """
    path = folder / _FILE
    if not path.is_file():
        return []
    hint = "Remove the file to see the report without these charts."
    content = read_json(run_file(folder, _FILE), "Charts", StoreError, hint)
    try:
        charts = [_checked(chart) for chart in content["charts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} does not contain charts as written by a run: {error}.", hint) from None
    return [chart | {"id": f"{_PREFIX}{chart['id']}"} for chart in charts]


def _checked(chart: object) -> Chart:
    """Check a chart: it must contain only what the page can show.

    Raises:
        ValueError: it is not a valid chart.
    """
    if not isinstance(chart, dict) or not isinstance(chart.get("id"), str) or not _ID.fullmatch(chart["id"]):
        raise ValueError(f"{visible(repr(chart)[:80])} has no id of lower-case letters, digits and dashes")
    texts = {name: chart.get(name) for name in _TEXTS}
    figures = chart.get("figures")
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(figures, list) or not figures:
        raise ValueError(f"the chart {chart['id']} needs title, meaning, summary and figures, as make_chart makes them")
    shown = make_chart(
        chart["id"],
        str(texts["title"]),
        str(texts["meaning"]),
        [_checked_figure(figure, chart["id"]) for figure in figures],
        str(texts["summary"]),
    )
    try:
        json.dumps(shown, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the chart {chart['id']} is not of JSON types: {error}") from None
    return shown


def _checked_figure(figure: Any, chart: str) -> dict[str, Any]:
    kinds = {"name": str, "meaning": str, "traces": list, "layout": dict}
    if not isinstance(figure, dict) or not all(isinstance(figure.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"a figure of the chart {chart} needs name, meaning, traces and layout")
    if not all(isinstance(trace, dict) for trace in figure["traces"]):
        raise ValueError(f"a trace of the chart {chart} is not a table")
    return {name: figure[name] for name in kinds}
