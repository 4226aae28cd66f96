"""Behaviour of heads: induction on repeated random tokens, and copying from their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData

__all__ = ["copy_score", "induction_scores", "repeated_tokens", "token_product"]

Matrix = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]

_ROWS: Final = 4096
_NOTHING: Final = 1e-30


def repeated_tokens(candidates: Sequence[int] | NDArray[np.integer[Any]], length: int, seed: int) -> NDArray[np.int32]:
    """Distinct random tokens, repeated once: the second half is predictable from the context alone.

    Olsson et al. (2022), "In-context Learning and Induction Heads", on repeated random sequences. The tokens are
    distinct, so that each has exactly one earlier occurrence.

    Args:
        candidates: token ids to draw from: no special tokens.
        length: tokens of one half.
        seed: of the draw.

    Returns:
        [2 * length], without BOS.

    Raises:
        NoData: there are fewer candidates than tokens to draw, or none are requested.
    """
    choices = np.unique(np.asarray(candidates, dtype=np.int32))
    if not 1 <= length <= len(choices):
        raise NoData(f"{length} different tokens cannot be drawn from {len(choices)}.", "Request 1 up to that many.")
    return np.tile(np.random.default_rng(seed).choice(choices, size=length, replace=False), 2)


def induction_scores(pattern: Matrix, length: int, offset: int = 0) -> dict[str, Floats]:
    """Attention of the second half of `repeated_tokens` to the first: prefix matching by Olsson et al. (2022).

    Args:
        pattern: [head, position, key] over offset + 2 * length tokens.
        length: tokens of one half.
        offset: tokens before the first half: 1 with a leading BOS.

    Returns:
        [head, length] each, one row per token of the second half: induction (weight on the token after the earlier
        occurrence, key = position - (length - 1)) and duplicate_token (on the earlier occurrence itself, key =
        position - length).

    Raises:
        NoData: a weight is not finite.
    """
    size = offset + 2 * length
    if pattern.ndim != 3 or pattern.shape[1] != size or pattern.shape[2] < size or length < 1:
        raise ValueError(f"A pattern of shape {pattern.shape} is not [head, {size}, {size}], twice {length} tokens")
    second = pattern[:, offset + length :]
    scores = {
        name: second.diagonal(key, 1, 2)[:, :length].astype(np.float64)
        for name, key in (("induction", offset + 1), ("duplicate_token", offset))
    }
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise NoData("Attention on repeated tokens is not finite.")
    return scores


def token_product(w_e: Matrix, w_u: Matrix) -> Floats:
    """The product of unembedding and embedding over the vocabulary, shared by the copy scores of all heads.

    Args:
        w_e: [vocabulary, d_model] as token_embd.weight is read from a GGUF.
        w_u: [vocabulary, d_model] as output.weight; w_e itself if the two are tied.

    Returns:
        [d_model, d_model] w_e' w_u, summed in float64 over products of 4096 tokens.
    """
    if w_e.shape != w_u.shape or w_e.ndim != 2 or w_e.size == 0:
        raise ValueError(
            f"Embedding and unembedding must have the same shape [vocabulary, d]: {w_e.shape}, {w_u.shape}"
        )
    product = np.zeros((w_e.shape[1], w_e.shape[1]))
    for first in range(0, len(w_e), _ROWS):
        part = slice(first, first + _ROWS)
        product += w_e[part].T @ w_u[part]
    return product


def copy_score(
    product: Floats, w_v: Matrix, w_o: Matrix, input_gain: Matrix | None = None, output_gain: Matrix | None = None
) -> float:
    """Whether a head raises the logits of the tokens that it attends to: 1 if for all, -1 if it lowers them.

    Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", section "Summarizing OV/QK matrices":
    the sum of the eigenvalues of the full OV circuit W_U W_O W_V W_E, over the sum of their magnitudes. Its nonzero
    eigenvalues are those of the product in cyclic order W_V (W_E W_U) W_O, which is d_head x d_head. The norms are
    taken as linear: their gains are weights, their division by a token's length is left out, as there.

    A weight in numpy, as gguf reads it, is [out, in].

    Args:
        product: [d_model, d_model] of `token_product`.
        w_v: [d_head, d_model] rows of attn_v.weight of the head's KV group.
        w_o: [d_model, d_head] columns of attn_output.weight of the head.
        input_gain: [d_model] attn_norm.weight of the layer; None for none.
        output_gain: [d_model] output_norm.weight; None for none.

    Returns:
        In [-1, 1].

    Raises:
        NoData: the eigenvalues are all zero or not finite.
    """
    value, output = np.asarray(w_v, dtype=np.float64), np.asarray(w_o, dtype=np.float64)
    if value.shape != output.shape[::-1] or product.shape != (value.shape[1],) * 2:
        raise ValueError(
            f"Expected w_v [d_head, d_model] and w_o [d_model, d_head], not {value.shape} and {output.shape}, "
            f"with a product of {product.shape}"
        )
    if input_gain is not None:
        value = value * input_gain
    if output_gain is not None:
        output = output * np.asarray(output_gain)[:, None]
    circuit = value @ product @ output
    if not np.isfinite(circuit).all():
        raise NoData("The OV circuit of a head is not finite.")
    eigenvalues = np.linalg.eigvals(circuit)
    magnitude = float(np.abs(eigenvalues).sum())
    if magnitude <= _NOTHING:
        raise NoData("The OV circuit of a head has only zero eigenvalues: its copy score is not defined.")
    return float(np.clip(eigenvalues.sum().real / magnitude, -1.0, 1.0))
