"""Keys, values and patterns from the state of a cache, against taps and against gguf's own conversion of types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from gguf_harness.engine.cache_state import read_cache
from gguf_harness.engine.cache_taps import CacheTaps
from gguf_harness.engine.cache_types import from_bytes, hadamard, rotate, through_cache, to_bytes
from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import GGML_TYPES, CacheType, SessionSettings
from gguf_harness.errors import NoData
from gguf_harness.gguf.cache_layout import CacheLayout, read_cache_layout
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.cache_limits import rotation
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.kv.cache_reading import CacheReader
from tests.integration.small_deepseek2 import write_small_deepseek2
from tests.integration.small_models import WINDOW, write_small_model

pytestmark = pytest.mark.model

TEXT = "A list comprehension makes a new list from the items of another one. It is short, and it is easy to read."


def _file(name: str, folder: Path) -> Path:
    if name in {"tiny", "smollm2-135m"}:
        return expand(name)[0].files[0]
    if name == "deepseek2":
        return write_small_deepseek2(folder / "m.gguf")
    return write_small_model(folder / "m.gguf", name, 6)


def _layout(file: Path) -> CacheLayout:
    return read_cache_layout(read_header(file).metadata)


def _tokens(model: Model) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    if model.vocabulary.n_tokens > 300:
        return model.tokenize(TEXT)
    # Beyond the sliding window.
    return np.random.default_rng(0).integers(0, 60, WINDOW + 36).astype(np.int32)


def _settings(k: CacheType, v: CacheType, **more: Any) -> SessionSettings:
    return SessionSettings(n_ctx=256, n_batch=256, threads=1, cache_type_k=k, cache_type_v=v, **more)


@pytest.mark.parametrize("kind", GGML_TYPES)
def test_types_are_converted_as_by_gguf(kind: CacheType) -> None:
    """An independent conversion in numpy; what was read is stored again without a further loss."""
    values = np.random.default_rng(1).standard_normal((7, 3, 64)).astype(np.float32)
    raw = to_bytes(kind, values)
    read = from_bytes(kind, raw, 64)
    theirs = dequantize(raw.reshape(21, -1), gguf.GGMLQuantizationType[kind.upper()])
    assert np.array_equal(read, np.asarray(theirs, dtype=np.float32).reshape(read.shape))
    assert np.abs(read - values).max() < {"f32": 1e-9, "f16": 2e-3, "bf16": 2e-2}.get(kind, 0.4)
    assert np.array_equal(through_cache(kind, values), read)
    if kind in {"f32", "f16", "bf16", "q8_0"}:
        assert np.array_equal(through_cache(kind, read), read)


def test_rotation_is_orthonormal_and_its_own_inverse() -> None:
    for size in (1, 64, 128):
        matrix = hadamard(size).astype(np.float64)
        assert np.allclose(matrix @ matrix, np.eye(size), atol=1e-6)
        assert np.array_equal(matrix, matrix.T)
    values = np.random.default_rng(2).standard_normal((5, 2, 128)).astype(np.float32)
    assert np.allclose(rotate(rotate(values, 64), 64), values, atol=1e-5)
    assert np.allclose(np.linalg.norm(rotate(values, 128), axis=-1), np.linalg.norm(values, axis=-1), rtol=1e-5)
    with pytest.raises(ValueError, match="power of two"):
        hadamard(48)


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m", "gemma3", "qwen3", "gpt2", "phi3"])
@pytest.mark.parametrize("k", ["f16", "f32", "q8_0", "q4_0"])
def test_patterns_are_the_taps(name: str, k: CacheType, tmp_path: Path) -> None:
    """Without flash attention the tap has the pattern: with K in f16 as the issue asks, and in other types."""
    file = _file(name, tmp_path)
    layout = _layout(file)
    if k.startswith("q") and layout.d_key % 32:
        pytest.skip(f"heads of {layout.d_key} values are not whole blocks")
    tapped: dict[int, Any] = {}
    read = {
        f"blocks.{layer.layer}.attn.pattern": lambda tap, values: tapped.update({int(tap.split(".")[1]): values.copy()})
        for layer in layout.layers
    }
    settings = _settings(k, "f16", flash_attention="off")
    with Model([file], 0) as model:
        tokens = _tokens(model)
        n = len(tokens)
        with Context(model, settings, CacheTaps(layout.architecture, layout.n_layer, read=read)) as context:
            context.prefill(tokens)
        with CacheReader(model, layout, settings, n) as reader:
            reading = reader.read(tokens)
    assert set(reading) == set(tapped)
    for layer, each in reading.items():
        ours = each.pattern()
        theirs = tapped[layer].reshape(ours.shape[0], n, -1)
        assert np.abs(ours - theirs[..., :n]).max() < 2e-5
        assert not theirs[..., n:].any()
        assert np.allclose(ours.sum(axis=-1), 1, atol=1e-5)
    if name == "gemma3":
        sliding = next(layer.layer for layer in layout.layers if layer.sliding)
        full = next(layer.layer for layer in layout.layers if not layer.sliding)
        assert not reading[sliding].pattern()[:, -1, : n - WINDOW].any()
        assert reading[full].pattern()[:, -1, : n - WINDOW].all()


@pytest.mark.parametrize(("name", "k", "v"), [
    ("tiny", "q8_0", "q8_0"), ("smollm2-135m", "q8_0", "q8_0"), ("smollm2-135m", "q4_0", "q8_0"),
    ("smollm2-135m", "iq4_nl", "q5_1"), ("deepseek2", "q8_0", "q8_0"),
])  # fmt: skip
def test_quantized_caches_as_computed_apart(name: str, k: CacheType, v: CacheType, tmp_path: Path) -> None:
    """Bytes of the state, converted by gguf's numpy code and rotated back by scipy's matrix, in plain loops."""
    from scipy.linalg import hadamard as sylvester

    file = _file(name, tmp_path)
    layout, settings = _layout(file), _settings(k, v)
    with Model([file], 0) as model:
        tokens = _tokens(model)
        with CacheReader(model, layout, settings, len(tokens)) as reader:
            reading = reader.read(tokens)
            raw = read_cache(reader._context, layout)
    for layer in layout.layers:
        each = reading[layer.layer]
        stored = raw["k"][layer.layer]
        theirs = dequantize(stored.raw, gguf.GGMLQuantizationType[k.upper()]).reshape(len(tokens), layer.heads, -1)
        group, scale = each.q.shape[1] // layer.heads, each.attention.scale
        ours = each.pattern()
        for head in range(each.q.shape[1]):
            scores = each.q[:, head].astype(np.float64) @ theirs[:, head // group].T.astype(np.float64) * scale
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            assert np.abs(ours[head] - weights / weights.sum(axis=1, keepdims=True)).max() < 1e-5
        size = rotation(layout, settings, layer).k
        assert size == (64 if name == "smollm2-135m" else 0)
        if size:
            theirs = theirs @ (sylvester(size) / np.sqrt(size))
        assert np.allclose(each.keys, theirs, atol=1e-4)


@pytest.mark.parametrize("flash", ["off", "auto"])
def test_state_has_what_taps_saw(flash: Any) -> None:
    """In f32 exactly, values transposed or not; in q4_0 what is left of it, rotated before in SmolLM2."""
    for name in ("tiny", "smollm2-135m"):
        file = _file(name, Path())
        layout = _layout(file)
        with Model([file], 0) as model:
            tokens = _tokens(model)
            for kind in ("f32", "q4_0") if flash == "auto" else ("f32",):
                seen: dict[str, Any] = {}
                read = {
                    f"blocks.{layer.layer}.attn.{part}": lambda tap, values, s=seen: s.update({tap: values.copy()})
                    for layer in layout.layers
                    for part in "kv"
                }
                settings = _settings(kind, kind, flash_attention=flash)
                with Context(model, settings, CacheTaps(layout.architecture, layout.n_layer, read=read)) as context:
                    context.prefill(tokens)
                    cached = read_cache(context, layout)
                    assert read_cache(context, layout, sequence=1) == {"k": {}, "v": {}}
                for layer in layout.layers:
                    turned = rotation(layout, settings, layer)
                    for part, size in (("k", turned.k), ("v", turned.v)):
                        rows = cached[part][layer.layer]
                        values = seen[f"blocks.{layer.layer}.attn.{part}"].reshape(rows.values().shape)
                        kept = to_bytes(kind, rotate(values, size).reshape(len(tokens), -1))
                        # Rounding of the rotation moves a few values to the next step of their block.
                        assert np.mean(rows.raw != kept) <= (1e-3 if size else 0)
                        assert np.array_equal(rows.values(), values) == (kind == "f32")


def test_what_is_not_computed_is_said(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, BLOOM's depend on the distance (ALiBi)."""
    for name, what in (("gemma2", "softcap"), ("bloom", "ALiBi")):
        file = write_small_model(tmp_path / f"{name}.gguf", name, 2)
        layout = _layout(file)
        with Model([file], 0) as model, CacheReader(model, layout, _settings("f16", "f16"), 100) as reader:
            reading = reader.read(_tokens(model))
        with pytest.raises(NoData, match=what):
            reading[0].pattern()
