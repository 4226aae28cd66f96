"""Charts of other people's plugins are kept with a run; what a file says is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.errors import StoreError
from gguf_harness.report.charts import ChartBuilder, build_charts
from gguf_harness.report.charts.base import make_chart
from gguf_harness.report.charts.kept import keep_charts, kept_charts
from gguf_harness.report.data import RunView

VIEW = RunView({"id": "x", "estimates": []})
FIGURE: dict[str, Any] = {"name": "n", "meaning": "m", "traces": [{"type": "bar"}], "layout": {}}
CHART = make_chart("toys", "Toys", "m", [FIGURE], "s")


def _drawing(*charts: Any) -> ChartBuilder:
    def draw(view: RunView, folder: Path) -> list[Any]:
        return list(charts)

    return draw


def test_charts_are_kept(tmp_path: Path) -> None:
    assert not any(build_charts(VIEW, tmp_path).values())
    assert keep_charts({"one": [_drawing(CHART)], "none": [_drawing()]}, VIEW, tmp_path) == []
    assert build_charts(VIEW, tmp_path)["evidence"] == [CHART | {"id": "plugin-toys"}]


@pytest.mark.parametrize(
    ("chart", "problem"),
    [
        (3, "3 has no id of lower-case letters, digits and dashes"),
        (CHART | {"id": '"><script>'}, "has no id of lower-case letters, digits and dashes"),
        (CHART | {"title": None}, "the chart toys needs title, meaning, summary and figures"),
        (CHART | {"figures": []}, "the chart toys needs title"),
        (CHART | {"figures": [{"name": "n"}]}, "a figure of the chart toys needs name, meaning, traces and layout"),
        (CHART | {"figures": [FIGURE | {"traces": [3]}]}, "a trace of the chart toys is not a table"),
        (CHART | {"figures": [FIGURE | {"layout": {"x": float("nan")}}]}, "the chart toys is not of JSON types"),
        (CHART | {"figures": [FIGURE | {"layout": {"x": object()}}]}, "the chart toys is not of JSON types"),
    ],
)
def test_a_chart_that_no_page_can_show_is_named(tmp_path: Path, chart: Any, problem: str) -> None:
    good = CHART | {"id": "good"}
    builders = {"bad": [_drawing(chart)], "good": [_drawing(good)]}
    (told,) = keep_charts(builders, VIEW, tmp_path)
    assert told.startswith("The charts of the plugin bad could not be drawn: ")
    assert problem in told
    assert [kept["id"] for kept in kept_charts(tmp_path)] == ["plugin-good"]


def test_two_charts_of_one_name_are_a_mistake_of_the_second(tmp_path: Path) -> None:
    builders = {name: [_drawing(CHART)] for name in ("first", "second")}
    assert keep_charts(builders, VIEW, tmp_path) == [
        "The charts of the plugin second could not be drawn: there is a chart 'toys' already."
    ]
    twice = {"twice": [_drawing(CHART, CHART)]}
    assert keep_charts(twice, VIEW, tmp_path) == [
        "The charts of the plugin twice could not be drawn: there is a chart 'toys' already."
    ]


@pytest.mark.parametrize("content", [[], {}, {"charts": 3}, {"charts": [3]}, {"charts": [{"id": "toys"}]}])
def test_a_damaged_file_is_a_message(tmp_path: Path, content: object) -> None:
    (tmp_path / "charts.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StoreError, match="does not contain charts as written by a run"):
        kept_charts(tmp_path)


def test_nothing_is_read_outside_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "charts.json").write_text(json.dumps({"charts": [CHART]}), encoding="utf-8")
    (run / "charts.json").symlink_to(tmp_path / "charts.json")
    with pytest.raises(StoreError, match="expected one in the folder of the run"):
        kept_charts(run)
