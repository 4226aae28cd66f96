"""A small llama model with random weights, written in a moment: real for llama.cpp, meaningless otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType

from tests.model_store import written_once

__all__ = ["byte_alphabet", "write_random_llama"]

BOS, N_BYTES = 256, 256


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte (Radford et al., 2019, encoder.py)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in kept else next(spare)) for byte in range(256)]


@written_once
def write_random_llama(
    path: Path,
    *,
    seed: int = 0,
    n_layer: int = 2,
    width: int = 256,
    extra_tokens: int = 0,
    add_bos: bool = False,
    noise: float = 0.0,
    heads: int = 4,
    text: bool = False,
    chat_template: str | None = None,
    eos: int = BOS,
    untied: bool = False,
) -> Path:
    """Write a model in F32.

    Args:
        path: destination.
        seed: of the weights.
        n_layer: number of layers.
        width: of the residual stream; a multiple of 256 lets K-quants apply.
        extra_tokens: tokens beyond the bytes, to make another vocabulary.
        add_bos: whether the vocabulary asks for BOS.
        noise: relative noise on all matrices: a candidate that differs from its reference.
        heads: attention heads; half as many share keys and values.
        text: whether it generates ASCII, as long as it is asked to, rather than any bytes. llama_cpp.server goes on
            past the limit of tokens while a character is incomplete, which bytes may be for ever.
        chat_template: in Jinja; none if not given.
        eos: the token that ends a text; BOS if not given.
        untied: whether the unembedding is a matrix of its own.
    """
    random = np.random.default_rng(seed)
    disturb = np.random.default_rng(seed + 1)
    alphabet = byte_alphabet()
    tokens = [
        *alphabet,
        "<|bos|>",
        alphabet[ord("e")] + alphabet[ord(" ")],
        *(f"<extra{i}>" for i in range(extra_tokens)),
    ]
    kv_width = width // heads * (heads // 2)
    writer = GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = [TokenType.NORMAL] * N_BYTES + [TokenType.CONTROL] + [TokenType.NORMAL] * (1 + extra_tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{alphabet[ord('e')]} {alphabet[ord(' ')]}"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    def matrix(name: str, rows: int, columns: int, scale: float, quiet: slice = slice(0)) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)
        values += np.float32(noise * scale) * disturb.standard_normal((rows, columns), dtype=np.float32)
        values[quiet] *= 0.1
        writer.add_tensor(name, values)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    # Larger embeddings than usual: the distributions shall not be flat.
    matrix("token_embd.weight", len(tokens), width, 0.3, quiet=slice(128, BOS + 1) if text else slice(0))
    for layer in range(n_layer):
        prefix = f"blk.{layer}"
        ones(f"{prefix}.attn_norm.weight")
        matrix(f"{prefix}.attn_q.weight", width, width, width**-0.5)
        matrix(f"{prefix}.attn_k.weight", kv_width, width, width**-0.5)
        matrix(f"{prefix}.attn_v.weight", kv_width, width, width**-0.5)
        matrix(f"{prefix}.attn_output.weight", width, width, width**-0.5)
        ones(f"{prefix}.ffn_norm.weight")
        matrix(f"{prefix}.ffn_gate.weight", 2 * width, width, width**-0.5)
        matrix(f"{prefix}.ffn_up.weight", 2 * width, width, width**-0.5)
        matrix(f"{prefix}.ffn_down.weight", width, 2 * width, (2 * width) ** -0.5)
    ones("output_norm.weight")
    if untied:
        matrix("output.weight", len(tokens), width, 0.3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
