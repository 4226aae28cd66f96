"""Attention as suites and notebooks measure it: the numbers of PyTorch and numpy, whole or not at all on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gguf_harness
from gguf_harness.engine.model import Model as LoadedModel
from gguf_harness.engine.quantize import quantize_file
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import ModelError, OptionError, StoreError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.prompts import Prompt, PromptSet, load_prompts
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.attention.activations import ActivationReader
from gguf_harness.measure.attention.behaviour import LayerParts
from gguf_harness.measure.attention.calls import Attention
from gguf_harness.measure.attention.drift import compare_attention
from gguf_harness.measure.attention.pattern_results import AttentionDrift
from gguf_harness.measure.attention.steps import attention_facts
from gguf_harness.measure.attention.tasks import (
    ATTENTION_KINDS,
    observe_attention,
    tapped,
)
from gguf_harness.measure.layers.unembedding import ModelFile
from gguf_harness.metrics.attention_steps import explain, softmax_of
from gguf_harness.metrics.head_behaviour import BEHAVIOURS
from gguf_harness.metrics.pattern_comparison import attention_estimates
from gguf_harness.metrics.records import whole
from gguf_harness.store.arrays import Arrays
from tests.devices import near, near_taps
from tests.integration.attention_oracle import Model
from tests.integration.attention_setup import make_request, make_runner, read_attention
from tests.integration.small_models import WINDOW, write_small_model
from tests.loaded import open_context
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

DATA = Path(__file__).parent.parent / "data"
(TINY,) = expand("tiny")
CARD: dict[str, Any] = json.loads(TINY.files[0].with_name("tiny.json").read_text(encoding="utf-8"))
LAYERS, HEADS, KV_HEADS, D_HEAD = 5, 8, 4, 32


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker("tests", tmp_path_factory.mktemp("worker") / "worker.log") as worker:
        yield worker


def _assert_near(found: NDArray[Any], expected: Any, atol: float, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(found.astype(np.float64), np.asarray(expected, dtype=np.float64), rtol, atol)


def _stored(name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(DATA / f"tiny-{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def _text_of(tokens: NDArray[np.generic]) -> str:
    with open_context(TINY.files, SessionSettings(n_ctx=64, n_batch=64)) as context:
        text = context.model.detokenize(tokens[1:].astype(np.int32)).decode()
        assert context.model.tokenize(text).tolist() == tokens.tolist()
    return text


def _assert_close(found: Arrays, expected: dict[str, NDArray[np.float32]], pattern: float, relative: float) -> None:
    for kind in ("q", "k", "v"):
        truth = np.stack([expected[f"blocks.{layer}.attn.{kind}"] for layer in range(LAYERS)])
        assert found[kind].shape == truth.shape
        _assert_near(found[kind], truth, atol=near(relative, "taps") * float(np.abs(truth).max()))
    truth = np.stack([expected[f"blocks.{layer}.attn.pattern"] for layer in range(LAYERS)])
    assert found["pattern"].shape == truth.shape
    _assert_near(found["pattern"], truth, atol=near(pattern, "pattern"))
    # PyTorch has no raw scores: they are what its queries and keys say. Two heads of queries share one of keys.
    q, k = (np.stack([expected[f"blocks.{layer}.attn.{kind}"] for layer in range(LAYERS)]) for kind in "qk")
    scores = np.einsum("lqhd,lkhd->lhqk", q.astype(np.float64), np.repeat(k, HEADS // KV_HEADS, axis=2))
    _assert_near(found["scores"], scores, atol=near(relative, "taps") * float(np.abs(scores).max()))


@pytest.mark.parametrize("name", ["text", "repetition"])
def test_a_notebook_gets_what_pytorch_computed(name: str) -> None:
    expected = _stored(name)
    attention = gguf_harness.attention("tiny", _text_of(expected["tokens"]))
    n = len(expected["tokens"])
    assert attention.tokens.tolist() == expected["tokens"].tolist()
    # Keys and values go through a cache in F16, weights are in F16: the tolerances of test_tiny.py.
    arrays = {kind: getattr(attention, kind) for kind in (*ATTENTION_KINDS, "scores")}
    assert arrays["pattern"].shape == arrays["scores"].shape == (LAYERS, HEADS, n, n)
    assert arrays["q"].shape == (LAYERS, n, HEADS, D_HEAD)
    assert arrays["k"].shape == arrays["v"].shape == (LAYERS, n, KV_HEADS, D_HEAD)
    assert {values.dtype for values in arrays.values()} == {np.dtype(np.float32)}
    _assert_close(arrays, expected, 1e-2, 1e-2)
    _assert_near(attention.pattern.sum(axis=-1), 1, atol=1e-6)
    assert not np.triu(attention.pattern, 1).any()


@pytest.mark.parametrize("name", ["text", "repetition"])
@pytest.mark.parametrize(("precision", "pattern", "relative"), [("F16", 5e-3, 1e-2), ("F32", 1e-4, 1e-4)])
def test_with_a_precise_cache_it_is_closer(
    worker: Worker, tmp_path: Path, name: str, precision: str, pattern: float, relative: float
) -> None:
    file = TINY.files[0]
    if precision == "F32":
        file = tmp_path / "tiny-F32.gguf"
        quantize_file(TINY.files, file, "F32", threads=2)
    expected = _stored(name)
    prompt = Prompt("p", _text_of(expected["tokens"]))
    found = read_attention(worker, file, prompt, cache_type_k="f32", cache_type_v="f32")
    _assert_close(found, expected, pattern, relative)


def test_a_real_model_agrees_with_numpy(worker: Worker, smollm2_file: Path, tmp_path: Path) -> None:
    """Four layers of SmolLM2 in F32. llama.cpp rounds activations to eight bits for products with its Q4_1 itself."""
    file = tmp_path / "smollm2-F32.gguf"
    quantize_file([smollm2_file], file, "F32", threads=2)
    prompt = Prompt("p", "The old lighthouse keeper climbed the stairs, and the keeper lit the lamp.")
    precise = {"cache_type_k": "f32", "cache_type_v": "f32"}
    reply = read_attention(worker, file, prompt, **precise)
    raw = read_attention(worker, smollm2_file, prompt, **precise)
    model = Model(smollm2_file, "llama", layers=4)
    residual = model.first_residual(model.embeddings(reply["tokens"].astype(np.int32)))
    assert reply["pattern"].shape[:2] == (30, 9)
    assert reply["q"].shape[2:] == (9, 64)
    assert reply["k"].shape[2:] == reply["v"].shape[2:] == (3, 64)
    for layer in range(4):
        truth = model.attend(layer, residual)
        for kind in ("q", "k", "v", "pattern", "scores"):
            expected = getattr(truth, kind)
            scale = max(1.0, float(np.abs(expected).max()))
            on_cpu = 1e-3 if kind == "scores" else 1e-4
            allowed = near(on_cpu, "pattern") if kind == "pattern" else near_taps(on_cpu, expected)
            assert float(np.abs(reply[kind][layer] - expected).max()) < allowed, kind
            assert float(np.abs(raw[kind][layer] - expected).max()) < 0.1 * scale, kind
        residual = residual + truth.attn_out
        residual = residual + model.gated_mlp(layer, residual)


def test_a_prompt_in_pieces_is_the_same(worker: Worker, tmp_path: Path) -> None:
    """Logical batches of 32 tokens, physical ones of 16: keys grow from one to the next."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    one = worker.call(observe_attention, None, make_request(TINY.files[0], whole))
    small = make_request(TINY.files[0], pieces, n_ctx=32, n_batch=32, n_ubatch=16)
    many = worker.call(observe_attention, None, small)
    assert max(one["lengths"]) > 48
    for name in ("prompts", "tokens", "lengths", "heads", "counts", "copy_score", "pieces_0"):
        np.testing.assert_array_equal(many[name], one[name])
    # Sums of many rows; on some processors llama.cpp multiplies batches of another size in another order.
    # A spread is the root of a variance, which is the difference of float32 sums that depend on where a block begins.
    spread = BEHAVIOURS.index("distance_spread")
    _assert_near(
        np.delete(many["sums"], spread, 1), np.delete(one["sums"], spread, 1), rtol=near(1e-5, "sums"), atol=1e-4
    )
    rows = np.maximum(one["counts"].astype(float)[:, spread], 1)
    _assert_near(
        many["sums"].astype(float)[:, spread] / rows,
        one["sums"].astype(float)[:, spread] / rows,
        atol=1e-3,
        rtol=near(0, "sums"),
    )
    for name in ("induction", "duplicate_token", "redundancy", "pattern_0", "pattern_1"):
        _assert_near(many[name].astype(np.float64), one[name], atol=near(1e-3, "pattern"))
    a, b = ActivationReader(whole), ActivationReader(pieces)
    for prompt, length in zip(one["prompts"], one["lengths"], strict=True):
        for layer in range(LAYERS):
            pattern = b.array(f"{prompt}/{layer}/pattern", 1)
            assert pattern.shape == (HEADS, length, length)
            _assert_near(pattern, a.array(f"{prompt}/{layer}/pattern", 1), atol=near(1e-3, "pattern"))
            for kind in ("q", "k", "v"):
                values = a.array(f"{prompt}/{layer}/{kind}")
                _assert_near(b.array(f"{prompt}/{layer}/{kind}"), values, atol=near_taps(2e-2, values))


