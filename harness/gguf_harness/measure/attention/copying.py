"""Copy scores of heads, from the weights in a model's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import ModelError, NoData
from gguf_harness.gguf.weights import Weights
from gguf_harness.metrics.circuits import copy_score, token_product

__all__ = ["copy_scores"]

Matrix = NDArray[np.float32]


def copy_scores(files: Sequence[Path], n_layer: int, heads: NDArray[np.int64]) -> NDArray[np.float64]:
    """The OV copying score of each head; see `gguf_harness.metrics.circuits.copy_score`.

    Args:
        files: the GGUF file, or its splits.
        n_layer: layers of the model.
        heads: [H, 2] layer and head.

    Returns:
        [H]; NaN if the file lacks value and output matrices of this layer with one block of rows or columns per head,
        or embeddings as wide as the residual stream, in a type that can be dequantized.
    """
    scores = np.full(len(heads), np.nan)
    try:
        _fill(scores, Weights(files), n_layer, heads)
    except ModelError:
        scores[:] = np.nan
    return scores


def _fill(scores: NDArray[np.float64], weights: Weights, n_layer: int, heads: NDArray[np.int64]) -> None:
    embedding = "token_embd.weight"
    unembedding = "output.weight" if "output.weight" in weights else embedding
    if embedding not in weights or weights.shape(embedding) != weights.shape(unembedding):
        return
    product = np.zeros((weights.shape(embedding)[1],) * 2)
    for w_e, w_u in zip(weights.blocks(embedding), weights.blocks(unembedding), strict=True):
        product += token_product(w_e, w_u)
    output_gain = _vector(weights, "output_norm.weight")
    for layer in range(n_layer):
        of_layer = np.flatnonzero(heads[:, 0] == layer)
        matrices = _value_and_output(weights, layer, len(of_layer))
        if matrices is None or matrices[0].shape[2] != len(product):
            continue
        values, outputs = matrices
        gain = _vector(weights, f"blk.{layer}.attn_norm.weight")
        group = len(of_layer) // len(values)
        for index, head in zip(of_layer, heads[of_layer, 1], strict=True):
            try:
                scores[index] = copy_score(product, values[head // group], outputs[:, head], gain, output_gain)
            except NoData:
                continue


def _value_and_output(weights: Weights, layer: int, n_head: int) -> tuple[Matrix, Matrix] | None:
    """([KV head, d_head, d_model], [d_model, head, d_head]) of a layer."""
    output = f"blk.{layer}.attn_output.weight"
    if output not in weights or n_head == 0 or weights.shape(output)[1] % n_head:
        return None
    w_o = weights.tensor(output)
    d_head = w_o.shape[1] // n_head
    value, joined = f"blk.{layer}.attn_v.weight", f"blk.{layer}.attn_qkv.weight"
    if value in weights:
        w_v = weights.tensor(value)
    elif joined in weights:
        # Queries, then keys and values of as many heads each.
        rows = weights.count_rows(joined)
        w_v = weights.rows(joined, rows - (rows - n_head * d_head) // 2, rows)
    else:
        return None
    if len(w_v) == 0 or len(w_v) % d_head or n_head % (len(w_v) // d_head):
        return None
    return w_v.reshape(-1, d_head, w_v.shape[1]), w_o.reshape(len(w_o), n_head, d_head)


def _vector(weights: Weights, name: str) -> Matrix | None:
    return weights.tensor(name) if name in weights else None
