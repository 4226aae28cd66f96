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
    """Attention of every head, from what goes into a layer to what comes out of it.

    An edge of layer l goes from the key's token at level l to the query's token at level l + 1, and has the columns
    layer and head; its weight is the attention weight. Small weights are left out: there are layers x heads x
    positions^2 of them.

    Args:
        name: what of: a model and a prompt.
        pattern: [layers, heads, positions, keys], weights from 0 to 1 (the taps `blocks.*.attn.pattern`).
        tokens: pieces of text, one per position.
        threshold: least weight of an edge.
        top_k: most edges of a position in a head.
        provenance: what else to keep of where it is from.

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
        found = attention_edges(self.pattern, self.threshold, self.top_k)
        nodes = grid_nodes(len(self.pattern) + 1, self.tokens)
        ids, width = np.asarray(nodes["id"].values), len(self.tokens)
        return Graph(
            name=self.name,
            kind="attention",
            meaning=f"Attention weights of at least {self.threshold:g}, the {self.top_k} largest of each position in"
            " each head. An edge goes from the token that is looked at, below, to the token that looks, above.",
            nodes=nodes,
            edges={
                "source": Column("string", ids[found.layer * width + found.key]),
                "target": Column("string", ids[(found.layer + 1) * width + found.query]),
                "kind": Column("string", ["attention"] * len(found.weight)),
                "weight": Column("float64", found.weight),
                "layer": Column("int64", found.layer),
                "head": Column("int64", found.head),
            },
            axes=("token", "layer"),
            provenance={"threshold": self.threshold, "top_k": self.top_k, **self.provenance},
        )
