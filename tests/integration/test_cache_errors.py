"""What types of the cache change in tiny and SmolLM2: nothing where nothing differs, and what patching leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.engine.cache_types import rotate, through_cache
from gguf_harness.engine.context import Context
from gguf_harness.engine.settings import CacheType, SessionSettings
from gguf_harness.engine.taps import Taps
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import NoData, NoPrompt
from gguf_harness.inputs.cache_limits import rotation
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.kv.cache_calls import CacheErrors, CacheLayers
from gguf_harness.measure.kv.cache_tasks import CacheRequest, compare_caches, measure_bytes, quantize_layers
from gguf_harness.measure.layers.tasks import kld_rows
from gguf_harness.metrics.records import Place
from tests.integration.small_deepseek2 import write_small_deepseek2
from tests.integration.small_models import write_small_model
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

PROMPTS = (
    Prompt(
        "list", "A list comprehension makes a new list from the items of another one. It is short, and easy to read."
    ),
    Prompt("file", "Open the file, read its lines one by one, and close it again when the last line was read."),
    Prompt("number", "The number of elements is 7, and the sum of them all is 42; so their mean is 6."),
)
FULL = SessionSettings(n_ctx=512, n_batch=512, threads=1)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerContext]:
    here, _there = Pipe()
    context = WorkerContext(here)
    monkeypatch.setattr(context, "progress", lambda *_: None)
    yield context
    context.close()


def _request(files: tuple[Path, ...], k: CacheType, v: CacheType, **more: object) -> CacheRequest:
    settings = replace(FULL, cache_type_k=k, cache_type_v=v, **more)  # type: ignore[arg-type]
    return CacheRequest("m", files, settings, FULL, PROMPTS)


def _tiny(k: CacheType, v: CacheType) -> CacheRequest:
    return _request(expand("tiny")[0].files, k, v)


def test_the_full_cache_against_itself_is_exactly_nothing(worker: WorkerContext) -> None:
    compared = CacheErrors(compare_caches(worker, _tiny("f16", "f16")))
    exact = {"kv_key_cosine": 1.0, "kv_value_cosine": 1.0, "kv_pattern_cosine": 1.0, "kv_pattern_worst_head": 1.0}
    for estimate in (*compared.vectors(), *compared.patterns(), *compared.predicted()):
        assert estimate.value == pytest.approx(exact.get(estimate.metric, 0.0), abs=1e-12), estimate
    assert compared.reason is None


def test_errors_fall_with_bits_and_keys_keep_apart_from_values(worker: WorkerContext) -> None:
    """Keys alone change attention of their own layer, values alone do not: in the first layer nothing else differs."""
    key, value, first = {}, {}, {}
    pairs: list[tuple[CacheType, CacheType]] = [
        ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q4_0", "f16"), ("f16", "q4_0"),
    ]  # fmt: skip
    for k, v in pairs:
        compared = CacheErrors(compare_caches(worker, _tiny(k, v)))
        found = {(each.metric, each.place): each for each in compared.vectors()}
        key[k, v], value[k, v] = (found[f"kv_{name}_error", Place()].value for name in ("key", "value"))
        first[k, v] = tuple(found[f"kv_{name}_error", Place(0)].value for name in ("key", "value"))
        assert found["kv_key_error", Place()].clusters == 3
        assert {each.place.head for each in compared.patterns() if each.place.layer == 1} == set(range(8))
    assert 0 < key["q8_0", "q8_0"] < 0.1 * key["q4_0", "q4_0"]
    assert 0 < value["q8_0", "q8_0"] < 0.1 * value["q4_0", "q4_0"]
    assert first["q4_0", "f16"][0] > 0.03
    assert first["q4_0", "f16"][1] == 0
    assert first["f16", "q4_0"][0] == 0
    assert first["f16", "q4_0"][1] > 0.03


def test_patched_layers_of_tiny(worker: WorkerContext) -> None:
    """All layers patched are the real run, so each layer alone is its part of it."""
    coarse = CacheLayers(quantize_layers(worker, _tiny("q4_0", "q4_0")))
    estimates = {(each.metric, each.place): each.value for each in coarse.caused()}
    every, run, gap = (estimates[name, Place()] for name in ("kv_layer_kld", "kv_run_kld", "kv_patched_gap"))
    # Weights in F16 round activations, which turns a last digit into more here and there.
    assert gap < 2e-3 * run
    assert every == pytest.approx(run, rel=0.01)
    layers = [estimates["kv_layer_kld", Place(layer)] for layer in range(5)]
    assert all(0 < layer < every for layer in layers)
    assert 0.3 * every < sum(layers) < 3 * every
    rank = CacheErrors(compare_caches(worker, _tiny("q4_0", "q4_0"))).rank(coarse)
    assert (rank.n, rank.clusters) == (5, 3)
    # The stream's change puts tiny's layers in their order, and its square is nearly proportional to what they cause.
    assert rank.value > 0.85
    change = np.array(
        [each.value for each in CacheErrors(compare_caches(worker, _tiny("q4_0", "q4_0"))).stream_change(coarse)]
    )
    assert np.corrcoef(change**2, layers)[0, 1] > 0.95
    some = CacheLayers(quantize_layers(worker, replace(_tiny("q4_0", "q4_0"), layers=(4, 1))))
    compared = CacheErrors(compare_caches(worker, _tiny("q4_0", "q4_0")))
    assert [each.place.layer for each in compared.stream_change(some)] == [1, 4]
    assert [each.value for each in some.caused()[-2:]] == pytest.approx([layers[1], layers[4]], rel=1e-6)
    with pytest.raises(NoData, match="order of 2 layers"):
        compared.rank(some)
    with pytest.raises(NoData, match="None of the layers"):
        quantize_layers(worker, replace(_tiny("q4_0", "q4_0"), layers=(9,)))
    drowned = CacheLayers(coarse.arrays | {"floor": coarse.arrays["all"]})
    with pytest.raises(NoData, match="is not above what a millionth"):
        CacheErrors(compare_caches(worker, _tiny("q4_0", "q4_0"))).rank(drowned)
    fine = CacheLayers(quantize_layers(worker, _tiny("q8_0", "q8_0"))).caused()
    assert fine[0].value < 0.02 * every
    exact = CacheLayers(quantize_layers(worker, _tiny("f32", "f32"))).caused()
    # Flash attention, in half precision, against none; patching changes nothing.
    assert all(each.value == 0 for each in exact if each.metric == "kv_layer_kld")
    assert all(each.value < 1e-4 for each in exact if each.metric != "kv_layer_floor")
    (floor,) = (each.value for each in coarse.caused() if each.metric == "kv_layer_floor")
    assert 0 <= floor < 1e-2 * min(layers)


@pytest.mark.parametrize(("size", "rotated"), [(32, 0), (64, 64)])
def test_what_patching_leaves_out_is_the_rounding_of_queries(
    worker: WorkerContext, size: int, rotated: int, tmp_path: Path
) -> None:
    """With queries patched as llama.cpp rounds them, little remains of the gap. Without the rotation, more does.

    With weights in F32: activations are not rounded besides.
    """
    request = _request((write_random_llama(tmp_path / "m.gguf", width=4 * size),), "q8_0", "q8_0")
    layout, types = request.layout, request.settings
    model = worker.model(request.files, -1)
    tokens = model.tokenize(PROMPTS[0].plain())

    def logits(
        settings: SessionSettings, taps: Taps | None = None
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        with Context(model, settings, taps) as context:
            return context.logits(tokens)

    def patched(parts: str, size: int) -> Taps:
        def patch(_: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> object:
            return rotate(through_cache("q8_0", rotate(values, size)), size)

        taps = {f"blocks.{layer.layer}.attn.{part}": patch for layer in layout.layers for part in parts}
        return Taps(layout.architecture, layout.n_layer, patch=taps)  # type: ignore[arg-type]

    assert {rotation(layout, types, layer).k for layer in layout.layers} == {rotated}
    exact = replace(FULL, cache_type_k="f32", cache_type_v="f32", flash_attention="off")
    real = logits(types)
    gaps = {
        (parts, size): float(kld_rows(real, logits(exact, patched(parts, size))).mean())
        for parts in ("kv", "qkv")
        for size in {0, 64 if layout.d_key == 64 else 0}
    }
    assert abs(gaps["qkv", rotated]) < 1e-7
    assert gaps["kv", rotated] > 1e-5
    if rotated:
        assert gaps["qkv", 0] > 1e-5


def test_bytes_are_measured_and_computed_apart(worker: WorkerContext) -> None:
    arrays = measure_bytes(worker, _tiny("q8_0", "q4_0"))
    # 5 layers, 4 heads of 32 values: 640 values of K and of V per token.
    one = 640 // 32 * (34 + 18)
    assert arrays["measured"].tolist() == arrays["formula"].tolist() == [512 * one, 768 * one]


def test_what_cannot_be_compared_is_said(worker: WorkerContext, tmp_path: Path) -> None:
    latents = _request((write_small_deepseek2(tmp_path / "ds.gguf"),), "q8_0", "q8_0")
    compared = CacheErrors(compare_caches(worker, latents))
    assert {each.metric for each in compared.vectors()} == {"kv_key_error", "kv_key_cosine"}
    assert len(compared.patterns()) > 12
    assert all(each.value > 0 for each in compared.predicted())
    with pytest.raises(NoData, match="MLA"):
        quantize_layers(worker, latents)
    capped = _request((write_small_model(tmp_path / "g.gguf", "gemma2", 2, text=True),), "f16", "bf16")
    compared = CacheErrors(compare_caches(worker, capped))
    assert compared.reason is not None
    assert "softcap" in compared.reason
    assert {each.metric for each in compared.vectors()} > {"kv_key_error", "kv_value_error"}
    short = Prompt("short", "")
    with pytest.raises(NoPrompt, match="no prompt has two tokens"):
        compare_caches(worker, replace(_tiny("q8_0", "q8_0"), prompts=(short,)))
