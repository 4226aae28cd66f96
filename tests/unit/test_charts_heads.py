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
from gguf_harness.store.arrays import load_arrays, save_arrays

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


def _charts(run: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    return {chart["id"]: chart for chart in head_charts(RunView(run), folder)}


def test_tiles_are_heads_and_empty_where_nothing_was_measured(tmp_path: Path) -> None:
    charts = _charts(_run(tmp_path), tmp_path)
    importance = charts["head-importance"]
    assert importance["title"] == "Head 3.1 matters most: without it the loss rises by 0.260 ± 0.010 nats"
    assert [figure["name"] for figure in importance["figures"]] == ["a", "b"]
    data = importance["figures"][0]["data"]
    assert (data["x"]["names"], data["y"]["names"]) == (["0", "1", "2"], ["0", "3"])
    assert data["values"] == [[0, None, pytest.approx(-0.08)], [None, pytest.approx(0.26), None]]
    assert data["scale"]["domain"] == pytest.approx([-0.26, 0.26])
    assert "+0.260 ± 0.010" in data["notes"][1][1]
    assert "zero: -0.080 ± 0.010" in data["notes"][0][2]
    (removal,) = charts["head-removal"]["figures"]
    curve, _ = removal["data"]["lines"]
    assert [point[:2] for point in curve["points"]] == [[0, 0], [1, pytest.approx(0.1)], [2, pytest.approx(1)]]
    assert [point[3] for point in curve["points"]] == [None, "the last removed: 0.1", "the last removed: 1.0"]
    assert removal["data"]["limit"]["value"] == 0.05


def test_one_scale_and_one_frame_for_all_models(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run["estimates"] += [run["estimates"][0] | {"model": "b", "layer": 5, "head": 4, "value": -0.9}]
    first, second = (figure["data"] for figure in _charts(run, tmp_path)["head-importance"]["figures"])
    assert first["scale"] == second["scale"]
    assert first["scale"]["domain"] == [-0.9, 0.9]
    assert first["y"] == second["y"]
    assert first["values"][-1] == [None] * 4


def test_the_heads_that_make_a_candidate_differ(tmp_path: Path) -> None:
    run = _run(tmp_path)
    base = run["estimates"][0] | {"model": "b", "metric": "head_interchange_share"}
    run["estimates"] += [base | {"layer": 0, "head": head, "value": value} for head, value in ((0, -0.1), (2, 0.25))]
    chart = _charts(run, tmp_path)["head-interchange"]
    assert chart["title"] == (
        "Head 0.2 of the reference would take 25.0 ± 1.0 % off b's KL, more than any other measured"
    )
    assert chart["figures"][0]["data"]["values"] == [[-0.1, 0.25]]


def _kind(model: str, head: int, kind: str) -> dict[str, Any]:
    return {"model": model, "layer": 0, "head": head, "kind": kind, "reason": f"because {HOSTILE}"}


def test_kinds_with_their_reasons(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run["heads"] = [_kind("a", 0, "sink"), _kind("a", 1, "mixed"), _kind("b", 0, "sink"), _kind("b", 1, "local")]
    chart = _charts(run, tmp_path)["head-kinds"]
    assert chart["title"] == "1 of 2 heads are of another kind in b"
    first, second = chart["figures"]
    assert first["data"]["scale"] == second["data"]["scale"]
    assert first["data"]["scale"]["names"] == ["sink", "local", "mixed"]
    assert first["data"]["scale"]["rest"]
    assert (first["data"]["values"], second["data"]["values"]) == ([[0, 2]], [[0, 1]])
    assert second["data"]["notes"] == [[f"because {HOSTILE}"] * 2]
    assert "0.1 mixed → local" in second["meaning"]
    assert (first.get("opens"), second["opens"]) == (None, True)


def test_clusters_tell_which_heads_and_what_they_do(tmp_path: Path) -> None:
    run = _run(tmp_path)
    base = run["estimates"][0] | {"layer": None, "head": None, "se": None}
    found = [
        base | {"metric": "head_clusters", "value": 2.0, "detail": "kmeans, scikit-learn 1.9.1, CPU: 0.0, 0.2; 3.1"},
        base | {"metric": "head_clusters", "value": 1.0, "detail": "hdbscan, scikit-learn 1.9.1, CPU: 0.0, 0.2"},
        base | {"metric": "head_cluster_silhouette", "value": 0.35, "detail": "kmeans, scikit-learn 1.9.1, CPU"},
    ]
    scores = [
        base | {"metric": "head_local", "layer": layer, "head": head, "value": value}
        for layer, head, value in ((0, 0, 0.2), (0, 2, 0.4), (3, 1, 0.9))
    ]
    run["estimates"] += found + scores
    charts = _charts(run, tmp_path)
    clusters = charts["head-clusters"]
    assert clusters["title"] == "By what they do, heads fall into 2 groups (k-means)"
    where, what, partly, _ = (figure["data"] for figure in clusters["figures"])
    assert where["values"] == [[0, None, 0], [None, 1, None]]
    assert where["scale"]["names"] == ["group 1 (2)", "group 2 (1)"]
    assert what["values"] == [[pytest.approx(0.3)], [pytest.approx(0.9)]]
    # HDBSCAN leaves heads out.
    assert partly["values"] == [[0, None, 0], [None, 1, None]]
    assert partly["scale"]["names"] == ["group 1 (2)", "in none (1)"]
    assert charts["head-separation"]["title"] == "Groups of heads are not well apart: silhouette 0.35 (a, k-means)"
    (row,) = charts["head-separation"]["figures"][0]["data"]["rows"]
    assert (row["group"], row["value"], row["text"]) == ("k-means", 0.35, "silhouette 0.35, 2 groups")
    # Runs of older versions stored how many groups there are, but not which.
    for row in run["estimates"]:
        row["detail"] = (row.get("detail") or "").partition(":")[0]
    older = _charts(run, tmp_path)
    assert "head-clusters" not in older
    assert "head-separation" in older


@pytest.mark.parametrize(
    ("detail", "title"),
    [
        ("none", "No head attends like another one"),
        ("0.1, 0.3; 2.0, 2.4, 3.1", "5 of 40 heads attend like another one: 0.1 and 0.3; 2.0, 2.4 and 3.1"),
    ],
)
def test_heads_that_attend_alike(tmp_path: Path, detail: str, title: str) -> None:
    run = _run(tmp_path)
    base = run["estimates"][0] | {"layer": None, "head": None, "se": None, "metric": "heads_redundant", "n": 40}
    run["estimates"] += [base | {"value": 0.0 if detail == "none" else 0.125, "detail": detail}]
    chart = _charts(run, tmp_path)["head-redundancy"]
    assert chart["title"] == title
    assert chart["figures"][0]["data"]["rows"][0]["detail"] == f"of 40 heads: {title.partition(': ')[2] or 'none'}"
    assert ("head-alike" in _charts(run, tmp_path)) == (detail != "none")


def test_large_groups_are_a_map_and_a_short_title(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run["heads"] = [_kind("a", head, "sink") for head in range(32)]
    base = run["estimates"][0] | {"layer": None, "head": None, "se": None, "metric": "heads_redundant", "n": 32}
    groups = [range(12), *(range(start, start + 2) for start in range(12, 28, 2))]
    told = "; ".join(", ".join(f"0.{head}" for head in group) for group in groups)
    run["estimates"] += [base | {"value": 28 / 32, "detail": told}]
    charts = _charts(run, tmp_path)
    assert charts["head-redundancy"]["title"] == "28 of 32 heads attend like another one: in 9 groups"
    assert "0.0, 0.1, 0.2 and 9 more; " in charts["head-redundancy"]["figures"][0]["data"]["rows"][0]["detail"]
    (panel,) = charts["head-alike"]["figures"]
    assert panel["data"]["scale"]["names"][-2:] == ["a smaller group", "like no other"]
    (values,) = panel["data"]["values"]
    assert values == [0] * 12 + [1, 1, 2, 2, 3, 3, 4, 4, 5, 5] + [6] * 6 + [7] * 4


def test_removal_says_of_how_many_heads(tmp_path: Path) -> None:
    run = _run(tmp_path)
    row = run["estimates"][0] | {"layer": None, "head": None, "metric": "heads_removable", "value": 1.0}
    run["estimates"].append(row)
    run["heads"] = [_kind("a", head, "sink") for head in range(9)]
    charts = _charts(run, tmp_path)
    assert charts["head-removal"]["title"].startswith("1 head can go")
    assert charts["head-importance"]["title"].startswith("Head 3.1 matters most of the 3 measured: ")
    (entry,) = (entry for entry in run["arrays"] if entry["model"] == "a")
    arrays = load_arrays(tmp_path / entry["file"])
    save_arrays(tmp_path / entry["file"], arrays | {"all": np.array(9)})
    assert _charts(run, tmp_path)["head-removal"]["title"].startswith("1 of 9 heads can go")


def test_hostile_names_are_text_and_missing_files_cost_their_curve(tmp_path: Path) -> None:
    run = _run(tmp_path, HOSTILE)
    (tmp_path / "arrays" / "1.npz").unlink()
    write_html(run, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    charts = _charts(run, tmp_path)
    assert [line["name"] for line in charts["head-removal"]["figures"][0]["data"]["lines"]] == [HOSTILE]
    assert json.dumps(charts, allow_nan=False)


def test_a_run_without_heads_has_no_charts_of_them(tmp_path: Path) -> None:
    run = _run(tmp_path) | {"estimates": [], "arrays": [], "heads": []}
    assert head_charts(RunView(run), tmp_path) == []
