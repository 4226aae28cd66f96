"""Tokens and numbers as views get them: short, and JSON."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gguf_harness.errors import visible

__all__ = ["rounded", "short_numbers", "token_text"]

_DIGITS: Final = 5


def token_text(piece: bytes) -> str:
    """A token as text; one that is part of a character as its bytes."""
    try:
        return visible(piece.decode("utf-8").replace("\n", "↵"))
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in piece)


def rounded(values: Any) -> list[float | None]:
    """Numbers with five decimals; None for those that are not finite."""
    return [round(float(value), _DIGITS) if np.isfinite(value) else None for value in values]


def short_numbers(values: Any) -> list[float]:
    """Numbers with five significant digits."""
    return [float(f"{value:.5g}") for value in values.tolist()]
