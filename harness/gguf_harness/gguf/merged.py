"""LoRA adapters merged into the weights of a model: W + sum of scale * factor * B A in place of each W.

As llama-export-lora (llama.cpp, tools/export-lora) does it, a changed matrix is written in F16; those in F32 or BF16
keep their type. Products are formed in float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import StoreError, write_error
from gguf_harness.gguf.header import TENSOR_TYPES, TensorInfo, read_header
from gguf_harness.gguf.rewritten import Content, padded, stored, write_tensors
from gguf_harness.gguf.weights import Weights

if TYPE_CHECKING:
    from gguf_harness.gguf.lora_files import LoraFile, LoraPair

__all__ = ["change_of", "factors_of", "write_merged"]

Floats = NDArray[np.float32]

_TYPES: Final = {kind.name: kind for kind in TENSOR_TYPES.values()}


def factors_of(weights: Weights, pair: LoraPair) -> list[tuple[Floats, Floats]]:
    """(A [rank, in], B [out, rank]) of a pair, one for each expert.

    Args:
        weights: of the adapter's file.
        pair: one of its pairs.
    """
    a, b = weights.tensor(pair.a.name), weights.tensor(pair.b.name)
    if pair.of_embeddings:
        return [(np.ascontiguousarray(b.T), a)]
    if a.ndim == 2:
        return [(a, b)]
    return list(zip(a, b, strict=True))


def change_of(weights: Weights, lora: LoraFile, pair: LoraPair, scale: float) -> Floats:
    """Scale * factor * B A: [out, in], or [experts, out, in]."""
    factor = np.float32(scale * lora.factor(pair))
    changes = [factor * (b @ a) for a, b in factors_of(weights, pair)]
    return changes[0] if len(pair.shape) == 2 else np.stack(changes)


def write_merged(files: Sequence[Path], loras: Sequence[tuple[LoraFile, float]], folder: Path) -> tuple[Path, ...]:
    """Write a model with adapters merged into it.

    Args:
        files: the model, or all its splits.
        loras: adapters that fit it, each with its scale.
        folder: where files of the same names are written; not that of `files`.

    Returns:
        The new files.

    Raises:
        StoreError: no space, or no permission.
    """
    model = Weights(files)
    adapters = [(Weights([lora.header.path]), lora, scale) for lora, scale in loras]

    def merged(info: TensorInfo) -> Content | None:
        own = [(weights, lora, scale) for weights, lora, scale in adapters if info.name in lora.pairs]
        if not own:
            return None
        new = _as_written(info)

        def data() -> Iterator[bytes]:
            total = model.tensor(info.name)
            for weights, lora, scale in own:
                total = total + change_of(weights, lora, lora.pairs[info.name], scale)
            yield _encoded(total, new.type).tobytes()

        return new, data

    headers = [read_header(file) for file in files]
    contents = [[merged(info) or stored(header, info) for info in header.tensors] for header in headers]
    try:
        needed = sum(padded(info.bytes, 32) for content in contents for info, _ in content)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise StoreError(
                f"A merged model needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free.",
                "Free some space, or choose another --gguf-cache folder.",
            )
        return tuple(
            write_tensors(header, content, folder / header.path.name)
            for header, content in zip(headers, contents, strict=True)
        )
    except OSError as error:
        raise write_error(folder, error) from error


def _as_written(info: TensorInfo) -> TensorInfo:
    kind = info.type if info.type in {"F32", "BF16"} else "F16"
    return replace(info, type=kind, bytes=info.parameters * _TYPES[kind].block_bytes)


def _encoded(values: Floats, kind: str) -> NDArray[Any]:
    if kind == "F32":
        return values
    if kind == "F16":
        return values.astype(np.float16)
    from gguf import GGMLQuantizationType, quants

    return np.asarray(quants.quantize(values, GGMLQuantizationType.BF16))
