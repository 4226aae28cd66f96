"""What was read of a prompt: plain arrays, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.measure.live.requests import Ablation, ModelFacts
from gguf_harness.metrics.kernels.log_softmax import RunningSoftmax, log_softmax

__all__ = ["Reading"]

_BLOCK: Final = 8192
"""Columns of logits at a time: what fits in a processor's cache."""

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One decode of a prompt.

    Attributes:
        facts: of the model.
        ablation: what was switched off.
        tokens: [pos] token ids, including BOS if the vocabulary requires it.
        pieces: [pos] their text as bytes: a token may be part of a character.
        pattern: by layer, [head, pos, key] attention weights; empty where they were not read.
        scores: by layer, [head, pos, key] q k^T.
        q: by layer, [pos, head, d_head].
        k: by layer, [pos, kv_head, d_head].
        v: by layer, [pos, kv_head, d_head].
        states: by name (`embed`, `attn_out`, `resid_mid`, `mlp_out`, `resid_post`, `final`), [pos, d_model] or [layer,
            pos, d_model]; empty where they were not read.
        logits: [pos, vocabulary]; None where they were not read.
    """

    facts: ModelFacts
    ablation: Ablation
    tokens: NDArray[np.int32]
    pieces: tuple[bytes, ...]
    pattern: Mapping[int, F32]
    scores: Mapping[int, F32]
    q: Mapping[int, F32]
    k: Mapping[int, F32]
    v: Mapping[int, F32]
    states: Mapping[str, F32]
    logits: F32 | None

    @classmethod
    def of(cls, arrays: Mapping[str, Any], facts: ModelFacts, ablation: Ablation) -> Reading:
        """From what `read_prompt` returned."""
        by_kind: dict[str, dict[int, F32]] = {kind: {} for kind in ("pattern", "scores", "q", "k", "v")}
        states = {}
        for name, values in arrays.items():
            kind, _, layer = name.rpartition("_")
            if kind in by_kind and layer.isdigit():
                by_kind[kind][int(layer)] = values
            elif name not in {"tokens", "pieces", "logits"}:
                states[name] = values
        pieces = tuple(arrays["pieces"].tolist())
        logits = arrays.get("logits")
        return cls(facts, ablation, arrays["tokens"], pieces, **by_kind, states=states, logits=logits)

    def __repr__(self) -> str:
        off = f", {self.ablation}" if self.ablation else ""
        return f"<reading of {len(self.tokens)} tokens by {self.facts.name}{off}>"

    @property
    def texts(self) -> tuple[str, ...]:
        """[pos] the tokens as text; parts of characters are shown as U+FFFD."""
        return tuple(piece.decode("utf-8", "replace") for piece in self.pieces)

    def next_logprobs(self, place: int = -1) -> NDArray[np.float64]:
        """[vocabulary] ln of the probability of each token after the one at this place, in nats.

        Raises:
            NoData: the model predicts no tokens, or its logits were not read.
        """
        return log_softmax(self.require_logits()[place])

    def nll(self) -> NDArray[np.float64]:
        """[pos] how unlikely each token was after those before it, in nats; NaN for the first.

        Raises:
            NoData: the model predicts no tokens, or its logits were not read.
        """
        logits = self.require_logits()
        values = np.full(len(self.tokens), np.nan)
        if len(self.tokens) > 1:
            total = RunningSoftmax(len(self.tokens) - 1)
            for start in range(0, logits.shape[1], _BLOCK):
                total.add(logits[:-1, start : start + _BLOCK], start)
            values[1:] = total.log_sum - logits[np.arange(len(self.tokens) - 1), self.tokens[1:]]
        return values

    def require_logits(self) -> F32:
        """[pos, vocabulary].

        Raises:
            NoData: the model predicts no tokens, or its logits were not read.
        """
        if self.logits is None:
            raise self.facts.no_data(f"{self.facts.name}: there are no logits of this prompt.")
        return self.logits
