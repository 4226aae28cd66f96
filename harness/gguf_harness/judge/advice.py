"""What more would decide a gate, and how it is asked for: never more than there is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from gguf_harness.metrics.registry import metric_info

__all__ = ["TextSize", "what_would_decide"]

_MOST_REPETITIONS: Final = 100
_MOST_PROMPTS: Final = 1000
"""Beyond them a person had better look at the limit: it is where the value is."""

_MOST_HEAD_WINDOWS: Final = 10
"""Their distributions have to fit into a gigabyte (`measure/ablation.py`), also with vocabularies of 256,000 tokens."""


@dataclass(frozen=True, slots=True)
class TextSize:
    """The text that windows are taken from.

    Attributes:
        windows: how many it has.
        bytes: its size.
        window_bytes: what the reference's distributions of a window take on disk; 0 where none are kept.
        limit_bytes: what all of them may take (--gguf-logprobs-limit).
    """

    windows: int
    bytes: int
    window_bytes: int
    limit_bytes: int


def what_would_decide(metric: str, clusters: int, total: int, tokens: int, text: TextSize | None) -> str:
    """A sentence for a person whose gate is undecided.

    Args:
        metric: of the gate.
        clusters: windows, prompts or repetitions that there are.
        total: how many would probably decide; more than `clusters`.
        tokens: scored tokens of a window.
        text: what windows are taken from; None where nobody looked.
    """
    more = total - clusters
    estimated = metric_info(metric).estimated
    if estimated == "corpus":
        what = _windows(more, total, tokens, text)
    elif estimated == "head windows":
        if total > _MOST_HEAD_WINDOWS:
            return f"more than {_MOST_HEAD_WINDOWS} windows would have to decide: it is too near its limit."
        what = f"{more} more windows (--gguf-head-windows={total})"
    elif estimated in {"timing", "requests"}:
        if total > _MOST_REPETITIONS:
            return f"more than {_MOST_REPETITIONS} repetitions would have to decide: it is too near its limit."
        what = f"{more} more repetitions (--gguf-repetitions={total})"
    elif estimated == "words":
        what = f"{more} more groups of words (--gguf-words)"
    elif total > _MOST_PROMPTS:
        return f"more than {_MOST_PROMPTS} prompts would have to decide: it is too near its limit."
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