def test_kept_queries_and_keys_give_the_weights(worker: Worker, tmp_path: Path) -> None:
    """softmax(scale * q k^T + mask) of what is stored is the stored pattern.

    Both are stored in half precision, as is the K cache. Products of up to 75 are then wrong by some 0.02, scores by
    0.004, and weights of 0.5 by 0.001: measured were 0.0002 at most.
    """
    kept = worker.call(observe_attention, None, make_request(TINY.files[0], tmp_path))
    assert kept["step_facts"].tolist() == []
    assert len(kept["kept"]) == LAYERS * HEADS
    for at, (layer, head) in enumerate(kept["kept"].tolist()):
        q = kept[f"step_q_{layer}"][:, head].astype(np.float64)
        k = kept[f"step_k_{layer}"][:, kept["step_kv"][at, 0]].astype(np.float64)
        assert kept[f"step_v_{layer}"].shape == (len(q), KV_HEADS, D_HEAD)
        weights = softmax_of(q @ k.T, np.tri(len(q), dtype=np.bool_), D_HEAD**-0.5)
        _assert_near(weights, kept["pattern_0"][at, : len(q), : len(q)], atol=near(1e-3, "pattern"))


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
@pytest.mark.parametrize(("n_batch", "n_ubatch"), [(512, 512), (64, 16)])
def test_nothing_is_seen_beyond_a_sliding_window(tmp_path: Path, kind: str, n_batch: int, n_ubatch: int) -> None:
    """Of a prompt that is longer than the window, and than the context that the model was trained on."""
    n = 300
    file = write_small_model(tmp_path / "small.gguf", kind, 6)
    tokens = np.random.default_rng(0).integers(0, 60, n).astype(np.int32)
    settings: dict[str, Any] = {
        "n_ctx": n_batch,
        "n_batch": n_batch,
        "n_ubatch": n_ubatch,
        "cache_type_k": "f32",
        "cache_type_v": "f32",
    }
    request = make_request(file, tmp_path, **settings)
    parts = {kind: LayerParts(n, by_key=kind == "pattern") for kind in ("q", "k", "pattern")}
    with (
        LoadedModel([file]) as loaded,
        tapped(loaded, request, n, parts, range(request.n_layer)) as context,
    ):
        context.prefill(tokens)
    queries, keys, patterns = (part.take() for part in parts.values())
    distance = np.arange(n)[:, None] - np.arange(n)
    model = Model(file, kind)
    windows = [model.definition(layer).window for layer in range(6)]
    assert {WINDOW, None} == set(windows)
    for pattern, window in zip(patterns, windows, strict=True):
        assert pattern.shape == (4, n, n)
        _assert_near(pattern.sum(axis=-1), 1, atol=1e-6)
        hidden = (distance < 0) | (distance >= (window or n))
        assert not pattern[:, hidden].any()
        assert pattern[:, ~hidden].all()
    # Scale, mask and soft-cap, as the file tells them, are all that there is between products and weights.
    facts = attention_facts(ModelFile([file]), request.settings)
    limit, cap = (float(facts[f"step_{name}"].item()) for name in ("window", "softcap"))
    assert (limit, cap, len(facts["step_facts"])) == ((WINDOW, 2, 2) if kind == "gemma2" else (WINDOW, 0, 1))
    usual = queries[0].shape[-1] ** -0.5
    for q, k, pattern in zip(queries, keys, patterns, strict=True):
        products = q[:, 1] @ k[:, 0].T
        found = explain(products, pattern[1], [usual], causal=True, window=int(limit), softcap=cap or None)
        assert found.scale == usual
        assert found.deviation < near(1e-4, "pattern")
    # Keys are where their tokens are: what numpy computes has no cache.
    truth = model.attend(0, model.first_residual(model.embeddings(tokens)))
    _assert_near(patterns[0], truth.pattern, atol=near(2e-5, "pattern"))


