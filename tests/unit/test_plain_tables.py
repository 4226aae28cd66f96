"""What pages without scripts have in place of a picture: the numbers that its view would draw."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_harness.report.charts.base import make_chart, make_panel
from gguf_harness.report.charts.plain_tables import table_of

MODELS = [{"name": "m-F16", "short": "F16"}, {"name": "m-Q4", "short": "Q4"}]
DOTS = {"x": {"label": "BLEU"}, "models": MODELS}
ROWS = [{"model": at, "name": name, "value": 1.0, "text": f"{at}.0 ± 0.1"} for at, name in enumerate(("a", "b"))]
LINES = {
    "x": {"label": "layer", "ticks": [[-1, "embed"]]},
    "y": {"label": "error", "percent": True},
    "lines": [
        {"name": "m-F16", "points": [[-1, 0.5, None, None], [0, 0.125, 0.01, "d"]]},
        {"name": "m-Q4", "group": "MLP", "points": [[0, 0.25, None, None]]},
    ],
}
MATRIX: dict[str, Any] = {
    "x": {"label": "head", "names": ["0", "1"]},
    "y": {"label": "layer", "names": ["0", "1"]},
    "values": [[0.5, None], [1, 0]],
    "scale": {"kind": "share", "domain": [0, 1]},
}
BARS = {
    "names": ["F16", "Q4"],
    "parts": [
        {"name": "F16", "values": [9, 0], "notes": ["9 MB in 2 tensors", "0 B in 0 tensors"]},
        {"name": "Q4_K", "values": [0, 3], "notes": ["0 B in 0 tensors", "3 MB in 2 tensors"]},
    ],
}


@pytest.mark.parametrize(
    ("view", "data", "expected"),
    [
        ("dots", DOTS | {"rows": ROWS}, (["what", "BLEU"], [["a", "0.0 ± 0.1"], ["b", "1.0 ± 0.1"]])),
        (
            "dots",
            DOTS | {"legend": True, "rows": [row | {"group": "g"} for row in ROWS]},
            (["model", "what", "group", "BLEU"], [["F16", "a", "g", "0.0 ± 0.1"], ["Q4", "b", "g", "1.0 ± 0.1"]]),
        ),
        (
            "lines",
            LINES,
            (["layer", "m-F16", "m-Q4, MLP"], [["embed", "50 %", ""], ["0", "12.5 ± 1.0 %", "25 %"]]),
        ),
        ("matrix", MATRIX, (["layer \\ head", "0", "1"], [["0", "0.5", ""], ["1", "1", "0"]])),
        (
            "matrix",
            MATRIX | {"scale": {"kind": "names", "names": ["sink", "local"]}, "values": [[0, 1], [None, 1]]},
            (["layer \\ head", "0", "1"], [["0", "sink", "local"], ["1", "", "local"]]),
        ),
        (
            "matrix",
            MATRIX | {"cells": [["the", ""], ["a", "b"]]},
            (["layer \\ head", "0", "1"], [["0", "the", ""], ["1", "a", "b"]]),
        ),
        (
            "bars",
            BARS,
            (["of", "F16", "Q4_K"], [["F16", "9 MB in 2 tensors", "none"], ["Q4", "none", "3 MB in 2 tensors"]]),
        ),
        ("space", {}, None),
    ],
)
def test_tables_have_the_numbers(view: str, data: dict[str, Any], expected: object) -> None:
    assert table_of(view, data) == expected


def test_long_lines_keep_their_ends() -> None:
    points = [[at, at / 1000, None, None] for at in range(1001)]
    data = {"x": {"label": "share"}, "y": {"label": "KL"}, "lines": [{"name": "m", "points": points}]}
    table = table_of("lines", data)
    assert table is not None
    assert len(table[1]) == 48
    assert (table[1][0], table[1][-1]) == (["0", "0"], ["1000", "1"])


def test_a_chart_keeps_the_table_that_it_has() -> None:
    panel = make_panel("p", "m", DOTS | {"rows": ROWS})
    own = make_chart("c", "t", "m", [panel], "s", view="dots", table=(["h"], [["x"]]))
    assert own["table"] == [["h"], [["x"]]]
    assert make_chart("c", "t", "m", [panel], "s", view="dots")["table"][1][0] == ["a", "0.0 ± 0.1"]
