"""A hybrid: attention in some layers, a recurrent mixer in the others. Random weights, llama.cpp's own graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.quantize import quantize_file
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.taps import Reader, Taps
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import TapNotFound
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.attention.tasks import AttentionRequest, observe_attention
from gguf_harness.measure.layers.states import LayersRequest, StateFiles
from gguf_harness.measure.layers.tasks import measure_layers
from gguf_harness.measure.layers.unembedding import ModelFile, find_head
from gguf_harness.metrics.lens import head_logits
from tests.integration.small_jamba import ATTENTION_LAYERS, HEADS, KV_HEADS, LAYERS, WIDTH, write_small_jamba

pytestmark = pytest.mark.model

TEXT = b"The quick brown fox jumps over the lazy dog."
PROMPTS = (Prompt("fox", TEXT.decode()), Prompt("count", "one two three four five six seven"))
SETTINGS = SessionSettings(
    n_ctx=64, n_batch=256, threads=2, flash_attention="off", cache_type_k="f32", cache_type_v="f32"
)

F32 = NDArray[np.float32]


@pytest.fixture(scope="module", params=["F32", "Q8_0"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jamba")
    whole = write_small_jamba(folder / "jamba-F32.gguf")
    if request.param == "F32":
        return whole
    quantize_file([whole], folder / "jamba-Q8_0.gguf", "Q8_0", threads=2)
    return folder / "jamba-Q8_0.gguf"


def test_the_pattern_is_that_of_q_and_k_in_the_layers_that_have_one(file: Path) -> None:
    seen: dict[str, F32] = {}
    read: dict[str, Reader] = {
        f"blocks.{layer}.attn.{kind}": seen.__setitem__
        for layer in ATTENTION_LAYERS
        for kind in ("q", "k", "v", "z", "pattern")
    }
    with Model([file]) as model, Context(model, SETTINGS, Taps("jamba", LAYERS, read=read)) as context:
        tokens = model.tokenize(TEXT)
        context.prefill(tokens)
    n, size = len(tokens), WIDTH // HEADS
    for layer in ATTENTION_LAYERS:
        q, k, v, z, pattern = (seen[f"blocks.{layer}.attn.{kind}"] for kind in ("q", "k", "v", "z", "pattern"))
        assert pattern[..., :n].sum(axis=2) == pytest.approx(1, abs=1e-5)
        assert not pattern[..., n:].any()
        k, v = (np.repeat(each, HEADS // KV_HEADS, axis=1) for each in (k, v))
        scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) / size**0.5
        weights = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
        weights /= weights.sum(axis=2, keepdims=True)
        assert np.abs(pattern[..., :n] - weights).max() < 1e-5
        assert np.abs(z - np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)).max() < 1e-4


def test_a_layer_without_attention_is_said_to_have_none(file: Path) -> None:
    for kind in ("pattern", "q", "z"):
        taps = Taps("jamba", LAYERS, read={f"blocks.0.attn.{kind}": lambda *_: None})
        with (
            Model([file]) as model,
            Context(model, SETTINGS, taps) as context,
            pytest.raises(TapNotFound, match=rf"no blocks\.0\.attn\.{kind}\.\n.*Layers that have it: 1, 3\."),
        ):
            context.prefill(model.tokenize(TEXT))


def test_heads_are_those_of_the_attention_layers(file: Path, worker: WorkerContext, tmp_path: Path) -> None:
    request = AttentionRequest(
        model="jamba", files=(file,), architecture="jamba", n_layer=LAYERS, settings=SETTINGS, prompts=PROMPTS,
        text=TEXT, folder=tmp_path, limit_bytes=10**9,
    )  # fmt: skip
    arrays = observe_attention(worker, request)
    assert arrays["heads"].tolist() == [[layer, head] for layer in ATTENTION_LAYERS for head in range(HEADS)]
    assert arrays["causal"].all()
    assert np.isfinite(arrays["sums"]).all()


def test_parts_of_the_stream_add_up_and_the_lens_ends_in_the_logits(
    file: Path, worker: WorkerContext, tmp_path: Path
) -> None:
    request = LayersRequest("jamba", (file,), SETTINGS, PROMPTS, tmp_path / "states", 10**9)
    arrays = measure_layers(worker, request, None, keep=True).arrays
    states = StateFiles(request.folder)
    post = states.load("resid_post")
    for layer in range(LAYERS):
        before, attention, mlp = states.inputs(layer), states.load("attn_out")[layer], states.load("mlp_out")[layer]
        largest = float(np.abs(post[layer]).max())
        assert np.abs(before + attention + mlp - post[layer]).max() < 1e-5 * largest
        assert np.abs(before + attention - states.load("resid_mid")[layer]).max() < 1e-5 * largest
        # What mixes tokens adds something in every layer: none of them is 0.
        assert float(np.linalg.norm(attention)) > 1e-2 * float(np.linalg.norm(post[layer]))
    logits = states.load("logits")
    head = find_head(ModelFile([file]), post[-1], states.load("final"), logits)
    # llama.cpp multiplies quantized matrices by quantized activations.
    limit = 1e-4 if "F32" in file.name else 2e-2
    assert np.abs(head_logits(head, post[-1]) - logits).max() < limit * float(np.abs(logits).max())
    assert arrays["lens_kl"][-1].max() < limit
    assert (arrays["lens_top"][-1] == arrays["output_top"]).mean() > 0.95


def test_windows_that_share_a_batch_do_not_mix(file: Path) -> None:
    """Recurrent states are one for each sequence, and physical batches hold equally many tokens of each."""
    with Model([file]) as model:
        windows = np.resize(model.tokenize(TEXT * 4), (6, 32)).astype(np.int32)
        expected: list[F32] = []
        for n_batch, n_ubatch in ((32, 32), (96, 96), (96, 20), (192, 512)):
            settings = SessionSettings(n_ctx=32, n_batch=n_batch, n_ubatch=n_ubatch, threads=1)
            with Context(model, settings) as context:
                found = [block.logits.copy() for block in context.score(windows)]
            expected = expected or found
            assert max(np.abs(a - b).max() for a, b in zip(expected, found, strict=True)) < 1e-3
