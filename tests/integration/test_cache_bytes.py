"""The cache's size by formula and llama.cpp's buffers, to the byte, in several kinds of attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.engine.cache_taps import CacheTaps
from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import CacheType, FlashAttention, SessionSettings
from gguf_harness.gguf.cache_layout import CacheLayout, read_cache_layout
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.cache_limits import cache_shape
from gguf_harness.inputs.sources import expand
from tests.integration import small_models
from tests.integration.small_deepseek2 import write_small_deepseek2
from tests.integration.small_jamba import write_small_jamba
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

KINDS = ("gpt2", "llama", "deepseek2", "gemma3", "jamba", "qwen2")
"""All heads have their own keys; heads share them; latents (MLA); sliding windows; mostly recurrent; with biases."""


def _write(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with heads of 32 values: blocks of quantized types fit."""
    path = folder / f"{kind}.gguf"
    monkeypatch.setattr(small_models, "WIDTH", 128)
    monkeypatch.setattr(small_models, "_head", lambda _: 32)
    monkeypatch.setattr("tests.integration.small_jamba.WIDTH", 128)
    monkeypatch.setattr("tests.integration.small_jamba.INNER", 256)
    writers: dict[str, Callable[[], Path]] = {
        "llama": lambda: write_random_llama(path, width=128),
        "deepseek2": lambda: write_small_deepseek2(path),
        "jamba": lambda: write_small_jamba(path),
    }
    # Not through the store of models: the widths are not among the arguments.
    monkeypatch.delenv("GGUF_HARNESS_TEST_MODELS", raising=False)
    return writers.get(kind, lambda: small_models.write_small_model(path, kind, 6 if kind == "gemma3" else 2))()


def _measured(model: Model, layout: CacheLayout, settings: SessionSettings, *, full_windows: bool) -> int:
    taps = CacheTaps(layout.architecture, layout.n_layer)
    with Context(model, settings, taps, full_windows=full_windows) as context:
        context.prefill(np.arange(4, dtype=np.int32))
        told = context.memory.kv_cache
        # The log says the same with two decimals of a MiB for each buffer; recurrent states are apart.
        assert told is not None
        assert layout.architecture == "jamba" or abs(told - taps.buffer_bytes) <= 0.011 * 2**20
        return taps.buffer_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_the_formulas(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For f16, q8_0 and q4_0; one sequence and two; windows kept or not; values transposed (no flash attention)."""
    file = _write(kind, tmp_path, monkeypatch)
    layout = read_cache_layout(read_header(file).metadata)
    types: tuple[CacheType, ...] = ("f16", "q8_0", "q4_0")
    cases: list[tuple[CacheType, CacheType, FlashAttention]] = [(each, each, "auto") for each in types]
    if not layout.mla:
        cases += [("q8_0", "q4_0", "auto"), ("f16", "q8_0", "auto"), ("q4_0", "f16", "off")]
    cases.append(("f16", "f16", "off"))
    with Model([file], 0) as model:
        for k, v, flash in cases:
            for n_seq, full_windows in ((1, True), (2, True), (1, False), (2, False)):
                settings = SessionSettings(
                    n_ctx=512, n_batch=512 * n_seq, n_ubatch=128, cache_type_k=k, cache_type_v=v, flash_attention=flash
                )
                shape = cache_shape(settings, full_windows=full_windows)
                assert _measured(model, layout, settings, full_windows=full_windows) == layout.total_bytes(shape)
    assert bool(layout.sliding) == (kind == "gemma3")
    assert layout.mla == (kind == "deepseek2")


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m"])
def test_bytes_per_token_of_real_models(name: str) -> None:
    """Two contexts that differ by 256 tokens: the growth is the formula's, and that is the row of a token."""
    (source,) = expand(name)
    layout = read_cache_layout(read_header(source.files[0]).metadata)
    with Model(source.files, 0) as model:
        for kind in ("f32", "bf16", "q5_1", "iq4_nl"):
            short, longer = (
                _measured(
                    model,
                    layout,
                    SessionSettings(n_ctx=n, n_batch=n, cache_type_k=kind, cache_type_v=kind),
                    full_windows=False,
                )
                for n in (256, 512)
            )
            shape = cache_shape(SessionSettings(n_ctx=256, n_batch=256, cache_type_k=kind, cache_type_v=kind))
            assert (longer - short) / 256 == layout.bytes_per_token(shape) == layout.token_bytes(kind, kind)
