"""Small models of several architectures with random weights: real graphs of llama.cpp, meaningless otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, RopeScalingType, TokenType

from tests.model_store import written_once
from tests.random_llama import byte_alphabet

__all__ = ["ARCHITECTURES", "BUCKETS", "HEADS", "UNNAMED", "WINDOW", "architecture_of", "write_small_model"]

WIDTH, HEADS, FF, EXPERTS, CONTEXT = 64, 4, 96, 4, 128
WINDOW = 64
BUCKETS = 32
"""T5: relative positions are sorted into these."""
TOKENS = [f"t{i}" for i in range(60)] + [f"<s{i}>" for i in range(4)]

ARCHITECTURES = ("bloom", "gemma2", "gemma3", "gpt2", "mixtral", "phi3", "qwen2", "qwen3", "qwen3moe", "smollm3")
"""Decoders, as llama.cpp calls them, but for `mixtral`: the architecture llama with experts."""

# What llama.cpp's graph builders leave without a name.
UNNAMED: dict[str, set[str]] = {
    "bloom": {"attn_out"},
    "gemma2": {"mlp_out"},
    "gpt2": {"attn_out"},
    "phi3": {"attn_out", "resid_mid"},
    "qwen2": {"attn_out"},
    "qwen3": {"attn_out"},
    "qwen3moe": {"attn_out"},
}

_BIASED = frozenset({"gpt2", "bloom"})
_ONE_QKV_MATRIX = frozenset({"gpt2", "bloom", "phi3"})
_QK_NORM = frozenset({"gemma3", "qwen3", "qwen3moe"})
_POST_NORM = frozenset({"gemma2", "gemma3"})
_EXPERTS = frozenset({"mixtral", "qwen3moe"})
# As published, where it is not 10000.
_ROPE_BASE = {"gemma3": 1e6, "mixtral": 1e6, "qwen2": 1e6, "qwen3": 1e6, "qwen3moe": 1e6, "smollm3": 5e6}
_T5 = frozenset({"t5", "t5encoder"})

Tensor = tuple[str, tuple[int, ...]]


@written_once
def write_small_model(path: Path, kind: str, n_layer: int, *, text: bool = False) -> Path:
    """Write a model in F32.

    Args:
        path: destination.
        kind: one of `ARCHITECTURES`, or `t5`, or `t5encoder`: its encoder alone.
        n_layer: number of layers; T5 has as many in the encoder as in the decoder.
        text: whether it has a token for each byte, so that any text can be read; otherwise a few words.
    """
    tokens = [*byte_alphabet(), *TOKENS[-4:]] if text else TOKENS
    writer = GGUFWriter(path, architecture_of(kind))
    _add_metadata(writer, kind, n_layer, tokens)
    random = np.random.default_rng(0)
    for name, shape in _tensors(kind, n_layer, len(tokens)):
        is_norm = "norm" in name
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1 if is_norm else shape[-1] ** -0.5)
        writer.add_tensor(name, values + np.float32(is_norm and name.endswith("weight")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def architecture_of(kind: str) -> str:
    """`general.architecture` of one of `ARCHITECTURES`."""
    return "llama" if kind == "mixtral" else kind


def _kv_heads(kind: str) -> int:
    return HEADS if kind in _BIASED | _T5 else HEADS // 2


def _head(kind: str) -> int:
    """Size of a head: Gemma and Qwen 3 choose it freely, elsewhere it is d_model / heads."""
    return 24 if kind in {"gemma2", "gemma3", "qwen3", "qwen3moe"} else WIDTH // HEADS


def _add_metadata(writer: GGUFWriter, kind: str, n_layer: int, tokens: list[str]) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(_kv_heads(kind))
    writer.add_key_length(_head(kind))
    writer.add_value_length(_head(kind))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    # Phi-4-mini, a phi3 for llama.cpp, has rope on three quarters of each head.
    writer.add_rope_dimension_count(3 * _head(kind) // 4 if kind == "phi3" else _head(kind))
    writer.add_rope_freq_base(_ROPE_BASE.get(kind, 10000.0))
    if kind in {"gemma2", "gemma3", "phi3"}:
        writer.add_sliding_window(WINDOW)
    if kind == "gemma2":
        # Published: 50. Scores of random weights are of order one, and shall be capped visibly.
        writer.add_attn_logit_softcapping(2.0)
        writer.add_final_logit_softcapping(30.0)
    if kind == "gemma3":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
    if kind in _EXPERTS:
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(FF)
    if kind in _T5:
        writer.add_relative_attn_buckets_count(BUCKETS)
        writer.add_decoder_start_token_id(len(tokens) - 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 4) + [TokenType.CONTROL] * 4)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(len(tokens) - 4)
    writer.add_eos_token_id(len(tokens) - 3)


def _tensors(kind: str, n_layer: int, vocabulary: int) -> Iterator[Tensor]:
    yield "token_embd.weight", (vocabulary, WIDTH)
    if kind in _T5:
        yield from _t5(kind, n_layer, vocabulary)
        return
    if kind == "gpt2":
        yield "position_embd.weight", (CONTEXT, WIDTH)
    if kind == "bloom":
        yield from _with_bias(kind, "token_embd_norm", WIDTH)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        yield from _attention(kind, block)
        yield from _mlp(kind, block)
    yield from _with_bias(kind, "output_norm", WIDTH)


def _with_bias(kind: str, name: str, *shape: int) -> Iterator[Tensor]:
    yield f"{name}.weight", shape
    if kind in _BIASED:
        yield f"{name}.bias", shape[:1]


def _attention(kind: str, block: str) -> Iterator[Tensor]:
    kv_heads, size = _kv_heads(kind), _head(kind)
    yield from _with_bias(kind, f"{block}.attn_norm", WIDTH)
    if kind in _ONE_QKV_MATRIX:
        yield from _with_bias(kind, f"{block}.attn_qkv", (HEADS + 2 * kv_heads) * size, WIDTH)
    else:
        for name, heads in (("q", HEADS), ("k", kv_heads), ("v", kv_heads)):
            yield f"{block}.attn_{name}.weight", (heads * size, WIDTH)
            if kind == "qwen2":
                yield f"{block}.attn_{name}.bias", (heads * size,)
    if kind in _QK_NORM:
        yield f"{block}.attn_q_norm.weight", (size,)
        yield f"{block}.attn_k_norm.weight", (size,)
    yield from _with_bias(kind, f"{block}.attn_output", WIDTH, HEADS * size)
    if kind in _POST_NORM:
        yield f"{block}.post_attention_norm.weight", (WIDTH,)


def _mlp(kind: str, block: str) -> Iterator[Tensor]:
    yield from _with_bias(kind, f"{block}.ffn_norm", WIDTH)
    if kind in _POST_NORM:
        yield f"{block}.post_ffw_norm.weight", (WIDTH,)
    if kind in _EXPERTS:
        yield f"{block}.ffn_gate_inp.weight", (EXPERTS, WIDTH)
        yield f"{block}.ffn_gate_exps.weight", (EXPERTS, FF, WIDTH)
        yield f"{block}.ffn_up_exps.weight", (EXPERTS, FF, WIDTH)
        yield f"{block}.ffn_down_exps.weight", (EXPERTS, WIDTH, FF)
        return
    if kind not in _ONE_QKV_MATRIX:
        yield f"{block}.ffn_gate.weight", (FF, WIDTH)
    # Phi-3 has gate and up in one matrix.
    yield from _with_bias(kind, f"{block}.ffn_up", 2 * FF if kind == "phi3" else FF, WIDTH)
    yield from _with_bias(kind, f"{block}.ffn_down", WIDTH, FF)


def _t5(kind: str, n_layer: int, vocabulary: int) -> Iterator[Tensor]:
    """All but the embeddings. As published: no gate in the MLP, and the first layer's position bias serves all."""
    for stack in ("enc",) if kind == "t5encoder" else ("enc", "dec"):
        for layer in range(n_layer):
            block = f"{stack}.blk.{layer}"
            for attention in ("attn",) if stack == "enc" else ("attn", "cross_attn"):
                yield f"{block}.{attention}_norm.weight", (WIDTH,)
                for name in ("q", "k", "v"):
                    yield f"{block}.{attention}_{name}.weight", (WIDTH, WIDTH)
                yield f"{block}.{attention}_o.weight", (WIDTH, WIDTH)
            if layer == 0:
                yield f"{block}.attn_rel_b.weight", (BUCKETS, HEADS)
            yield f"{block}.ffn_norm.weight", (WIDTH,)
            yield f"{block}.ffn_up.weight", (FF, WIDTH)
            yield f"{block}.ffn_down.weight", (WIDTH, FF)
        yield f"{stack}.output_norm.weight", (WIDTH,)
    if kind == "t5":
        yield "output.weight", (vocabulary, WIDTH)
