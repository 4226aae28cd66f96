"""Two models that read the same prompt: the second is compared with the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.api.arguments import AnyPrompt, ablation_of, place_of
from gguf_harness.api.attention_results import attention_picture, steps_picture
from gguf_harness.api.loading import Loader
from gguf_harness.api.opened import OpenModel
from gguf_harness.api.pictures import Picture, Pictures
from gguf_harness.api.prediction_results import lens_of, next_tokens_picture
from gguf_harness.api.summaries import first_pieces, short_repr, summary_html, table_html
from gguf_harness.api.token_texts import ModelVocabulary
from gguf_harness.errors import OptionError, VocabularyMismatch
from gguf_harness.inputs.models import ModelInfo, check_same_vocabulary
from gguf_harness.measure.layers.tasks import kld_rows
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import Ablation
from gguf_harness.measure.texts.next_tokens import KEPT
from gguf_harness.metrics.kernels.ranks import largest
from gguf_harness.views.reading_data import entries_of
from gguf_harness.views.strip_data import LISTED, strip_numbers, strip_values, strip_words

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare"]

F64 = NDArray[np.float64]

_TOLD: Final = 5


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison:
    """What a candidate does with a prompt, beside its reference.

    Attributes:
        reference: its name.
        candidate: its name, and what is off.
        tokens: [pos] int32 token ids, the same for both.
        pieces: [pos] their text; parts of characters are shown as U+FFFD.
        kld: [pos] float64, KL(reference || candidate) of the next token after each place, in nats.
        same_top: [pos] bool, whether both find the same next token likeliest.
        delta_p: [pos] float64, probability of the token that follows in the prompt, candidate minus reference; NaN
            after the last.
        heads: layer and head of each row of `attention_moved`; empty where the two have other heads, or no attention.
        attention_moved: [head, pos] float64, total variation of the attention of each token: the share of the weight, 0
            to 1, that is elsewhere.
        stream_error: [layer] float64, norm of the difference of the two streams after each block over that of the
            reference's, mean over the tokens; empty where the stream of one cannot be read.
    """

    reference: str
    candidate: str
    tokens: NDArray[np.int32]
    pieces: tuple[str, ...]
    kld: F64
    same_top: NDArray[np.bool_]
    delta_p: F64
    heads: tuple[tuple[int, int], ...]
    attention_moved: F64
    stream_error: F64
    _readings: tuple[Reading, Reading] = field(repr=False)
    _loaders: tuple[Loader, Loader] = field(repr=False)
    _vocabulary: ModelVocabulary = field(repr=False)

    @property
    def kld_mean(self) -> float:
        """KL(reference || candidate), mean over the places of the prompt, in nats."""
        return float(self.kld.mean())

    @property
    def top_agreement(self) -> float:
        """Share of places at which both find the same next token likeliest."""
        return float(self.same_top.mean())

    @property
    def attention(self) -> Picture:
        """Attention of both, and their difference: begins with the head that moved most.

        Raises:
            NoData: there is no attention to show.
        """
        return attention_picture(self._readings)

    def next_tokens(self, place: int = -1) -> Picture:
        """The likeliest tokens after one place of the prompt, of both.

        Args:
            place: after which token, counted from 0; negative ones from the end.

        Raises:
            OptionError: the prompt is shorter.
        """
        return next_tokens_picture(self._readings, self._vocabulary, place_of(place, len(self.tokens)))

    def steps(self, layer: int, head: int) -> Picture:
        """How a head computes its output in both, for each query.

        Raises:
            OptionError: there is no such head.
            NoData: llama.cpp does not name queries, keys and values in this architecture.
        """
        return steps_picture(self._readings, layer, head)

    def lens(self, place: int = -1) -> Pictures:
        """What each layer of both would predict after one place of the prompt.

        A model that was closed meanwhile is loaded again for this.

        Args:
            place: after which token, counted from 0; negative ones from the end.

        Raises:
            OptionError: the prompt is shorter.
            NoData: a stream cannot be read.
        """
        at, found = place_of(place, len(self.tokens)), []
        for reading, loader in zip(self._readings, self._loaders, strict=True):
            with loader.loaded() as live:
                found.append(lens_of(reading, live.lens(reading, at), self._vocabulary, at).plot())
        return Pictures(tuple(found))

    def plot(self) -> Picture:
        """The prompt, token by token, on the colour of what the candidate changed there.

        Raises:
            OptionError: the prompt has a single token, before which there is nothing to predict it from.
        """
        if len(self.tokens) < 2:
            raise OptionError("The prompt has one token, which nothing predicts.", "Give a longer prompt.")
        base, other = (reading.nll()[1:] for reading in self._readings)
        values = {"delta_p": self.delta_p[:-1], "kld": self.kld[:-1], "nll": other}
        tops = [strip_words(self._tops(reading)[:-1]) for reading in self._readings]
        data = {
            "models": entries_of(self._readings),
            # What predicts the first token is nothing.
            "tokens": strip_words(self._readings[0].pieces[1:]),
            "reference": {"nll": strip_numbers(base), "top": tops[0]},
            "candidates": [
                {
                    "model": 1,
                    "top": [
                        None if same else top for same, top in zip(self.same_top[:-1].tolist(), tops[1], strict=True)
                    ],
                    **{name: strip_numbers(each) for name, each in values.items()},
                }
            ],
            "values": strip_values([values]),
            "chosen": 0,
            "listed": LISTED,
        }
        return Picture(
            "tokens",
            data,
            f"{self.candidate} beside {self.reference}",
            "The prompt without its first token: each token stands on the colour of what changed in its prediction.",
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each token of the prompt, about the prediction after it.

        position (Int64), token, next (string, missing after the last), kld, delta_p (float64), same_top (boolean),
        top_reference, top_candidate (string), p_reference, p_candidate (float64, of the token that follows, NaN after
        the last), total_variation (float64, mean over all heads for what this token attends to; NaN where unknown).
        """
        from gguf_harness.api.long_frames import make_frame

        n = len(self.tokens)
        p = [np.append(np.exp(-reading.nll()[1:]), np.nan) for reading in self._readings]
        tops = [[piece.decode("utf-8", "replace") for piece in self._tops(reading)] for reading in self._readings]
        moved = self.attention_moved.mean(axis=0) if self.heads else np.full(n, np.nan)
        return make_frame(
            {
                "position": ("whole", np.arange(n)),
                "token": ("text", list(self.pieces)),
                "next": ("text", [*self.pieces[1:], None]),
                "kld": ("number", self.kld),
                "same_top": ("yes", self.same_top),
                "delta_p": ("number", self.delta_p),
                "top_reference": ("text", tops[0]),
                "top_candidate": ("text", tops[1]),
                "p_reference": ("number", p[0]),
                "p_candidate": ("number", p[1]),
                "total_variation": ("number", moved),
            }
        )

    def _tops(self, reading: Reading) -> list[bytes]:
        return self._vocabulary.pieces(reading.require_logits().argmax(axis=1).tolist())

    def _facts(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "tokens": len(self.tokens),
            "kld_mean": self.kld_mean,
            "top_agreement": self.top_agreement,
        }

    def __repr__(self) -> str:
        return short_repr("Comparison", self._facts())

    def _repr_html_(self) -> str:
        worst = np.argsort(-self.kld, kind="stable")[:_TOLD].tolist()
        rows = [
            [str(at), repr(self.pieces[at]), f"{self.kld[at]:.4g}", "yes" if self.same_top[at] else "no"]
            for at in worst
        ]
        moved = f"{self.attention_moved[:, 1:].mean():.4f}" if self.heads and len(self.tokens) > 1 else "unknown"
        return summary_html(
            f"{self.candidate} beside {self.reference}",
            {
                "tokens": first_pieces(self.pieces),
                "KL, mean": f"{self.kld_mean:.4g} nats",
                "same likeliest token": f"{self.top_agreement:.0%}",
                "attention moved": moved,
            },
            "`.plot()` draws the prompt, `.attention`, `.next_tokens(place)`, `.steps(layer, head)` and `.lens(place)`"
            " are more pictures, `.to_frame()` is a table. Below: the places with the largest KL.",
            table_html(["place", "after", "KL (nats)", "same likeliest"], rows),
        )


