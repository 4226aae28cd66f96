"""What the explorer says of readings and models: plain data for the page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gguf_harness.errors import NoData, visible
from gguf_harness.measure.layers.tasks import kld_rows
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.reading import Reading
from gguf_harness.views.reading_data import attention_view, next_tokens_view, stream_view
from gguf_harness.views.token_data import rounded, token_text

__all__ = [
    "divergences",
    "facts_of",
    "moved_by",
    "notes_of",
    "prediction_of",
    "tokens_of",
    "views_of",
    "weights_as_text",
]

Data = dict[str, Any]


def facts_of(model: LiveModel) -> Data:
    """What can be asked of a model."""
    facts, info = model.facts, model.info
    return {
        "architecture": visible(facts.architecture),
        "layers": facts.n_layer,
        "width": facts.d_model,
        "heads": list(facts.heads),
        "kv_heads": list(facts.kv_heads),
        "window": facts.window,
        "context": facts.n_ctx_train,
        "vocabulary": facts.n_vocab,
        "bits": info.bits_per_weight,
        "bytes": info.bytes,
        "quantization": None if info.quantization is None else visible(info.quantization),
        "predicts": facts.predicts,
        "chats": facts.chats,
        "causal": facts.causal,
        "attention": list(facts.attention),
        "states": list(facts.states),
        "skips": [layer for layer in range(facts.n_layer) if facts.can_skip(layer)],
        "facts": [visible(fact) for fact in facts.facts],
        "missing": [visible(sentence) for sentence in facts.missing],
    }


def views_of(readings: Sequence[Reading], model: LiveModel, side: int) -> Data:
    """Data of the views that come with every answer; None for what the model does not have, as its facts say.

    Args:
        readings: of one prompt.
        model: with the vocabulary of all of them.
        side: tokens of the pictures of attention.
    """
    makers: dict[str, Callable[[], Data]] = {
        "attention": lambda: attention_view(readings, side),
        "next_tokens": lambda: next_tokens_view(readings, model),
        "stream": lambda: stream_view(readings),
    }
    views: Data = {}
    for name, make in makers.items():
        try:
            views[name] = make()
        except NoData:
            views[name] = None
    return views


def tokens_of(readings: Sequence[Reading], kld: Sequence[Sequence[float] | None]) -> list[Data]:
    """Tokens of a prompt: how unlikely each was, and how the prediction after it differs, by reading.

    Args:
        readings: of one prompt.
        kld: what `divergences` returned for them.
    """
    base = readings[0]
    nll = [rounded(each.nll()) if each.logits is not None else [None] * len(each.tokens) for each in readings]
    return [
        {
            "text": token_text(piece),
            "id": int(token),
            "nll": [values[at] for values in nll],
            "kld": [None if values is None else values[at] for values in kld],
        }
        for at, (piece, token) in enumerate(zip(base.pieces, base.tokens, strict=True))
    ]


def prediction_of(readings: Sequence[Reading], model: LiveModel) -> Data | None:
    """The token that the first reading finds likeliest next, and its probability in each; None without logits."""
    if any(reading.logits is None for reading in readings):
        return None
    rows = [reading.next_logprobs() for reading in readings]
    token = int(rows[0].argmax())
    pieces = model.pieces([token, *(int(row.argmax()) for row in rows)])
    return {
        "text": token_text(pieces[0]),
        "id": token,
        "p": [float(np.exp(row[token])) for row in rows],
        "likeliest": [
            {"text": token_text(piece), "p": float(np.exp(row.max()))}
            for piece, row in zip(pieces[1:], rows, strict=True)
        ],
    }


def moved_by(unchanged: Reading, changed: Reading) -> float | None:
    """KL(unchanged || changed) of the prediction after the last token, in nats; None without logits."""
    if unchanged.logits is None or changed.logits is None:
        return None
    return float(kld_rows(unchanged.logits[-1:], changed.logits[-1:])[0])


def notes_of(readings: Sequence[Reading], side: int) -> list[str]:
    """What a reader of the pictures has to know: what they leave out, and which layers see only a window."""
    base, n = readings[0], len(readings[0].tokens)
    notes = [f"Pictures of attention show the first {side} of {n} tokens."] if n > side and base.pattern else []
    window = base.facts.window
    if window and n > window and base.facts.causal:
        layers = _windowed(base)
        notes.append(
            f"Layers {', '.join(map(str, layers))} see no further back than their window of {window} tokens."
            if layers
            else f"No layer is limited to the window of {window} tokens that the file names."
        )
    return notes


def _windowed(reading: Reading) -> list[int]:
    """Layers in which no token attends to one that is further back than the window."""
    window, n = reading.facts.window, len(reading.tokens)
    beyond = np.tri(n, k=-window, dtype=np.bool_)
    return [layer for layer, pattern in reading.pattern.items() if not pattern[:, beyond].any()]


def divergences(readings: Sequence[Reading]) -> list[list[float] | None]:
    """Of each reading: KL(first || it) of the next token after each token, in nats; None where there are no logits."""
    base = readings[0].logits
    rows: list[list[float] | None] = []
    for each in readings:
        if base is None or each.logits is None:
            rows.append(None)
        elif each is readings[0]:
            rows.append([0.0] * len(base))
        else:
            rows.append([float(value) for value in kld_rows(base, each.logits)])
    return rows


def weights_as_text(weights: Any) -> str:
    """Attention weights as the pictures take them: a byte each, 255 times the square root, in base64."""
    codes = np.round(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)
    return base64.b64encode(codes.tobytes()).decode()
