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
    charts = {chart["id"]: chart for chart in build_charts(RunView(run), folder)["layers"]}
    json.dumps(charts, allow_nan=False)
    return charts


def test_the_map_has_a_cell_per_tensor(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["weights"]
    assert [panel["name"] for panel in chart["figures"]] == ["Q8_0", "Q4_K_M"]
    data = chart["figures"][1]["data"]
    # Layer 0 is at the top; what belongs to no layer comes last. Exact tensors have no cell.
    assert (data["x"]["names"], data["y"]["names"]) == (["attn_q", "token_embd"], ["0", "1", "no layer"])
    assert data["values"] == [[0.1, None], [1.0, None], [None, 0.005]]
    assert data["cells"] == [["10 %", ""], ["100 %", ""], ["", "0.50 %"]]
    assert "F16 to Q4_K, 4.50 bits per weight, 64 weights" in data["notes"][0][0]
    assert "cosine undefined" in data["notes"][1][0]
    # All candidates have one scale, which has no zero as it is logarithmic.
    assert {tuple(panel["data"]["scale"]["domain"]) for panel in chart["figures"]} == {(0.0025, 1.0)}
    assert chart["title"] == "Tensors are off by 0.25 % at best, and by 100 % in Q4_K_M's blk.1.attn_q.weight"


def test_kinds_of_all_candidates_in_one_picture(run: dict[str, Any], tmp_path: Path) -> None:
    row = {"metric": "weight_relative_rmse", "se": None, "n": 64, "layer": None, "detail": "attn_q: Q4_K"}
    models = ("smollm2-135m-Q4_K_M", "smollm2-135m-Q8_0")
    run["estimates"] += [
        row | {"model": model, "part": part, "value": value}
        for model, scale in zip(models, (10, 1), strict=True)
        for part, value in (("attn_q", 0.01 * scale), ("token_embd", 0.002 * scale), ("attn_norm", 0.0))
    ]
    chart = _charts(run, tmp_path)["weight-kinds"]
    (panel,) = chart["figures"]
    names = [model["short"] for model in panel["data"]["models"]]
    found = [(names[dot["model"]], dot["name"], dot["value"]) for dot in panel["data"]["rows"]]
    assert found == [
        ("Q8_0", "attn_q", 0.01), ("Q8_0", "token_embd", 0.002),
        ("Q4_K_M", "attn_q", 0.1), ("Q4_K_M", "token_embd", 0.02),
    ]  # fmt: skip
    assert chart["title"] == "Q4_K_M loses most in attn_q: off by 10 %"


def test_costs_by_kind_layer_and_price(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["sensitivity"]
    kinds, restored, layers = chart["figures"]
    first = [dot for dot in kinds["data"]["rows"] if dot["model"] == 0]
    assert [(dot["name"], dot["value"]) for dot in first] == [("token_embd", 0.01), ("attn_q", 0.2)]
    assert [end for dot in first for end in (dot["low"], dot["high"])] == pytest.approx([0.009, 0.011, 0.19, 0.21])
    assert first[1]["text"] == "smollm2-135m-Q8_0: 0.200 ± 0.010 nats"
    assert "add up to 0.21 nats, the candidate has 0.2" in kinds["meaning"]
    # Without an error there is no bar.
    assert [(dot["low"], dot["high"]) for dot in layers["data"]["rows"]] == [(0.1, 0.1)] * 2
    # What does not grow has no price.
    assert [dot["name"] for dot in restored["data"]["rows"]] == ["attn_q", "attn_q"]
    assert restored["data"]["rows"][0]["value"] == pytest.approx(0.38)
    assert restored["data"]["rows"][0]["high"] == pytest.approx(0.40)
    assert chart["title"] == "attn_q alone costs Q4_K_M 0.2 nats; a megabyte brings most in attn_q"


def test_structure_has_every_tensor_of_every_model(run: dict[str, Any], tmp_path: Path) -> None:
    fallback = {"tensor": "blk.1.attn_q.weight", "row_width": 16, "wanted": "Q4_K", "got": "Q5_0"}
    next(model for model in run["models"] if model["name"].endswith("Q4_K_M"))["fallbacks"] = [fallback]
    chart = _charts(run, tmp_path)["structure"]
    assert [panel["name"] for panel in chart["figures"]] == ["F16", "Q8_0", "Q4_K_M"]
    reference, _, candidate = (panel["data"] for panel in chart["figures"])
    assert (candidate["layers"], candidate["kinds"], candidate["outside"]) == (
        [0, 1], ["attn_q", "attn_norm"], ["token_embd"],
    )  # fmt: skip
    assert [(tensor["type"], tensor["bytes"], tensor["error"]) for tensor in candidate["tensors"]] == [
        ("Q8_0", 100 * 8.5 / 8, 0.005), ("Q4_K", 36, 0.1), ("Q4_K", 36, 1.0), ("F32", 32, 0.0),
    ]  # fmt: skip
    # The reference's types are stored beside the candidate's; its own error would be none.
    assert [(tensor["type"], tensor["bits"], tensor["error"]) for tensor in reference["tensors"]] == [
        ("F16", 16, None), ("F16", 16, None), ("F16", 16, None), ("F32", 32, None),
    ]  # fmt: skip
    assert [tensor["fallback"] for tensor in candidate["tensors"]] == [
        None, None, "16 x 4: rows are no multiple of 256, so not Q4_K", None,
    ]  # fmt: skip
    assert all(panel["data"]["scales"] == reference["scales"] for panel in chart["figures"])
    assert reference["scales"] == {"bits": [4.5, 32], "bytes": [32.0, 200.0], "error": [0.0025, 1.0]}
    assert chart["title"].startswith("1 of Q4_K_M's 4 tensors have another type")


def test_a_run_without_has_no_charts(run: dict[str, Any], tmp_path: Path) -> None:
    run["arrays"] = []
    assert not {"weights", "sensitivity", "structure", "weight-kinds"} & set(_charts(run, tmp_path))


def test_hostile_names_are_text(run: dict[str, Any], tmp_path: Path) -> None:
    from gguf_harness.store.arrays import load_arrays

    renamed: dict[str, Any] = json.loads(json.dumps(run).replace("smollm2-135m-Q4_K_M", json.dumps(HOSTILE)[1:-1]))
    for number in range(2):
        for file, names in ((f"{number}.npz", ("tensor", "role", "type")), (f"{number}-s.npz", ("group", "described"))):
            arrays = load_arrays(tmp_path / file)
            arrays |= {name: np.array([f"{HOSTILE}{i}" for i in range(len(arrays[name]))]) for name in names}
            save_arrays(tmp_path / file, arrays)
    charts = _charts(renamed, tmp_path)
    for identifier in ("weights", "sensitivity", "structure"):
        # The views put strings in as text: nothing is escaped, and nothing can be hidden.
        drawn = json.dumps(charts[identifier])
        assert "<img" in drawn
        assert "&lt;" not in drawn
        assert "\\u001b" not in drawn


def test_rows_of_roles_do_not_stand_for_the_whole() -> None:
    """In a comparison of runs, as in a table: the first row of a place is of all of it."""

    def stored(whole: float, part: float) -> dict[str, Any]:
        row = {"model": "m", "metric": "weight_relative_rmse", "se": None, "better": "lower", "n": 1}
        return {"id": "x", "estimates": [row | {"value": whole}, row | {"value": part, "detail": "attn_q"}]}

    (difference,) = compare_runs(stored(1.0, 5.0), stored(2.0, 5.0)).differences
    assert (difference.old, difference.new, difference.direction) == (1.0, 2.0, "worse")
