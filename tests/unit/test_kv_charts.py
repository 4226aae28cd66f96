"""Charts of what types of the KV cache cost, and the verdict on the smallest one, from made-up runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_harness.report.caches import cache_share, smallest_cache
from gguf_harness.report.charts.kv_charts import kv_charts
from gguf_harness.report.data import RunView

KL = {
    ("f16", "q8_0"): 0.0001,
    ("f16", "q4_0"): 0.03,
    ("q8_0", "f16"): 0.0003,
    ("q8_0", "q8_0"): 0.0004,
    ("q4_0", "f16"): 0.06,
    ("q4_0", "q4_0"): 0.09,
}
BYTES = {"f16": 64.0, "q8_0": 34.0, "q4_0": 18.0}


def _estimate(model: str, metric: str, value: float) -> dict[str, Any]:
    return {
        "model": model, "reference": "tiny-F16", "suite": "kv", "metric": metric, "value": value, "se": 0.01 * value,
        "se_iid": None, "n": 100, "clusters": 4, "low": 0.98 * value, "high": 1.02 * value, "unit": "nats",
        "better": "lower", "layer": None, "head": None, "part": None, "prompt": None, "detail": None, "test": "t",
    }  # fmt: skip


def _model(name: str, file: str, k: str = "f16", v: str = "f16", *, reference: bool = False) -> dict[str, Any]:
    return {
        "name": name, "file": file, "bytes": 100, "bits_per_weight": 16.0, "reference": reference, "tensor_types": {},
        "variant": None if name == file else f"kv={k}/{v}", "context": {"cache_type_k": k, "cache_type_v": v},
    }  # fmt: skip


def _gate(model: str, metric: str, verdict: str, limit: float = 0.01, suite: str = "kv") -> dict[str, Any]:
    return {"model": model, "suite": suite, "metric": metric, "verdict": verdict, "limit": limit, "detail": ""}


def _run(limit: float, files: tuple[str, ...] = ("tiny-F16",), **more: Any) -> RunView:
    models = [_model(file, file, reference=file == "tiny-F16") for file in files]
    estimates, gates = [], []
    for file in files:
        for (k, v), kld in KL.items():
            name = f"{file} [kv={k}/{v}]"
            models.append(_model(name, file, k, v))
            estimates += [_estimate(name, "kv_kld", kld), _estimate(name, "kv_bytes_per_token", BYTES[k] + BYTES[v])]
            verdict = "pass" if kld <= limit else "fail"
            gates.append(_gate(name, "kv_kld", verdict, limit))
    return RunView(
        {"models": models, "estimates": estimates, "gates": gates, "tests": [], "reference": "tiny-F16"} | more
    )


def test_the_smallest_cache_that_passes_on_every_file() -> None:
    said = "Smallest KV cache that passes on {}: q8_0/q8_0, 53 % of f16/f16"
    assert smallest_cache(_run(0.01)) == said.format("tiny-F16")
    assert smallest_cache(_run(0.01, ("tiny-F16", "tiny-Q8_0"))) == said.format("both files")
    assert smallest_cache(_run(1.0)) == "Smallest KV cache that passes on tiny-F16: q4_0/q4_0, 28 % of f16/f16"
    assert smallest_cache(_run(1e-9)) == "No KV cache passes on every file that was run with it (6 tested)"
    assert smallest_cache(RunView({"models": [], "estimates": [], "gates": []})) is None


def test_a_pair_that_fails_on_one_file_is_not_recommended() -> None:
    view = _run(0.01, ("tiny-F16", "tiny-Q8_0"))
    gate = next(gate for gate in view.run["gates"] if gate["model"] == "tiny-Q8_0 [kv=q8_0/q8_0]")
    gate["verdict"] = "inconclusive"
    assert smallest_cache(view) == "Smallest KV cache that passes on both files: f16/q8_0, 77 % of f16/f16"


@pytest.mark.parametrize("metric", ["kv_total_kld", "nll_slope", "kv_same_top"])
def test_a_cache_that_fails_another_gate_of_the_suite_does_not_pass(metric: str) -> None:
    view = _run(0.01)
    view.run["gates"].append(_gate("tiny-F16 [kv=q8_0/q8_0]", metric, "fail"))
    assert smallest_cache(view) == "Smallest KV cache that passes on tiny-F16: f16/q8_0, 77 % of f16/f16"
    # Gates of other suites are about the file.
    view.run["gates"].append(_gate("tiny-F16 [kv=f16/q8_0]", "kld_mean", "fail", suite="quant"))
    assert smallest_cache(view) == "Smallest KV cache that passes on tiny-F16: f16/q8_0, 77 % of f16/f16"


def test_a_cache_with_a_gate_that_was_not_decided_does_not_pass() -> None:
    """A test that was deselected, or a run that ended before it."""
    names = [model.name for model in _run(1.0).candidates]

    def planned(*subjects: str) -> list[dict[str, Any]]:
        return [
            {"model": name, "suite": "kv", "metric": metric, "test": "test_it"}
            for name in subjects
            for metric in ("kv_kld", "nll_slope")
        ]

    told = "Smallest KV cache that passes on tiny-F16: q8_0/q8_0, 53 % of f16/f16; 1 of 6 incomplete"
    assert smallest_cache(_run(1.0, planned=planned("tiny-F16 [kv=q4_0/q4_0]"))) == told
    assert smallest_cache(_run(1.0, planned=planned(*names))) is None


def test_a_verdict_on_caches_recommends_no_file() -> None:
    view = _run(0.01)
    assert view.recommended is None
    assert view.headline() == smallest_cache(view)


@pytest.mark.parametrize(("k", "v", "share"), [("f32", "f32", 2.0), ("q8_0", "q8_0", 34 / 64), ("x", "f16", None)])
def test_shares_are_those_of_blocks(k: str, v: str, share: float | None) -> None:
    assert cache_share(k, v) == share


def test_the_grid_has_a_tile_for_each_pair(tmp_path: Path) -> None:
    grid, frontier = kv_charts(_run(0.01), tmp_path)
    data = grid["figures"][0]["data"]
    assert data["y"]["names"] == data["x"]["names"] == ["f16", "q8_0", "q4_0"]
    assert data["values"] == [[KL.get((k, v)) for v in data["x"]["names"]] for k in data["y"]["names"]]
    assert data["marked"][0] == [False, False, True]
    assert data["scale"]["domain"] == [0.0001, 0.09]
    assert grid["title"].startswith("K in q4_0 costs 2.0 times as much as V in q4_0; smallest KV cache that passes")
    points = {model["short"]: model for model in frontier["figures"][0]["data"]["models"]}
    assert (points["q8_0/q8_0"]["bits"], points["q8_0/q8_0"]["value"]) == (68, 0.0004)
    # q4_0/f16 takes more than q8_0/q8_0 and costs more.
    assert (points["q8_0/q8_0"]["frontier"], points["q4_0/f16"]["frontier"]) == (True, False)
    assert frontier["figures"][0]["data"]["limit"]["value"] == 0.01


def test_a_run_without_the_suite_has_no_such_chart(tmp_path: Path) -> None:
    assert kv_charts(RunView({"models": [_model("a", "a")], "estimates": [], "gates": []}), tmp_path) == []
