"""The map of words, analogies, cosines and what is kept, from stored arrays only; words are hostile."""

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
from gguf_harness.store.arrays import load_arrays, save_arrays
from tests.unit.test_report import HOSTILE, STORED

TEXTS = ["dog", "cat", "red", HOSTILE, "%{x}{y}", "<b>"]
GROUPS = ["animals", "animals", "colours", "<i>", "analogies", "common tokens"]
QUESTIONS = [("dog", "dogs", "cat", HOSTILE), ("cat", HOSTILE, "dog", "dogs"), ("red", "<b>", "dog", "dogs")]


def _points(seed: int, texts: list[str]) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "xyz": random.standard_normal((len(texts), 3)).astype(np.float32),
        "shares": np.array([0.5, 0.25, 0.125]),
        "texts": np.array(texts, dtype=np.str_),
        "groups": np.array(GROUPS[: len(texts)]),
        "tokens": np.array([1, 2, 1, 1, 1, 1][: len(texts)]),
        "near": np.array([[texts[(place + step) % len(texts)] for step in (1, 2)] for place in range(len(texts))]),
        "method": np.array("pca"),
    }


def _moved(seed: int) -> dict[str, Any]:
    """A candidate's words: the first has lost one of its nearest words, the third both."""
    points = _points(seed, TEXTS)
    points["near"][0] = ["cat", "<b>"]
    points["near"][2] = ["dog", "cat"]
    return points | {"from_xyz": _points(0, TEXTS)["xyz"], "stay": np.array([1, 2, 0, 2, 2, 2])}


