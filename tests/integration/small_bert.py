"""A small BERT with random weights, as embedding models are: no decoder, and a file that says how tokens are pooled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

__all__ = ["CONTEXT", "FF", "HEADS", "LAYERS", "TOKENS", "WIDTH", "write_small_bert"]

WIDTH, HEADS, FF, CONTEXT, LAYERS = 64, 4, 96, 64, 2
_WORDS = ["dog", "cat", "horse", "red", "green", "blue", "one", "two", "three", "the", "is"]
# llama.cpp's spelling: a word begins with U+2581, what goes on does not.
TOKENS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", *("\u2581" + word for word in _WORDS),
    *("\u2581" + chr(letter) for letter in range(97, 123)), *(chr(letter) for letter in range(97, 123)),
]  # fmt: skip


def write_small_bert(path: Path, pooling: PoolingType = PoolingType.MEAN, *, seed: int = 0) -> Path:
    """Write a model in F32."""
    writer = GGUFWriter(path, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 4 + [TokenType.NORMAL] * (len(TOKENS) - 4))
    writer.add_token_type_count(2)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1 if len(shape) == 1 else 0.2)
        writer.add_tensor(name, values + np.float32("norm.weight" in name))

    def normed(name: str) -> None:
        add(f"{name}.weight", WIDTH)
        add(f"{name}.bias", WIDTH)

    add("token_embd.weight", len(TOKENS), WIDTH)
    add("position_embd.weight", CONTEXT, WIDTH)
    add("token_types.weight", 2, WIDTH)
    normed("token_embd_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}.{name}.weight", WIDTH, WIDTH)
            add(f"{block}.{name}.bias", WIDTH)
        normed(f"{block}.attn_output_norm")
        add(f"{block}.ffn_up.weight", FF, WIDTH)
        add(f"{block}.ffn_up.bias", FF)
        add(f"{block}.ffn_down.weight", WIDTH, FF)
        add(f"{block}.ffn_down.bias", WIDTH)
        normed(f"{block}.layer_output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
