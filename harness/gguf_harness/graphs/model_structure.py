"""Structure of a model: model -> block -> tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gguf_harness.errors import NoData
from gguf_harness.gguf.header import GGUFHeader, TensorInfo
from gguf_harness.graphs.graph import Column, Graph

__all__ = ["ModelStructure"]

_BLOCK: Final = re.compile(r"((?:.*\.)?blk\.(\d+))\.")


@dataclass(frozen=True, slots=True)
class ModelStructure:
    """Every tensor of a model, with its type, shape and size.

    Nodes have the columns tensor_type (None but for tensors), shape (ggml's order, None but for tensors), parameters,
    bytes, and bits (per weight). The weight of an edge is the share of the parent's bytes. Blocks are identified by the
    names of their tensors ("blk.3.attn_q.weight", "enc.blk.0.ffn_up.weight"); other tensors belong to the model itself.

    Args:
        name: of the model.
        headers: of its file, or of all splits.
        provenance: additional information on its origin.

    Raises:
        NoData: from `build`: files without tensors.
    """

    name: str
    headers: Sequence[GGUFHeader]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Graph:
        """The tree, from left to right, a line per tensor."""
        tensors = [tensor for header in self.headers for tensor in header.tensors]
        if not tensors:
            raise NoData(f"{self.name} has no tensors.", "Give a model.")
        rows = _Rows()
        root = rows.add("model:", "model", self.name, tensors, x=0.0)
        rows.leaves([tensor for tensor in tensors if _block(tensor) is None], parent=root)
        for block in sorted(filter(None, {_block(tensor) for tensor in tensors})):
            members = [tensor for tensor in tensors if _block(tensor) == block]
            node = rows.add(f"block:{block[2]}", "block", block[2], members, x=1.0, parent=root)
            rows.leaves(members, parent=node)
        rows.center(root)
        return Graph(
            name=self.name,
            kind="structure",
            meaning="Every tensor of the model, with its type, shape and size. The weight of an edge is the share of"
            " its parent's bytes.",
            nodes=rows.nodes(),
            edges=rows.edges(),
            provenance={"files": [header.path.name for header in self.headers], **self.provenance},
        )


def _block(tensor: TensorInfo) -> tuple[str, int, str] | None:
    """(prefix, number, name) of the block of a tensor: sorts blk.2 before blk.10."""
    match = _BLOCK.match(tensor.name)
    # Too long for a layer number: Python refuses to convert very long ones.
    if match is None or len(match[2]) > 9:
        return None
    return match[1].removesuffix(match[2]), int(match[2]), match[1]


class _Rows:
    """Nodes under construction: a row each, with edges from their parents."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._parents: list[int | None] = []
        self._line = 0

    def add(
        self, identifier: str, kind: str, label: str, tensors: Sequence[TensorInfo], x: float, parent: int | None = None
    ) -> int:
        """Add a node for these tensors; returns its number."""
        parameters, size = sum(t.parameters for t in tensors), sum(t.bytes for t in tensors)
        leaf = tensors[0] if kind == "tensor" else None
        self._rows.append(
            {
                "id": identifier,
                "kind": kind,
                "label": label,
                "x": x,
                "y": -float(self._line),
                "tensor_type": leaf.type if leaf else None,
                "shape": list(leaf.shape) if leaf else None,
                "parameters": parameters,
                "bytes": size,
                "bits": 8 * size / parameters,
            }
        )
        self._parents.append(parent)
        return len(self._rows) - 1

    def leaves(self, tensors: Sequence[TensorInfo], parent: int) -> None:
        """Add a node for each tensor; the parent moves to their middle."""
        for tensor in tensors:
            self.add(f"tensor:{tensor.name}", "tensor", tensor.name, [tensor], x=2.0, parent=parent)
            self._line += 1
        self.center(parent)

    def center(self, parent: int) -> None:
        """Move a node to the middle of its children."""
        lines = [row["y"] for row, above in zip(self._rows, self._parents, strict=True) if above == parent]
        if lines:
            self._rows[parent]["y"] = (lines[0] + lines[-1]) / 2

    def nodes(self) -> dict[str, Column]:
        """Their table."""

        def column(name: str) -> list[Any]:
            return [row[name] for row in self._rows]

        return {
            **{name: Column("string", column(name)) for name in ("id", "kind", "label", "tensor_type")},
            "shape": Column("list<int64>", column("shape")),
            **{name: Column("int64", column(name)) for name in ("parameters", "bytes")},
            **{name: Column("float64", column(name)) for name in ("bits", "x", "y")},
        }

    def edges(self) -> dict[str, Column]:
        """From each parent to its children."""
        pairs = [
            (self._rows[parent], row)
            for parent, row in zip(self._parents, self._rows, strict=True)
            if parent is not None
        ]
        return {
            "source": Column("string", [parent["id"] for parent, _ in pairs]),
            "target": Column("string", [child["id"] for _, child in pairs]),
            "kind": Column("string", ["contains"] * len(pairs)),
            "weight": Column("float64", [child["bytes"] / parent["bytes"] for parent, child in pairs]),
        }
