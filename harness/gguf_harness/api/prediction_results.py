"""What a model predicts after a prompt, and what each of its layers would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.api.pictures import Picture
from gguf_harness.api.summaries import short_repr, summary_html, table_html
from gguf_harness.api.token_texts import ModelVocabulary
from gguf_harness.errors import NoData, OptionError
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.texts.next_tokens import KEPT
from gguf_harness.metrics.kernels.ranks import largest
from gguf_harness.views.reading_data import lens_cells, next_tokens_view

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LogitLens", "NextTokens", "lens_of", "lens_picture", "next_tokens_of", "next_tokens_picture"]

F64 = NDArray[np.float64]

_TOLD: Final = 5
_LENS_KEPT: Final = 16
"""Tokens of each layer that a lens keeps."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NextTokens:
    """The distribution of the token after one place of a prompt.

        predicted = model.next_tokens("The capital of France is")
        predicted.pieces[0], predicted.probabilities[0]
        predicted.probability(" Paris")

    Attributes:
        tokens: [k] int64, the 64 likeliest token ids, likeliest first; fewer in a smaller vocabulary.
        pieces: [k] their text; parts of characters are shown as U+FFFD.
        logprobs: [k] float64, ln of their probabilities, in nats.
        place: of the token in the prompt after which they come, counted from 0.
        after: its text.
    """

    tokens: NDArray[np.int64]
    pieces: tuple[str, ...]
    logprobs: F64
    place: int
    after: str
    _all: F64 = field(repr=False)
    _reading: Reading = field(repr=False)
    _vocabulary: ModelVocabulary = field(repr=False)

    @property
    def probabilities(self) -> F64:
        """[k] of the likeliest tokens."""
        return np.asarray(np.exp(self.logprobs))

    @property
    def entropy(self) -> float:
        """Of the whole distribution, in nats: 0 where the model is sure."""
        shares = np.exp(self._all)
        return float(-(shares * np.where(shares > 0, self._all, 0)).sum())

    def probability(self, text: str) -> float:
        """The probability that the next token is this text, whether it is among the likeliest or not.

        Args:
            text: of one token: most words begin with a space, as `" Paris"`.

        Raises:
            TypeError: it is no text.
            OptionError: no token of the vocabulary is this text.
        """
        found = tokens_of(text, self._vocabulary, self._reading.facts.name)
        return float(np.exp(self._all[found]).sum())

    def plot(self) -> Picture:
        """The likeliest tokens as bars, with the usual settings of sampling to try."""
        return next_tokens_picture([self._reading], self._vocabulary, self.place)

    def to_frame(self) -> pd.DataFrame:
        """A row for each: rank, token (Int64), piece (string), probability, logprob (float64, nats)."""
        from gguf_harness.api.long_frames import make_frame

        return make_frame(
            {
                "rank": ("whole", np.arange(1, len(self.tokens) + 1)),
                "token": ("whole", self.tokens),
                "piece": ("text", list(self.pieces)),
                "probability": ("number", self.probabilities),
                "logprob": ("number", self.logprobs),
            }
        )

    def __repr__(self) -> str:
        likeliest = dict(zip(self.pieces[:_TOLD], self.probabilities[:_TOLD].round(4).tolist(), strict=True))
        return short_repr(
            "NextTokens", {"model": self._reading.facts.name, "after": self.after, "likeliest": likeliest}
        )

    def _repr_html_(self) -> str:
        rows = [
            [str(rank), repr(piece), f"{100 * p:.2f} %"]
            for rank, (piece, p) in enumerate(zip(self.pieces[:10], self.probabilities[:10], strict=True), 1)
        ]
        return summary_html(
            f"Next token after {self.after!r}, by {self._reading.facts.name}",
            {"entropy": f"{self.entropy:.3f} nats"},
            f"`.plot()` draws them, `.to_frame()` has the {len(self.tokens)} likeliest, `.probability(text)` any.",
            table_html(["rank", "token", "probability"], rows),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LogitLens:
    """What each layer would predict at one place of a prompt: its stream, through the final norm and unembedding.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.

    Attributes:
        tokens: [layer, k] int64, the 16 likeliest token ids after each layer, likeliest first. The last layer's are the
            model's own prediction.
        pieces: by layer, [k] their text.
        logprobs: [layer, k] float64, ln of their probabilities, in nats.
        place: of the token in the prompt, counted from 0.
        after: its text.
    """

    tokens: NDArray[np.int64]
    pieces: tuple[tuple[str, ...], ...]
    logprobs: F64
    place: int
    after: str
    _model: str = field(repr=False)
    _bytes: tuple[tuple[bytes, ...], ...] = field(repr=False)
    _all: F64 = field(repr=False)
    _vocabulary: ModelVocabulary = field(repr=False)

    @property
    def probabilities(self) -> F64:
        """[layer, k] of the likeliest tokens."""
        return np.asarray(np.exp(self.logprobs))

    def probability(self, text: str) -> F64:
        """[layer] probability that each layer gives to this text as the next token, be it among the likeliest or not.

        Args:
            text: of one token: most words begin with a space, as `" Paris"`.

        Raises:
            TypeError: it is no text.
            OptionError: no token of the vocabulary is this text.
        """
        found = tokens_of(text, self._vocabulary, self._model)
        return np.asarray(np.exp(self._all[:, found]).sum(axis=1))

    def plot(self, most: int = 5) -> Picture:
        """The likeliest tokens after each layer, coloured by their probability.

        Args:
            most: tokens for each layer, 16 at most.
        """
        return lens_picture(self._model, self._bytes, self.logprobs, most, self.place, self.after)

    def to_frame(self) -> pd.DataFrame:
        """A row for each: layer, rank, token (Int64), piece (string), probability, logprob (float64, nats)."""
        from gguf_harness.api.long_frames import make_frame

        layers, most = self.tokens.shape
        return make_frame(
            {
                "layer": ("whole", np.repeat(np.arange(layers), most)),
                "rank": ("whole", np.tile(np.arange(1, most + 1), layers)),
                "token": ("whole", self.tokens.ravel()),
                "piece": ("text", [piece for row in self.pieces for piece in row]),
                "probability": ("number", self.probabilities.ravel()),
                "logprob": ("number", self.logprobs.ravel()),
            }
        )

    def __repr__(self) -> str:
        first = [row[0] for row in self.pieces]
        return short_repr(
            "LogitLens", {"model": self._model, "after": self.after, "layers": len(first), "likeliest": first}
        )

    def _repr_html_(self) -> str:
        rows = [
            [str(layer), repr(row[0]), f"{100 * p:.2f} %"]
            for layer, (row, p) in enumerate(zip(self.pieces, self.probabilities[:, 0], strict=True))
        ]
        return summary_html(
            f"Likeliest next token after {self.after!r}, layer by layer, in {self._model}",
            {},
            "`.plot()` draws them, `.to_frame()` is a table.",
            table_html(["layer", "token", "probability"], rows),
        )


def tokens_of(text: str, vocabulary: ModelVocabulary, model: str) -> list[int]:
    """The tokens that are a text: different ones may stand for the same.

    Raises:
        TypeError: it is no text.
        OptionError: no token of the vocabulary is this text.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is a str, got {type(text).__name__}")
    wanted, known = text.encode("utf-8", "surrogatepass"), vocabulary.all()
    found = [token for token, piece in enumerate(known) if piece == wanted and wanted]
    if not found:
        begin = [piece.decode("utf-8", "replace") for piece in known if piece and wanted.startswith(piece)]
        hint = f"It may be several tokens, of which the first is {max(begin, key=len)!r}. " if begin else ""
        raise OptionError(
            f"No token of {model} is {text!r}.",
            f"{hint}Give the text of one token; most words begin with a space, as {f' {text.strip()}'!r}.",
        )
    return found


def next_tokens_of(reading: Reading, vocabulary: ModelVocabulary, place: int) -> NextTokens:
    """The distribution after a place of a reading.

    Args:
        reading: with logits.
        vocabulary: of the model.
        place: counted from 0.

    Raises:
        NoData: the model predicts nothing.
    """
    logprobs = reading.next_logprobs(place)
    top = largest(logprobs, KEPT)
    return NextTokens(
        tokens=top,
        pieces=tuple(piece.decode("utf-8", "replace") for piece in vocabulary.pieces(top.tolist())),
        logprobs=logprobs[top],
        place=place,
        after=reading.texts[place],
        _all=logprobs,
        _reading=reading,
        _vocabulary=vocabulary,
    )


def lens_of(reading: Reading, logprobs: F64, vocabulary: ModelVocabulary, place: int) -> LogitLens:
    """The lens from the distributions after each layer, [layer, vocabulary]."""
    top = largest(logprobs, _LENS_KEPT)
    tokens = list(dict.fromkeys(top.ravel().tolist()))
    known = dict(zip(tokens, vocabulary.pieces(tokens), strict=True))
    pieces = tuple(tuple(known[token] for token in row) for row in top.tolist())
    return LogitLens(
        tokens=top,
        pieces=tuple(tuple(piece.decode("utf-8", "replace") for piece in row) for row in pieces),
        logprobs=np.take_along_axis(logprobs, top, axis=1),
        place=place,
        after=reading.texts[place],
        _model=_named(reading),
        _bytes=pieces,
        _all=logprobs,
        _vocabulary=vocabulary,
    )


def _named(reading: Reading) -> str:
    return f"{reading.facts.name}{f' with {reading.ablation}' if reading.ablation else ''}"


def next_tokens_picture(readings: Sequence[Reading], vocabulary: ModelVocabulary, place: int) -> Picture:
    """The view `next_tokens` after one place of a prompt that one or more models have read.

    Raises:
        NoData: one predicts nothing.
    """
    names = " and ".join(dict.fromkeys(_named(each) for each in readings))
    return Picture(
        "next_tokens",
        next_tokens_view(readings, vocabulary, place),
        f"Next token after {readings[0].texts[place]!r}, by {names}",
        "Probabilities of the likeliest tokens; the settings are those of sampling.",
    )


def lens_picture(
    model: str, pieces: Sequence[Sequence[bytes]], logprobs: F64, most: int, place: int, after: str
) -> Picture:
    """The view `matrix` of a lens.

    Raises:
        NoData: there are no layers.
    """
    if not len(logprobs) or most < 1:
        raise NoData(f"There is nothing to draw: {len(logprobs)} layers, {most} tokens for each.")
    return Picture(
        "matrix",
        lens_cells([row[:most] for row in pieces], logprobs[:, :most]),
        f"What each layer of {model} would predict after token {place}, {after!r}",
        "The stream after each layer through the final norm and the unembedding; the last row is the prediction.",
    )
