"""The chart of weights' errors beside the residual stream's: from the stored run alone, names are text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts import build_charts
from gguf_harness.report.charts.drift_charts import drift_charts
from gguf_harness.report.data import RunView
from gguf_harness.store.arrays import save_arrays
from tests.unit.test_report import HOSTILE, STORED

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


def test_a_figure_per_candidate_with_both(tmp_path: Path) -> None:
    (chart,) = drift_charts(RunView(_run("m-Q8", "m-Q4")), tmp_path)
    json.dumps(chart, allow_nan=False)
    assert [figure["name"] for figure in chart["figures"]] == ["Q8", "Q4"]
    for figure in chart["figures"]:
        assert [trace["x"] for trace in figure["traces"]] == [[0, 1, 2]] * 3
        for trace, value in zip(figure["traces"], METRICS.values(), strict=True):
            assert trace["y"] == pytest.approx([value, 2 * value, 3 * value])
            assert trace["error_y"]["array"] == pytest.approx([value / 10, value / 5, 3 * value / 10])
        assert [trace.get("yaxis", "y") for trace in figure["traces"]] == ["y", "y", "y2"]
        assert "all weights of a layer together" in figure["meaning"]
        for axis in ("yaxis", "yaxis2"):
            assert figure["layout"][axis]["type"] == "log"
    assert "layer 1<br>weight error: 0.04 ± 0.004" in chart["figures"][0]["traces"][0]["text"][1]


def test_only_where_a_run_has_both(tmp_path: Path) -> None:
    run = _run("m-Q8", "m-Q4", "m-Q2")
    _without(run, "weight_relative_rmse", "m-Q8")
    _without(run, "resid_relative_error", "m-Q4")
    _without(run, "error_amplification", "m-Q2")
    (chart,) = drift_charts(RunView(run), tmp_path)
    (figure,) = chart["figures"]
    assert (figure["name"], len(figure["traces"])) == ("Q2", 2)
    assert "yaxis2" not in figure["layout"]
    _without(run, "resid_relative_error", "m-Q2")
    assert drift_charts(RunView(run), tmp_path) == []


def test_the_report_has_it() -> None:
    run = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    assert "drift" not in {chart["id"] for chart in build_charts(RunView(run), STORED)}
    run["estimates"] += [_row("smollm2-135m-Q8_0", metric, 0, value) for metric, value in METRICS.items()]
    assert "drift" in {chart["id"] for chart in build_charts(RunView(run), STORED)}


def test_arrays_stand_in_for_rows(tmp_path: Path) -> None:
    """Means over a layer's tensors that are not exact; tensors outside of layers are left out."""
    run = _run("m-Q4")
    _without(run, "weight_relative_rmse", "m-Q4")
    _weights(run, tmp_path, "m-Q4")
    (chart,) = drift_charts(RunView(run), tmp_path)
    (figure,) = chart["figures"]
    assert figure["traces"][0]["x"] == [0, 1]
    assert figure["traces"][0]["y"] == pytest.approx([0.02, 0.04])
    assert figure["traces"][0]["error_y"]["visible"] is False
    assert "2 tensors" in figure["traces"][0]["text"][0]
    assert "mean over the tensors of a layer that are not exact" in figure["meaning"]


def test_a_logarithm_has_no_zero(tmp_path: Path) -> None:
    """A layer without error, as of a copy of the reference, has no point."""
    run = _run("m-Q4")
    for row in run["estimates"]:
        if row["layer"] == 0 and row["metric"] == "resid_relative_error":
            row["value"] = 0.0
    (chart,) = drift_charts(RunView(run), tmp_path)
    assert chart["figures"][0]["traces"][1]["x"] == [1, 2]


@pytest.mark.parametrize("scale", [(0.02, 0.021), (0.01, 0.2), (1e-5, 3.0), (1.0, 1.0)])
def test_every_axis_has_a_tick_that_can_be_read(tmp_path: Path, scale: tuple[float, float]) -> None:
    run = _run("m-Q4")
    for row in run["estimates"]:
        row["value"], row["se"] = scale[row["layer"] == 2], None
    (chart,) = drift_charts(RunView(run), tmp_path)
    axis = chart["figures"][0]["layout"]["yaxis"]
    # Plotly leaves about a twentieth of the range free on both sides.
    assert axis["tickvals"][0] < scale[0]
    assert axis["tickvals"][-1] > scale[1]
    assert len(axis["ticktext"]) == len(set(axis["ticktext"])) < 50
    assert all(math.isclose(float(text), tick) for text, tick in zip(axis["ticktext"], axis["tickvals"], strict=True))


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    (chart,) = drift_charts(RunView(_run(HOSTILE, "m-Q4")), tmp_path)
    drawn = json.dumps([[figure["traces"], figure["layout"]] for figure in chart["figures"]])
    assert "<i" not in drawn
    assert "\\u001b" not in json.dumps(chart)
