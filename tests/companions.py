"""GGUF files that lie beside models and are none, as llama.cpp's tools write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGUFWriter
from numpy.typing import DTypeLike

__all__ = ["COMPANIONS", "write_gguf"]

Describe = Callable[[GGUFWriter], None]


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Iterable[str],
    describe: Describe | None = None,
    dtype: DTypeLike = np.float32,
) -> Path:
    """Write a file with tensors of 4 by 8 ones.

    Args:
        path: destination.
        architecture: `general.architecture`.
        tensors: their names.
        describe: adds metadata.
        dtype: of the tensors.
    """
    writer = GGUFWriter(path, architecture)
    if describe is not None:
        describe(writer)
    for name in tensors:
        writer.add_tensor(name, np.ones((8, 4), dtype=dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _text(key: str, value: str) -> Describe:
    return lambda writer: writer.add_string(key, value)


COMPANIONS: Final[dict[str, tuple[str, tuple[str, ...], Describe | None, str]]] = {
    "adapter": ("llama", ("blk.0.attn_q.weight.lora_a",), _text("general.type", "adapter"), "an adapter"),
    "older adapter": ("llama", ("blk.0.attn_q.weight",), _text("adapter.type", "lora"), "an adapter"),
    "nameless adapter": (
        "llama",
        ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"),
        None,
        "a LoRA adapter",
    ),
    "projector": ("clip", ("mm.0.weight", "v.patch_embd.weight"), None, "a projector"),
    "declared projector": ("llama", ("mm.0.weight",), _text("general.type", "mmproj"), "a projector"),
    "importance matrix": ("llama", ("blk.0.ffn_up.weight.in_sum2",), _text("general.type", "imatrix"), "an importance"),
    "nameless importance matrix": (
        "llama",
        ("blk.0.ffn_up.weight.in_sum2", "blk.0.ffn_up.weight.counts"),
        None,
        "an importance matrix",
    ),
    "control vector": ("controlvector", ("direction.1",), None, "a control vector"),
    "vocabulary": ("llama", (), lambda writer: writer.add_token_list(["a", "b"]), "a vocabulary without weights"),
}
"""Architecture, tensors, further metadata, and what it is; by a name."""
