"""A pass of a llama in float64 numpy: log-probabilities of each token, with what a KV cache rounds.

Keys and values are rounded by gguf-py, a row of a token cut into blocks of 32; queries as the product with such keys
needs it, to 8 bits or to half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from gguf_harness.engine.model import Model
from tests.integration.attention_oracle import Rounded
from tests.integration.live_oracle import Array, forward, log_softmax

__all__ = ["TINY", "Expected", "cut", "expect", "in_coarse_f32", "in_f32", "stored"]

TINY = Path(__file__).parents[2] / "fixtures" / "data" / "tiny-F16.gguf"
_TYPES = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0, "f16": GGMLQuantizationType.F16}


def in_f32(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """For `rewrite_gguf`: with weights in F32, activations are not rounded."""
    return values.astype(np.float32)


def in_coarse_f32(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same after Q4_0: what its weights cost, without what products with them round."""
    values = values.astype(np.float32)
    return _through(values, "q4_0") if values.ndim == 2 and name.startswith("blk.") else values


def _through(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    return np.asarray(dequantize(quantize(values.astype(np.float32), _TYPES[kind]), _TYPES[kind]), dtype=np.float32)


def stored(kinds: str, turn: Array | None = None) -> Rounded:
    """What a cache of these types makes of q, k and v.

    Args:
        kinds: types of K and V.
        turn: [d_head, d_head] orthogonal: by what heads are turned before they are rounded; None for nothing.
    """
    k_kind, v_kind = kinds.split("/")

    def rounded(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        kinds = "f16" if k_kind == "f16" else "q8_0", k_kind, v_kind
        first, second, third = (_rounded(each, kind, turn) for each, kind in zip((q, k, v), kinds, strict=True))
        return first, second, third

    return rounded


def _rounded(heads: Array, kind: str, turn: Array | None) -> Array:
    """[pos, head, d_head] turned, rounded by rows of a position, and turned back."""
    turned = heads if turn is None else heads @ turn
    rows = _through(turned.reshape(len(turned), -1).astype(np.float32), kind)
    back = rows.reshape(heads.shape).astype(np.float64)
    return back if turn is None else back @ turn.T


@dataclass(frozen=True, slots=True)
class Expected:
    """What follows each position of a window, from position 1 on.

    Attributes:
        logs: [windows, positions, vocabulary] log-probabilities.
        nll: [windows, positions] of the token that does.
        top: [windows, positions] likeliest token.
    """

    logs: Array
    nll: Array
    top: NDArray[np.int64]

    def kld(self, reference: Expected) -> Array:
        """[windows, positions] KL(reference || this)."""
        return np.asarray((np.exp(reference.logs) * (reference.logs - self.logs)).sum(axis=2))


def cut(file: Path, text: bytes, which: NDArray[Any], length: int, start: int | None = 0) -> NDArray[np.int32]:
    """[windows, length] tokens of some windows of a text; each begins with the token that begins texts, tiny's 0.

    Args:
        file: a model.
        text: to cut.
        which: of its windows.
        length: of each.
        start: that token; None where a vocabulary has none.
    """
    with Model([file], 0) as model:
        tokens = model.tokenize(text)
    windows: NDArray[np.int32] = tokens[: len(tokens) // length * length].reshape(-1, length)[which].astype(np.int32)
    if start is not None:
        windows[:, 0] = start
    return windows


def expect(file: Path, windows: NDArray[np.int32], rounded: Rounded) -> Expected:
    """Read each window by itself.

    Args:
        file: a llama.
        windows: [windows, positions] tokens.
        rounded: what its cache makes of q, k and v.
    """
    logits = [forward(file, window, rounded=rounded).logits for window in windows.tolist()]
    logs = log_softmax(np.stack(logits))[:, 1:-1]
    nll = -np.take_along_axis(logs, windows[:, 2:, None], axis=2)[..., 0]
    return Expected(logs, nll, logs.argmax(axis=2))
