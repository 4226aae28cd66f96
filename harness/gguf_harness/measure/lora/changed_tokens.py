"""The tokens whose predictions an adapter changed most, with what stands before them, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["changed_tokens", "read_contexts"]

_MOST: Final = 24
_BEFORE: Final = 16
"""Tokens shown before each."""


def changed_tokens(arrays: Arrays) -> Arrays:
    """Places with the largest KL(base || adapted), the largest first.

    Args:
        arrays: of `run_effect_pass`.

    Returns:
        [tokens] each: window, of the text; position in it; token, the text's; top_base and top, what is likeliest
        without and with the adapter; p_base and p, probability of the text's token; kld (nats); and context, [tokens,
        16], the tokens before it.
    """
    kld = arrays["kld"].astype(np.float64)
    nll, nll_base = (arrays[name].astype(np.float64) for name in ("nll", "nll_base"))
    scored, n_ctx = kld.shape[1], arrays["tokens"].shape[1]
    order = np.argsort(-kld, axis=None, kind="stable")[:_MOST]
    row, column = np.unravel_index(order, kld.shape)
    # Scored are a window's last tokens.
    place = column + n_ctx - scored
    tokens = arrays["tokens"]
    return {
        "window": arrays["window"][row].astype(np.int64),
        "position": place.astype(np.int64),
        "token": tokens[row, place].astype(np.int32),
        "top_base": arrays["top_base"][row, column].astype(np.int32),
        "top": arrays["top"][row, column].astype(np.int32),
        "p_base": np.exp(-nll_base[row, column]),
        "p": np.exp(-nll[row, column]),
        "kld": kld[row, column],
        "context": np.stack([tokens[r, max(p - _BEFORE, 0) : p] for r, p in zip(row, place, strict=True)]).astype(
            np.int32
        ),
    }


def read_contexts(worker: WorkerContext, files: Sequence[Path], n_gpu_layers: int, chosen: Arrays) -> Arrays:
    """The text of the chosen tokens as bytes: piece, piece_base, piece_top, and before, of all tokens before each."""
    model = worker.model(files, n_gpu_layers)

    def text(tokens: Sequence[int]) -> bytes:
        return model.detokenize(list(tokens), special=True)

    return {
        "piece": np.array([text([token]) for token in chosen["token"].tolist()], np.bytes_),
        "piece_base": np.array([text([token]) for token in chosen["top_base"].tolist()], np.bytes_),
        "piece_top": np.array([text([token]) for token in chosen["top"].tolist()], np.bytes_),
        "before": np.array([text(tokens) for tokens in chosen["context"].tolist()], np.bytes_),
    }
