"""Charts of a head's steps and of the next token, from a stored run alone: their numbers, and that tokens are text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from gguf_harness.measure.attention.activations import ActivationReader, ActivationWriter
from gguf_harness.measure.attention.steps import STEP_TOKENS, step_arrays
from gguf_harness.measure.texts.next_tokens import KEPT, TEMPERATURES, beside_reference
from gguf_harness.metrics.attention_steps import EXPLAINED, explain, seen_keys, softmax_of
from gguf_harness.report.charts import build_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.store.arrays import Arrays, load_arrays, save_arrays
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


LAYERS, HEADS, KV_HEADS, D_HEAD, TOKENS = 3, 4, 2, 16, 9


def _vectors(model: int, layer: int) -> dict[str, NDArray[np.float32]]:
    """Queries, keys and values of a layer, [pos, head, d_head]: the reference's, disturbed."""
    shapes = {"q": (TOKENS, HEADS, D_HEAD), "k": (TOKENS, KV_HEADS, D_HEAD), "v": (TOKENS, KV_HEADS, D_HEAD)}
    base, noise = np.random.default_rng(layer), np.random.default_rng((layer, model))
    return {
        kind: (base.normal(size=shape) + 0.3 * model * noise.normal(size=shape)).astype(np.float32)
        for kind, shape in shapes.items()
    }


