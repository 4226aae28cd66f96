"""A graph as two tables of typed columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData

__all__ = ["Column", "ColumnType", "Graph", "GraphBuilder", "Table"]

ColumnType = Literal["string", "int64", "float64", "list<int64>"]

_NODE_COLUMNS: Final[dict[str, ColumnType]] = {
    "id": "string", "kind": "string", "label": "string", "x": "float64", "y": "float64"
}  # fmt: skip
_EDGE_COLUMNS: Final[dict[str, ColumnType]] = {
    "source": "string", "target": "string", "kind": "string", "weight": "float64"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one type; None if missing."""

    type: ColumnType
    values: Sequence[Any] | NDArray[np.generic]


Table = Mapping[str, Column]
"""Columns of the same length, by name."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes and edges.

    Attributes:
        name: for file names and titles.
        kind: "structure", "attention", "flow" or "cosine".
        meaning: what nodes, edges and weights are, in a sentence or two for the viewer.
        nodes: id, kind, label, x, y (a layout), and columns of the kind.
        edges: source, target (ids), kind, weight, and columns of the kind.
        axes: titles of x and y; empty if a direction has no meaning.
        provenance: its origin, as JSON types.

    Raises:
        NoData: there are no nodes.
        ValueError: invalid tables, or an edge without its nodes.
    """

    name: str
    kind: str
    meaning: str
    nodes: Table
    edges: Table
    axes: tuple[str, str] = ("", "")
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_table("nodes", self.nodes, _NODE_COLUMNS)
        _check_table("edges", self.edges, _EDGE_COLUMNS)
        if self.n_nodes == 0:
            raise NoData(f"The graph {self.name!r} has no nodes.")
        ids = np.asarray(self.nodes["id"].values, dtype=np.str_)
        if len(np.unique(ids)) < len(ids):
            raise ValueError("Two nodes have the same id")
        for end in ("source", "target"):
            missing = ~np.isin(np.asarray(self.edges[end].values, dtype=np.str_), ids)
            if missing.any():
                raise ValueError(f"{int(missing.sum())} edges have a {end} that is not a node")
        for table, name in ((self.nodes, "x"), (self.nodes, "y"), (self.edges, "weight")):
            if not np.isfinite(np.asarray(table[name].values, dtype=np.float64)).all():
                raise ValueError(f"{name} is not finite everywhere")

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.nodes["id"].values)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.edges["source"].values)


class GraphBuilder(Protocol):
    """Builds a graph from plain data."""

    def build(self) -> Graph:
        """The graph.

        Raises:
            NoData: no data, or numbers that are not finite.
        """


def _check_table(what: str, table: Table, required: Mapping[str, ColumnType]) -> None:
    for name, kind in required.items():
        if name not in table or table[name].type != kind:
            raise ValueError(f"{what} need a column {name} of type {kind}")
    if len({len(column.values) for column in table.values()}) > 1:
        raise ValueError(f"Columns of {what} differ in length")