def test_the_same_file_has_not_moved(worker: Worker, tmp_path: Path) -> None:
    base = worker.call(observe_attention, None, make_request(TINY.files[0], tmp_path / "base"))
    request = make_request(TINY.files[0], tmp_path / "own")
    own, arrays = worker.call(compare_attention, None, request, tmp_path / "base", base)
    for name, values in own.items():
        np.testing.assert_array_equal(values, base[name])
    drift = AttentionDrift.of(arrays)
    # A prompt of one token attends to itself.
    assert list(drift.patterns) == ["text", "list"]
    for prompt, n in zip(drift.patterns, base["lengths"], strict=False):
        found = drift.patterns[prompt]
        assert found.jsd.shape == (LAYERS * HEADS, n - 1)
        assert (found.cosine == 1).all()
        assert (found.cosine_rows == 1).all()
        assert not found.jsd.any()
        assert not found.total_variation.any()
        assert not found.entropy_change.any()
        assert not found.top_changed.any()
    vectors = drift.vectors()
    assert len(vectors) == 7 * (1 + LAYERS)
    for estimate in vectors:
        exact = estimate.value
        if "cka" in estimate.metric:
            assert exact == pytest.approx(1, abs=1e-12)
        else:
            assert exact == 0
    # What is compared goes: it is as large as the reference's.
    assert list((tmp_path / "own").iterdir()) == []


