"""A small DeepSeek-V2 with random weights: multi-head latent attention, with matrices that absorb keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType

from tests.model_store import written_once
from tests.random_llama import byte_alphabet

__all__ = ["HEADS", "LATENT", "LAYERS", "ROPE", "write_small_deepseek2"]

LAYERS, WIDTH, HEADS, FF = 3, 64, 4, 96
LATENT, ROPE, NOPE, VALUE, QUERY_RANK = 64, 32, 16, 24, 48


@written_once
def write_small_deepseek2(path: Path) -> Path:
    """Write a model in F32, whose tokens are the bytes. All layers are dense."""
    tokens = [*byte_alphabet(), "<|bos|>"]
    writer = GGUFWriter(path, "deepseek2")
    writer.add_name(path.stem)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    # Of the latents, which all heads share.
    writer.add_head_count_kv(1)
    writer.add_key_length(LATENT + ROPE)
    writer.add_value_length(LATENT)
    writer.add_key_length_mla(NOPE + ROPE)
    writer.add_value_length_mla(VALUE)
    writer.add_kv_lora_rank(LATENT)
    writer.add_q_lora_rank(QUERY_RANK)
    writer.add_rope_dimension_count(ROPE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_leading_dense_block_count(LAYERS)
    writer.add_expert_feed_forward_length(FF)
    writer.add_expert_shared_count(1)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL])
    writer.add_token_merges([f"{tokens[ord('e')]} {tokens[ord('e')]}"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    random = np.random.default_rng(0)
    for name, shape in _tensors(len(tokens)):
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)
        writer.add_tensor(name, np.ones(shape, dtype=np.float32) if "norm" in name else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in numpy's order."""
    yield "token_embd.weight", (vocabulary, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (WIDTH,)
        yield f"{block}.attn_q_a.weight", (QUERY_RANK, WIDTH)
        yield f"{block}.attn_q_a_norm.weight", (QUERY_RANK,)
        yield f"{block}.attn_q_b.weight", (HEADS * (NOPE + ROPE), QUERY_RANK)
        yield f"{block}.attn_kv_a_mqa.weight", (LATENT + ROPE, WIDTH)
        yield f"{block}.attn_kv_a_norm.weight", (LATENT,)
        yield f"{block}.attn_k_b.weight", (HEADS, LATENT, NOPE)
        yield f"{block}.attn_v_b.weight", (HEADS, VALUE, LATENT)
        yield f"{block}.attn_output.weight", (WIDTH, HEADS * VALUE)
        yield f"{block}.ffn_norm.weight", (WIDTH,)
        yield f"{block}.ffn_gate.weight", (FF, WIDTH)
        yield f"{block}.ffn_up.weight", (FF, WIDTH)
        yield f"{block}.ffn_down.weight", (WIDTH, FF)
    yield "output_norm.weight", (WIDTH,)
