"""Charts of what types of the KV cache change: what they find, in which order, and what they leave out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from gguf_harness.report.charts.kv_cache_charts import kv_cache_charts
from gguf_harness.report.data import RunView
from tests.unit.test_report import STORED

FILE = "smollm2-135m-F16"
COARSE, FINE = f"{FILE} [kv=q4_0/q4_0]", f"{FILE} [kv=q8_0/q8_0]"


def _of_layers(size: float, *, stream: bool) -> dict[str, tuple[float, float]]:
    """Values of two layers by metric."""
    known = {"kv_layer_kld": (size * 3 / 4, size / 4), "kv_layer_predicted": (size, 2 * size)}
    return known | ({"kv_layer_stream_change": (3 * size, 2 * size)} if stream else {})


def _cosines(size: float) -> dict[tuple[int | None, int | None], float]:
    """Of attention over all, and by layer and head."""
    found: dict[tuple[int | None, int | None], float] = {(None, None): 1 - size / 2}
    for layer, head in itertools.product(range(2), range(3)):
        found[layer, head] = 1 - size * (0.1 + layer + head / 10)
    return found


def _run(*, floor: float = 1e-6, patterns: bool = True, layers: bool = True, stream: bool = False) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    facts = next(model for model in run["models"] if model["name"] == FILE)
    for name in (FINE, COARSE):
        run["models"].append(facts | {"name": name, "variant": name.split("[")[1][:-1]})
    run["estimates"] = [row for row in run["estimates"] if not row["metric"].startswith("kv_")]

    def add(model: str, metric: str, value: float, layer: int | None = None, head: int | None = None) -> None:
        row = {"suite": "kv", "test": "t", "model": model, "reference": FILE, "prompt": None, "part": None, "n": 30}
        rest = {"se": value / 10, "se_iid": None, "clusters": 3, "unit": "", "better": "lower", "detail": None}
        run["estimates"].append(row | rest | {"metric": metric, "value": value, "layer": layer, "head": head})

    for model, size in ((FINE, 0.01), (COARSE, 0.1)):
        for metric in ("kv_key_error", "kv_value_error"):
            add(model, metric, size)
            for layer in range(2):
                add(model, metric, size * (layer + 1), layer, 0)
        for head, value in _cosines(size).items() if patterns else ():
            add(model, "kv_pattern_cosine", value, *head)
        if layers:
            for name, value in {"layer_kld": size, "run_kld": size, "patched_gap": 1e-7, "layer_floor": floor}.items():
                add(model, f"kv_{name}", value)
        for name, values in _of_layers(size, stream=stream).items() if layers else ():
            for layer, value in enumerate(values):
                add(model, name, value, layer)
    return run


def _charts(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {chart["id"]: chart for chart in kv_cache_charts(RunView(run), Path())}


def test_heads_of_the_coarsest_cache_come_first() -> None:
    chart = _charts(_run())["kv-heads"]
    assert chart["title"] == "Head 1.2 suffers most from F16 [kv=q4_0/q4_0]: its attention has cosine 0.870 ± 0.087"
    names = [figure["name"] for figure in chart["figures"]]
    caches = ("F16 [kv=q4_0/q4_0]", "F16 [kv=q8_0/q8_0]")
    assert names == [f"{what}, {cache}" for what in ("keys", "values", "attention") for cache in caches]
    (opened,) = (figure for figure in chart["figures"] if figure.get("opens"))
    assert opened["name"] == "attention, F16 [kv=q4_0/q4_0]"
    # Layer 0 on top; one colour scale for all caches.
    assert opened["data"]["y"]["names"] == ["0", "1"]
    assert [round(value, 3) for value in opened["data"]["values"][1]] == [0.11, 0.12, 0.13]
    domains = [figure["data"]["scale"]["domain"] for figure in chart["figures"][4:]]
    assert domains[0] == domains[1]
    assert chart["table"][1][0][0] == COARSE
    json.dumps(chart, allow_nan=False)


def test_layers_show_what_they_cause_beside_what_was_predicted() -> None:
    chart = _charts(_run())["kv-layers"]
    assert chart["title"] == "Layer 0 causes 75 % of what F16 [kv=q4_0/q4_0] costs layer by layer"
    rows = chart["figures"][0]["data"]["rows"]
    assert [(row["name"], row["model"], round(row["value"], 4)) for row in rows] == [
        ("layer 0", 0, 0.75), ("layer 0", 1, 0.2), ("layer 1", 0, 0.25), ("layer 1", 1, 0.8),
    ]  # fmt: skip
    # KL grows with the square of a change; that of the stream is told where it is known.
    rows = _charts(_run(stream=True))["kv-layers"]["figures"][0]["data"]["rows"]
    assert [round(row["value"], 4) for row in rows if row["model"] == 1] == [round(9 / 13, 4), round(4 / 13, 4)]
    assert len(chart["table"][0]) == len(chart["table"][1][0])
    json.dumps(chart, allow_nan=False)


def test_rounding_is_not_taken_for_an_effect() -> None:
    title = _charts(_run(floor=0.06))["kv-layers"]["title"]
    assert title == "No layer's cache of F16 [kv=q4_0/q4_0] causes more than rounding does, 0.0600 ± 0.0060 nats"


def test_without_patterns_or_layers_the_rest_is_drawn() -> None:
    charts = _charts(_run(patterns=False, layers=False))
    assert set(charts) == {"kv-heads"}
    assert (
        charts["kv-heads"]["title"]
        == "Head 1.0 suffers most from F16 [kv=q4_0/q4_0]: its values are off by 0.200 ± 0.020"
    )
    assert _charts(json.loads((STORED / "run.json").read_text(encoding="utf-8"))) == {}
