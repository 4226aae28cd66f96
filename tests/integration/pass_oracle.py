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


def stored(kinds: str) -> Rounded:
    """What a cache of these types makes of q, k and v."""
    k_kind, v_kind = kinds.split("/")

    def rounded(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        rows = [
            _through(each.reshape(len(each), -1).astype(np.float32), kind).reshape(each.shape).astype(np.float64)
            for each, kind in ((k, k_kind), (v, v_kind))
        ]
        kind = "f16" if k_kind == "f16" else "q8_0"
        queries = _through(q.reshape(len(q), -1).astype(np.float32), kind).reshape(q.shape).astype(np.float64)
        return queries, rows[0], rows[1]

    return rounded


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


def cut(file: Path, text: bytes, which: NDArray[Any], length: int) -> NDArray[np.int32]:
    """[windows, length] tokens of some windows of a text; each begins with the token that begins texts, tiny's 0."""
    with Model([file], 0) as model:
        tokens = model.tokenize(text)
    windows: NDArray[np.int32] = tokens[: len(tokens) // length * length].reshape(-1, length)[which].astype(np.int32)
    windows[:, 0] = 0
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
