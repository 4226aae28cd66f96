"""Texts that a model writes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from gguf_harness.api.pictures import Picture
from gguf_harness.api.summaries import short_repr, summary_html
from gguf_harness.measure.live.continuing import Step
from gguf_harness.views.token_data import rounded, token_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Generated", "StreamedToken", "collect", "streamed"]

_TICKS: Final = 16


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StreamedToken:
    """One token of a text that is being written.

    Attributes:
        text: what it adds to the text; empty while a character is not complete, and for the token that ends the text.
        token: its id.
        piece: its own text; parts of characters are shown as U+FFFD.
        logprob: ln of its probability before sampling, in nats.
        ends: whether it ends the text.
        tokens: [k] int64, the 64 likeliest next tokens, of which the chosen one may be none.
        pieces: [k] their text.
        logprobs: [k] float64, ln of their probabilities, in nats.
        attention: [head of any layer, key] float32, what the last token of the text attended to, in the order of
            `model.facts.all_heads`; None if it was not asked for.
    """

    text: str
    token: int
    piece: str
    logprob: float
    ends: bool
    tokens: NDArray[np.int64]
    pieces: tuple[str, ...]
    logprobs: NDArray[np.float64]
    attention: NDArray[np.float32] | None
    _bytes: bytes = field(repr=False)

    def __repr__(self) -> str:
        return short_repr("StreamedToken", {"text": self.text, "token": self.token, "logprob": self.logprob})


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Generated:
    """What a model wrote after a prompt. `str(...)` is the text.

    Attributes:
        text: the tokens as text; an incomplete character at the end is shown as U+FFFD.
        tokens: [n] int64, the chosen token ids, without the one that ended the text.
        pieces: [n] their text; parts of characters are shown as U+FFFD.
        logprobs: [n] float64, ln of the probability of each before sampling, in nats.
        end: why it ends: `end` if the model ended it, `limit`, or `context` if there was no more room.
        prompt_tokens: [pos] int32, the tokens of the prompt.
    """

    text: str
    tokens: NDArray[np.int64]
    pieces: tuple[str, ...]
    logprobs: NDArray[np.float64]
    end: Literal["end", "limit", "context"]
    prompt_tokens: NDArray[np.int32]
    _model: str = field(repr=False)
    _bytes: tuple[bytes, ...] = field(repr=False)

    def plot(self) -> Picture:
        """How sure the model was of each token that it chose."""
        from gguf_harness.views.model_entries import model_entries

        shares = rounded(np.exp(self.logprobs))
        texts = [token_text(piece) for piece in self._bytes]
        ticks = range(0, len(texts), max(1, len(texts) // _TICKS))
        points = [[at, share, None, f"“{text}”"] for at, (share, text) in enumerate(zip(shares, texts, strict=True))]
        data = {
            "x": {"label": "token", "ticks": [[at, texts[at][:10]] for at in ticks]},
            "y": {"label": "probability", "zero": True, "percent": True},
            "models": model_entries([self._model], self._model),
            "lines": [{"model": 0, "name": self._model, "points": points}],
        }
        return Picture(
            "lines",
            data,
            f"What {self._model} wrote: the probability of each token",
            "Before sampling: where it is low, the model could as well have continued otherwise.",
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each token: position, token (Int64), piece (string), probability, logprob (float64, nats)."""
        from gguf_harness.api.long_frames import make_frame

        return make_frame(
            {
                "position": ("whole", np.arange(len(self.tokens)) + len(self.prompt_tokens)),
                "token": ("whole", self.tokens),
                "piece": ("text", list(self.pieces)),
                "probability": ("number", np.exp(self.logprobs)),
                "logprob": ("number", self.logprobs),
            }
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        values = {"model": self._model, "tokens": len(self.tokens), "end": self.end, "text": self.text}
        return short_repr("Generated", values)

    def _repr_html_(self) -> str:
        mean = f"{np.exp(self.logprobs.mean()):.1%}" if len(self.logprobs) else "none"
        return summary_html(
            f"Written by {self._model}",
            {"text": self.text, "tokens": f"{len(self.tokens)}, {self.end}", "typical probability": mean},
            "`.plot()` draws the probability of each token, `.to_frame()` is a table of them.",
        )


def streamed(steps: Iterator[Step]) -> Iterator[StreamedToken]:
    """Steps with the text that each adds: a character may be spread over several tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for step in steps:
        yield StreamedToken(
            text="" if step.ends else decoder.decode(step.piece),
            token=step.token,
            piece=step.piece.decode("utf-8", "replace"),
            logprob=step.logprob,
            ends=step.ends,
            tokens=step.tokens,
            pieces=tuple(piece.decode("utf-8", "replace") for piece in step.pieces),
            logprobs=step.logprobs,
            attention=step.attention,
            _bytes=step.piece,
        )


def collect(steps: Iterator[StreamedToken], prompt: NDArray[np.int32], limit: int, model: str) -> Generated:
    """The whole text of a stream."""
    written = list(steps)
    ended = bool(written) and written[-1].ends
    chosen = written[:-1] if ended else written
    pieces = tuple(step._bytes for step in chosen)  # noqa: SLF001 - of this module
    return Generated(
        text=b"".join(pieces).decode("utf-8", "replace"),
        tokens=np.array([step.token for step in chosen], dtype=np.int64),
        pieces=tuple(step.piece for step in chosen),
        logprobs=np.array([step.logprob for step in chosen], dtype=np.float64),
        end="end" if ended else "limit" if len(written) == limit else "context",
        prompt_tokens=prompt,
        _model=model,
        _bytes=pieces,
    )