def compare(
    a: str | Path | OpenModel,
    b: str | Path | OpenModel,
    prompt: AnyPrompt,
    off: Ablation | None = None,
    *,
    threads: int | None = None,
    gpu: int = 0,
) -> Comparison:
    """Read a prompt with two models of one vocabulary, and compare the second with the first.

        gguf_harness.compare("model-F16.gguf", "model-Q2_K.gguf", "The cat sat on the mat").plot()
        gguf_harness.compare(model, model, "The cat sat", off=gguf_harness.off(heads=[(1, 1)]))

    Models that are given by name are loaded one after the other: one is in memory at a time.

    Args:
        a: the reference, an open model or its name.
        b: the candidate, the same.
        prompt: a text, a chat or token ids; the reference's tokens are read by both.
        off: what is switched off in the candidate.
        threads: CPU threads of models given by name; the physical cores if not given.
        gpu: NVIDIA GPU of models given by name, -1 for none.

    Raises:
        TypeError: an argument is of another type.
        VocabularyMismatch: the models have different vocabularies.
        NoData: one predicts no tokens.
        HarnessError: one cannot be loaded, or cannot take the prompt.
    """
    loaders = _loader(a, threads, gpu), _loader(b, threads, gpu)
    ablation = ablation_of(off)
    _check_vocabulary(loaders[1].info, loaders[0].info)
    with _opened(a, loaders[0]) as first:
        base = first.read(prompt)
        base.require_logits()
        tokens = base.tokens.tolist()
        if b is a or (not isinstance(b, OpenModel) and loaders[0].info.files == loaders[1].info.files):
            return _compared(base, first.read(tokens, off=ablation), (first.loader, first.loader), first.vocabulary)
    with _opened(b, loaders[1]) as second:
        return _compared(base, second.read(tokens, off=ablation), loaders, second.vocabulary)


