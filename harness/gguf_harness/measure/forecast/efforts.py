"""What each kind of measurement takes, by the options and the header of the subject's file; and what that costs.

Efforts are counts that follow from what the tasks do: tokens decoded in batches, rows of logits that are computed and
looked at, tokens decoded one by one, weights read. `FITTED` says what a kind takes beyond its counts at the costs of
`calibration.py`: what taps, files and NumPy add. It was fitted to processor times of one thread, of tiny with all and
SmolLM2-135M with few prompts and windows; `tests/bench/forecast.py --fit` prints what is left of it on other machines,
and each machine learns that by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gguf_harness.engine.settings import scored_tokens

if TYPE_CHECKING:
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.prompts import PromptSet

__all__ = ["EFFORTS", "FITTED", "TESTS_S", "Costs", "Effort", "Fit", "Scale", "TextSize"]

_CHARACTERS: Final = 3.5
"""Of a token, in prompts: subword vocabularies of English."""
_CHAT_TOKENS: Final = 12
"""What a template adds to a chat."""
_HEAD_WINDOW: Final = 96
_HEAD_UNSCORED: Final = 17
_FLOOR_WINDOWS: Final = 4
_MIXTURE_WINDOWS: Final = 4
_ROLES: Final = 8
"""Groups of tensors by role that quantization changes, in most architectures."""
_LAYER_GROUPS: Final = 8
_REPEATED: Final = 4 * 129
"""Tokens of the repeated random sequences of `observe_attention`."""
_REMOVED: Final = 0.25
"""Share of the chosen heads that go until the loss of every window has risen enough."""
_TRIES: Final = 1.6
"""Heads that are tried before one goes."""
_SCREENED: Final = 2
"""Windows of a screen."""
_SAMPLED_ROWS: Final = 16384
_START_S: Final = 0.3
"""A process of its own that loads a small model."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that one of each takes, of one file with the session's settings on this machine.

    Attributes:
        token: decoded in a batch, without logits; all threads together.
        row: of logits, computed and compared.
        step: a token decoded alone, by each lane at once.
        weight: read and converted to single precision.
    """

    token: float
    row: float
    step: float
    weight: float


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts; see `Costs`. `seconds` are the same on any machine, such as a pause or the least time of a repetition."""

    tokens: float = 0.0
    rows: float = 0.0
    steps: float = 0.0
    weights: float = 0.0
    seconds: float = 0.0

    def at(self, costs: Costs) -> float:
        """Seconds."""
        return (
            self.tokens * costs.token
            + self.rows * costs.row
            + self.steps * costs.step
            + self.weights * costs.weight
            + self.seconds
        )


@dataclass(frozen=True, slots=True)
class TextSize:
    """Number of prompts, and of their tokens about."""

    prompts: int
    tokens: int

    @classmethod
    def of(cls, prompts: PromptSet) -> TextSize:
        """Of a set of prompts."""
        chats = sum(bool(prompt.messages) for prompt in prompts.prompts)
        characters = sum(len(prompt.plain()) for prompt in prompts.prompts)
        tokens = round(characters / _CHARACTERS) + _CHAT_TOKENS * chats + len(prompts.prompts)
        return cls(len(prompts.prompts), tokens)


@dataclass(frozen=True, slots=True)
class Scale:
    """What efforts depend on: the options, the texts, and one file.

    Attributes:
        heads: of all layers together.
    """

    options: Options
    texts: TextSize
    layers: int
    heads: int
    vocabulary: int
    width: int
    parameters: int
    bytes: int
    windows: int

    @classmethod
    def of(cls, info: ModelInfo, options: Options, texts: TextSize, text_bytes: int) -> Scale:
        """Of a file. What its header does not say counts as a usual size.

        Args:
            info: facts from its header.
            options: of the session.
            texts: the prompts.
            text_bytes: of the corpus, for --gguf-chunks=all.
        """
        layers = info.n_layer or 1
        vocabulary = info.n_vocab or 32000
        available = max(1, round(text_bytes / _CHARACTERS / options.ctx))
        return cls(
            options=options,
            texts=texts,
            layers=layers,
            heads=layers * (info.n_head or 1),
            vocabulary=vocabulary,
            width=info.n_embd or 1,
            parameters=info.parameters,
            bytes=info.bytes,
            windows=available if options.chunks is None else options.chunks,
        )

    @property
    def chosen_heads(self) -> int:
        """Heads that are ablated one by one."""
        limit = self.options.head_limit
        return self.heads if limit is None else min(self.heads, limit)


