"""Flow of tokens through the layers: the residual stream, and the input from attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.graphs.graph import Column, Graph
from gguf_harness.graphs.token_grid import attention_edges, check_pattern, grid_nodes
from gguf_harness.metrics.kernels.directions import cosine

__all__ = ["LayerTokenFlow"]


@dataclass(frozen=True, slots=True)
class LayerTokenFlow:
    """Residual edges from a token to itself one layer up, and attention edges to the tokens that attend to it.

    The weight of a residual edge is the cosine of the stream before and after the layer, from -1 to 1; missing if one
    of them is zero. The weight of an attention edge is the mean over heads of the attention weight.

    Args:
        name: the model and prompt shown.
        states: [layers + 1, positions, d], the residual stream: the embeddings, then the output of each layer.
        pattern: [layers, heads, positions, keys], weights from 0 to 1.
        tokens: pieces of text, one per position.
        threshold: least weight of an attention edge.
        top_k: most attention edges into a token.
        provenance: additional information on its origin.

    Raises:
        NoData: from `build`: states or a pattern that are empty or not finite.
    """

    name: str
    states: NDArray[np.floating]
    pattern: NDArray[np.floating]
    tokens: Sequence[str]
    threshold: float = 0.05
    top_k: int = 3
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Graph:
        """The graph on a grid of layers and tokens."""
        check_pattern(self.pattern, self.tokens)
        layers, width = len(self.pattern), len(self.tokens)
        if self.states.ndim != 3 or self.states.shape[:2] != (layers + 1, width):
            raise ValueError(f"States of shape {self.states.shape}: expected [{layers + 1}, {width}, d]")
        if not np.isfinite(self.states).all():
            raise NoData("The residual stream is not finite.", "The model's activations overflowed: test it first.")
        kept = cosine(self.states[:-1], self.states[1:])
        layer, position = np.nonzero(np.isfinite(kept))
        attention = attention_edges(
            self.pattern.mean(axis=1, keepdims=True, dtype=np.float64), self.threshold, self.top_k
        )
        nodes = grid_nodes(layers + 1, self.tokens)
        ids = np.asarray(nodes["id"].values)
        source = np.concatenate([layer * width + position, attention.layer * width + attention.key])
        target = np.concatenate([(layer + 1) * width + position, (attention.layer + 1) * width + attention.query])
        return Graph(
            name=self.name,
            kind="flow",
            meaning="Residual edges: cosine of a token's state before and after a layer. Attention edges: attention"
            f" weight, the mean over heads, of at least {self.threshold:g}, the {self.top_k} largest into each token.",
            nodes=nodes,
            edges={
                "source": Column("string", ids[source]),
                "target": Column("string", ids[target]),
                "kind": Column("string", ["residual"] * len(layer) + ["attention"] * len(attention.weight)),
                "weight": Column("float64", np.concatenate([kept[layer, position], attention.weight])),
                "layer": Column("int64", np.concatenate([layer, attention.layer])),
            },
            axes=("token", "layer"),
            provenance={"threshold": self.threshold, "top_k": self.top_k, **self.provenance},
        )
