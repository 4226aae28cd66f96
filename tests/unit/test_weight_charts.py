"""Charts of weights, from a stored run: what they show, and what names cannot do to them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts import build_charts
from gguf_harness.report.compare import compare_runs
from gguf_harness.report.data import RunView
from gguf_harness.store.arrays import save_arrays
from tests.unit.test_report import HOSTILE, STORED


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """Two candidates: one of them with a tensor that is exact and one that has no cosine."""
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    content["arrays"] = []
    names = ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.1.attn_norm.weight"]
    for number, model in enumerate(("smollm2-135m-Q8_0", "smollm2-135m-Q4_K_M")):
        save_arrays(
            tmp_path / f"{number}.npz",
            {
                "tensor": np.array(names),
                "role": np.array(["token_embd", "attn_q", "attn_q", "attn_norm"]),
                "layer": np.array([-1, 0, 1, 1]),
                "type": np.array(["Q8_0", "Q4_K", "Q4_K", "F32"]),
                "reference_type": np.array(["F16", "F16", "F16", "F32"]),
                "weights": np.array([100, 64, 64, 8]),
                "bits": np.array([8.5, 4.5, 4.5, 32]),
                "relative_rmse": np.array([0.005, 0.1, 1.0, 0]) / (2 - number),
                "max_error": np.array([0.01, 0.2, 0.3, 0]),
                "cosine": np.array([0.9999, 0.995, math.nan, 1]),
                "snr_db": np.array([46.0, 20.0, 0.0, math.nan]),
                "outlier_share": np.array([1e-4, 0, 0, 0]),
                "largest_sigmas": np.array([13.0, 4, 4, 2]),
            },
        )
        save_arrays(
            tmp_path / f"{number}-s.npz",
            {
                "kind": np.array(["role", "role", "layer", "restored", "restored"]),
                "group": np.array(["token_embd", "attn_q", "layer 0", "token_embd", "attn_q"]),
                "described": np.array(["token_embd: 1 tensor, Q8_0", "attn_q: 2 tensors, Q4_K", "", "", ""]),
                "kld": np.array([0.01, 0.2, 0.1, 0.19, 0.02]),
                "kld_se": np.array([0.001, 0.01, math.nan, 0.01, 0.01]),
                "gain": np.array([0.0, 0, 0, 0.02, 0.19]),
                "gain_se": np.array([0.0, 0, 0, 0.002, 0.01]),
                "growth": np.array([-5, 500_000, 1, -5, 500_000]),
                "candidate": np.array([0.2, 0.01]),
            },
        )
        content["arrays"] += [
            {"model": model, "name": "weight_errors", "file": f"{number}.npz", "description": ""},
            {"model": model, "name": "sensitivity", "file": f"{number}-s.npz", "description": ""},
        ]
    return content


def _charts(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    charts = {chart["id"]: chart for chart in build_charts(RunView(run), folder)}
    json.dumps(charts, allow_nan=False)
    return charts


def test_the_map_has_a_cell_per_tensor(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["weights"]
    assert [figure["name"] for figure in chart["figures"]] == ["smollm2-135m-Q8_0", "smollm2-135m-Q4_K_M"]
    (trace,) = chart["figures"][1]["traces"]
    assert (trace["x"], trace["y"]) == (["token_embd", "attn_q"], ["no layer", "0", "1"])
    assert trace["z"] == [[math.log10(0.005), None], [None, -1.0], [None, 0.0]]
    hover = trace["text"][1][1]
    assert "F16 to Q4_K, 4.50 bits per weight" in hover
    assert "relative RMSE 10 %" in hover
    assert "cosine undefined" in trace["text"][2][1]
    # All candidates have one scale.
    assert {(f["traces"][0]["zmin"], f["traces"][0]["zmax"]) for f in chart["figures"]} == {(math.log10(0.0025), 0.0)}


def test_bars_by_role_layer_and_price(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["sensitivity"]
    roles, layers, restored = chart["figures"]
    assert [trace["name"] for trace in roles["traces"]] == ["smollm2-135m-Q8_0", "smollm2-135m-Q4_K_M"]
    assert roles["traces"][0]["y"] == [0.01, 0.2]
    assert roles["traces"][0]["error_y"]["array"] == [0.001, 0.01]
    assert "add up to 0.21 nats, the candidate has 0.2" in roles["meaning"]
    assert layers["traces"][0]["error_y"] == {"type": "data", "array": [0.0], "visible": False, "thickness": 1.2}
    # What does not grow has no price.
    assert restored["traces"][0]["x"] == ["attn_q"]
    assert restored["traces"][0]["y"] == [pytest.approx(0.38)]
    assert restored["traces"][0]["error_y"]["array"] == [pytest.approx(0.02)]


def test_a_run_without_has_no_charts(run: dict[str, Any], tmp_path: Path) -> None:
    run["arrays"] = []
    assert not {"weights", "sensitivity"} & set(_charts(run, tmp_path))


def test_hostile_names_are_escaped(run: dict[str, Any], tmp_path: Path) -> None:
    from gguf_harness.store.arrays import load_arrays

    renamed: dict[str, Any] = json.loads(json.dumps(run).replace("smollm2-135m-Q4_K_M", json.dumps(HOSTILE)[1:-1]))
    for number in range(2):
        for file, names in ((f"{number}.npz", ("tensor", "role", "type")), (f"{number}-s.npz", ("group", "described"))):
            arrays = load_arrays(tmp_path / file)
            arrays |= {name: np.array([f"{HOSTILE}{i}" for i in range(len(arrays[name]))]) for name in names}
            save_arrays(tmp_path / file, arrays)
    charts = _charts(renamed, tmp_path)
    for identifier in ("weights", "sensitivity"):
        for figure in charts[identifier]["figures"]:
            # The page escapes names and meanings itself; Plotly gets what is in the figure.
            drawn = json.dumps([figure["traces"], figure["layout"]])
            assert "<img" not in drawn
            assert "\\u001b" not in drawn


def test_rows_of_roles_do_not_stand_for_the_whole() -> None:
    """In a comparison of runs, as in a table: the first row of a place is of all of it."""

    def stored(whole: float, part: float) -> dict[str, Any]:
        row = {"model": "m", "metric": "weight_relative_rmse", "se": None, "better": "lower", "n": 1}
        return {"id": "x", "estimates": [row | {"value": whole}, row | {"value": part, "detail": "attn_q"}]}

    (difference,) = compare_runs(stored(1.0, 5.0), stored(2.0, 5.0)).differences
    assert (difference.old, difference.new, difference.direction) == (1.0, 2.0, "worse")
