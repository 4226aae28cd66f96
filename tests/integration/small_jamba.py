"""A small Jamba with random weights: attention in every other layer, a state-space model (Mamba) in the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from tests.random_llama import byte_alphabet

__all__ = ["ATTENTION_LAYERS", "HEADS", "KV_HEADS", "LAYERS", "WIDTH", "write_small_jamba"]

LAYERS, ATTENTION_LAYERS = 4, (1, 3)
WIDTH, HEADS, KV_HEADS, FF = 64, 4, 2, 96
CONV, INNER, STATE, RANK = 4, 2 * WIDTH, 16, 8


def write_small_jamba(path: Path) -> Path:
    """Write a model in F32, whose tokens are the bytes."""
    tokens = [*byte_alphabet(), "<|bos|>"]
    writer = GGUFWriter(path, "jamba")
    writer.add_name(path.stem)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([KV_HEADS if layer in ATTENTION_LAYERS else 0 for layer in range(LAYERS)])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
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
    for name, values in _tensors(len(tokens), random):
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(vocabulary: int, random: np.random.Generator) -> Iterator[tuple[str, NDArray[np.float64]]]:
    def matrix(rows: int, columns: int) -> NDArray[np.float64]:
        values: NDArray[np.float64] = random.standard_normal((rows, columns)) * columns**-0.5
        return values

    yield "token_embd.weight", 0.3 * random.standard_normal((vocabulary, WIDTH))
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", np.ones(WIDTH)
        if layer in ATTENTION_LAYERS:
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                yield f"{block}.attn_{name}.weight", matrix(heads * WIDTH // HEADS, WIDTH)
            yield f"{block}.attn_output.weight", matrix(WIDTH, WIDTH)
        else:
            yield f"{block}.ssm_in.weight", matrix(2 * INNER, WIDTH)
            yield f"{block}.ssm_conv1d.weight", matrix(INNER, CONV)
            yield f"{block}.ssm_conv1d.bias", 0.1 * random.standard_normal(INNER)
            yield f"{block}.ssm_x.weight", matrix(RANK + 2 * STATE, INNER)
            yield f"{block}.ssm_dt_norm.weight", np.ones(RANK)
            yield f"{block}.ssm_dt.weight", matrix(INNER, RANK)
            yield f"{block}.ssm_dt.bias", 0.1 * random.standard_normal(INNER)
            yield f"{block}.ssm_b_norm.weight", np.ones(STATE)
            yield f"{block}.ssm_c_norm.weight", np.ones(STATE)
            # As published: S4D-real, -1 to -n.
            yield f"{block}.ssm_a", -np.tile(np.arange(1.0, STATE + 1), (INNER, 1))
            yield f"{block}.ssm_d", np.ones(INNER)
            yield f"{block}.ssm_out.weight", matrix(WIDTH, INNER)
        yield f"{block}.ffn_norm.weight", np.ones(WIDTH)
        yield f"{block}.ffn_gate.weight", matrix(FF, WIDTH)
        yield f"{block}.ffn_up.weight", matrix(FF, WIDTH)
        yield f"{block}.ffn_down.weight", matrix(WIDTH, FF)
    yield "output_norm.weight", np.ones(WIDTH)
