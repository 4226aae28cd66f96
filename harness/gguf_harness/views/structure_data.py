"""What the view `structure` draws of a file: every tensor with its type and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_harness.errors import visible
from gguf_harness.gguf.groups import layer_of, role_of
from gguf_harness.gguf.header import TensorInfo

__all__ = ["fallback_note", "scales_of", "structure_of", "structure_view"]


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
    bits, sizes = ([8 * each.bytes / each.parameters for each in everything], [each.bytes for each in everything])
    return structure_of(rows, scales_of(bits, sizes, []))


def structure_of(rows: Sequence[Mapping[str, Any]], scales: Mapping[str, Any]) -> dict[str, Any]:
    """The same from rows: {layer, kind, name, type, bits, weights, bytes, error, fallback} of each tensor."""
    return {
        "layers": sorted({row["layer"] for row in rows if row["layer"] is not None}),
        "kinds": list(dict.fromkeys(row["kind"] for row in rows if row["layer"] is not None)),
        "outside": list(dict.fromkeys(row["kind"] for row in rows if row["layer"] is None)),
        "tensors": list(rows),
        "scales": dict(scales),
    }


def scales_of(bits: Sequence[float], sizes: Sequence[float], errors: Sequence[float]) -> dict[str, list[float] | None]:
    """Ends of the scales of colours, over all tensors that are shown beside each other; None where there are none."""
    return {
        name: [min(values), max(values)] if values else None
        for name, values in (("bits", bits), ("bytes", sizes), ("error", errors))
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
