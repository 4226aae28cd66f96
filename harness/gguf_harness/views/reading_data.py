"""What views draw of prompts that models have just read: the same plain data as in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.measure.live.model import LiveModel
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import KEPT_NEXT
from gguf_harness.measure.texts.next_tokens import TEMPERATURES, rest_of
from gguf_harness.metrics.kernels.ranks import largest
from gguf_harness.views.attention_data import pattern_data
from gguf_harness.views.model_entries import model_entries
from gguf_harness.views.step_data import head_steps, output_cosines
from gguf_harness.views.token_data import rounded, token_text

__all__ = ["attention_view", "entries_of", "lens_view", "next_tokens_view", "steps_view", "stream_view"]

Data = dict[str, Any]

_SPACE: Final = "·"


def entries_of(readings: Sequence[Reading]) -> list[Data]:
    """Models as views get them: what the first one read is what the others are compared with."""
    names = [f"{each.facts.name}{f', {each.ablation}' if each.ablation else ''}" for each in readings]
    return model_entries(names, names[0])


def attention_view(readings: Sequence[Reading], side: int) -> Data:
    """Data of the view `attention`: all heads of all layers, over the first tokens.

    Args:
        readings: of the same prompt; those without attention are left out.
        side: most tokens that are shown.

    Raises:
        NoData: none of them has attention.
    """
    shown = [(entry, each) for entry, each in zip(entries_of(readings), readings, strict=True) if each.pattern]
    if not shown:
        raise NoData(f"There is no attention to show. {' '.join(readings[0].facts.missing)}".strip())
    first = shown[0][1]
    _require_causal(first)
    texts = [token_text(piece) for piece in first.pieces]
    models = []
    for entry, reading in shown:
        heads = [[layer, head] for layer, pattern in reading.pattern.items() for head in range(len(pattern))]
        data = entry | pattern_data(heads, np.concatenate(list(reading.pattern.values())), side)
        if reading.pieces != first.pieces:
            data["tokens"] = [token_text(piece) for piece in reading.pieces[: data["side"]]]
        models.append(data)
    return {"tokens": texts[:side], "of": len(texts), "models": models}


def steps_view(readings: Sequence[Reading], layer: int, head: int, side: int) -> Data:
    """Data of the view `qkv`: how one head computes its output, for each query.

    Args:
        readings: of the same prompt; the first is what the others are compared with.
        layer: the head's.
        head: its number in the layer.
        side: most tokens that are shown.

    Raises:
        NoData: the first reading has no such head, or no queries, keys and values.
    """
    base = readings[0]
    if not all(layer in part and head < base.facts.heads[layer] for part in (base.pattern, base.q, base.k, base.v)):
        raise NoData(
            f"{base.facts.name} has no head {layer}.{head} whose steps can be shown."
            f" {' '.join(base.facts.missing)}".strip()
        )
    _require_causal(base)
    entries, models = entries_of(readings), []
    outputs: list[NDArray[np.float32]] = []
    for at, reading in enumerate(readings):
        if reading.pieces != base.pieces or layer not in reading.q or head >= reading.facts.heads[layer]:
            continue
        entry, output = _head_of(reading, layer, head, side)
        if outputs and output.shape != outputs[0].shape:
            continue
        outputs.append(output)
        models.append({"model": at, "cosine": rounded(output_cosines(output, outputs[0]))} | entry)
    tokens = [token_text(piece) for piece in base.pieces[:side]]
    return {
        "tokens": tokens,
        "total": len(base.pieces),
        "causal": True,
        "models": entries,
        "heads": [{"name": f"{layer}.{head}", "label": f"layer {layer}, head {head}", "models": models}],
        "facts": list(dict.fromkeys(fact for each in readings for fact in each.facts.facts)),
        "start": len(tokens) - 1,
    }


def _require_causal(reading: Reading) -> None:
    if not reading.facts.causal:
        raise NoData(
            f"Tokens of {reading.facts.name} attend to later ones too, which the pictures of attention do not show.",
            "Read the arrays: gguf_harness.attention returns the whole pattern.",
        )


def _head_of(reading: Reading, layer: int, head: int, side: int) -> tuple[Data, NDArray[np.float32]]:
    q, k, v = (vectors[layer][:side] for vectors in (reading.q, reading.k, reading.v))
    count = reading.facts.heads[layer]
    # Heads of queries share those of keys one group after the other.
    key, value = (head // max(1, count // vectors.shape[1]) for vectors in (k, v))
    return head_steps(
        q[:, head],
        k[:, key],
        v[:, value],
        reading.pattern[layer][head, :side, :side],
        causal=True,
        scale=reading.facts.scale,
        window=reading.facts.window,
        softcap=reading.facts.softcap,
    )


def next_tokens_view(readings: Sequence[Reading], live: LiveModel, place: int = -1) -> Data:
    """Data of the view `next_tokens`: the likeliest tokens after a place, of one model or of each beside the first.

    Args:
        readings: of the same prompt, by models that share a vocabulary.
        live: a model that has it.
        place: after which token.

    Raises:
        NoData: the first model predicts nothing.
    """
    rows = [reading.next_logprobs(place) for reading in readings]
    entries = entries_of(readings)
    others = list(range(1, len(rows))) or [0]
    pairs: list[Data] = []
    for at in others:
        both = [rows[0], rows[at]] if at else [rows[0]]
        top = [largest(row, KEPT_NEXT) for row in both]
        tokens = np.array(list(dict.fromkeys(np.concatenate(top).tolist())))
        pairs.append(
            {
                "model": at,
                "pieces": [token_text(piece) for piece in live.pieces(tokens.tolist())],
                "logprobs": [rounded(row[tokens]) for row in both],
                "rest": [rounded(rest_of(row, tokens)) for row in both],
            }
        )
    known = min(KEPT_NEXT, *(len(pair["pieces"]) for pair in pairs), len(rows[0]))
    temperatures = [round(value, 3) for value in TEMPERATURES]
    return {"known": known, "temperatures": temperatures, "models": entries, "pairs": pairs}


def lens_view(logprobs: NDArray[np.float64], live: LiveModel, most: int = 5) -> Data:
    """Data of the view `matrix`: the likeliest next tokens after each layer, at one place of a prompt.

    Args:
        logprobs: [layer, vocabulary], from `LiveModel.lens`.
        live: a model with that vocabulary.
        most: tokens for each layer.
    """
    top = np.argsort(-logprobs, axis=1, kind="stable")[:, :most]
    tokens = list(dict.fromkeys(top.ravel().tolist()))
    texts = dict(zip(tokens, map(token_text, live.pieces(tokens)), strict=True))
    cells = [[texts[token].replace(" ", _SPACE) for token in row] for row in top.tolist()]
    values = np.exp(np.take_along_axis(logprobs, top, axis=1))
    return {
        "x": {"label": "rank", "names": [str(rank) for rank in range(1, top.shape[1] + 1)]},
        "y": {"label": "after layer", "names": [str(layer) for layer in range(len(top))]},
        "values": [rounded(row) for row in values],
        "cells": cells,
        "notes": [[f"token “{cell}”" for cell in row] for row in cells],
        "least": 64,
        "scale": {"kind": "share", "domain": [0, 1], "title": "probability"},
    }


def stream_view(readings: Sequence[Reading], place: int = -1) -> Data:
    """Data of the view `lines`: norms of the stream, and of what attention and MLP add to it, at one place.

    Raises:
        NoData: the first model's stream was not read.
    """
    entries, lines = entries_of(readings), []
    parts = {"stream": "resid_post", "attention adds": "attn_out", "MLP adds": "mlp_out"}
    for at, reading in enumerate(readings):
        for group, name in parts.items():
            if name in reading.states:
                norms = np.linalg.norm(reading.states[name][:, place].astype(np.float64), axis=-1)
                points = [[layer, norm, None, ""] for layer, norm in enumerate(rounded(norms)) if norm is not None]
                lines.append({"model": at, "name": entries[at]["short"], "group": group, "points": points})
    if not lines:
        raise NoData(f"There is no stream to show. {' '.join(readings[0].facts.missing)}".strip())
    return {"x": {"label": "layer"}, "y": {"label": "norm", "zero": True}, "models": entries, "lines": lines}
