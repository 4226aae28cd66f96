"""Texts side by side and one window token by token, as data for their views: made from a stored run only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts.base import Chart
from gguf_harness.report.charts.strip_charts import strip_charts
from gguf_harness.report.charts.text_charts import text_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.html import embed_json
from gguf_harness.store.arrays import save_arrays

MODELS = ("m-F16", "m-Q8_0", "m-Q2_K")
PIECES = (b" the", b"\xe4", b"\n\n", b" ", b"</b>")

Text = tuple[str | None, int | None, int | None]
"""(text, its tokens, how many of them are the reference's)."""

TEXTS: dict[str, tuple[Text, ...]] = {
    "fox": (("the lazy dog.", 5, None), ("the lazy dog.", 5, 5), ("the hazy day", 4, 1)),
    "tea": (("a\tb\x1b", 3, None), ("a\tc", 3, 2), ("zzz", 3, 0)),
    "odd": ((None, None, None), ("words", 2, None), (None, None, None)),
}


def make_run(texts: dict[str, tuple[Text, ...]] | None = None, models: tuple[str, ...] = MODELS) -> dict[str, Any]:
    """A run with texts; those without one have a problem."""
    rows, estimates = [], []
    for prompt, of_models in (TEXTS if texts is None else texts).items():
        for model, (text, tokens, equal) in zip(models, of_models, strict=False):
            problem = None if text is not None else f"{model}: no room"
            templated = False if prompt == "tea" else None
            rows.append({"prompt": prompt, "model": model, "text": text, "tokens": tokens, "problem": problem})
            rows[-1] |= {"given": f"Say {prompt}", "templated": templated}
            if equal is not None:
                scores = {"exact_prefix_tokens": equal, "edit_similarity": 0.25, "bleu": 12.0, "rouge_l": 0.5}
                estimates += [_estimate(model, metric, prompt, value) for metric, value in scores.items()]
    described = [
        {"name": name, "bytes": 1000 - place, "reference": place == 0, "order": place}
        for place, name in enumerate(models)
    ]
    return {"models": described, "reference": models[0], "texts": rows, "estimates": estimates, "arrays": []}


def _estimate(model: str, metric: str, prompt: str, value: float) -> dict[str, Any]:
    where = {"prompt": prompt, "layer": None, "head": None}
    return {"model": model, "metric": metric, "value": value, "se": None, "se_iid": None, "n": 1, "unit": "", **where}


def add_strips(run: dict[str, Any], folder: Path, pieces: tuple[bytes, ...] = PIECES) -> dict[str, Any]:
    """The run with a token strip for each candidate; that of the last one has a token that changed most, its second."""
    count = len(pieces)
    base = np.linspace(0.1, 2, count)
    for place, model in enumerate(MODELS[1:]):
        nll = base + 0.01
        nll[1] += 4 * place
        file = f"arrays/{model}.npz"
        strip = {
            "token": np.arange(count), "piece": np.array(pieces), "piece_top": np.array([b"top"] * count),
            "piece_top_reference": np.array(pieces), "top": np.arange(count) + np.arange(count) % 2,
            "top_reference": np.arange(count), "nll": nll, "nll_reference": base, "kld": nll / 10,
            "delta_p": np.exp(-nll) - np.exp(-base), "window": np.array([29]), "position": np.array([17]),
        }  # fmt: skip
        save_arrays(folder / file, {name: _single(array) for name, array in strip.items()})
        run["arrays"].append({"model": model, "name": "token_strip", "file": file, "description": ""})
    return run


def _single(array: Any) -> Any:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def texts_of(run: dict[str, Any]) -> Chart:
    (chart,) = text_charts(RunView(run), Path())
    assert json.loads(embed_json(chart))
    return chart


def strip_of(run: dict[str, Any], folder: Path) -> Chart:
    (chart,) = strip_charts(RunView(run), folder)
    assert json.loads(embed_json(chart))
    return chart


# -- texts ----------------------------------------------------------------------------------------------------------


def test_texts_are_there_once_and_control_characters_are_visible() -> None:
    data = texts_of(make_run())["figures"][0]["data"]
    assert [model["name"] for model in data["models"]] == list(MODELS)
    assert (data["reference"], data["candidates"]) == (0, [1, 2])
    fox, tea, odd = data["prompts"]
    assert (fox["reference"]["text"], fox["pairs"][1]["text"]) == ("the lazy dog.", "the hazy day")
    # A text that is the reference's is not in the page a second time.
    assert (fox["pairs"][0]["same"], fox["pairs"][0]["text"]) == (True, None)
    assert tea["reference"]["text"] == "a   b\\x1b"
    assert (tea["given"], fox["note"]) == ("Say tea", None)
    assert "no chat template" in tea["note"]
    assert [pair["equal"] for pair in (*fox["pairs"], *tea["pairs"])] == [5, 1, 2, 0]
    assert data["scores"] == ["edit similarity", "BLEU", "ROUGE-L"]
    assert fox["pairs"][1]["scores"] == ["25 %", "12", "50 %"]
    assert odd["reference"]["problem"] == "m-F16: no room"
    assert (odd["pairs"][1]["problem"], odd["pairs"][1]["scores"]) == ("m-Q2_K: no room", [None] * 3)
    # Of the one whose texts part first, the one that parts last.
    assert data["chosen"] == [0, 1]


def test_the_title_says_which_part_first_and_last() -> None:
    chart = texts_of(make_run())
    assert chart["title"] == "Q2_K's texts part at once (2 of 2 differ), Q8_0's after 2 tokens (1 of 2)"
    assert chart["summary"].startswith("Q8_0: 1 of 2 texts differ, after 2 tokens (median)")


@pytest.mark.parametrize(
    ("texts", "title"),
    [
        ([("a", 1, None), ("a", 1, 1), ("a", 1, 1)], "Every continuation is the same as the reference's"),
        ([("a b", 2, None), ("b", 1, 0), ("a b", 2, 2)], "Q8_0's texts part at once (1 of 1 differ), Q2_K's are the"),
        ([("a b", 2, None), ("a c", 2, 1), ("b", 2, 0)], "Q2_K's texts part at once (1 of 1 differ), Q8_0's after 1 t"),
        ([("a b", 2, None), ("a c", 2, None), (None, None, None)], "Q8_0's texts part somewhere (1 of 1 differ)"),
        ([("a b", 2, None), ("a c", 2, 1), ("a c", 2, 1)], "Q8_0's texts part after 1 token (1 of 1 differ)"),
        ([(None, None, None), ("a c", 2, None), ("b", 2, None)], "What the models write"),
    ],
)
def test_titles_of_other_runs(texts: list[Text], title: str) -> None:
    assert texts_of(make_run({"one": tuple(texts)}))["title"].startswith(title)


def test_a_row_is_missing_for_each_text_that_there_is_without_scripts() -> None:
    heads, rows = texts_of(make_run())["table"]
    assert heads == ["prompt", "model", "", "text"]
    assert len(rows) == 3 * (1 + len(MODELS))
    said = {(row[0], row[1]): row[2:] for row in rows}
    assert said["fox", "prompt"] == ["", "Say fox"]
    assert said["fox", "m-Q8_0"] == ["the same", ""]
    assert said["fox", "m-Q2_K"] == ["parts after 1 of 4 tokens", "the hazy day"]
    assert said["odd", "m-Q2_K"] == ["could not be generated: m-Q2_K: no room", ""]
    assert said["odd", "m-Q8_0"] == ["differs", "words"]


def test_a_model_alone_shows_what_it_writes() -> None:
    run = make_run(models=MODELS[:1])
    chart = texts_of(run)
    data = chart["figures"][0]["data"]
    assert (data["candidates"], data["chosen"]) == ([], [0, 0])
    assert [prompt["pairs"] for prompt in data["prompts"]] == [[]] * 3
    assert chart["title"] == "What the models write"
    assert chart["summary"] == "Texts of m-F16."


def test_a_run_without_texts_has_no_chart() -> None:
    assert text_charts(RunView(make_run({})), Path()) == []


# -- token strip ----------------------------------------------------------------------------------------------------


def test_a_strip_has_the_stored_numbers_and_one_scale(tmp_path: Path) -> None:
    chart = strip_of(add_strips(make_run(), tmp_path), tmp_path)
    data = chart["figures"][0]["data"]
    assert data["tokens"] == [" the", "\\xe4", "\n\n", " ", "</b>"]
    one, other = data["candidates"]
    assert [data["models"][each["model"]]["name"] for each in (one, other)] == list(MODELS[1:])
    with np.load(tmp_path / "arrays" / "m-Q2_K.npz") as stored:
        for name in ("nll", "kld", "delta_p"):
            np.testing.assert_allclose(other[name], stored[name], rtol=1e-4)
        np.testing.assert_allclose(data["reference"]["nll"], stored["nll_reference"], rtol=1e-4)
    # What a candidate would have said, where it is not what the reference would have.
    assert one["top"] == [None, "top", None, "top", None]
    change, kld, _ = data["values"]
    pooled = np.abs([*one["delta_p"], *other["delta_p"]])
    assert change["domain"] == pytest.approx([-np.quantile(pooled, 0.99), np.quantile(pooled, 0.99)], rel=0.01)
    assert (change["kind"], kld["kind"], kld["domain"][0]) == ("signed", "share", 0)


def test_the_title_names_the_token_that_changed_most(tmp_path: Path) -> None:
    chart = strip_of(add_strips(make_run(), tmp_path), tmp_path)
    before, after = 100 * math.exp(-0.575), 100 * math.exp(-4.585)
    told = f'Q2_K gives "\\xe4" a probability of {after:.1f} %, the reference {before:.0f} %'
    assert chart["title"] == f"{told}: the token that changed most"
    assert "Tokens 18 to 22 of the text, window 30: " in chart["meaning"]
    assert f'Q2_K changed "\\xe4" most, by {after - before:+.1f} points' in chart["summary"]
    _, rows = chart["table"]
    (row,) = (row for row in rows if row[:2] == ["Q2_K", "2"])
    assert row[2:] == ['"\\xe4"', f"{before:.0f} %", f"{after:.1f} %", "0.4585"]


def test_strips_of_another_text_are_left_out(tmp_path: Path) -> None:
    run = add_strips(make_run(), tmp_path)
    file = tmp_path / "arrays" / "m-Q2_K.npz"
    with np.load(file) as stored:
        save_arrays(file, {**stored, "token": stored["token"] + 1})
    data = strip_of(run, tmp_path)["figures"][0]["data"]
    assert [model["name"] for model in data["models"]] == ["m-Q8_0"]


def test_values_that_are_no_numbers_are_no_colours(tmp_path: Path) -> None:
    run = add_strips(make_run(), tmp_path)
    file = tmp_path / "arrays" / "m-Q2_K.npz"
    with np.load(file) as stored:
        save_arrays(file, {**stored, "kld": np.full_like(stored["kld"], np.inf)})
    data = strip_of(run, tmp_path)["figures"][0]["data"]
    assert data["candidates"][1]["kld"] == [None] * len(PIECES)
    assert data["values"][1]["domain"][1] < 1


def test_a_run_whose_arrays_are_gone_has_no_strip(tmp_path: Path) -> None:
    run = add_strips(make_run(), tmp_path)
    for file in (tmp_path / "arrays").iterdir():
        file.unlink()
    assert strip_charts(RunView(run), tmp_path) == []
    assert strip_charts(RunView(make_run()), tmp_path) == []