def _passed(windows: float, scale: Scale) -> Effort:
    ctx = scale.options.ctx
    return Effort(tokens=windows * ctx, rows=windows * scored_tokens(ctx))


def _floor(scale: Scale) -> Effort:
    return _passed(min(_FLOOR_WINDOWS, scale.windows), scale)


def _mixtures(scale: Scale) -> Effort:
    """The candidate itself, each group of tensors quantized, and each role restored; each file written and loaded."""
    count = 1 + 2 * _ROLES + min(_LAYER_GROUPS, scale.layers)
    one = _passed(min(_MIXTURE_WINDOWS, scale.windows), scale)
    return Effort(count * one.tokens, count * one.rows, seconds=count * (_START_S + 2 * scale.bytes / 1e9))


def _changed(count: float, scale: Scale, unchanged: int = 1) -> Effort:
    """Windows of a text of which most tokens are scored, decoded with changed heads: from the layer of these on.

    On average that is half of the layers. (On a GPU it is all of them, as the machine's factor will tell.)

    Args:
        count: of windows with changed heads.
        scale: of the file.
        unchanged: how often all windows are decoded as they are.
    """
    window = min(_HEAD_WINDOW, scale.options.ctx)
    share = (scale.layers + 1) / (2 * scale.layers)
    whole = unchanged * scale.options.head_windows
    return Effort(tokens=(share * count + whole) * window, rows=(count + whole) * max(1, window - _HEAD_UNSCORED))


def _screen(scale: Scale) -> Effort:
    return _changed(min(_SCREENED, scale.options.head_windows) * scale.heads, scale)


def _sweep(scale: Scale) -> Effort:
    return _changed(2 * scale.chosen_heads * scale.options.head_windows, scale)


def _heads_exchanged(scale: Scale) -> Effort:
    """A head or all heads of a layer at a time; and the windows unchanged, in both models."""
    return _changed((scale.chosen_heads + scale.layers) * scale.options.head_windows, scale, 2)


def _removal(scale: Scale) -> Effort:
    return _changed(_TRIES * _REMOVED * scale.chosen_heads * scale.options.head_windows, scale)


def _path(scale: Scale) -> Effort:
    return _changed(_REMOVED * scale.chosen_heads * scale.options.head_windows, scale)


def _attention(scale: Scale) -> Effort:
    """Patterns of prompts and of repeated tokens; copy scores from the file's matrices."""
    return Effort(tokens=scale.texts.tokens + _REPEATED, weights=scale.parameters)


def _layers(scale: Scale) -> Effort:
    """States of the prompts; the lens computes a row of logits after each layer."""
    return Effort(tokens=scale.texts.tokens, rows=scale.texts.tokens * (scale.layers + 1))


def _skipped(scale: Scale) -> Effort:
    count = scale.texts.tokens * (len(scale.options.layers or range(scale.layers)) + 2)
    return Effort(tokens=count, rows=count)


def _generations(scale: Scale) -> Effort:
    return Effort(tokens=scale.texts.tokens, steps=scale.texts.prompts * scale.options.gen_tokens)


def _scores(scale: Scale) -> Effort:
    written = scale.texts.prompts * scale.options.gen_tokens
    return Effort(tokens=scale.texts.tokens + written, rows=written)


