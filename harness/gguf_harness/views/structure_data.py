"""What the view `structure` draws of a file: every tensor with its type and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguf_harness.errors import visible
from gguf_harness.gguf.groups import layer_of, role_of
from gguf_harness.gguf.header import TensorInfo

__all__ = ["structure_view"]


def structure_view(tensors: Sequence[TensorInfo]) -> dict[str, Any]:
    """Data of the view `structure`, see views/src/structure.js: without errors, since there is nothing to compare with.

    Args:
        tensors: of a model's files, in their order.
    """
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
            "fallback": None,
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
            "bits": _ends([row["bits"] for row in rows]),
            "bytes": _ends([row["bytes"] for row in rows]),
            "error": None,
        },
    }


def _ends(values: list[float]) -> list[float] | None:
    return [min(values), max(values)] if values else None
