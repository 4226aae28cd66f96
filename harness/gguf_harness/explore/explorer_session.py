"""What the explorer does with its models: read prompts, keep what was read, continue texts. Plain data in and out."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import HarnessError, OptionError, PromptError
from gguf_harness.explore.answers import (
    divergences,
    facts_of,
    moved_by,
    notes_of,
    prediction_of,
    tokens_of,
    views_of,
    weights_as_text,
)
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.models import ModelInfo, check_same_vocabulary
from gguf_harness.inputs.prompts import Message, Prompt
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import NOTHING_OFF, Ablation, Sampling
from gguf_harness.views.attention_data import side_of
from gguf_harness.views.model_entries import model_entries
from gguf_harness.views.reading_data import (
    entries_of,
    lens_view,
    next_tokens_view,
    steps_view,
    stream_view,
)
from gguf_harness.views.structure_data import structure_view
from gguf_harness.views.token_data import token_text

__all__ = ["Explorer", "Gone"]

Data = dict[str, Any]

MOST_TOKENS: Final = 512
_SHOWN_TOKENS: Final = 64
_SHOWN_CELLS: Final = 6_000_000
"""Bytes of attention weights of one model in an answer."""
_KEPT_BYTES: Final = 1_500_000_000
_READ_BYTES: Final = 1_000_000_000
_TOP: Final = 5

EXAMPLES: Final = (
    (
        "Repetition",
        "Return the number of items in the list that are greater than zero. Return the number of items in the",
    ),
    ("A story", "Once upon a time there was a king who had three sons. The youngest of the sons"),
    ("Code", "def area(width, height):\n    return width *"),
    ("A fact", "The capital of France is Paris. The capital of Italy is"),
)


class Gone(HarnessError):
    """What a page asks about was read too long ago, or by another start of the explorer."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a person typed, and how it is read."""

    prompt: str
    chat: bool

    def as_prompt(self) -> str | Prompt:
        return Prompt("chat", messages=(Message("user", self.prompt),)) if self.chat else self.prompt


_Key = tuple[int, _Asked, Ablation]
"""Which model read what, and what was off."""


