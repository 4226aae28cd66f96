"""The map of embeddings and what stays of them, from stored arrays only; tokens are hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.embedding_charts import embedding_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.store.arrays import save_arrays
from tests.unit.test_report import HOSTILE, STORED

TEXTS = ["dog", "cat", "red", HOSTILE, "%{x}{y}", "<b>"]


def _points(seed: int, texts: list[str]) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "xyz": random.standard_normal((len(texts), 3)).astype(np.float32),
        "shares": np.array([0.5, 0.25, 0.125]),
        "texts": np.array(texts, dtype=np.str_),
        "groups": np.array(["animals", "animals", "colours", "<i>", "analogies", "common tokens"][: len(texts)]),
        "tokens": np.array([1, 2, 1, 1, 1, 1][: len(texts)]),
        "near": np.array([[texts[(place + step) % len(texts)] for step in (1, 2)] for place in range(len(texts))]),
        "method": np.array("pca"),
    }


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    return run_with_maps(tmp_path)


def run_with_maps(folder: Path) -> dict[str, Any]:
    """The stored run with maps of its reference, of a candidate, and of a model of another vocabulary."""
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    reference = next(model["name"] for model in content["models"] if model["reference"])
    candidate, other = [model["name"] for model in content["models"] if not model["reference"]][:2]
    content["arrays"] = []
    stay = np.array([2, 1, 0, 2, 2, 2])
    for model, name, points in (
        (candidate, "embedding_map", _points(1, TEXTS)),
        (candidate, "embedding_map_aligned", _points(2, TEXTS) | {"from_xyz": _points(0, TEXTS)["xyz"], "stay": stay}),
        (other, "embedding_map", _points(3, TEXTS[:5])),
        (reference, "embedding_map", _points(0, TEXTS)),
    ):
        file = f"arrays/{len(content['arrays'])}.npz"
        save_arrays(folder / file, points)
        content["arrays"].append({"model": model, "name": name, "file": file, "description": ""})
    row = next(row for row in content["estimates"] if row["metric"] == "same_top")
    content["estimates"] += [
        row | {"model": model, "metric": "neighbour_recall", "value": value, "detail": HOSTILE}
        for model, value in ((candidate, 0.9), (other, 0.5))
    ]
    return content


def _charts(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {chart["id"]: chart for chart in embedding_charts(RunView(run), folder)}


def test_the_map_links_a_candidate_with_its_reference(run: dict[str, Any], tmp_path: Path) -> None:
    figures = _charts(run, tmp_path)["embedding-map"]["figures"]
    assert [figure["name"].rsplit("-", 1)[1] for figure in figures] == ["F16", "Q8_0", "Q5_K_M"]
    assert len({json.dumps(figure["layout"]) for figure in figures}) == 1
    reference, candidate, other = ({t["name"]: t for t in figure["traces"]} for figure in figures)
    assert set(reference) == set(other) | {"common tokens"}
    lines = candidate.pop("from the reference")
    assert set(candidate) == set(reference)
    assert len(lines["x"]) == 3 * len(TEXTS)
    ends = {(a, b) for a, b in zip(lines["x"][::3], lines["x"][1::3], strict=True)}
    starts = {x for trace in reference.values() for x in trace["x"]}
    assert {a for a, _ in ends} == starts
    assert {b for _, b in ends} == {x for trace in candidate.values() for x in trace["x"]}
    assert "mean of 2 tokens" in reference["animals"]["text"][1]
    assert "1 of 2 are also nearest in the reference" in candidate["animals"]["text"][1]


def test_tokens_are_shown_as_text(run: dict[str, Any], tmp_path: Path) -> None:
    charts = _charts(run, tmp_path)
    shown = json.dumps(charts)
    assert "<img" not in shown
    assert "\\u001b" not in shown
    texts = [t for f in charts["embedding-map"]["figures"] for trace in f["traces"] for t in trace.get("text", [])]
    assert any("&lt;/script&gt;&lt;img src=x" in text for text in texts)
    assert any("<b>&lt;b&gt;</b>" in text for text in texts)
    # What a template would replace stands in a text, which Plotly puts in as it is.
    assert all(trace["hovertemplate"] == "%{text}<extra></extra>" for f in charts["embedding-map"]["figures"]
               for trace in f["traces"] if trace["mode"] == "markers")  # fmt: skip
    write_html(run, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("</script>") == 3


def test_what_stays_is_a_point_for_each_candidate(run: dict[str, Any], tmp_path: Path) -> None:
    (figure,) = _charts(run, tmp_path)["embedding-neighbours"]["figures"]
    assert figure["name"] == METRICS["neighbour_recall"].title
    assert figure["traces"][0]["x"] == [90, 50]
    assert "n = " in figure["traces"][0]["text"][0]


def test_runs_without_embeddings_have_no_such_charts(run: dict[str, Any], tmp_path: Path) -> None:
    plain = run | {"arrays": [], "estimates": [row for row in run["estimates"] if row["metric"] == "same_top"]}
    assert _charts(plain, tmp_path) == {}
    # Arrays that were lost with their folder are no reason to fail.
    assert set(_charts(run, tmp_path / "elsewhere")) == {"embedding-neighbours"}


def test_without_a_map_of_the_reference_each_stands_alone(run: dict[str, Any], tmp_path: Path) -> None:
    run["arrays"] = [entry for entry in run["arrays"] if not entry["model"].endswith("F16")]
    figures = _charts(run, tmp_path)["embedding-map"]["figures"]
    assert len(figures) == 2
    assert [figure["traces"][0]["name"] for figure in figures] == ["from the reference", "animals"]


@pytest.mark.parametrize(("method", "title"), [("umap", "UMAP 1"), ("tsne", "t-SNE 1")])
def test_a_layout_without_axes_says_so(run: dict[str, Any], tmp_path: Path, method: str, title: str) -> None:
    for entry in run["arrays"]:
        file = tmp_path / entry["file"]
        with np.load(file) as stored:
            arrays = dict(stored.items())
        save_arrays(file, arrays | {"method": np.array(method)})
    chart = _charts(run, tmp_path)["embedding-map"]
    assert f"laid out by {title[:-2]}" in chart["meaning"]
    assert {figure["layout"]["scene"]["xaxis"]["title"]["text"] for figure in chart["figures"]} == {title}
