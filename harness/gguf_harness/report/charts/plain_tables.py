"""The numbers of a chart as a table, for pages without scripts: of its first panel, from what its view would draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gguf_harness.report.numbers import format_estimate, format_value

__all__ = ["Table", "table_of"]

Table = tuple[list[str], list[list[str]]]
"""(heads, rows)."""

_MOST_ROWS: Final = 48
"""Longer tables are thinned: lines keep their ends, the first rows of a matrix are shown."""


def table_of(view: str, data: Mapping[str, Any]) -> Table | None:
    """The table of a panel; None for views whose charts make one of their own.

    Args:
        view: name of the view that draws the panel.
        data: what it draws.
    """
    make = _TABLES.get(view)
    return None if make is None else make(data)


def _dots(data: Mapping[str, Any]) -> Table:
    grouped = any(row.get("group") for row in data["rows"])
    legend = bool(data.get("legend"))
    heads = [*(["model"] if legend else []), "what", *(["group"] if grouped else []), data["x"]["label"]]
    rows = [
        [
            *([data["models"][row["model"]]["short"]] if legend else []),
            row["name"],
            *([str(row.get("group") or "")] if grouped else []),
            row["text"],
        ]
        for row in data["rows"]
    ]
    return heads, rows


def _lines(data: Mapping[str, Any]) -> Table:
    """A row for each place on the horizontal axis, a column for each line."""
    percent = bool(data["y"].get("percent"))
    named = dict(map(tuple, data["x"].get("ticks") or []))
    values = [
        {point[0]: _number(point[1], point[2], percent=percent) for point in line["points"]} for line in data["lines"]
    ]
    places = sorted({place for line in values for place in line})
    shown = _thinned(places)
    heads = [data["x"]["label"], *(_of_line(line) for line in data["lines"])]
    return heads, [[str(named.get(at, f"{at:g}")), *(line.get(at, "") for line in values)] for at in shown]


def _of_line(line: Mapping[str, Any]) -> str:
    return f"{line['name']}, {line['group']}" if line.get("group") else str(line["name"])


def _bars(data: Mapping[str, Any]) -> Table:
    parts = data["parts"]
    rows = [
        [name, *(part["notes"][at] if part["values"][at] else "none" for part in parts)]
        for at, name in enumerate(data["names"])
    ]
    return ["of", *(part["name"] for part in parts)], rows


def _matrix(data: Mapping[str, Any]) -> Table:
    tell = _teller(data)
    rows = [
        [name, *(tell(row, column, value) for column, value in enumerate(data["values"][row]))]
        for row, name in enumerate(data["y"]["names"][:_MOST_ROWS])
    ]
    return [f"{data['y']['label']} \\ {data['x']['label']}", *data["x"]["names"]], rows


def _teller(data: Mapping[str, Any]) -> Callable[[int, int, float | None], str]:
    """How the value of a cell is written: as in the picture, where there are words in its cells."""
    cells, names = data.get("cells"), data["scale"].get("names")
    percent = bool(data["scale"].get("percent"))

    def tell(row: int, column: int, value: float | None) -> str:
        if value is None:
            return ""
        if cells:
            return str(cells[row][column])
        return str(names[int(value)]) if names else _number(value, None, percent=percent)

    return tell


def _number(value: float, se: float | None, *, percent: bool) -> str:
    factor = 100 if percent else 1
    told = format_value(factor * value) if se is None else format_estimate(factor * value, factor * se)
    return f"{told} %" if percent else told


def _thinned(places: Sequence[float]) -> list[float]:
    if len(places) <= _MOST_ROWS:
        return list(places)
    step = (len(places) - 1) / (_MOST_ROWS - 1)
    return [places[round(at * step)] for at in range(_MOST_ROWS)]


_TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], Table]]] = {
    "dots": _dots,
    "lines": _lines,
    "bars": _bars,
    "matrix": _matrix,
}