def _timed(models: int) -> Callable[[Scale], Effort]:
    """Repetitions of a prompt, of generation and of loading; each takes 0.2 s at least."""

    def effort(scale: Scale) -> Effort:
        options, count = scale.options, models * scale.options.repetitions
        return Effort(tokens=count * options.pp, steps=count * options.tg, seconds=count * 0.6 + models * _START_S)

    return effort


def _served(scale: Scale) -> Effort:
    request = scale.options.served_request
    rounds = request.requests + 1
    return Effort(steps=rounds * request.max_tokens * (request.repetitions + 1))


def _space(scale: Scale) -> Effort:
    return Effort(weights=2.0 * scale.vocabulary * scale.width)


def _aligned(scale: Scale) -> Effort:
    """Products of a sample of the tokens with itself."""
    return Effort(weights=min(scale.vocabulary, _SAMPLED_ROWS) * scale.width**2)


def _contexts(scale: Scale) -> Effort:
    return Effort(tokens=scale.texts.tokens)


EFFORTS: Final[Mapping[str, Callable[[Scale], Effort]]] = {
    "models/quantized": lambda scale: Effort(weights=scale.parameters),
    "passes/reference": lambda scale: _passed(scale.windows, scale),
    "passes/candidate": lambda scale: _passed(scale.windows, scale),
    "passes/floor": _floor,
    "passes/mixture": _mixtures,
    "texts/generations": _generations,
    "texts/scores": _scores,
    "texts/compared": lambda scale: Effort(seconds=0.003 * scale.texts.prompts),
    "speed/alone": _timed(1),
    "speed/beside": _timed(2),
    "speed/served": _served,
    "attention/observed": _attention,
    "attention/compared": _attention,
    "heads/screen": _screen,
    "heads/sweep": _sweep,
    "heads/interchange": _heads_exchanged,
    "heads/removal": _removal,
    "heads/path": _path,
    "layers/alone": _layers,
    "layers/compared": _layers,
    "layers/importance": _skipped,
    "layers/interchange": _skipped,
    "weights/errors": lambda scale: Effort(weights=2 * scale.parameters),
    "embeddings/space": _space,
    "embeddings/contexts": _contexts,
    "embeddings/aligned": _aligned,
}
"""By kind of measurement."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Seconds of a kind: `times` those of its counts, and `start_s`, such as a process and a file that is loaded."""

    times: float = 1.0
    start_s: float = 0.0


FITTED: Final[Mapping[str, Fit]] = {
    "models/quantized": Fit(5.6, 0.3),
    "passes/reference": Fit(1.05, 0.5),
    "passes/candidate": Fit(1.0, 0.1),
    "passes/mixture": Fit(0.95),
    "texts/generations": Fit(1.3, 0.4),
    "texts/scores": Fit(1.0, 0.45),
    "texts/compared": Fit(1.0, 0.1),
    "speed/served": Fit(1.5, 3.0),
    "attention/observed": Fit(1.4, 0.7),
    "attention/compared": Fit(1.4, 1.1),
    "heads/sweep": Fit(0.95),
    "heads/screen": Fit(0.95),
    "heads/interchange": Fit(0.95),
    "heads/removal": Fit(0.9),
    "heads/path": Fit(0.8),
    "layers/alone": Fit(1.25, 0.6),
    "layers/compared": Fit(1.25, 1.2),
    "layers/importance": Fit(1.1, 0.2),
    "layers/interchange": Fit(1.1, 0.2),
    "weights/errors": Fit(3.0, 0.2),
    "embeddings/space": Fit(12.0, 0.2),
    "embeddings/contexts": Fit(1.0, 0.3),
    "embeddings/aligned": Fit(0.12, 0.15),
}
"""Of kinds that take other than what their counts cost."""

TESTS_S: Final[Mapping[str, float]] = {
    "quant": 0.5,
    "attention": 0.4,
    "heads": 2.9,
    "layers": 0.5,
    "embeddings": 0.6,
}
"""Of a subject, what the tests of a suite take besides measurements."""
