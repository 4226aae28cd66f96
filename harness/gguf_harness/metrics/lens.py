"""Predictions after each layer of a model, and contributions of layers. Pure NumPy.

Logit lens: nostalgebraist (2020), "interpreting GPT: the logit lens". The residual stream after a layer goes through
the final norm and the unembedding, as if it were the last. Direct logit attribution: Elhage et al. (2021), "A
Mathematical Framework for Transformer Circuits": with the scale of the final norm held fixed, logits are linear in the
updates of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.log_softmax import RunningSoftmax

__all__ = [
    "Head",
    "LensResult",
    "Norm",
    "Rows",
    "attribute",
    "decided_at",
    "final_norm",
    "head_logits",
    "logit_lens",
    "normalize",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Norm = Literal["rms", "layer"]

_BLOCK: Final = 4096


class Rows(Protocol):
    """The unembedding, read a few rows at a time: as a whole it may not fit into memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """(vocabulary, d_model)."""

    def take(self, tokens: slice | NDArray[np.int64]) -> F32:
        """[n, d_model] rows of these tokens."""


@dataclass(frozen=True, slots=True)
class Head:
    """Converts the last residual stream into logits.

    Attributes:
        norm: RMSNorm (Zhang and Sennrich 2019), or LayerNorm (Ba et al. 2016), which subtracts the mean first.
        eps: added to the mean square.
        gain: [d_model]; None for ones.
        bias: [d_model]; None for zeros.
        rows: the unembedding.
        rows_bias: [vocabulary]; None for zeros.
        scale: of the logits.
        softcap: logits x become cap * tanh(x / cap), after `scale` (Gemma 2); None for no cap.
    """

    norm: Norm
    eps: float
    gain: F32 | None
    bias: F32 | None
    rows: Rows
    rows_bias: F32 | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class LensResult:
    """Predictions of each layer. All arrays are [layer, token].

    Attributes:
        top: the most likely token.
        top_p: its probability.
        final_p: probability of the last layer's most likely token.
        entropy: of the distribution, in nats.
        kl: KL(last layer || this layer), in nats; 0 at the last layer.
    """

    top: NDArray[np.int64]
    top_p: F64
    final_p: F64
    entropy: F64
    kl: F64


def final_norm(head: Head, states: ArrayLike) -> F32:
    """[n, d_model] the final norm of residual streams [n, d_model]."""
    return normalize(states, head.norm, head.eps, head.gain, head.bias)


def normalize(states: ArrayLike, norm: Norm, eps: float, gain: F32 | None = None, bias: F32 | None = None) -> F32:
    """[n, d_model] RMSNorm or LayerNorm of states [n, d_model]; arguments as the fields of `Head`."""
    x, sigma = _centered_and_scale(norm, eps, np.asarray(states, dtype=np.float64))
    y = x / sigma
    if gain is not None:
        y = y * gain
    if bias is not None:
        y = y + bias
    return np.asarray(y, dtype=np.float32)


def head_logits(head: Head, states: ArrayLike, tokens: slice | NDArray[np.int64] = slice(None)) -> F32:
    """[n, tokens] logits of residual streams [n, d_model], for these tokens of the vocabulary."""
    return _logits(head, final_norm(head, states), head.rows.take(tokens), tokens)