def _cosines(seed: int, texts: list[str]) -> dict[str, Any]:
    vectors = np.random.default_rng(seed).standard_normal((len(texts), 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {
        "texts": np.array(texts, dtype=np.str_),
        "groups": np.array(GROUPS[: len(texts)]),
        "cosines": (vectors @ vectors.T).astype(np.float32),
    }


def _answers(answers: list[str], ranks: list[int]) -> dict[str, Any]:
    return {
        "families": np.array(["plural", "plural", "<i>"]),
        "questions": np.array(QUESTIONS, dtype=np.str_),
        "answers": np.array(answers, dtype=np.str_),
        "ranks": np.array(ranks),
    }


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    return run_with_maps(tmp_path)


def run_with_maps(folder: Path) -> dict[str, Any]:
    """The stored run with what the suite stores of a reference, a candidate, and a model of another vocabulary."""
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    reference = next(model["name"] for model in content["models"] if model["reference"])
    candidate, other = [model["name"] for model in content["models"] if not model["reference"]][:2]
    content["arrays"] = []
    for model, name, points in (
        (candidate, "embedding_map", _points(1, TEXTS)),
        (candidate, "embedding_map_aligned", _moved(2)),
        (other, "embedding_map", _points(3, TEXTS[:5])),
        (reference, "embedding_map", _points(0, TEXTS)),
        (reference, "word_cosines", _cosines(0, TEXTS[:4])),
        (candidate, "word_cosines", _cosines(1, TEXTS[:4])),
        (other, "word_cosines", _cosines(2, TEXTS[:3])),
        (reference, "analogies", _answers([HOSTILE, "dogs", "cat"], [1, 1, 5])),
        (candidate, "analogies", _answers(["red", "dogs", "dogs"], [3, 1, 1])),
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


def _data(chart: dict[str, Any]) -> dict[str, Any]:
    (panel,) = chart["figures"]
    data: dict[str, Any] = panel["data"]
    return data


# -- the map ----------------------------------------------------------------------------------------------------------


def test_one_panel_has_all_models_in_one_layout(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["embedding-map"]
    data = _data(chart)
    assert [(each["short"], each["space"], each["fitted"]) for each in data["models"]] == [
        ("F16", 0, False), ("Q8_0", 1, False), ("Q5_K_M", 2, True),
    ]  # fmt: skip
    assert data["axes"] == ["PC 1", "PC 2", "PC 3"]
    # Places as stored, to five digits; the reference's are those that lines begin at.
    for space, points in ((data["base"], _points(0, TEXTS)), (data["spaces"][0], _points(0, TEXTS)),
                          (data["spaces"][1], _moved(2))):  # fmt: skip
        assert space["at"] == list(range(len(TEXTS)))
        assert np.allclose(space["xyz"], points["xyz"], rtol=1e-4)
    everything = np.concatenate([np.array(space["xyz"]) for space in [data["base"], *data["spaces"]]])
    far = np.linalg.norm(everything - np.array(data["center"]), axis=1).max()
    assert far == pytest.approx(data["reach"], rel=1e-3)
    assert data["spaces"][1]["near"] == [[1, 5], [2, 3], [0, 1], [4, 5], [5, 0], [0, 1]]
    assert data["tokens"] == [1, 2, 1, 1, 1, 1]
    assert [group["plain"] for group in data["groups"]] == [False, False, False, True, True]
    assert [data["groups"][place]["name"] for place in data["of"]] == GROUPS
    assert chart["title"] == "Q8_0 changes the nearest words of 2 of 6 words"
    # The word that lost most comes first.
    assert [row[1:] for row in chart["table"][1]] == [["2 of 6", "red, dog"]]


def test_a_map_of_another_vocabulary_is_turned_to_fit(run: dict[str, Any], tmp_path: Path) -> None:
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]
    points = _points(0, TEXTS[:5])
    points["xyz"] = (7 * points["xyz"] @ turn + [3, 2, 1]).astype(np.float32)
    entry = next(e for e in run["arrays"] if e["model"].endswith("Q5_K_M") and e["name"] == "embedding_map")
    save_arrays(tmp_path / entry["file"], points)
    data = _data(_charts(run, tmp_path)["embedding-map"])
    # The same space, turned and larger: nothing is left of that.
    assert np.allclose(data["spaces"][2]["xyz"], _points(0, TEXTS)["xyz"][:5], atol=1e-3)


def test_runs_whose_candidates_were_laid_out_apart_are_brought_together(run: dict[str, Any], tmp_path: Path) -> None:
    """As UMAP and t-SNE once did: each candidate with the reference, in a layout of their own."""
    entry = next(e for e in run["arrays"] if e["name"] == "embedding_map_aligned")
    apart = _moved(2)
    turn = np.linalg.qr(np.random.default_rng(6).standard_normal((3, 3)))[0]
    for key in ("xyz", "from_xyz"):
        apart[key] = (0.5 * apart[key] @ turn + 4).astype(np.float32)
    save_arrays(tmp_path / entry["file"], apart)
    data = _data(_charts(run, tmp_path)["embedding-map"])
    assert np.allclose(data["spaces"][1]["xyz"], _moved(2)["xyz"], atol=1e-3)


def test_equal_embeddings_are_there_once_and_said_to_be_equal(run: dict[str, Any], tmp_path: Path) -> None:
    entry = next(e for e in run["arrays"] if e["name"] == "embedding_map_aligned")
    run["arrays"].append(entry | {"model": next(m["name"] for m in run["models"] if m["name"].endswith("Q4_K_M"))})
    chart = _charts(run, tmp_path)["embedding-map"]
    data = _data(chart)
    assert [(each["short"], each["space"]) for each in data["models"]] == [
        ("F16", 0), ("Q8_0", 1), ("Q5_K_M", 2), ("Q4_K_M", 1),
    ]  # fmt: skip
    assert len(data["spaces"]) == 3
    assert chart["figures"][0]["meaning"].endswith(" These store the same embeddings: Q8_0, Q4_K_M.")
    assert chart["title"] == "Q4_K_M and 1 more change the nearest words of 2 of 6 words"


def test_without_a_map_of_the_reference_its_places_are_known_from_candidates(
    run: dict[str, Any], tmp_path: Path
) -> None:
    run["arrays"] = [entry for entry in run["arrays"] if not entry["model"].endswith("F16")]
    data = _data(_charts(run, tmp_path)["embedding-map"])
    assert [each["short"] for each in data["models"]] == ["Q8_0", "Q5_K_M"]
    assert np.allclose(data["base"]["xyz"], _points(0, TEXTS)["xyz"], rtol=1e-4)
    only = run | {"arrays": [e for e in run["arrays"] if e["name"] == "embedding_map" and e["model"].endswith("K_M")]}
    assert _charts(only, tmp_path)["embedding-map"]["title"] == "Words in the embedding space"


@pytest.mark.parametrize(("method", "title"), [("umap", "UMAP"), ("tsne", "t-SNE")])
def test_a_layout_without_axes_says_so(run: dict[str, Any], tmp_path: Path, method: str, title: str) -> None:
    for entry in run["arrays"]:
        if entry["name"].startswith("embedding_map"):
            save_arrays(tmp_path / entry["file"], load_arrays(tmp_path / entry["file"]) | {"method": np.array(method)})
    chart = _charts(run, tmp_path)["embedding-map"]
    assert f"Laid out by {title}" in chart["figures"][0]["meaning"]
    assert _data(chart)["axes"] is None


# -- words ------------------------------------------------------------------------------------------------------------


def test_analogies_are_words(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["analogies"]
    data = _data(chart)
    words = data["words"]
    asked = [(data["families"][family], *(words[at] for at in rest)) for family, *rest in data["questions"]]
    hostile = HOSTILE.replace("\x1b", "\\x1b")
    assert asked[0] == ("plural", "dog", "dogs", "cat", hostile)
    assert asked[2] == ("<i>", "red", "<b>", "dog", "dogs")
    found = [[(words[word], rank) for word, rank in answers] for answers in data["answers"]]
    assert found == [[(hostile, 1), ("dogs", 1), ("cat", 5)], [("red", 3), ("dogs", 1), ("dogs", 1)]]
    assert [each["answers"] for each in data["models"]] == [0, 1]
    assert chart["title"] == "Q8_0 loses 1 of the 2 analogies that F16 gets right"
    assert chart["table"][1] == [["smollm2-135m-Q8_0", "dogs - dog + cat", hostile, hostile, "red", "3"]]


def test_analogies_that_all_keep(run: dict[str, Any], tmp_path: Path) -> None:
    entries = [entry for entry in run["arrays"] if entry["name"] == "analogies"]
    same = run | {"arrays": [entries[0], entries[1] | {"file": entries[0]["file"]}]}
    chart = _charts(same, tmp_path)["analogies"]
    assert chart["title"] == "No candidate loses one of the 2 analogies that F16 gets right"
    assert len(_data(chart)["answers"]) == 1
    alone = _charts(run | {"arrays": entries[:1]}, tmp_path)["analogies"]
    assert alone["title"] == "F16 gets 2 of 3 analogies right"
    # A model with another vocabulary is not asked everything.
    fewer = {key: array[1:] for key, array in _answers(["red", "dogs", "dogs"], [3, 1, 1]).items()}
    save_arrays(tmp_path / entries[1]["file"], fewer)
    data = _data(_charts(run, tmp_path)["analogies"])
    assert [answer is None for answer in data["answers"][1]] == [True, False, False]


def test_cosines_have_one_scale_for_all_models(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["word-cosines"]
    data = _data(chart)
    hostile = HOSTILE.replace("\x1b", "\\x1b")
    assert data["groups"] == ["animals", "colours", "<i>"]
    assert data["words"] == [["dog", "cat"], ["red"], [hostile]]
    base, own, other = (data["cosines"][each["cosines"]] for each in data["models"])
    stored = _cosines(0, TEXTS[:4])["cosines"]
    assert base[1] == [[None, pytest.approx(stored[0, 1], abs=1e-5)], [pytest.approx(stored[0, 1], abs=1e-5), None]]
    # Of groups: the mean over pairs of different words; a group of one word has none.
    assert base[0][0][0] == pytest.approx(stored[0, 1], abs=1e-5)
    assert base[0][0][1] == pytest.approx((stored[0, 2] + stored[1, 2]) / 2, abs=1e-5)
    assert base[0][1][1] is None
    # What the model of another vocabulary lacks.
    assert [row[2] for row in other[0]] == [None] * 3
    values = [value for matrices in (base, own, other) for row in matrices[0] for value in row if value is not None]
    assert data["domains"][0] == pytest.approx([min(values), max(values)], abs=1e-5)
    changes = [
        mine - theirs
        for matrices in (own, other)
        for row, before in zip(matrices[0], base[0], strict=True)
        for mine, theirs in zip(row, before, strict=True)
        if mine is not None and theirs is not None
    ]
    assert data["differences"][0] == pytest.approx([min(0, *changes), max(0, *changes)], abs=2e-5)
    assert "shifts the mean cosine" in chart["title"]
    json.dumps(data, allow_nan=False)


def test_cosines_that_stay(run: dict[str, Any], tmp_path: Path) -> None:
    entries = [entry for entry in run["arrays"] if entry["name"] == "word_cosines"]
    same = run | {"arrays": [entries[0], entries[1] | {"file": entries[0]["file"]}]}
    chart = _charts(same, tmp_path)["word-cosines"]
    assert chart["title"] == "No candidate shifts the mean cosine of two groups of words by as much as 0.001"
    assert len(_data(chart)["cosines"]) == 1


# -- what is kept, and all of them ------------------------------------------------------------------------------------


def test_what_is_kept_is_a_point_for_each_candidate(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["embedding-neighbours"]
    (panel,) = chart["figures"]
    assert panel["name"] == METRICS["neighbour_recall"].title
    assert [row["value"] for row in panel["data"]["rows"]] == [0.9, 0.5]
    assert panel["data"]["x"]["percent"]
    assert chart["title"] == "Q5_K_M keeps 50 % of nearest neighbours"
    assert chart["table"][0] == ["model", METRICS["neighbour_recall"].title]
    for row in run["estimates"]:
        if row["metric"] == "neighbour_recall":
            row["value"] = 0.75
    tied = _charts(run, tmp_path)["embedding-neighbours"]
    assert tied["title"] == "Q5_K_M and 1 more keep 75 % of nearest neighbours"
    row = next(row for row in run["estimates"] if row["metric"] == "neighbour_recall")
    run["estimates"].append(row | {"metric": "contextual_cosine", "value": 0.9374})
    told = _charts(run, tmp_path)["embedding-neighbours"]["title"]
    assert told.endswith("of nearest neighbours; in context the cosine is 0.937 for Q8_0")


def test_words_are_shown_as_text(run: dict[str, Any], tmp_path: Path) -> None:
    charts = _charts(run, tmp_path)
    assert "\\u001b" not in json.dumps(charts)
    assert "\\x1b" in _data(charts["embedding-map"])["words"][3]
    write_html(run, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page


def test_runs_without_embeddings_have_no_such_charts(run: dict[str, Any], tmp_path: Path) -> None:
    plain = run | {"arrays": [], "estimates": [row for row in run["estimates"] if row["metric"] == "same_top"]}
    assert _charts(plain, tmp_path) == {}
    # Arrays that were lost with their folder are no reason to fail.
    assert set(_charts(run, tmp_path / "elsewhere")) == {"embedding-neighbours"}
