"""What the view `tokens` draws: a text, token by token, on the colour of what a candidate changed there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from gguf_harness.errors import visible_lines

__all__ = ["LISTED", "strip_numbers", "strip_values", "strip_words"]

LISTED: Final = 8
"""Tokens that are listed: those that changed most."""
_DARKEST: Final = 0.99
"""Share of all tokens that a scale of colours reaches over: a few large values would leave the others blank."""


def strip_values(candidates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tokens can be coloured by, with a domain for all candidates.

    Args:
        candidates: delta_p, kld and nll of each, [token].
    """

    def reach(name: str) -> float:
        values = np.abs(np.concatenate([each[name].astype(np.float64) for each in candidates]))
        values = values[np.isfinite(values)]
        return float(f"{np.quantile(values, _DARKEST):.3g}") if values.size and values.max() > 0 else 1.0

    change, kld, loss = (reach(name) for name in ("delta_p", "kld", "nll"))
    return [
        {"name": "delta_p", "title": "change of probability (percentage points)", "button": "Δ probability",
         "kind": "signed", "points": True, "domain": [-change, change],
         "meaning": "By how much the probability of the token that follows in the text rose or fell."},
        {"name": "kld", "title": "KL (nats)", "button": "KL", "kind": "share", "domain": [0, kld],
         "meaning": "How far the candidate's distribution over all tokens is from the reference's at this place."},
        {"name": "nll", "title": "loss (nats)", "button": "loss", "kind": "share", "domain": [0, loss],
         "meaning": "How surprised the candidate is by the token: 0 where it was sure of it. Mostly the text's doing,"
         " not quantization's."},
    ]  # fmt: skip


def strip_words(pieces: Iterable[bytes]) -> list[str]:
    """Bytes as text; a token that ends inside of a character shows its bytes."""
    return [visible_lines(piece.decode("utf-8", "backslashreplace").replace("\t", "→")) for piece in pieces]


def strip_numbers(values: Any) -> list[float | None]:
    """Numbers with five significant digits; None for those that are not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]
