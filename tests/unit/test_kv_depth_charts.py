"""Charts of suites/kv by depth: from the stored run alone, and titles say what is in the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.report.charts.kv_depth_charts import kv_depth_charts
from gguf_harness.report.data import RunView

PLAIN, WORSE, LEVEL = "m-F16", "m-F16 [kv=q4_0/<i>]", "m-F16 [kv=q8_0/q8_0]"
PARTS = ("1", "2-3", "4-7", "8-15", "16-31", "32-62")


def _row(model: str, metric: str, value: float, part: str | None = None, **more: Any) -> dict[str, Any]:
    row = {"model": model, "metric": metric, "value": value, "se": 0.001, "n": 8, "part": part, "detail": None}
    return row | {"layer": None, "head": None, "prompt": None, "low": None, "high": None} | more


def _run(*, loss_low: float, kld_low: float) -> dict[str, Any]:
    models = [{"name": name, "bytes": 300, "order": order} for order, name in enumerate((PLAIN, WORSE, LEVEL))]
    models[0]["reference"] = True
    estimates = []
    for model, rise in ((WORSE, 0.01), (LEVEL, 0.0)):
        # Not in order, and with rows that are of something else.
        for place in (3, 0, 1, 2, 5, 4):
            estimates.append(_row(model, "kld_by_position", 0.02 + rise * place, PARTS[place]))
            estimates.append(_row(model, "same_top_by_position", 0.9 - rise * place, PARTS[place]))
            estimates.append(_row(model, "kld_by_position", 77.0, PARTS[place], prompt="p"))
    estimates.append(_row(WORSE, "nll_slope", 0.03, low=loss_low, high=0.05))
    estimates.append(_row(LEVEL, "nll_slope", 0.001, low=-0.001, high=0.003))
    estimates.append(_row(WORSE, "kld_relative_slope", 0.25, low=kld_low, high=0.4))
    estimates.append(_row(LEVEL, "kld_relative_slope", -0.01, low=-0.1, high=0.08))
    return {"models": models, "estimates": estimates, "reference": PLAIN}


def test_a_line_for_each_subject_over_the_octaves() -> None:
    (chart,) = kv_depth_charts(RunView(_run(loss_low=0.01, kld_low=0.1)), Path())
    assert [figure["name"] for figure in chart["figures"]] == ["KL by position", "same top by position"]
    data = chart["figures"][0]["data"]
    assert data["x"]["ticks"] == [[0, "1"], [1, "2"], [2, "4"], [3, "8"], [4, "16"], [5, "32"]]
    assert data["y"]["log"]
    assert chart["figures"][1]["data"]["y"]["percent"]
    assert [line["name"] for line in data["lines"]] == [WORSE, LEVEL]
    (worse, level) = (line["points"] for line in data["lines"])
    assert [point[0] for point in worse] == [0, 1, 2, 3, 4, 5]
    assert [point[1] for point in worse] == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06, 0.07])
    assert {point[1] for point in level} == {0.02}
    assert worse[5][3] == "positions 32-62; n = 8"
    heads, rows = chart["table"]
    assert heads[1:7] == [f"KL at {part}" for part in PARTS]
    assert [len(row) for row in rows] == [len(heads)] * 2
    assert "at positions 1, 0.07 at 32-62" in chart["summary"]
    json.dumps(chart, allow_nan=False)


@pytest.mark.parametrize(
    ("loss_low", "kld_low", "title"),
    [
        (0.01, 0.1, "F16 [kv=q4_0/<i>] gets worse with depth: 0.03 nats a doubling of the context"),
        (-0.01, 0.1, "No loss grows with depth; KL of F16 [kv=q4_0/<i>] grows by 25 % a doubling of the context"),
        (-0.01, -0.1, "No KV cache was found to cost more with depth"),
    ],
)
def test_the_title_says_no_more_than_the_intervals(loss_low: float, kld_low: float, title: str) -> None:
    (chart,) = kv_depth_charts(RunView(_run(loss_low=loss_low, kld_low=kld_low)), Path())
    assert chart["title"] == title


def test_without_slopes_nothing_is_claimed() -> None:
    run = _run(loss_low=0, kld_low=0)
    run["estimates"] = [row for row in run["estimates"] if "slope" not in row["metric"]]
    (chart,) = kv_depth_charts(RunView(run), Path())
    assert chart["title"] == "KL by depth"


def test_facts_by_depth() -> None:
    run = _run(loss_low=0, kld_low=0)
    run["estimates"] = [_row(PLAIN, "needle_lift", 5.0, low=3.0, high=7.0, detail="6 facts")]
    run["estimates"] += [_row(WORSE, "needle_lift", 3.0, low=1.0, high=5.0)]
    run["estimates"] += [_row(WORSE, "needle_change", -2.0, low=-3.0, high=-1.0)]
    run["estimates"] += [_row(LEVEL, "needle_lift", 5.0, low=2.0, high=6.0)]
    for share in (50, 0, 90):
        run["estimates"] += [_row(name, "needle_lift", share / 10, f"{share} %") for name in (PLAIN, WORSE)]
        run["estimates"] += [_row(WORSE, "needle_rank", share + 1.0, f"{share} %")]
    (chart,) = kv_depth_charts(RunView(run), Path())
    assert (
        chart["title"] == "F16 finds facts: reading one adds 5 nats to its answer; F16 [kv=q4_0/<i>] loses 2 of log p"
    )
    lift, rank = chart["figures"]
    assert lift["data"]["x"]["ticks"] == [[0, "0 %"], [50, "50 %"], [90, "90 %"]]
    assert [point[1] for point in lift["data"]["lines"][0]["points"]] == [0, 5, 9]
    assert rank["data"]["y"]["log"]
    assert "6 facts" in chart["meaning"]
    run["estimates"] = [row | {"low": -1.0} for row in run["estimates"]]
    (chart,) = kv_depth_charts(RunView(run), Path())
    assert chart["title"] == "No model was found to remember facts from so far back"


def test_texts_that_are_still_the_same() -> None:
    run = _run(loss_low=0, kld_low=0)
    run["estimates"] = [_row(WORSE, "tokens_until_different", 9.0), _row(LEVEL, "tokens_until_different", 30.0)]
    for tokens, worse, level in ((32, 0.1, 0.9), (1, 1.0, 1.0), (16, 0.4, 1.0), (2, 0.9, 1.0)):
        run["estimates"].append(_row(WORSE, "text_survival", worse, f"{tokens} tokens"))
        run["estimates"].append(_row(LEVEL, "text_survival", level, f"{tokens} tokens"))
    (chart,) = kv_depth_charts(RunView(run), Path())
    assert chart["title"] == (
        "After 32 tokens the same texts: 90 % with F16 [kv=q8_0/q8_0], 10 % with F16 [kv=q4_0/<i>]"
    )
    (panel,) = chart["figures"]
    assert [[point[0], point[1]] for point in panel["data"]["lines"][0]["points"]] == [
        [1, 1.0],
        [2, 0.9],
        [16, 0.4],
        [32, 0.1],
    ]
    json.dumps(chart, allow_nan=False)


@pytest.mark.parametrize(
    ("se", "title"),
    [
        (0.01, "After 256 tokens F16 [kv=q4_0/<i>] generates 0.8 times as fast as with a full cache"),
        (0.2, "No KV cache was found to change the speed of generation"),
        (None, "Speed with a filled cache"),
    ],
)
def test_speed_by_depth(se: float | None, title: str) -> None:
    run = _run(loss_low=0, kld_low=0)
    run["estimates"] = [
        _row(name, "tg_at_depth", 100.0 - depth / 10, f"d{depth}", doubt="busy" if depth else None)
        for name in (PLAIN, WORSE)
        for depth in (256, 0)
    ]
    if se is not None:
        run["estimates"] += [_row(WORSE, "tg_at_depth_ratio", 0.8, "d256", se=se)]
        run["estimates"] += [_row(WORSE, "tg_at_depth_ratio", 0.5, "d0", se=se)]
    (chart,) = kv_depth_charts(RunView(run), Path())
    assert chart["title"] == title
    speeds = chart["figures"][-1]["data"]
    assert speeds["x"]["ticks"] == [[0, "0"], [256, "256"]]
    assert [line["name"] for line in speeds["lines"]] == [PLAIN, WORSE]
    assert [point[3] for point in speeds["lines"][0]["points"]] == ["n = 8", "n = 8 ?"]
    json.dumps(chart, allow_nan=False)


def test_a_run_of_other_suites_has_no_such_chart() -> None:
    assert kv_depth_charts(RunView({"models": [], "estimates": []}), Path()) == []
