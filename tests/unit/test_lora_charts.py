"""Charts of suites/lora from a stored run: findings, marks with their intervals, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts.lora_charts import lora_charts
from gguf_harness.report.charts.text_charts import text_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.kept_effects import smallest_base
from gguf_harness.store.arrays import save_arrays

KINDS = {"F16": 1000, "Q8_0": 500, "Q2_K": 200}
ADAPTER = [{"name": "style", "sha256": "0" * 64, "scale": 1.0}]


def _subject(kind: str) -> str:
    return f"m-{kind} [lora=style]"


def _models() -> list[dict[str, Any]]:
    models = []
    for kind, size in KINDS.items():
        plain = {"name": f"m-{kind}", "file": f"m-{kind}", "bytes": size, "adapters": [], "reference": kind == "F16"}
        models += [plain, plain | {"name": _subject(kind), "adapters": ADAPTER, "reference": False}]
    return models


def _row(model: str, metric: str, value: float, se: float | None = 0.01, **place: Any) -> dict[str, Any]:
    empty = {"layer": None, "head": None, "part": None, "prompt": None, "low": None, "high": None, "detail": None}
    return {"model": model, "metric": metric, "value": value, "se": se, "clusters": 8, "n": 100} | empty | place


def _run() -> dict[str, Any]:
    kept = {"Q8_0": 0.99, "Q2_K": 0.75}
    rows = [_row(_subject(kind), "lora_effect_retained", value) for kind, value in kept.items()]
    rows += [_row(_subject(kind), "lora_effect_correlation", value) for kind, value in kept.items()]
    rows += [_row(_subject("F16"), "lora_loss_change", -1.5), _row(_subject("F16"), "lora_corpus_loss_change", 0.02)]
    rows += [_row(_subject("F16"), "lora_corpus_kld", 0.03), _row(_subject("F16"), "lora_kld", 0.9)]
    for metric, values in (("lora_scale_loss_change", (0.0, -1.0, -0.2)), ("lora_scale_corpus_kld", (0.0, 0.1, 0.4))):
        scales = zip(("2", "0", "1"), (values[2], values[0], values[1]), strict=True)
        rows += [_row(_subject("F16"), metric, value, part=f"scale {scale}") for scale, value in scales]
    for way, value in (("lora_applied_kld", 0.5), ("lora_merged_kld", 0.4), ("lora_merging_gain", 0.1)):
        rows.append(_row(_subject("Q2_K"), way, value, se=0.01))
    rows += [_row(_subject("F16"), "lora_states_moved", 0.1 * (layer + 1), layer=layer) for layer in range(2)]
    rows += [
        _row(_subject("F16"), "lora_attention_moved", 0.01 * (2 * layer + head), layer=layer, head=head)
        for layer in range(2)
        for head in range(2)
    ]
    gates = [
        {"model": _subject(kind), "metric": "lora_effect_retained", "verdict": verdict, "detail": ""}
        for kind, verdict in (("Q8_0", "pass"), ("Q2_K", "fail"))
    ]
    return {"reference": "m-F16", "models": _models(), "estimates": rows, "gates": gates, "tests": []}


def _charts(run: dict[str, Any], folder: Path = Path()) -> dict[str, dict[str, Any]]:
    return {chart["id"]: json.loads(json.dumps(chart, allow_nan=False)) for chart in lora_charts(RunView(run), folder)}


def test_findings() -> None:
    titles = {name: chart["title"] for name, chart in _charts(_run()).items()}
    assert titles == {
        "lora-effect": "F16 [lora=style] saves 1.5 nats per token on its own text, and changes the corpus by +0.02",
        "lora-retained": "Q2_K [lora=style] keeps 75 % of the adapter's effect, Q8_0 [lora=style] 99 %",
        "lora-merged": "At the bits of Q2_K [lora=style], merging before quantizing is better by 0.1 nats",
        "lora-scale": "F16 [lora=style] is best on its own text at 1 times its scale (-1.00 nats)",
        "lora-layers": "F16 [lora=style]: layer 1 has the most states moved, 20 %",
        "lora-heads": "F16 [lora=style] moves the attention of head 1 of layer 1 most, by 0.03 nats",
    }


def test_marks_have_intervals_and_scales_are_in_order() -> None:
    charts = _charts(_run())
    mark = charts["lora-retained"]["figures"][0]["data"]["rows"][0]
    assert mark["low"] < mark["value"] < mark["high"]
    # Student's t of 8 windows.
    assert mark["high"] - mark["value"] == pytest.approx(2.365 * 0.01, abs=1e-4)
    points = charts["lora-scale"]["figures"][0]["data"]["lines"][0]["points"]
    assert [point[:2] for point in points] == [[0, 0], [1, -1], [2, -0.2]]


def test_merging_that_makes_no_difference_is_said_so() -> None:
    run = _run()
    for row in run["estimates"]:
        if row["metric"] == "lora_merging_gain":
            row["se"] = 0.2
    assert "are alike at equal bits" in _charts(run)["lora-merged"]["title"]


def test_without_adapters_there_are_no_charts() -> None:
    run = _run()
    run["models"] = [model for model in run["models"] if not model["adapters"]]
    run["estimates"] = []
    assert _charts(run) == {}


def test_matrices(tmp_path: Path) -> None:
    arrays = {
        "adapter": np.zeros(3, dtype=np.int64),
        "tensor": np.array(["blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight"]),
        "role": np.array(["attn_q", "attn_q", "output"]),
        "layer": np.array([0, 1, -1]),
        "rank": np.array([4, 4, 4]),
        "effective_rank": np.array([3.5, 2.0, np.nan]),
        "norm": np.array([1.0, 3.0, 0.0]),
        "weights": np.array([10.0, 10.0, 10.0]),
    }
    save_arrays(tmp_path / "changes.npz", arrays)
    entry = {"model": _subject("F16"), "name": "lora_changes", "file": "changes.npz"}
    chart = _charts(_run() | {"arrays": [entry]}, tmp_path)["lora-matrices"]
    assert chart["title"] == "F16 [lora=style] changes blk.1.attn_q.weight most: by 30 % of its size"
    data = chart["figures"][0]["data"]
    assert data["y"]["names"] == ["0", "1", "no layer"]
    assert data["values"] == [[0.1, None], [0.3, None], [None, None]]
    assert "rank 4, effective 3.50" in data["notes"][0][0]


def test_the_smallest_base_that_keeps_the_effect() -> None:
    run = _run()
    said = "Smallest base that keeps its adapter's effect: m-Q8_0 [lora=style], 500 B (2 tested)"
    assert smallest_base(RunView(run)) == RunView(run).headline() == said
    for gate in run["gates"]:
        gate["verdict"] = "fail"
    assert smallest_base(RunView(run)) == "No quantized base clearly keeps the effect of its adapter (2 tested)"
    assert smallest_base(RunView(run | {"gates": []})) is None


def test_texts_with_an_adapter_are_not_texts_of_a_candidate() -> None:
    texts = [
        {"model": model, "prompt": "fox", "given": "The fox", "text": f"{model} said", "tokens": 3, "templated": None,
         "problem": None}
        for model in ("m-F16", _subject("F16"))
    ]  # fmt: skip
    view = RunView(_run() | {"texts": texts})
    assert text_charts(view, Path()) == []
    chart = next(chart for chart in lora_charts(view, Path()) if chart["id"] == "lora-texts")
    assert "a difference comes from the adapter" in chart["meaning"]
    assert chart["figures"][0]["data"]["prompts"][0]["reference"]["text"] == "m-F16 said"
