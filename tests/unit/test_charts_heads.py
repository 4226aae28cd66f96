"""Charts of heads from rows and arrays as a run stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts.head_charts import head_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.store.arrays import save_arrays

HOSTILE = "</script><img src=x onerror=alert(1)><b>"


def _run(folder: Path, model: str = "a", other: str = "b") -> dict[str, Any]:
    stored = Path(__file__).parent.parent / "data" / "run-smollm2" / "run.json"
    run: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
    run["models"] = [
        run["models"][0] | {"name": model, "reference": True},
        run["models"][1] | {"name": other, "reference": False},
    ]
    base = run["estimates"][0] | {"reference": None, "prompt": None, "se": 0.01, "n": 10, "clusters": 2}
    run["estimates"] = [
        base | {"model": name, "metric": metric, "layer": layer, "head": head, "value": 0.1 * layer - 0.04 * head}
        for name in (model, other)
        for metric in ("head_importance", "head_importance_kl")
        for layer, head in ((0, 0), (0, 2), (3, 1))
    ]
    losses = np.array([[2.0, 3], [2.0, 3.2], [3, 4]])
    run["arrays"] = []
    for name in (model, other):
        file = f"arrays/{len(run['arrays'])}.npz"
        save_arrays(folder / file, {"heads": np.array([[0, 1], [1, 0]]), "nll": losses})
        run["arrays"].append({"model": name, "name": "head_removal", "file": file, "description": ""})
    return run | {"tests": [], "gates": []}


def test_cells_are_heads_and_empty_where_nothing_was_measured(tmp_path: Path) -> None:
    importance, removal = head_charts(RunView(_run(tmp_path)), tmp_path)
    assert [figure["name"] for figure in importance["figures"]] == ["a", "b"]
    (trace,) = importance["figures"][0]["traces"]
    assert (trace["x"], trace["y"]) == ([0, 1, 2], [0, 3])
    assert trace["z"] == [[0, None, pytest.approx(-(0.08**0.5))], [None, pytest.approx(0.26**0.5), None]]
    assert trace["zmax"] == -trace["zmin"] == pytest.approx(0.26**0.5)
    assert "+0.260 ± 0.010" in trace["text"][1][1]
    assert "zero: -0.080 ± 0.010" in trace["text"][0][2]
    _, curve, _ = removal["figures"][0]["traces"]
    assert curve["y"] == pytest.approx([0, 0.1, 1])
    assert curve["text"] == ["all heads", "layer 0, head 1", "layer 1, head 0"]


def test_hostile_names_are_text_and_missing_files_cost_their_curve(tmp_path: Path) -> None:
    run = _run(tmp_path, HOSTILE)
    (tmp_path / "arrays" / "1.npz").unlink()
    write_html(run, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    charts = head_charts(RunView(run), tmp_path)
    assert [trace.get("name") for trace in charts[1]["figures"][0]["traces"]] == [
        None,
        "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&lt;b&gt;",
    ]
    assert json.dumps(charts, allow_nan=False)


def test_a_run_without_heads_has_no_charts_of_them(tmp_path: Path) -> None:
    run = _run(tmp_path) | {"estimates": [], "arrays": []}
    assert head_charts(RunView(run), tmp_path) == []
