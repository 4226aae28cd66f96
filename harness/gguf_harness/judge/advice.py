"""How much more data would decide a gate, and the options for it; never more data than there is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.metrics.registry.lora import MOST_WINDOWS

__all__ = ["TextSize", "what_would_decide"]

_MOST_REPETITIONS: Final = 100
_MOST_PROMPTS: Final = 1000
"""With more than these, the limit itself is too near the value."""

_MOST_HEAD_WINDOWS: Final = 10
"""Their distributions must fit into a gigabyte (`measure/ablation.py`), also with vocabularies of 256,000 tokens."""

_OF_WINDOWS: Final = frozenset({"corpus", "cache", "positions"})
"""What --gguf-chunks says the number of."""


@dataclass(frozen=True, slots=True)
class TextSize:
    """Size of the text that windows are taken from.

    Attributes:
        windows: number of windows.
        bytes: its size.
        window_bytes: size on disk of the reference's distributions for one window; 0 if none are stored.
        limit_bytes: limit for all of them (--gguf-logprobs-limit).
    """

    windows: int
    bytes: int
    window_bytes: int
    limit_bytes: int


def what_would_decide(metric: str, clusters: int, total: int, tokens: int, text: TextSize | None) -> str:
    """Advice for an undecided gate, as a sentence.

    Args:
        metric: of the gate.
        clusters: number of windows, prompts, facts or repetitions so far.
        total: number that would probably decide; more than `clusters`.
        tokens: scored tokens of a window.
        text: the text that windows are taken from; None if unknown.
    """
    more = total - clusters
    estimated = metric_info(metric).estimated
    if estimated in _OF_WINDOWS:
        what = _windows(more, total, tokens, text)
    elif estimated == "adapter windows":
        if total > MOST_WINDOWS:
            return f"more than {MOST_WINDOWS} windows would be needed: the value is too near its limit."
        what = f"{more} more windows (--gguf-chunks={total}, of a text that has them)"
    elif estimated == "head windows":
        if total > _MOST_HEAD_WINDOWS:
            return f"more than {_MOST_HEAD_WINDOWS} windows would be needed: the value is too near its limit."
        what = f"{more} more windows (--gguf-head-windows={total})"
    elif estimated in {"timing", "requests"}:
        if total > _MOST_REPETITIONS:
            return f"more than {_MOST_REPETITIONS} repetitions would be needed: the value is too near its limit."
        what = f"{more} more repetitions (--gguf-repetitions={total})"
    elif estimated == "words":
        what = f"{more} more groups of words (--gguf-words)"
    elif estimated == "needles":
        return f"more facts than the {clusters} would be needed; more texts for each (--gguf-haystacks) may decide it."
    elif total > _MOST_PROMPTS:
        return f"more than {_MOST_PROMPTS} prompts would be needed: the value is too near its limit."
    else:
        what = f"{more} more prompts (--gguf-prompts, a file of {total})"
    return f"about {what} would probably decide, estimated from the error so far."


def _windows(more: int, total: int, tokens: int, text: TextSize | None) -> str:
    options = f"--gguf-chunks={total}"
    if text is not None and total * text.window_bytes > text.limit_bytes:
        options += f" --gguf-logprobs-limit={math.ceil(total * text.window_bytes / 1e6)}M"
    if text is None or total <= text.windows:
        return f"{more} more windows ({more * tokens} more scored tokens, {options})"
    size = text.bytes * total / text.windows
    return (
        f"{total} windows, of which this text has {text.windows}: a longer text, of about {_megabytes(size)}"
        f" (--gguf-corpus=FILE {options}),"
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.2g} MB"
