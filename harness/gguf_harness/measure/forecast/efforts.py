"""What each kind of measurement takes, by the options and the header of the subject's file.

Efforts are counts that follow from what the tasks do: tokens decoded in batches, rows of logits that are computed and
looked at, tokens decoded one by one, weights read. `fitted.py` has what a kind takes beyond its counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from gguf_harness.engine.settings import scored_tokens
from gguf_harness.measure.forecast.scales import Effort, Scale
from gguf_harness.measure.forecast.variant_efforts import REPEATED, VARIANT_EFFORTS

__all__ = ["EFFORTS"]

_HEAD_WINDOW: Final = 96
_HEAD_UNSCORED: Final = 17
_FLOOR_WINDOWS: Final = 4
_MIXTURE_WINDOWS: Final = 4
_ROLES: Final = 8
"""Groups of tensors by role that quantization changes, in most architectures."""
_LAYER_GROUPS: Final = 8
_REMOVED: Final = 0.17
"""Share of all heads that go until the loss of every window has risen enough."""
_TRIES: Final = 1.9
"""Heads that are tried before one goes."""
_SCREENED: Final = 2
"""Windows of a screen."""
_SAMPLED_ROWS: Final = 16384
_START_S: Final = 0.3
"""A process of its own that loads a small model."""


def _passed(windows: float, scale: Scale) -> Effort:
    ctx = scale.options.ctx
    return Effort(tokens=windows * ctx, rows=windows * scored_tokens(ctx), attended=windows * ctx**2 / 2)


def _floor(scale: Scale) -> Effort:
    return _passed(min(_FLOOR_WINDOWS, scale.windows), scale)


def _mixtures(scale: Scale) -> Effort:
    """The candidate itself, each group of tensors quantized, and each role restored; each file written and loaded."""
    count = 1 + 2 * _ROLES + min(_LAYER_GROUPS, scale.layers)
    one = _passed(min(_MIXTURE_WINDOWS, scale.windows), scale)
    return Effort(
        count * one.tokens,
        count * one.rows,
        attended=count * one.attended,
        seconds=count * (_START_S + 2 * scale.bytes / 1e9),
    )


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
    """Some windows choose the head that goes next, others tell what it costs."""
    windows = scale.options.head_windows
    return _changed(_REMOVED * scale.heads * (_TRIES * min(_SCREENED, windows) + windows), scale, 2)


def _path(scale: Scale) -> Effort:
    return _changed(_REMOVED * scale.heads * scale.options.head_windows, scale)


def _attention(scale: Scale) -> Effort:
    """Patterns of prompts and of repeated tokens; copy scores from the file's matrices."""
    return Effort(tokens=scale.texts.tokens + REPEATED, weights=1.5 * scale.parameters)


def _layers(scale: Scale) -> Effort:
    """States of the prompts; the lens computes a row of logits after each layer."""
    return Effort(tokens=scale.texts.tokens, rows=scale.texts.tokens * (scale.layers + 1))


def _skipped(scale: Scale) -> Effort:
    count = scale.texts.tokens * (len(scale.options.layers or range(scale.layers)) + 2)
    return Effort(tokens=count, rows=count)


def _generations(scale: Scale) -> Effort:
    # Alone, a token reads keys of any type as fast.
    texts = scale.texts
    steps = texts.prompts * scale.options.gen_tokens
    return Effort(tokens=texts.tokens, steps=steps, attended=texts.squares / 2)


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
    "speed/speed-alone": _timed(1),
    "speed/speed-beside": _timed(2),
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
    **VARIANT_EFFORTS,
}
"""By kind of measurement."""