def logit_lens(head: Head, streams: Sequence[ArrayLike], block: int = _BLOCK) -> LensResult:
    """Apply the model's head to the residual stream after each layer.

    Memory: one layer's normalized states, and tokens x `block` logits, for any vocabulary size.

    Args:
        head: of the model.
        streams: [n, d_model] by layer; the last is the model's own.
        block: number of vocabulary tokens at a time.

    Raises:
        NoData: no layers or no tokens.
    """
    if len(streams) == 0 or len(np.asarray(streams[-1])) == 0:
        raise NoData("A logit lens needs layers and tokens.")
    n, vocabulary = len(np.asarray(streams[-1])), head.rows.shape[0]
    blocks = [slice(start, min(start + block, vocabulary)) for start in range(0, vocabulary, block)]
    last = final_norm(head, streams[-1])
    final = RunningSoftmax(n)
    for part in blocks:
        final.add(_logits(head, last, head.rows.take(part), part), part.start)
    layers = [RunningSoftmax(n) for _ in streams]
    final_logit = np.zeros((len(streams), n))
    cross = np.zeros((len(streams), n))
    for part in blocks:
        rows = head.rows.take(part)
        p_final = np.exp(_logits(head, last, rows, part) - final.log_sum.astype(np.float32)[:, None])
        inside = (final.top >= part.start) & (final.top < part.stop)
        for layer, stream in enumerate(streams):
            logits = _logits(head, final_norm(head, stream), rows, part)
            layers[layer].add(logits, part.start)
            final_logit[layer, inside] = logits[inside, final.top[inside] - part.start]
            cross[layer] += np.einsum("nv,nv->n", p_final, logits)
    log_sum = np.stack([layer.log_sum for layer in layers])
    entropy = np.stack([layer.entropy for layer in layers])
    # KL(p || q) = -H(p) - sum p log q, with log q = logit - log_sum. Rounding may leave it below 0.
    kl = np.maximum(0.0, -final.entropy + log_sum - cross)
    kl[-1] = 0.0
    top_logit = np.stack([layer.largest for layer in layers])
    return LensResult(
        np.stack([layer.top for layer in layers]),
        np.exp(top_logit - log_sum),
        np.exp(final_logit - log_sum),
        entropy,
        kl,
    )


def decided_at(top: ArrayLike) -> NDArray[np.int64]:
    """[n] the first layer from which all later layers predict the same token as the last one.

    Args:
        top: [layer, n] most likely tokens.
    """
    tokens = np.asarray(top)
    if tokens.ndim != 2 or tokens.size == 0:
        raise NoData(f"Most likely tokens of shape {tokens.shape}, expected [layer, token].")
    other = (tokens != tokens[-1])[::-1]
    # Counted from the end: the number of layers that agree.
    agree = np.where(other.any(axis=0), other.argmax(axis=0), len(tokens))
    return np.asarray(len(tokens) - agree, dtype=np.int64)


def attribute(head: Head, final: ArrayLike, parts: Iterable[ArrayLike], tokens: ArrayLike) -> tuple[F64, F64]:
    """Contribution of parts of the last residual stream to the logit of one token each.

    The scale of the final norm is held fixed. Contributions and constant sum to the logit, before a softcap, if the
    parts sum to the stream.

    Args:
        head: of the model.
        final: [n, d_model] the last residual stream, which sets the scale.
        parts: [n, d_model] each.
        tokens: [n] the token of the logit, at each position.

    Returns:
        ([part, n] contributions, [n] constant from the biases of norm and unembedding).
    """
    wanted, places = np.unique(np.asarray(tokens, dtype=np.int64), return_inverse=True)
    rows = head.rows.take(wanted).astype(np.float64)[places]
    _, sigma = _centered_and_scale(head.norm, head.eps, np.asarray(final, dtype=np.float64))
    direction = head.scale * rows * (1.0 if head.gain is None else head.gain.astype(np.float64)) / sigma
    if head.norm == "layer":
        # <direction, x - mean x> = <direction - mean direction, x>
        direction = direction - direction.mean(axis=-1, keepdims=True)
    contributions = [np.einsum("nd,nd->n", direction, np.asarray(part, dtype=np.float64)) for part in parts]
    constant = np.zeros(len(rows))
    if head.bias is not None:
        constant += head.scale * rows @ head.bias.astype(np.float64)
    if head.rows_bias is not None:
        constant += head.scale * head.rows_bias.astype(np.float64)[np.asarray(tokens, dtype=np.int64)]
    return np.array(contributions), constant


def _centered_and_scale(norm: Norm, eps: float, x: F64) -> tuple[F64, F64]:
    if norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return x, np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)


def _logits(head: Head, normalized: F32, rows: F32, tokens: slice | NDArray[np.int64]) -> F32:
    logits = normalized @ rows.T
    if head.rows_bias is not None:
        logits = logits + head.rows_bias[tokens]
    if head.scale != 1.0:
        logits = logits * np.float32(head.scale)
    if head.softcap is not None:
        logits = np.float32(head.softcap) * np.tanh(logits / np.float32(head.softcap))
    return np.asarray(logits, dtype=np.float32)