@pytest.mark.parametrize("change", [{"n_layer": 3}, {"heads": 8}])
def test_a_model_of_another_shape_is_refused(worker: Worker, tmp_path: Path, change: dict[str, Any]) -> None:
    one, other = write_random_llama(tmp_path / "one.gguf"), write_random_llama(tmp_path / "other.gguf", **change)
    prompts = (Prompt("p", "The quick brown fox"),)
    base = worker.call(observe_attention, None, make_request(one, tmp_path / "base", prompts))
    with pytest.raises(ModelError, match=r"other has \d+ attention heads in \d layers, its reference 8 in 2"):
        worker.call(compare_attention, None, make_request(other, tmp_path / "own", prompts), tmp_path / "base", base)
    assert list((tmp_path / "own").iterdir()) == []


def test_without_the_references_activations_nothing_is_left(worker: Worker, tmp_path: Path) -> None:
    file = write_random_llama(tmp_path / "one.gguf")
    prompts = (Prompt("p", "The quick brown fox"),)
    base = worker.call(observe_attention, None, make_request(file, tmp_path / "base", prompts))
    ActivationReader.discard(tmp_path / "base")
    with pytest.raises(StoreError, match="cannot be read"):
        worker.call(compare_attention, None, make_request(file, tmp_path / "own", prompts), tmp_path / "base", base)
    assert list((tmp_path / "own").iterdir()) == []


def test_attention_moves_more_as_bits_fall(tmp_path: Path) -> None:
    core, (reference, *candidates) = make_runner(tmp_path, "--models=tiny", "--gguf-quants=Q8_0,Q4_K_M,Q2_K")
    corpus = load_corpus("pydoc", held_out_topics=reference.info.held_out_topics)
    prompts = PromptSet("eight", load_prompts(None).prompts[:8])
    found: list[dict[str, tuple[float, float]]] = []
    errors = []
    for model in candidates:
        own, arrays = Attention(core, prompts, corpus).compare(model, reference)
        assert len(own["prompts"]) == len(prompts.prompts)
        drift = AttentionDrift.of(arrays)
        estimates = {e.metric: e for e in attention_estimates([*drift.patterns.values()], drift.heads)}
        assert {e.clusters for e in estimates.values()} == {len(prompts.prompts)}
        assert all(e.se is not None and e.se > 0 for e in estimates.values())
        found.append({name: (e.value, e.se or 0) for name, e in estimates.items()})
        errors.append({e.metric: e.value for e in whole(drift.vectors())})
    core.close()
    for better, worse in ((0, 1), (1, 2)):
        for metric, sign in (
            ("attn_cosine", -1),
            ("attn_jsd", 1),
            ("attn_total_variation", 1),
            ("attn_top_changed", 1),
        ):
            (a, se_a), (b, se_b) = found[better][metric], found[worse][metric]
            assert sign * (b - a) > 3 * (se_a**2 + se_b**2) ** 0.5, metric
        for kind in ("q", "k", "v", "scores"):
            assert errors[worse][f"attn_{kind}_error"] > 2 * errors[better][f"attn_{kind}_error"]
    assert found[0]["attn_cosine"][0] > 0.999
    # Only the reference's activations stay.
    assert len(list((tmp_path / "attention").glob("*/activations.bin"))) == 1


