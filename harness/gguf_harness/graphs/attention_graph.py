"""Which token attends to which, in each layer and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.graphs.graph import Column, Graph
from gguf_harness.graphs.token_grid import attention_edges, check_pattern, grid_nodes

__all__ = ["AttentionGraph"]


@dataclass(frozen=True, slots=True)
class AttentionGraph:
    """Attention of every head, from the input of a layer to its output.

    An edge of layer l goes from the key's token at level l to the query's token at level l + 1, and has the columns
    layer and head; its weight is the attention weight. Small weights are left out: there are layers x heads x
    positions^2 of them.

    Args:
        name: the model and prompt shown.
        pattern: [layers, heads, positions, keys], weights from 0 to 1 (the taps `blocks.*.attn.pattern`).
        tokens: pieces of text, one per position.
        threshold: least weight of an edge.
        top_k: most edges of a position in a head.
        provenance: additional information on its origin.

    Raises:
        NoData: from `build`: a pattern that is empty or not finite.
    """

    name: str
    pattern: NDArray[np.floating]
    tokens: Sequence[str]
    threshold: float = 0.1
    top_k: int = 4
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Graph:
        """The graph on a grid of layers and tokens."""
        check_pattern(self.pattern, self.tokens)
        edges = attention_edges(self.pattern, self.threshold, self.top_k)
        nodes = grid_nodes(len(self.pattern) + 1, self.tokens)
        ids, width = np.asarray(nodes["id"].values), len(self.tokens)
        return Graph(
            name=self.name,
            kind="attention",
            meaning=f"Attention weights of at least {self.threshold:g}, the {self.top_k} largest of each position in"
            " each head. An edge goes from the attended token, below, to the attending token, above.",
            nodes=nodes,
            edges={
                "source": Column("string", ids[edges.layer * width + edges.key]),
                "target": Column("string", ids[(edges.layer + 1) * width + edges.query]),
                "kind": Column("string", ["attention"] * len(edges.weight)),
                "weight": Column("float64", edges.weight),
                "layer": Column("int64", edges.layer),
                "head": Column("int64", edges.head),
            },
            axes=("token", "layer"),
            provenance={"threshold": self.threshold, "top_k": self.top_k, **self.provenance},
        )
