"""Nodes by layer and token, with attention edges: common to graphs of a decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.graphs.graph import Column

__all__ = ["Edges", "attention_edges", "check_pattern", "grid_nodes"]


@dataclass(frozen=True, slots=True)
class Edges:
    """Attention's edges, [m] each: in `layer` (from 0), `head`, position `query` takes `weight` from position `key`."""

    layer: NDArray[np.int64]
    head: NDArray[np.int64]
    query: NDArray[np.int64]
    key: NDArray[np.int64]
    weight: NDArray[np.float64]


def grid_nodes(levels: int, tokens: Sequence[str]) -> dict[str, Column]:
    """A node for each token at each level: level 0 is the input of the first layer, level l the output of the l-th.

    Args:
        levels: number of layers plus one.
        tokens: pieces of text, one per position.

    Returns:
        Nodes with ids "l<level>.t<position>" and the columns level and position.
    """
    level, position = (axis.ravel() for axis in np.indices((levels, len(tokens))))
    return {
        "id": Column(
            "string", np.char.add(np.char.add(np.char.add("l", level.astype(np.str_)), ".t"), position.astype(np.str_))
        ),
        "kind": Column("string", ["token"] * len(level)),
        "label": Column("string", list(tokens) * levels),
        "level": Column("int64", level),
        "position": Column("int64", position),
        "x": Column("float64", position.astype(np.float64)),
        "y": Column("float64", level.astype(np.float64)),
    }


def check_pattern(pattern: NDArray[np.floating], tokens: Sequence[str]) -> None:
    """Check that a pattern fits the tokens.

    Args:
        pattern: [layers, heads, positions, keys], weights from 0 to 1.
        tokens: as many as positions, and as keys.

    Raises:
        NoData: it is empty, or not finite.
        ValueError: its shape does not match, or its weights are invalid.
    """
    if pattern.ndim != 4 or pattern.shape[2:] != (len(tokens), len(tokens)):
        raise ValueError(
            f"A pattern of shape {pattern.shape} is none of {len(tokens)} tokens: expected [layer, head, pos, key]"
        )
    if pattern.size == 0:
        raise NoData(f"There is no attention in a pattern of shape {pattern.shape}.")
    if not np.isfinite(pattern).all():
        raise NoData(
            "The attention pattern is not finite.", "The model's activations overflowed: test the model first."
        )
    if pattern.min() < 0 or pattern.max() > 1 + 1e-3:
        raise ValueError(f"Attention weights from {pattern.min()} to {pattern.max()}: expected 0 to 1")


def attention_edges(pattern: NDArray[np.floating], threshold: float, top_k: int) -> Edges:
    """The largest weights of each row.

    Args:
        pattern: [layers, heads, positions, keys].
        threshold: least weight; always greater than 0.
        top_k: most edges of a row (a position in a head); ties by key.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: expected at least 1")
    parts = []
    for layer, weights in enumerate(pattern):
        # Sorted layer by layer: a whole model's patterns are large.
        kept = np.argsort(-weights, axis=-1, kind="stable")[..., :top_k]
        largest = np.take_along_axis(weights, kept, axis=-1).astype(np.float64)
        head, query, rank = np.nonzero((largest >= threshold) & (largest > 0))
        parts.append((np.full(len(head), layer), head, query, kept[head, query, rank], largest[head, query, rank]))
    layers, heads, queries, keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Edges(layers, heads, queries, keys, values)
