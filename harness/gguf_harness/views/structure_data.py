"""What the view `structure` draws of a file: every tensor with its type and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_harness.errors import visible
from gguf_harness.gguf.groups import layer_of, role_of
from gguf_harness.gguf.header import TensorInfo

__all__ = ["fallback_note", "structure_view"]


def structure_view(
    tensors: Sequence[TensorInfo], fallbacks: Sequence[Mapping[str, Any]] = (), beside: Sequence[TensorInfo] = ()
) -> dict[str, Any]:
    """Data of the view `structure`, see views/src/structure.js: without errors, since there is nothing to compare with.

    Args:
        tensors: of a model's files, in their order.
        fallbacks: those that have another type than the recipe wanted, as `ModelInfo.fallbacks` has them.
        beside: tensors of models that it is seen beside: all have one scale.
    """
    fallen = {entry["tensor"]: entry for entry in fallbacks}
    everything = [tensor for tensor in (*tensors, *beside) if tensor.parameters]
    rows: list[dict[str, Any]] = [
        {
            "layer": layer_of(tensor.name),
            "kind": visible(role_of(tensor.name)),
            "name": visible(tensor.name),
            "type": visible(tensor.type),
            "bits": 8 * tensor.bytes / tensor.parameters,
            "weights": tensor.parameters,
            "bytes": tensor.bytes,
            "error": None,
            "fallback": fallback_note(fallen[tensor.name], tensor.parameters) if tensor.name in fallen else None,
        }
        for tensor in tensors
        if tensor.parameters
    ]
    return {
        "layers": sorted({row["layer"] for row in rows if row["layer"] is not None}),
        "kinds": list(dict.fromkeys(row["kind"] for row in rows if row["layer"] is not None)),
        "outside": list(dict.fromkeys(row["kind"] for row in rows if row["layer"] is None)),
        "tensors": rows,
        "scales": {
            "bits": _ends([8 * tensor.bytes / tensor.parameters for tensor in everything]),
            "bytes": _ends([float(tensor.bytes) for tensor in everything]),
            "error": None,
        },
    }


def fallback_note(fallback: Mapping[str, Any], weights: int) -> str:
    """Why a tensor's type is not the recipe's, with its shape.

    Args:
        fallback: an entry of `ModelInfo.fallbacks`.
        weights: of the tensor.
    """
    width = fallback["row_width"]
    shape = f"{width} x {weights // width}" if width else "unknown shape"
    return f"{shape}: rows are no multiple of 256, so not {visible(str(fallback['wanted']))}"


def _ends(values: list[float]) -> list[float] | None:
    return [min(values), max(values)] if values else None