def pattern_of(vectors: dict[str, NDArray[np.float32]], head: int) -> NDArray[np.float64]:
    """[pos, key] weights of a causal head."""
    scores = vectors["q"][:, head] @ vectors["k"][:, head // 2].T / np.sqrt(D_HEAD)
    weights: NDArray[np.float64] = np.exp(log_softmax(np.where(np.tri(TOKENS), scores, -np.inf), axis=1))
    return weights


def run_with_steps(folder: Path, models: tuple[str, ...] = (REFERENCE, *CANDIDATES)) -> dict[str, Any]:
    """The stored run with attention, and vectors of queries, keys and values, of arrays in a folder."""
    run: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    run["arrays"] = []
    heads = np.array([(layer, head) for layer in range(LAYERS) for head in range(HEADS)])
    # As with --gguf-heads: only some of them are kept.
    kept = heads[heads[:, 1] != 1]
    facts = {"step_scale": np.zeros(1), "step_softcap": np.zeros(1), "step_window": np.zeros(1)}
    for number, name in enumerate(models):
        writer = ActivationWriter(folder / name, 10**9)
        for layer in range(LAYERS):
            for kind, values in _vectors(number, layer).items():
                writer.add(f"p/{layer}/{kind}", values)
        writer.close()
        steps = step_arrays(ActivationReader(folder / name), "p", kept, heads, causal=True)
        patterns = np.stack([pattern_of(_vectors(number, layer), head) for layer, head in kept.tolist()])
        pieces = [HOSTILE.encode(), *(f" {at}".encode() for at in range(1, TOKENS)), b" more"]
        attention: Arrays = {
            "kept": kept,
            "kept_prompts": np.array([HOSTILE]),
            "pattern_0": patterns.astype(np.float16),
            "pieces_0": np.array(pieces, dtype=np.bytes_),
        }
        told = {"attention": attention, "attention_steps": steps | facts | {"step_facts": np.array(["A <b>fact</b>."])}}
        for kind, arrays in told.items():
            save_arrays(folder / f"{number}-{kind}.npz", arrays)
            run["arrays"].append({"model": name, "name": kind, "file": f"{number}-{kind}.npz", "description": ""})
        if number:
            row = {"suite": "attention", "test": "t", "model": name, "reference": REFERENCE, "prompt": None, "n": 9}
            row |= {
                "metric": "attn_cosine",
                "se": None,
                "se_iid": None,
                "clusters": None,
                "unit": "",
                "better": "higher",
            }
            run["estimates"] += [
                row | {"layer": layer, "head": head, "value": 1 - 0.01 * (at + 1) * number, "detail": None}
                for at, (layer, head) in enumerate(kept.tolist())
            ]
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


@pytest.mark.parametrize("make_run", [run_with_next_tokens, run_with_steps])
def test_tokens_and_prompts_are_text(tmp_path: Path, make_run: Callable[[Path], dict[str, Any]]) -> None:
    write_html(make_run(tmp_path), tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<b>fact" not in page
    assert page.count("</script>") == page.count("<script")
    assert "\\x1b[2J" in page
    assert "\x1b" not in page


def test_a_run_without_arrays_has_no_such_chart() -> None:
    run = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    charts = build_charts(RunView(run), STORED)
    assert not {"next-tokens", "qkv-steps"} & {chart["id"] for each in charts.values() for chart in each}


def test_steps_are_those_of_the_heads_that_changed_most(tmp_path: Path) -> None:
    (figure,) = _chart(run_with_steps(tmp_path), tmp_path, "qkv-steps")["figures"]
    data = figure["data"]
    assert [head["name"] for head in data["heads"]] == ["2.3", "2.2", "2.0", "1.3"]
    assert (len(data["tokens"]), data["total"], data["facts"]) == (TOKENS, TOKENS + 1, ["A <b>fact</b>."])
    for head in data["heads"]:
        layer, number = (int(part) for part in head["name"].split("."))
        assert [entry["model"] for entry in head["models"]] == [0, 1, 2]
        outputs = []
        for model, entry in enumerate(head["models"]):
            assert (entry["usual"], entry["explained"]) == ("1/√16", True)
            vectors = _vectors(model, layer)
            products = vectors["q"][:, number] @ vectors["k"][:, number // 2].T
            weights = pattern_of(vectors, number)
            outputs.append(weights @ vectors["v"][:, number // 2])
            for query in range(TOKENS):
                # Half precision: 11 bits of each factor.
                assert entry["products"][query] == pytest.approx(products[query, : query + 1], abs=0.02)
                assert entry["weights"][query] == pytest.approx(weights[query, : query + 1], abs=5e-4)
            assert entry["norms"] == pytest.approx(np.linalg.norm(outputs[-1], axis=1), rel=5e-3)
            cosines = [
                a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(outputs[-1], outputs[0], strict=True)
            ]
            assert entry["cosine"] == pytest.approx(cosines, abs=2e-3)


def test_the_title_tells_where_the_head_looks_instead(tmp_path: Path) -> None:
    run = run_with_steps(tmp_path)
    chart = _chart(run, tmp_path, "qkv-steps")
    reference, _, candidate = chart["figures"][0]["data"]["heads"][0]["models"]
    query = TOKENS // 2 + int(np.argmin(candidate["cosine"][TOKENS // 2 :]))
    assert chart["figures"][0]["data"]["start"] == query
    there, here = (int(np.argmax(each["weights"][query])) for each in (reference, candidate))
    assert there != here
    tokens = [HOSTILE.replace("\x1b", "\\x1b"), *(str(at) for at in range(1, TOKENS))]
    told = f"at “{tokens[query]}”, Q4_K_M looks at “{tokens[here]}” instead of “{tokens[there]}”"
    assert chart["title"] == f"Head 2.3 changed most: {told}"
    run["arrays"] = run["arrays"][:2]
    assert _chart(run, tmp_path, "qkv-steps")["title"] == "From a query to the output of head 2.3, step by step"


def test_weights_that_scale_and_mask_do_not_explain_are_told(tmp_path: Path) -> None:
    run = run_with_steps(tmp_path)
    file = tmp_path / run["arrays"][0]["file"]
    arrays = load_arrays(file)
    far = np.arange(TOKENS)[:, None] - np.arange(TOKENS)
    biased = arrays["pattern_0"] * np.exp(-0.5 * far)
    save_arrays(file, arrays | {"pattern_0": (biased / biased.sum(axis=2, keepdims=True)).astype(np.float16)})
    heads = _chart(run, tmp_path, "qkv-steps")["figures"][0]["data"]["heads"]
    assert [[entry["explained"] for entry in head["models"]] for head in heads] == [[False, True, True]] * 4


def test_a_scale_of_its_own_is_found_in_the_weights() -> None:
    random = np.random.default_rng(0)
    products = random.normal(0, 3, (20, 20))
    for scale, cap, window in ((0.25, None, None), (0.7, None, None), (0.25, 2.0, None), (0.25, None, 5)):
        weights = softmax_of(products, seen_keys(20, causal=True, window=window), scale, cap)
        found = explain(products, weights, [0.25], causal=True, window=window, softcap=cap)
        assert found.scale == pytest.approx(scale)
        assert found.deviation < 1e-6
    # Some layers of a model with windows have none; attention sinks take a share of the weights.
    weights = 0.8 * softmax_of(products, seen_keys(20, causal=True), 0.25)
    assert explain(products, weights, [0.25], causal=True, window=5).deviation < 1e-6
    wrong = explain(products, weights[::-1], [0.25], causal=True)
    assert wrong.deviation > EXPLAINED


def test_few_tokens_and_halves_are_kept(tmp_path: Path) -> None:
    writer = ActivationWriter(tmp_path, 10**9)
    long = np.ones((STEP_TOKENS + 5, 2, 4), dtype=np.float32)
    for kind, values in (("q", long), ("k", 1e6 * long), ("v", long)):
        writer.add(f"p/0/{kind}", values)
    writer.close()
    heads = np.array([(0, 0), (0, 1)])
    arrays = step_arrays(ActivationReader(tmp_path), "p", heads[1:], heads, causal=False)
    assert arrays["step_q_0"].shape == (STEP_TOKENS, 1, 4)
    assert arrays["step_kv"].tolist() == [[1, 1]]
    # What half precision cannot hold is kept as it is.
    assert [arrays[f"step_{kind}_0"].dtype.itemsize for kind in "qkv"] == [2, 4, 2]
    assert arrays["step_k_0"].max() == pytest.approx(1e6)