def test_known_heads_are_found() -> None:
    behaviour = gguf_harness.heads("tiny")
    assert behaviour.problems == []
    assert len(behaviour.prompts) == len(load_prompts(None).prompts)
    kinds = {place: kind.kind for place, kind in zip(behaviour.heads, behaviour.kinds, strict=True)}
    scores = {place: p.values for place, p in zip(behaviour.heads, behaviour.profiles, strict=True)}
    assert list(scores) == [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    assert kinds[2, 7] == kinds[2, 1] == "positional"
    assert kinds[1, 1] == "induction"
    assert sorted(scores, key=lambda place: -scores[place]["previous_token"])[:2] == [(2, 7), (2, 1)]
    assert max(scores, key=lambda place: scores[place]["induction"]) == (1, 1)
    for place, expected in np.ndenumerate(np.array(CARD["induction"])):
        assert scores[place[0], place[1]]["induction"] == pytest.approx(expected, abs=0.12)
    assert all(score is not None and -1 <= score <= 1 for score in behaviour.copy_scores)
    frame = behaviour.to_frame()
    kinds_of_columns = ["Int64", "Int64", "string", "string", *["float64"] * len(behaviour.scores)]
    assert [str(dtype) for dtype in frame.dtypes] == kinds_of_columns
    assert list(zip(frame["layer"], frame["head"], frame["kind"], strict=True)) == [(*at, kinds[at]) for at in kinds]
    assert frame["induction"].tolist() == [scores[at]["induction"] for at in scores]
    drawn = behaviour.plot().data
    assert [[drawn["scale"]["names"][kind] for kind in row] for row in drawn["values"]] == [
        [kinds[layer, head] for head in range(HEADS)] for layer in range(LAYERS)
    ]
    assert behaviour.plot("induction").data["values"][1][1] == scores[1, 1]["induction"]
    with pytest.raises(OptionError, match="Heads have no score 'beauty'"):
        behaviour.plot("beauty")
    assert len(repr(behaviour)) < 500
    assert "<table>" in behaviour._repr_html_()


@pytest.mark.parametrize("model", ["without_z", "hybrid_file"])
def test_layers_without_attention_are_left_out(
    worker: Worker, llama_file: Path, tmp_path: Path, model: str, request: pytest.FixtureRequest
) -> None:
    """The first layer is the same in all three files, and does not see the second."""
    hybrid = request.getfixturevalue(model)
    prompts = (Prompt("p", "a b c d e"),)
    whole, part = (read_attention(worker, file, prompts[0]) for file in (llama_file, hybrid))
    assert whole["layers"].tolist() == [0, 1]
    assert part["layers"].tolist() == [0]
    np.testing.assert_array_equal(part["pattern"][0], whole["pattern"][0])
    base = worker.call(observe_attention, None, make_request(hybrid, tmp_path / "base", prompts))
    assert base["heads"].tolist() == [[0, head] for head in range(4)]
    own, drift = worker.call(
        compare_attention, None, make_request(hybrid, tmp_path / "own", prompts), tmp_path / "base", base
    )
    assert own["sums"].shape == base["sums"].shape
    assert drift["cosine"].shape == (1, 4)
    assert drift["cosine"] == pytest.approx(1)
    assert drift["kv_heads"].tolist() == [[0, 0], [0, 1]]
    other = worker.call(observe_attention, None, make_request(llama_file, tmp_path / "other", prompts))
    request_of_hybrid = make_request(hybrid, tmp_path / "again", prompts)
    with pytest.raises(ModelError, match="has 4 attention heads in 1 layers, its reference 8 in 2"):
        worker.call(compare_attention, None, request_of_hybrid, tmp_path / "other", other)
