"""The chart of weights' errors beside the residual stream's: from the stored run alone, names are text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts import build_charts
from gguf_harness.report.charts.drift_charts import drift_charts
from gguf_harness.report.data import RunView, visible
from gguf_harness.store.arrays import save_arrays
from tests.unit.test_report import HOSTILE, STORED

WEIGHTS, STREAM = "weights of the layer", "the stream after it"
METRICS = {"weight_relative_rmse": 0.02, "resid_relative_error": 0.1, "error_amplification": 1.5}


def _row(model: str, metric: str, layer: int | None, value: float, **more: Any) -> dict[str, Any]:
    row = {"model": model, "metric": metric, "layer": layer, "value": value, "se": value / 10, "n": 8}
    return row | {"prompt": None, "head": None, "detail": "Q4_K, <i>Q6_K</i>"} | more


def _run(*names: str) -> dict[str, Any]:
    """A reference, and candidates with all metrics of three layers, not in order."""
    models = [
        {"name": name, "bytes": 200 - place, "reference": not place, "order": place}
        for place, name in enumerate(("m-F16", *names))
    ]
    estimates = []
    for name in names:
        for metric, value in METRICS.items():
            estimates += [_row(name, metric, layer, value * (layer + 1)) for layer in (2, 0, 1)]
            # Of the whole, of a role, of a prompt, of a head.
            estimates += [_row(name, metric, None, 77), _row(name, metric, None, 77, detail="attn_q")]
            estimates += [_row(name, metric, 1, 77, prompt="p"), _row(name, metric, 1, 77, head=3)]
    return {"models": models, "estimates": estimates, "arrays": []}


def _weights(run: dict[str, Any], folder: Path, model: str) -> None:
    columns = {"layer": np.array([-1, 1, 0, 0, 0]), "relative_rmse": np.array([0.5, 0.04, 0.01, 0.03, 0.0])}
    save_arrays(folder / "w.npz", columns)
    run["arrays"].append({"model": model, "name": "weight_errors", "file": "w.npz", "description": ""})


def _without(run: dict[str, Any], metric: str, model: str) -> None:
    run["estimates"] = [row for row in run["estimates"] if (row["metric"], row["model"]) != (metric, model)]


def _lines(chart: dict[str, Any], panel: int = 0) -> dict[tuple[str, str | None], list[list[Any]]]:
    return {(line["name"], line.get("group")): line["points"] for line in chart["figures"][panel]["data"]["lines"]}


def test_both_errors_of_all_candidates_on_the_same_axes(tmp_path: Path) -> None:
    (chart,) = drift_charts(RunView(_run("m-Q8", "m-Q4")), tmp_path)
    json.dumps(chart, allow_nan=False)
    errors, growth = chart["figures"]
    assert [(line["name"], line["group"]) for line in errors["data"]["lines"]] == [
        ("m-Q8", WEIGHTS), ("m-Q4", WEIGHTS), ("m-Q8", STREAM), ("m-Q4", STREAM),
    ]  # fmt: skip
    assert errors["data"]["y"] == {"label": "relative error", "log": True, "percent": True}
    assert growth["data"]["y"]["middle"] == 1
    lines = _lines(chart) | _lines(chart, 1)
    for group, value in ((WEIGHTS, 0.02), (STREAM, 0.1), (None, 1.5)):
        for model in ("m-Q8", "m-Q4"):
            points = lines[model, group]
            assert [point[0] for point in points] == [0, 1, 2]
            assert [point[1] for point in points] == pytest.approx([value, 2 * value, 3 * value])
            assert [point[2] for point in points] == pytest.approx([value / 10, value / 5, 3 * value / 10])
            assert points[0][3] == "Q4_K, <i>Q6_K</i>; n = 8"


def test_the_title_is_of_the_candidate_that_ends_furthest_off(tmp_path: Path) -> None:
    run = _run("m-Q8", "m-Q4")
    for row in run["estimates"]:
        if row["model"] == "m-Q8" and row["layer"] is not None:
            row["value"] /= 10
    (chart,) = drift_charts(RunView(run), tmp_path)
    assert chart["title"] == (
        "Q4's weights are off by 4.0 % in a layer, its stream by 30 % after layer 2, 7.5 times as much"
    )
    assert chart["table"][1] == [["m-Q8", "0.40 %", "3.0 %"], ["m-Q4", "4.0 %", "30 %"]]


def test_only_where_a_run_has_both(tmp_path: Path) -> None:
    run = _run("m-Q8", "m-Q4", "m-Q2")
    _without(run, "weight_relative_rmse", "m-Q8")
    _without(run, "resid_relative_error", "m-Q4")
    _without(run, "error_amplification", "m-Q2")
    (chart,) = drift_charts(RunView(run), tmp_path)
    assert [panel["name"] for panel in chart["figures"]] == ["errors"]
    assert set(_lines(chart)) == {("m-Q2", WEIGHTS), ("m-Q2", STREAM)}
    _without(run, "resid_relative_error", "m-Q2")
    assert drift_charts(RunView(run), tmp_path) == []


def test_the_report_has_it() -> None:
    run = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    assert "drift" not in {chart["id"] for chart in build_charts(RunView(run), STORED)["layers"]}
    run["estimates"] += [_row("smollm2-135m-Q8_0", metric, 0, value) for metric, value in METRICS.items()]
    assert "drift" in {chart["id"] for chart in build_charts(RunView(run), STORED)["layers"]}


def test_arrays_stand_in_for_rows(tmp_path: Path) -> None:
    """Means over a layer's tensors that are not exact; tensors outside of layers are left out."""
    run = _run("m-Q4")
    _without(run, "weight_relative_rmse", "m-Q4")
    _weights(run, tmp_path, "m-Q4")
    (chart,) = drift_charts(RunView(run), tmp_path)
    points = _lines(chart)["m-Q4", WEIGHTS]
    assert [point[0] for point in points] == [0, 1]
    assert [point[1] for point in points] == pytest.approx([0.02, 0.04])
    assert [point[2] for point in points] == [None, None]
    assert points[0][3] == "mean over 2 tensors that are not exact"


def test_a_logarithm_has_no_zero(tmp_path: Path) -> None:
    """A layer without error, as of a copy of the reference, has no point."""
    run = _run("m-Q4")
    for row in run["estimates"]:
        if row["layer"] == 0 and row["metric"] == "resid_relative_error":
            row["value"] = 0.0
    (chart,) = drift_charts(RunView(run), tmp_path)
    assert [point[0] for point in _lines(chart)["m-Q4", STREAM]] == [1, 2]
    assert chart["figures"][0]["data"]["y"]["log"] is True


def test_hostile_names_are_text(tmp_path: Path) -> None:
    (chart,) = drift_charts(RunView(_run(HOSTILE, "m-Q4")), tmp_path)
    assert "\\u001b" not in json.dumps(chart)
    assert chart["figures"][0]["data"]["lines"][0]["name"] == visible(HOSTILE)
