"""Charts of the next token, from a stored run alone: what they show, and that tokens and names are text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from gguf_harness.measure.texts.next_tokens import KEPT, TEMPERATURES, beside_reference
from gguf_harness.report.charts import build_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.store.arrays import Arrays, save_arrays
from tests.unit.test_report import HOSTILE, STORED

REFERENCE: Final = "smollm2-135m-F16"
CANDIDATES: Final = ("smollm2-135m-Q8_0", "smollm2-135m-Q4_K_M")
PROMPTS: Final = ("fox", HOSTILE)
VOCABULARY: Final = 300


def make_logits(model: int) -> NDArray[np.float64]:
    """[prompt, vocabulary] of a model: the reference's, disturbed."""
    base = np.random.default_rng(0).normal(0, 3, (len(PROMPTS), VOCABULARY))
    logits: NDArray[np.float64] = base + 0.4 * model * np.random.default_rng(model).normal(size=base.shape)
    return logits


def piece_of(token: int) -> bytes:
    return {0: HOSTILE.encode(), 1: b" a\n", 2: b"\xf0\x9f"}.get(token, f" {token}".encode())


def _distributions(model: int) -> Arrays:
    logprobs = log_softmax(make_logits(model), axis=1)
    top = np.argsort(-logprobs, axis=1)[:, :KEPT]
    return {
        "next_prompts": np.array(PROMPTS),
        "next_logprobs": logprobs.astype(np.float32),
        "next_top": top,
        "next_pieces": np.array([[piece_of(token) for token in row] for row in top.tolist()], dtype=np.bytes_),
    }


def run_with_next_tokens(folder: Path) -> dict[str, Any]:
    """The stored run with next tokens of two candidates, of arrays in a folder."""
    run: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    run["arrays"] = []
    for number, name in enumerate(CANDIDATES, 1):
        arrays = beside_reference(_distributions(number), _distributions(0), PROMPTS)
        save_arrays(folder / f"{number}.npz", arrays)
        run["arrays"].append({"model": name, "name": "next_tokens", "file": f"{number}.npz", "description": ""})
    return run


def _chart(run: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    (chart,) = (each for charts in build_charts(RunView(run), folder).values() for each in charts if each["id"] == name)
    return chart


def test_pairs_hold_the_distributions(tmp_path: Path) -> None:
    chart = _chart(run_with_next_tokens(tmp_path), tmp_path, "next-tokens")
    assert len(chart["figures"]) == len(PROMPTS)
    for index, figure in enumerate(chart["figures"]):
        data = figure["data"]
        assert [model["role"] for model in data["models"]] == ["reference", "candidate", "candidate"]
        assert data["known"] == KEPT
        for number, pair in enumerate(data["pairs"], 1):
            for side, model in enumerate((0, number)):
                logits = make_logits(model)[index]
                assert len(pair["pieces"]) == len(pair["logprobs"][side])
                best = sorted(np.exp(log_softmax(logits)), reverse=True)[:KEPT]
                shown = np.exp(sorted(pair["logprobs"][side], reverse=True))[:KEPT]
                # Log-probabilities are rounded to five places.
                np.testing.assert_allclose(shown, best, rtol=1e-4)
                for temperature, rest in zip(TEMPERATURES, pair["rest"][side], strict=True):
                    weights = np.exp(np.array(pair["logprobs"][side]) / temperature)
                    share = weights.max() / (weights.sum() + np.exp(rest))
                    assert share == pytest.approx(np.exp(log_softmax(logits / temperature)).max(), rel=1e-3)


def test_the_title_tells_whose_texts_would_begin_otherwise(tmp_path: Path) -> None:
    run = run_with_next_tokens(tmp_path)
    best = [make_logits(model).argmax(axis=1) for model in range(3)]
    assert [int((best[0] != best[number]).sum()) for number in (1, 2)] == [0, 1]
    title = _chart(run, tmp_path, "next-tokens")["title"]
    assert title == "Q4_K_M would begin 1 of 2 texts with another token than the reference"
    run["arrays"].pop()
    assert _chart(run, tmp_path, "next-tokens")["title"] == "Every candidate's likeliest next token is the reference's"


def test_tokens_and_prompts_are_text(tmp_path: Path) -> None:
    run = run_with_next_tokens(tmp_path)
    write_html(run, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("</script>") == page.count("<script")
    chart = _chart(run, tmp_path, "next-tokens")
    pieces = {piece for figure in chart["figures"] for pair in figure["data"]["pairs"] for piece in pair["pieces"]}
    assert "\x1b" not in "".join(pieces)


def test_a_run_without_arrays_has_no_such_chart() -> None:
    run = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    charts = build_charts(RunView(run), STORED)
    assert "next-tokens" not in {chart["id"] for each in charts.values() for chart in each}
