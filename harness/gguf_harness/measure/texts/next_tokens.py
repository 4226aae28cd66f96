"""The distribution of the token after a prompt: of one model, and of a candidate beside its reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.kernels.ranks import largest

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model
    from gguf_harness.store.arrays import Arrays

__all__ = ["KEPT", "TEMPERATURES", "beside_reference", "distributions", "rest_of"]

KEPT: Final = 64
"""Tokens of a distribution that are kept one by one, the likeliest; more than any usual top-k."""

TEMPERATURES: Final = tuple(step / 10 for step in range(1, 21))
"""Temperatures for which the sum over the other tokens is kept: it does not follow from that at temperature 1."""


def distributions(model: Model, logprobs: Mapping[str, NDArray[np.float64]]) -> Arrays:
    """What is cached of a model.

    Args:
        model: the loaded model.
        logprobs: by prompt, [vocabulary] log-probabilities of the token after it.

    Returns:
        next_prompts, [P]; next_logprobs, [P, vocabulary] in single precision, all of them since the likeliest tokens of
        a candidate need not be likely in the reference; next_top, [P, `KEPT`] the likeliest tokens in order, and
        next_pieces, their text as bytes. Nothing without prompts.
    """
    if not logprobs:
        return {}
    rows = np.stack([row.astype(np.float32) for row in logprobs.values()])
    top = largest(rows, KEPT)
    pieces = [[model.detokenize([token], special=True) for token in row] for row in top.tolist()]
    return {
        "next_prompts": np.array(list(logprobs)),
        "next_logprobs": rows,
        "next_top": top,
        "next_pieces": np.array(pieces, dtype=np.bytes_),
    }


def beside_reference(candidate: Arrays, reference: Arrays, prompts: Collection[str]) -> Arrays:
    """What a run stores of a candidate, over the likeliest tokens of both models.

    Args:
        candidate: what `distributions` returned for it.
        reference: the same for the reference.
        prompts: those that are the same tokens for both.

    Returns:
        prompts, [P]; temperatures, [T]; and of the i-th prompt tokens_i, [U], pieces_i, [U] their text as bytes,
        logprobs_i, [2, U] of reference and candidate, and rest_i, [2, T]: the log of the sum, over all other tokens, of
        their probabilities raised to 1 / temperature. Nothing without prompts.
    """
    ours, theirs = (each.get("next_prompts", np.array([], dtype=np.str_)).tolist() for each in (candidate, reference))
    both = [prompt for prompt in theirs if prompt in ours and prompt in prompts]
    if not both:
        return {}
    arrays: Arrays = {"prompts": np.array(both), "temperatures": np.array(TEMPERATURES)}
    for index, prompt in enumerate(both):
        pieces: dict[int, bytes] = {}
        rows = []
        for each, names in ((reference, theirs), (candidate, ours)):
            at = names.index(prompt)
            pieces |= dict(zip(each["next_top"][at].tolist(), each["next_pieces"][at].tolist(), strict=True))
            rows.append(each["next_logprobs"][at])
        tokens = np.array(list(pieces))
        arrays |= {
            f"tokens_{index}": tokens,
            f"pieces_{index}": np.array(list(pieces.values()), dtype=np.bytes_),
            f"logprobs_{index}": np.stack([row[tokens] for row in rows]),
            f"rest_{index}": np.stack([rest_of(row, tokens) for row in rows]),
        }
    return arrays


def rest_of(logprobs: NDArray[np.generic], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """[T] by temperature: the log of the sum, over all but these tokens, of probabilities raised to 1 / temperature.

    Minus infinity if there are no others.
    """
    from scipy.special import logsumexp

    others = np.delete(logprobs.astype(np.float64), tokens)
    if not others.size:
        return np.full(len(TEMPERATURES), -np.inf)
    return np.array([logsumexp(others / temperature) for temperature in TEMPERATURES])