def _loader(model: str | Path | OpenModel, threads: int | None, gpu: int) -> Loader:
    return model.loader if isinstance(model, OpenModel) else Loader(model, threads, gpu)


@contextmanager
def _opened(model: str | Path | OpenModel, loader: Loader) -> Iterator[OpenModel]:
    if isinstance(model, OpenModel):
        yield model
        return
    with OpenModel(loader) as opened:
        yield opened


def _check_vocabulary(candidate: ModelInfo, reference: ModelInfo) -> None:
    try:
        check_same_vocabulary(candidate, reference)
    except VocabularyMismatch as error:
        raise VocabularyMismatch(error.message, "Compare a model with one that it was quantized from.") from None


def _compared(base: Reading, own: Reading, loaders: tuple[Loader, Loader], vocabulary: ModelVocabulary) -> Comparison:
    logits = base.require_logits(), own.require_logits()
    tops = [each.argmax(axis=1) for each in logits]
    # The texts that tables and the first pictures name, while the model is open.
    last = [largest(each.next_logprobs(), KEPT) for each in (base, own)]
    vocabulary.pieces(np.concatenate([*tops, *last]).tolist())
    probabilities = [np.exp(-each.nll()[1:]) for each in (base, own)]
    heads, moved = _attention_moved(base, own)
    names = [entry["name"] for entry in entries_of([base, own])]
    return Comparison(
        reference=names[0],
        candidate=names[1],
        tokens=base.tokens,
        pieces=base.texts,
        kld=kld_rows(*logits),
        same_top=np.asarray(tops[0] == tops[1]),
        delta_p=np.append(probabilities[1] - probabilities[0], np.nan),
        heads=heads,
        attention_moved=moved,
        stream_error=_stream_error(base, own),
        _readings=(base, own),
        _loaders=loaders,
        _vocabulary=vocabulary,
    )


def _attention_moved(base: Reading, own: Reading) -> tuple[tuple[tuple[int, int], ...], F64]:
    if not base.pattern or base.facts.heads != own.facts.heads or base.pattern.keys() != own.pattern.keys():
        return (), np.zeros((0, len(base.tokens)))
    moved = [
        np.abs(own.pattern[layer].astype(np.float64) - base.pattern[layer]).sum(axis=-1) / 2 for layer in base.pattern
    ]
    return tuple(base.facts.all_heads), np.concatenate(moved)


def _stream_error(base: Reading, own: Reading) -> F64:
    a, b = base.states.get("resid_post"), own.states.get("resid_post")
    if a is None or b is None or a.shape != b.shape:
        return np.zeros(0)
    size = np.linalg.norm(a.astype(np.float64), axis=-1)
    apart = np.linalg.norm(b.astype(np.float64) - a, axis=-1)
    # A stream of zeros has no relative error.
    return np.asarray(np.nanmean(np.where(size > 0, apart / np.where(size > 0, size, 1), np.nan), axis=1))
