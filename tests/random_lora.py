"""A small LoRA adapter with random weights, and the model that it makes of another when it is merged into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from tests.rewritten import rewrite_gguf

__all__ = ["EVERY_MATRIX", "merge_lora", "write_lora", "write_random_lora"]

EVERY_MATRIX = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_ALPHA = "adapter.lora.alpha"


def write_random_lora(
    path: Path,
    model: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8.0,
    size: float = 0.01,
    matrices: Sequence[str] = EVERY_MATRIX,
    architecture: str = "llama",
    too_wide: int = 0,
    activated: bool = False,
) -> Path:
    """Write an adapter in F32.

    Args:
        path: destination.
        model: whose matrices are adapted.
        seed: of the weights.
        rank: columns of each B.
        alpha: as `adapter.lora.alpha`.
        size: standard deviation of the entries of B A.
        matrices: of each layer, that are adapted.
        architecture: as `general.architecture`.
        too_wide: columns of each A that the model's matrix has not.
        activated: whether it is to be on after certain tokens only.
    """
    random = np.random.default_rng(seed)
    factors: dict[str, NDArray[Any]] = {}
    for tensor in GGUFReader(model).tensors:
        if tensor.name.removesuffix(".weight").rpartition(".")[2] in matrices:
            columns, rows = map(int, tensor.shape)
            a = random.standard_normal((rank, columns + too_wide), dtype=np.float32)
            b = random.standard_normal((rows, rank), dtype=np.float32) * np.float32(size / rank**0.5)
            factors |= {f"{tensor.name}.lora_a": a, f"{tensor.name}.lora_b": b}
    return write_lora(path, factors, alpha=alpha, architecture=architecture, activated=activated)


def write_lora(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    alpha: float | None = 8.0,
    architecture: str = "llama",
    activated: bool = False,
    kind: str = "adapter",
    adapter: str = "lora",
) -> Path:
    """Write an adapter of any tensors, whether they make sense or not.

    Args:
        path: destination.
        tensors: by name, `.lora_a` or `.lora_b` at its end; [rank, in] and [out, rank].
        alpha: as `adapter.lora.alpha`; None for none.
        architecture: as `general.architecture`.
        activated: whether it is to be on after certain tokens only.
        kind: as `general.type`.
        adapter: as `adapter.type`.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_string("adapter.type", adapter)
    if alpha is not None:
        writer.add_float32(_ALPHA, alpha)
    if activated:
        writer.add_key_value("adapter.alora.invocation_tokens", [5], GGUFValueType.ARRAY, GGUFValueType.UINT32)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merge_lora(path: Path, model: Path, *scaled: tuple[Path, float]) -> Path:
    """Write a model with W + sum of scale * alpha / rank * B A in place of each W, from (adapter, scale) each."""
    readers = [(GGUFReader(adapter), scale) for adapter, scale in scaled]

    def merged(name: str, values: NDArray[Any]) -> NDArray[Any]:
        total = values.astype(np.float64)
        for reader, scale in readers:
            parts = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
            if f"{name}.lora_a" in parts:
                a, b = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
                total += scale * reader.fields[_ALPHA].contents() / len(a) * (b @ a)
        return total.astype(values.dtype)

    return rewrite_gguf(model, path, merged)
