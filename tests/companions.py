"""GGUF files that lie beside models and are none, as llama.cpp's tools write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGUFWriter
from numpy.typing import DTypeLike

__all__ = ["COMPANIONS", "Companion", "write_gguf"]

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


@dataclass(frozen=True, slots=True)
class Companion:
    """Something that is no model.

    Attributes:
        what: the start of what it is called.
        architecture: `general.architecture`.
        tensors: their names.
        describe: adds metadata.
    """

    what: str
    architecture: str
    tensors: tuple[str, ...]
    describe: Describe | None = None

    def write(self, path: Path) -> Path:
        """Write it under any name."""
        return write_gguf(path, self.architecture, self.tensors, self.describe)


_LOW_RANK: Final = ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b")
_SUMS: Final = ("blk.0.ffn_up.weight.in_sum2", "blk.0.ffn_up.weight.counts")

COMPANIONS: Final = {
    "adapter": Companion("an adapter", "llama", _LOW_RANK, _text("general.type", "adapter")),
    "older adapter": Companion("an adapter", "llama", ("blk.0.attn_q.weight",), _text("adapter.type", "lora")),
    "nameless adapter": Companion("a LoRA adapter", "llama", _LOW_RANK),
    "projector": Companion("a projector", "clip", ("mm.0.weight", "v.patch_embd.weight")),
    "declared projector": Companion("a projector", "llama", ("mm.0.weight",), _text("general.type", "mmproj")),
    "importance matrix": Companion("an importance matrix", "llama", _SUMS, _text("general.type", "imatrix")),
    "nameless importance matrix": Companion("an importance matrix", "llama", _SUMS),
    "control vector": Companion("a control vector", "controlvector", ("direction.1",)),
    "vocabulary": Companion("a vocabulary", "llama", (), lambda writer: writer.add_token_list(["a", "b"])),
}
"""One of each kind, by a name."""