class Explorer:
    """Models of an explorer, loaded when they are first asked, and freed when no page is open.

    Args:
        infos: the reference and the candidate, or one model.
        settings: how to run them.
        gpu: NVIDIA GPU, -1 for none.

    Raises:
        VocabularyMismatch: the two have different tokens.
    """

    def __init__(self, infos: Sequence[ModelInfo], settings: SessionSettings, *, gpu: int | None = None) -> None:
        for info in infos[1:]:
            check_same_vocabulary(infos[0], info)
        self.infos = tuple(infos)
        self._settings = settings
        self._gpu = gpu
        self._lock = threading.RLock()
        self._models: list[LiveModel] = []
        self._read: OrderedDict[_Key, Reading] = OrderedDict()
        self._answers: OrderedDict[str, tuple[_Key, ...]] = OrderedDict()

    @property
    def models(self) -> list[LiveModel]:
        """Loaded on first use; the last one is the model under study."""
        with self._lock:
            if not self._models:
                self._models = [
                    LiveModel(info, self._settings, gpu=self._gpu, limit_bytes=_READ_BYTES) for info in self.infos
                ]
            return self._models

    def free(self) -> None:
        """End the workers; the next question starts others."""
        with self._lock:
            models, self._models = self._models, []
            self._read.clear()
            self._answers.clear()
        for model in models:
            model.close()

    def describe(self) -> Data:
        """The models, and what can be asked of them; loads them.

        Raises:
            HarnessError: one of them cannot be loaded.
        """
        entries = model_entries([info.name for info in self.infos], self.infos[0].name)
        return {
            "models": [entry | facts_of(model) for entry, model in zip(entries, self.models, strict=True)],
            "examples": [{"title": title, "text": text} for title, text in EXAMPLES],
            "most_tokens": MOST_TOKENS,
            "side": self._side(),
        }

    def read(self, prompt: str, ablation: Ablation, *, chat: bool = False) -> Data:
        """Read a prompt with every model, and with what is off in the model under study.

        Raises:
            PromptError: a model cannot take it.
            OptionError: there is no such head or layer.
            HarnessError: a model failed.
        """
        asked = _Asked(prompt, chat)
        wanted = [(at, asked, NOTHING_OFF) for at in range(len(self.infos))]
        if ablation:
            wanted.append((len(self.infos) - 1, asked, ablation))
        self._check_length(asked)
        timed = [self._reading(*each) for each in wanted]
        readings = [reading for reading, _ in timed]
        model, side, kld = self.models[0], self._side(), divergences(readings)
        answer = secrets.token_hex(8)
        with self._lock:
            self._answers[answer] = tuple(wanted)
            while len(self._answers) > 64:
                self._answers.popitem(last=False)
        return {
            "id": answer,
            "tokens": tokens_of(readings, kld),
            "readings": [
                entry | {"model": at, "off": str(off)}
                for entry, (at, _, off) in zip(entries_of(readings), wanted, strict=True)
            ],
            "views": views_of(readings, model, side),
            "prediction": prediction_of(readings, model),
            "kld": [None if value is None else value[-1] for value in kld],
            "moved": moved_by(readings[len(self.infos) - 1], readings[-1]) if ablation else None,
            "notes": notes_of(readings, side),
            "ms": [ms for _, ms in timed],
        }

    def next_tokens(self, answer: str, place: int) -> Data:
        """Data of the view `next_tokens` after a token."""
        readings = self._of(answer)
        return next_tokens_view(readings, self.models[0], self._place(readings, place))

    def steps(self, answer: str, layer: int, head: int) -> Data:
        """Data of the view `qkv` of a head."""
        return steps_view(self._of(answer), layer, head, self._side())

    def stream(self, answer: str, place: int) -> Data:
        """Data of the view `lines` at a token."""
        readings = self._of(answer)
        return stream_view(readings, self._place(readings, place))

    def lens(self, answer: str, place: int) -> Data:
        """The logit lens of each reading at a token: data of the view `matrix`."""
        keys = self._keys(answer)
        readings = [self._reading(*key)[0] for key in keys]
        place = self._place(readings, place)
        models = [
            entry | {"data": lens_view(self.models[at].lens(reading, place), self.models[at])}
            for entry, reading, (at, *_) in zip(entries_of(readings), readings, keys, strict=True)
        ]
        return {"models": models}

    def structure(self, model: int) -> Data:
        """Data of the view `structure`: every tensor of a model, on one scale for all.

        Raises:
            OptionError: there is no such model.
        """
        if not 0 <= model < len(self.infos):
            raise OptionError(f"There is no model {model}.", f"Models are 0 to {len(self.infos) - 1}.")
        tensors = [[tensor for file in info.files for tensor in read_header(file).tensors] for info in self.infos]
        return structure_view(tensors[model], self.infos[model].fallbacks, [each for part in tensors for each in part])

    def generate(
        self, prompt: str, ablation: Ablation, sampling: Sampling, limit: int, *, chat: bool = False
    ) -> Iterator[tuple[str, Data]]:
        """(event, data) of each token that the model under study writes, and of the end.

        Raises:
            HarnessError: the model cannot take the prompt, or failed.
        """
        model = self.models[-1]
        tokens, _ = model.tokenize(_Asked(prompt, chat).as_prompt())
        ended = "context"
        for count, step in enumerate(
            model.steps(tokens.tolist(), limit, ablation, sampling, attention=model.facts.causal), start=1
        ):
            if step.ends:
                ended = "end"
                break
            ended = "limit" if count == limit else "context"
            yield (
                "token",
                {
                    "text": step.piece.decode("utf-8", "replace"),
                    "shown": token_text(step.piece),
                    "id": step.token,
                    "p": float(np.exp(step.logprob)),
                    "top": [
                        [token_text(piece), float(np.exp(logprob))]
                        for piece, logprob in zip(step.pieces[:_TOP], step.logprobs[:_TOP], strict=True)
                    ],
                    "keys": 0 if step.attention is None else step.attention.shape[1],
                    "attention": "" if step.attention is None else weights_as_text(step.attention),
                },
            )
        yield "end", {"reason": ended}

    # -- readings -----------------------------------------------------------------------------------------------------

    def _reading(self, at: int, asked: _Asked, ablation: Ablation) -> tuple[Reading, int]:
        """(what a model read, milliseconds that it took); from memory if it was read before."""
        key = (at, asked, ablation)
        with self._lock:
            known = self._read.get(key)
            if known is not None:
                self._read.move_to_end(key)
                return known, 0
        begun = time.perf_counter()
        reading = self.models[at].read(asked.as_prompt(), ablation)
        ms = round(1000 * (time.perf_counter() - begun))
        with self._lock:
            self._read[key] = reading
            while len(self._read) > 1 and sum(map(_bytes, self._read.values())) > _KEPT_BYTES:
                self._read.popitem(last=False)
        return reading, ms

    def _of(self, answer: str) -> list[Reading]:
        return [self._reading(*key)[0] for key in self._keys(answer)]

    def _keys(self, answer: str) -> tuple[_Key, ...]:
        with self._lock:
            keys = self._answers.get(answer)
        if keys is None:
            raise Gone("This prompt was read by another start of the explorer, or too long ago.", "Read it again.")
        return keys

    def _check_length(self, asked: _Asked) -> None:
        try:
            tokens, _ = self.models[0].tokenize(asked.as_prompt())
        except PromptError as error:
            # The suites' advice names options that the explorer does not have.
            raise PromptError(error.message, "Change the prompt: shorten it, or type something.") from None
        if len(tokens) > MOST_TOKENS:
            raise PromptError(
                f"The prompt has {len(tokens)} tokens; the explorer reads at most {MOST_TOKENS}.",
                "Shorten it. For long texts, use the suites: they sum up what they read.",
            )

    def _place(self, readings: Sequence[Reading], place: int) -> int:
        n = min(len(reading.tokens) for reading in readings)
        if not -n <= place < n:
            raise PromptError(f"There is no token {place}.", f"Tokens are 0 to {n - 1}.")
        return place

    def _side(self) -> int:
        """Tokens of the pictures of attention."""
        heads = max((sum(model.facts.heads) for model in self.models), default=0)
        return min(_SHOWN_TOKENS, side_of(_SHOWN_CELLS / max(1, heads)))


def _bytes(reading: Reading) -> int:
    arrays = [*reading.states.values(), reading.tokens]
    for kind in (reading.pattern, reading.scores, reading.q, reading.k, reading.v):
        arrays += list(kind.values())
    return sum(array.nbytes for array in arrays) + (0 if reading.logits is None else reading.logits.nbytes)
