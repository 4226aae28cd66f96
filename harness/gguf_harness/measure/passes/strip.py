"""One window of the text, token by token: what a candidate changes, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from gguf_harness.metrics.divergence import probability_change

if TYPE_CHECKING:
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["MOST_TOKENS", "read_pieces", "strip_of", "tokens_of", "typical_window"]

MOST_TOKENS: Final = 512
"""Tokens of a strip: the first scored ones of the window."""


def typical_window(base: Arrays, among: int | None = None) -> int:
    """The window whose mean loss is nearest to the mean, by the reference alone.

    No candidate has a say in it, so that all are shown the same one, whichever is measured first.

    Args:
        base: the reference's pass.
        among: only the first so many windows count: those that every candidate has.
    """
    means = base["nll"][:among].astype(np.float64).mean(axis=1)
    return int(np.abs(means - means.mean()).argmin())


def tokens_of(base: Arrays, arrays: Arrays, window: int) -> Arrays:
    """Ids of a window's scored tokens, and of what both models found likeliest instead, [tokens] each."""
    scored = base["nll"].shape[1]
    # The scored tokens are a window's last ones.
    return {
        "token": base["tokens"][window, -scored:][:MOST_TOKENS].astype(np.int32),
        "top": arrays["top"][window, :MOST_TOKENS].astype(np.int32),
        "top_reference": base["top"][window, :MOST_TOKENS].astype(np.int32),
    }


def strip_of(base: Arrays, arrays: Arrays, window: int, pieces: Arrays) -> Arrays:
    """A strip as it is stored with a run.

    Args:
        base: the reference's pass.
        arrays: the candidate's pass.
        window: the window, in the order in which they are decoded.
        pieces: the text of `tokens_of` as bytes, by the same names.

    Returns:
        token, top and top_reference, ids; piece, piece_top and piece_top_reference, their text as bytes; nll and
        nll_reference (nats), kld (nats) and delta_p (of the token's probability), all [tokens]; window, [1], which of
        the text's windows it is; position, [1], of its first token in it.
    """
    nll, nll_reference = (of["nll"][window, :MOST_TOKENS].astype(np.float64) for of in (arrays, base))
    values = {
        "nll": nll,
        "nll_reference": nll_reference,
        "kld": arrays["kld"][window, :MOST_TOKENS],
        "delta_p": probability_change(nll, nll_reference),
    }
    return {
        **tokens_of(base, arrays, window),
        "piece": pieces["token"],
        "piece_top": pieces["top"],
        "piece_top_reference": pieces["top_reference"],
        **{name: value.astype(np.float32) for name, value in values.items()},
        "window": arrays["window"][window : window + 1],
        "position": np.array([base["tokens"].shape[1] - base["nll"].shape[1]], dtype=np.int64),
    }


def read_pieces(worker: WorkerContext, files: Sequence[Path], n_gpu_layers: int, tokens: Arrays) -> Arrays:
    """The text of tokens as bytes, by name, each as long as its ids; special tokens as they are written.

    Nothing is decoded: the model that a pass has loaded is asked for its vocabulary.
    """
    model = worker.model(files, n_gpu_layers)
    texts = {int(token): b"" for ids in tokens.values() for token in ids.tolist()}
    for done, token in enumerate(texts, start=1):
        texts[token] = model.detokenize([token], special=True)
        worker.progress(done, len(texts))
    return {name: np.array([texts[int(token)] for token in ids.tolist()], np.bytes_) for name, ids in tokens.items()}
