"""Size of the KV cache by formula: published models, sliding windows, shared and recurrent layers."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import InvalidGGUF, NoData
from gguf_harness.gguf.cache_layout import CacheLayout, CacheShape, read_cache_layout, row_bytes
from gguf_harness.gguf.metadata import Metadata


def _layout(architecture: str, **keys: Any) -> CacheLayout:
    metadata = Metadata("m.gguf")
    metadata["general.architecture"] = architecture
    for key, value in keys.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        metadata[name], metadata.types[name] = value, "uint32"
    return read_cache_layout(metadata)


LLAMA_3_8B = {"block_count": 32, "embedding_length": 4096, "attention__head_count": 32, "attention__head_count_kv": 8}


def test_bytes_of_known_caches() -> None:
    """Llama 3 8B takes 128 KiB per token in f16; DeepSeek-V3 576 values of two bytes in each of 61 layers."""
    llama = _layout("llama", **LLAMA_3_8B)
    assert llama.bytes_per_token(CacheShape(8192)) == llama.token_bytes("f16", "f16") == 128 * 1024
    assert llama.total_bytes(CacheShape(8192)) == 1 << 30
    assert llama.token_bytes("q8_0", "q4_0") == 32 * 1024 // 32 * (34 + 18)
    deepseek = _layout(
        "deepseek2", block_count=61, embedding_length=7168, attention__head_count=128, attention__head_count_kv=1,
        attention__key_length=576, attention__value_length=512, attention__key_length_mla=192,
        attention__value_length_mla=128,
    )  # fmt: skip
    assert deepseek.mla
    assert deepseek.token_bytes("f16", "f16") == 61 * 576 * 2
    # The unabsorbed form of older files caches all heads.
    old = _layout(
        "deepseek2", block_count=27, embedding_length=2048, attention__head_count=16, attention__head_count_kv=16,
        attention__key_length=192, attention__value_length=128,
    )  # fmt: skip
    assert not old.mla
    assert old.token_bytes("f16", "f16") == 27 * 16 * (192 + 128) * 2


GEMMA_3_1B = {
    "block_count": 26, "embedding_length": 1152, "attention__head_count": 4, "attention__head_count_kv": 1,
    "attention__key_length": 256, "attention__value_length": 256, "attention__sliding_window": 512,
}  # fmt: skip


def test_sliding_windows_stop_growing() -> None:
    """Gemma 3 1B: every sixth of 26 layers sees everything, that is 4; the others keep 512 tokens and a batch."""
    gemma = _layout("gemma3", **GEMMA_3_1B)
    assert [layer.layer for layer in gemma.layers if not layer.sliding] == [5, 11, 17, 23]
    row = 2 * 256 * 2
    assert gemma.token_bytes("f16", "f16") == 26 * row
    kept = CacheShape(4096, n_ubatch=512, full_windows=False)
    assert gemma.bytes_per_token(kept) == 4 * row
    assert gemma.total_bytes(kept) == row * (4 * 4096 + 22 * 1024)
    # A context that the window holds, and one that keeps everything.
    assert gemma.bytes_per_token(CacheShape(512, full_windows=False)) == 26 * row
    assert gemma.bytes_per_token(CacheShape(4096)) == 26 * row
    assert not _layout("gemma3", **(GEMMA_3_1B | {"attention__sliding_window": 0})).sliding
    # llama.cpp has no sliding windows in Phi-3, whatever the file says.
    assert not _layout("phi3", **GEMMA_3_1B).sliding
    listed = _layout("gemma3", **GEMMA_3_1B, attention__sliding_window_pattern=(True,) * 13 + (False,) * 13)
    assert len(listed.sliding) == 13
    assert any("sliding window of 512" in fact for fact in gemma.facts())


def test_layers_without_keys_and_values() -> None:
    """Recurrent layers, layers that use those of others, and layers for drafts."""
    kv_heads = tuple(8 if layer % 8 == 4 else 0 for layer in range(32))
    jamba = _layout("jamba", **(LLAMA_3_8B | {"attention__head_count_kv": kv_heads}))
    assert [layer.layer for layer in jamba.layers] == [4, 12, 20, 28]
    assert jamba.token_bytes("f16", "f16") == 4 * 2 * 1024 * 2
    assert "28 of 32 layers have no keys and values of their own." in jamba.facts()
    qwen = _layout("qwen3next", **LLAMA_3_8B, attention__key_length=256, attention__value_length=256)
    assert [layer.layer for layer in qwen.layers] == list(range(3, 32, 4))
    shared = _layout("gemma3n", **(LLAMA_3_8B | {"block_count": 30}), attention__sliding_window=512)
    assert len(shared.layers) == 20
    drafts = _layout("glm4moe", **LLAMA_3_8B, nextn_predict_layers=1)
    assert (len(drafts.layers), drafts.n_layer) == (31, 31)


def test_other_kinds_of_cache_are_said() -> None:
    for architecture, reason in (("bert", "have no cache"), ("mamba", "have no cache"), ("deepseek32", "another kind")):
        with pytest.raises(NoData, match=reason):
            _layout(architecture, **LLAMA_3_8B)
    with pytest.raises(NoData, match="does not name its sliding window"):
        _layout("cohere2", **LLAMA_3_8B)
    with pytest.raises(NoData, match="which layers"):
        _layout("gemma4", **LLAMA_3_8B, attention__sliding_window=512)
    with pytest.raises(NoData, match="does not say how many"):
        _layout("llama", block_count=4)
    with pytest.raises(InvalidGGUF, match="one for each of 32 layers"):
        _layout("mimo2", **LLAMA_3_8B, attention__sliding_window=8, attention__sliding_window_pattern=(True,))


def test_rows_are_whole_blocks() -> None:
    kinds = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
    assert [row_bytes(kind, 64) for kind in kinds] == [256, 128, 128, 68, 48, 44, 40, 36, 36]
    with pytest.raises(ValueError, match="not whole blocks of 32"):
        row_bytes("q8_0", 40)


@given(
    st.integers(1, 5000), st.integers(1, 4), st.integers(1, 2048), st.booleans(), st.booleans(),
    st.sampled_from(["f16", "q8_0", "q4_0"]),
)  # fmt: skip
def test_size_grows_with_context_and_windows_never_add(
    n_ctx: int, n_seq: int, n_ubatch: int, transposed: bool, full: bool, kind: str
) -> None:
    """All tokens fit, a longer context takes no less, and keeping windows takes no more than keeping everything."""
    gemma = _layout("gemma3", **GEMMA_3_1B)
    shape = CacheShape(n_ctx, n_seq, n_ubatch, kind, kind, transposed, full)
    longer = CacheShape(n_ctx + 256, n_seq, n_ubatch, kind, kind, transposed, full)
    assert shape.cells >= n_ctx
    assert gemma.total_bytes(shape) <= gemma.total_bytes(longer)
    everything = CacheShape(n_ctx, n_seq, n_ubatch, kind, kind, transposed)
    assert gemma.total_bytes(shape) <= gemma.total_bytes(everything)
    full_rows, sliding_rows = (gemma.token_bytes(kind, kind, sliding=sliding) for sliding in (False, True))
    assert full_rows <= gemma.bytes_per_token(shape) <= full_rows + sliding_rows


_KEYS = (
    "block_count", "embedding_length", "feed_forward_length", "nextn_predict_layers", "full_attention_interval",
    *(f"attention__{name}" for name in (
        "head_count", "head_count_kv", "key_length", "value_length", "key_length_mla", "value_length_mla",
        "key_length_swa", "sliding_window", "sliding_window_pattern", "shared_kv_layers", "recurrent_layers",
    )),
)  # fmt: skip
_NUMBERS = st.integers(-1, 80)


@given(
    st.sampled_from(["llama", "deepseek2", "gemma3", "gemma3n", "gemma4", "jamba", "qwen35", "nemotron_h", "exaone4"]),
    st.dictionaries(
        st.sampled_from(_KEYS),
        st.one_of(
            _NUMBERS, _NUMBERS, st.lists(_NUMBERS, max_size=9).map(tuple), st.text(max_size=3), st.floats(),
            st.booleans(),
        ),
    ),
)  # fmt: skip
def test_any_header_is_a_layout_or_one_message(architecture: str, keys: dict[str, Any]) -> None:
    """Nothing else is raised, and what is found takes room."""
    with contextlib.suppress(NoData, InvalidGGUF):
        layout = _layout(architecture, **keys)
        assert layout.total_bytes(CacheShape(512, full_windows=False)) > 0
        assert all(0 <= layer.layer < layout.n_layer for layer in layout.layers)
