"""Readers of attention taps: behaviour of heads, summed up during the decode; tensors of a text, kept in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.head_behaviour import BEHAVIOURS, BehaviourKernel
from gguf_harness.metrics.token_features import TokenFeatures

if TYPE_CHECKING:
    from gguf_harness.measure.attention.activations import ActivationWriter

__all__ = ["BehaviourWatch", "LayerParts"]

_WORTH_A_THREAD: Final = 2**23
"""Minimum cells of a pattern for threads. Below, contention for the interpreter lock costs more: a third for [9, 512,
512].
"""


class BehaviourWatch:
    """Sums up the behaviour of each head on a prompt, and writes patterns, queries, keys and values to disk.

    Args:
        threads: for scoring the heads of large patterns: llama.cpp's own threads wait meanwhile.
        writer: takes all tensors, under `prompt/layer/kind`; None to keep none.

    Attributes:
        causal: whether the first token of every prompt so far attended to no later token.
    """

    def __init__(self, threads: int, writer: ActivationWriter | None = None) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._threads = threads
        self.causal = True
        self._prompt = ""
        self._n = 0
        self._kernels: list[BehaviourKernel] = []
        self._rows: dict[int, int] = {}
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._counts: dict[int, NDArray[np.int64]] = {}

    def begin(self, prompt: str, features: TokenFeatures) -> None:
        """Start a prompt."""
        self._prompt, self._n = prompt, len(features)
        self._kernels = [BehaviourKernel(features) for _ in range(self._threads)]
        self._rows, self._sums, self._counts = {}, {}, {}

    def __call__(self, tap: str, values: NDArray[np.float32]) -> None:
        """A reader of the taps `pattern`, `q`, `k` and `v`. It keeps no pattern, so views are enough."""
        _, number, _, kind = tap.split(".")
        layer = int(number)
        if kind == "pattern":
            # llama.cpp pads keys beyond the text.
            values = values[..., : self._n]
            start = self._rows.get(layer, 0)
            self._rows[layer] = start + values.shape[1]
            self.causal = self.causal and not (start == 0 and values[:, 0, 1:].any())
            self._sum_up(layer, values, start)
            if self._writer is not None:
                missing = self._n - values.shape[2]
                half = np.pad(values, [(0, 0), (0, 0), (0, missing)]) if missing else values
                self._writer.add(f"{self._prompt}/{layer}/{kind}", half.astype(np.float16))
        elif self._writer is not None:
            self._writer.add(f"{self._prompt}/{layer}/{kind}", values)

    @property
    def heads(self) -> NDArray[np.int64]:
        """[H, 2] layer and head of each entry of the head axis."""
        return np.array([(layer, head) for layer in sorted(self._sums) for head in range(self._sums[layer].shape[1])])

    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores of the prompt summed over rows, and the numbers of these rows: [score, H] each."""
        layers = sorted(self._sums)
        return (
            np.concatenate([self._sums[layer] for layer in layers], axis=1),
            np.concatenate([self._counts[layer] for layer in layers], axis=1),
        )

    def _sum_up(self, layer: int, pattern: NDArray[np.float32], start: int) -> None:
        if self._pool is None or pattern.size < _WORTH_A_THREAD:
            parts = [_sums(self._kernels[0], pattern, start)]
        else:
            shares = np.array_split(pattern, self._threads)
            parts = list(self._pool.map(_sums, self._kernels, shares, [start] * len(shares)))
        sums, counts = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
        if start:
            sums, counts = sums + self._sums[layer], counts + self._counts[layer]
        self._sums[layer], self._counts[layer] = sums, counts


def _sums(
    kernel: BehaviourKernel, pattern: NDArray[np.float32], start: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores summed over rows, [score, head], and the number of rows that have them.

    The first token can only attend to itself: its row carries no information.
    """
    rows = kernel.scores(pattern, start)
    values = np.stack([rows[name] for name in BEHAVIOURS])[:, :, 1 if start == 0 else 0 :]
    missing = np.isnan(values)
    values[missing] = 0
    return values.sum(axis=2), values.shape[2] - np.count_nonzero(missing, axis=2)


class LayerParts:
    """Collects a tensor of all layers, from any number of physical batches.

    Args:
        n: tokens of the text.
        by_key: whether its last axis is keys, which llama.cpp pads and which grow from batch to batch.
    """

    def __init__(self, n: int, *, by_key: bool) -> None:
        self._n = n
        self._by_key = by_key
        self._parts: dict[int, list[NDArray[np.float32]]] = {}

    def __call__(self, tap: str, values: NDArray[np.float32]) -> None:
        """A reader of taps."""
        if self._by_key:
            values = values[..., : self._n]
            values = np.pad(values, [(0, 0), (0, 0), (0, self._n - values.shape[2])])
        self._parts.setdefault(int(tap.split(".")[1]), []).append(values)

    def take(self) -> list[NDArray[np.float32]]:
        """Return the complete tensors by layer, [head, pos, key] or [pos, head, d_head], and discard them."""
        parts, self._parts = self._parts, {}
        return [np.concatenate(parts[layer], axis=1 if self._by_key else 0) for layer in sorted(parts)]
