"""What the measurements of suites/kv and suites/lora take; see `efforts.py`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from gguf_harness.engine.settings import scored_tokens
from gguf_harness.inputs.needles import load_needles
from gguf_harness.measure.forecast.scales import Effort, Scale
from gguf_harness.metrics.registry.lora import MOST_WINDOWS

__all__ = ["FIRST_SCORED", "HIDDEN", "PATCHED_PROMPTS", "REPEATED", "SCALES", "SWEPT_WINDOWS", "VARIANT_EFFORTS"]

# Of what measures it, which is not imported to foresee it; a unit test compares both.
FIRST_SCORED: Final = 1
"""Position in a window, of passes over all depths."""
HIDDEN: Final = 4
"""Texts for each fact: without it, and at each depth."""
PATCHED_PROMPTS: Final = 6
REPEATED: Final = 4 * 129
"""Tokens of the repeated random sequences of `observe_attention`."""
SCALES: Final = 6
SWEPT_WINDOWS: Final = 4

_ANSWER: Final = 3
"""Tokens of an answer."""
_START_S: Final = 0.3
_COMPARED_S: Final = 0.0045
"""Of a layer and a prompt, in NumPy, however long the prompt is."""
_PATCHED_S: Final = 0.005
"""Of a short decode with taps, however small the model is."""
_LEAST_S: Final = 0.2
"""Of a repetition of a timing."""
# Comparisons of rows that take as long as what is done in double precision, beyond those of the decoded rows.
_OF_EFFECT: Final = 14
_OF_RETAINED: Final = 24
_OF_MERGED: Final = 10


def _deep(scale: Scale) -> Effort:
    """All windows, of which nearly every position is scored."""
    ctx = scale.options.ctx
    rows = scale.windows * scored_tokens(ctx, FIRST_SCORED)
    return Effort(tokens=scale.windows * ctx, rows=rows, attended=scale.windows * ctx**2 / 2)


def _joint(scale: Scale) -> Effort:
    """The same, compared with two others."""
    one = _deep(scale)
    return replace(one, compares=one.rows)


def _compared_caches(scale: Scale) -> Effort:
    """Prompts with both caches; patterns of each layer, their errors, and what its cache alone would change."""
    texts = scale.texts
    seconds = _COMPARED_S * texts.prompts * scale.layers
    return Effort(tokens=2 * texts.tokens, attended=texts.squares / 2, seconds=seconds)


def _single_layers(scale: Scale) -> Effort:
    """Some prompts as they are, with each layer patched, with all and with a nudge, the real run, and norms."""
    texts, chosen = scale.texts, scale.options.layers
    # One in so many is taken, from the first on.
    prompts = math.ceil(texts.prompts / math.ceil(texts.prompts / PATCHED_PROMPTS))
    decodes = 5 + (scale.layers if chosen is None else len(chosen))
    count = decodes * texts.tokens * prompts / texts.prompts
    return Effort(tokens=count, rows=count, seconds=_PATCHED_S * decodes * prompts)


@functools.cache
def _facts() -> int:
    return len(load_needles().needles)


def _needles(scale: Scale) -> Effort:
    texts, ctx = HIDDEN * _facts() * scale.options.haystacks, scale.options.ctx
    return Effort(tokens=texts * ctx, rows=texts * _ANSWER, attended=texts * ctx**2 / 2)


def _at_depth(models: int) -> Callable[[Scale], Effort]:
    """Repetitions of a prompt and of generation; the tokens before them are decoded for each."""

    def effort(scale: Scale) -> Effort:
        options = scale.options
        depths = options.depths or (options.ctx // 2,)
        # The plain file once more at the end.
        count = models * options.repetitions + (models - 1)
        before = 2 * count * sum(depths)
        attended = options.repetitions * sum(depth**2 + depth * (options.pp + options.tg) for depth in depths)
        count *= len(depths)
        return Effort(
            tokens=before + count * options.pp,
            steps=count * options.tg,
            attended=attended,
            seconds=2 * count * _LEAST_S + models * _START_S,
        )

    return effort


def _effect(windows: float, scale: Scale, compares: float) -> Effort:
    """Windows without and with adapters."""
    ctx = scale.options.ctx
    scored = windows * scored_tokens(ctx)
    return Effort(tokens=2 * windows * ctx, rows=2 * scored, compares=compares * scored)


def _windows(available: float, scale: Scale, most: int = MOST_WINDOWS) -> float:
    return min(most, available, most if scale.options.chunks is None else scale.options.chunks)


def _effect_own(scale: Scale) -> Effort:
    return _effect(_windows(scale.own_windows, scale), scale, _OF_EFFECT)


def _effect_elsewhere(scale: Scale) -> Effort:
    return _effect(_windows(scale.windows, scale), scale, _OF_EFFECT)


def _retained_own(scale: Scale) -> Effort:
    return _effect(_windows(scale.own_windows, scale), scale, _OF_RETAINED)


def _retained_elsewhere(scale: Scale) -> Effort:
    return _effect(_windows(scale.windows, scale), scale, _OF_RETAINED)


def _sweep(scale: Scale) -> Effort:
    """Each scale on both texts."""
    windows = sum(_windows(available, scale, SWEPT_WINDOWS) for available in (scale.own_windows, scale.windows))
    return _effect(SCALES * windows, scale, _OF_EFFECT)


def _merged(scale: Scale) -> Effort:
    """The reference with the adapter merged is written and quantized, and then decoded once."""
    ctx, windows = scale.options.ctx, _windows(scale.own_windows, scale)
    scored = windows * scored_tokens(ctx)
    written = 10.0 * scale.parameters
    return Effort(windows * ctx, scored, weights=written, compares=_OF_MERGED * scored, seconds=_START_S)


def _few(scale: Scale) -> Effort:
    """Patterns of the first prompts, and of repeated tokens."""
    texts = scale.texts
    return Effort(tokens=texts.first_tokens + REPEATED, weights=1.5 * scale.parameters)


VARIANT_EFFORTS: Final[Mapping[str, Callable[[Scale], Effort]]] = {
    "passes/reference-depth": _deep,
    "passes/candidate-depth": _deep,
    "passes/joint": _joint,
    "kv/bytes": lambda _: Effort(seconds=0.04),
    "kv/compared": _compared_caches,
    "kv/layers": _single_layers,
    "kv/needles": _needles,
    "speed/depth-alone": _at_depth(1),
    "speed/depth-beside": _at_depth(2),
    "attention/observed-few": _few,
    "attention/compared-few": _few,
    "lora/effect-own": _effect_own,
    "lora/effect-corpus": _effect_elsewhere,
    "lora/retained-own": _retained_own,
    "lora/retained-corpus": _retained_elsewhere,
    "lora/merged": _merged,
    "lora/sweep": _sweep,
    "lora/changes": lambda scale: Effort(weights=scale.parameters),
}
"""By kind of measurement."""
