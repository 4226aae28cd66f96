"""What views draw of prompts that models have just read: the same plain data as in a report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.texts.next_tokens import KEPT, TEMPERATURES, rest_of
from gguf_harness.metrics.kernels.ranks import largest
from gguf_harness.views.attention_data import pattern_data
from gguf_harness.views.model_entries import model_entries
from gguf_harness.views.step_data import head_steps, output_cosines
from gguf_harness.views.token_data import rounded, token_text

__all__ = [
    "Vocabulary",
    "attention_view",
    "entries_of",
    "lens_cells",
    "lens_view",
    "next_tokens_view",
    "steps_view",
    "stream_view",
]

Data = dict[str, Any]

_SPACE: Final = "·"


class Vocabulary(Protocol):
    """What knows the texts of tokens: a loaded model, or what was kept of one."""

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The text of each token."""


def entries_of(readings: Sequence[Reading]) -> list[Data]:
    """Models as views get them: what the first one read is what the others are compared with."""
    names: list[str] = []
    for each in readings:
        name = f"{each.facts.name}{f', {each.ablation}' if each.ablation else ''}"
        # Files of one name in two folders, or a model beside itself.
        again = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({again + 1})" if again else name)
    return model_entries(names, names[0])


def attention_view(
    readings: Sequence[Reading],
    side: int,
    *,
    heads: Collection[tuple[int, int]] | None = None,
    places: Sequence[int] | None = None,
) -> Data:
    """Data of the view `attention`: heads of all layers, over the first tokens.

    Args:
        readings: of the same prompt; those without attention are left out.
        side: most tokens that are shown.
        heads: layer and head of those that are shown; None for all.
        places: of the tokens that are shown, rising; None for the first ones.

    Raises:
        NoData: none of them has attention.
    """
    shown = [(entry, each) for entry, each in zip(entries_of(readings), readings, strict=True) if each.pattern]
    if not shown:
        raise readings[0].facts.no_data("There is no attention to show.")
    first = shown[0][1]
    _require_causal(first)
    models = []
    for entry, reading in shown:
        names, weights = _chosen_heads(reading, heads)
        if places is not None:
            weights = weights[:, places][:, :, places]
        data = entry | pattern_data(names, weights, side)
        if reading.pieces != first.pieces:
            data["tokens"] = _texts(reading, places)[: data["side"]]
        models.append(data)
    return {"tokens": _texts(first, places)[:side], "of": len(first.pieces), "models": models}


def _texts(reading: Reading, places: Sequence[int] | None) -> list[str]:
    texts = [token_text(piece) for piece in reading.pieces]
    return texts if places is None else [texts[place] for place in places]


def _chosen_heads(
    reading: Reading, wanted: Collection[tuple[int, int]] | None
) -> tuple[list[list[int]], NDArray[np.float32]]:
    """(layer and head of each, [head, pos, key] their weights)."""
    if wanted is None:
        names = [[layer, head] for layer, pattern in reading.pattern.items() for head in range(len(pattern))]
        return names, np.concatenate(list(reading.pattern.values()))
    names = [
        [layer, head]
        for layer, pattern in reading.pattern.items()
        for head in range(len(pattern))
        if (layer, head) in wanted
    ]
    if not names:
        raise NoData(f"{reading.facts.name} has none of the chosen heads.")
    return names, np.stack([reading.pattern[layer][head] for layer, head in names])


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
        raise base.facts.no_data(f"{base.facts.name} has no head {layer}.{head} whose steps can be shown.")
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


def next_tokens_view(readings: Sequence[Reading], live: Vocabulary, place: int = -1) -> Data:
    """Data of the view `next_tokens`: the likeliest tokens after a place, of one model or of each beside the first.

    Args:
        readings: of the same prompt, by models that share a vocabulary.
        live: what knows its texts.
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
        top = [largest(row, KEPT) for row in both]
        tokens = np.array(list(dict.fromkeys(np.concatenate(top).tolist())))
        pairs.append(
            {
                "model": at,
                "pieces": [token_text(piece) for piece in live.pieces(tokens.tolist())],
                "logprobs": [rounded(row[tokens]) for row in both],
                "rest": [rounded(rest_of(row, tokens)) for row in both],
            }
        )
    known = min(KEPT, *(len(pair["pieces"]) for pair in pairs), len(rows[0]))
    temperatures = [round(value, 3) for value in TEMPERATURES]
    return {"known": known, "temperatures": temperatures, "models": entries, "pairs": pairs}


def lens_view(logprobs: NDArray[np.float64], live: Vocabulary, most: int = 5) -> Data:
    """Data of the view `matrix`: the likeliest next tokens after each layer, at one place of a prompt.

    Args:
        logprobs: [layer, vocabulary], from `LiveModel.lens`.
        live: what knows the texts of that vocabulary.
        most: tokens for each layer.
    """
    top = largest(logprobs, most)
    tokens = list(dict.fromkeys(top.ravel().tolist()))
    pieces = dict(zip(tokens, live.pieces(tokens), strict=True))
    return lens_cells(
        [[pieces[token] for token in row] for row in top.tolist()], np.take_along_axis(logprobs, top, axis=1)
    )


def lens_cells(pieces: Sequence[Sequence[bytes]], logprobs: NDArray[np.float64]) -> Data:
    """Data of the view `matrix` for the likeliest tokens after each layer.

    Args:
        pieces: by layer, the texts of its likeliest tokens.
        logprobs: [layer, rank] ln of their probabilities.
    """
    cells = [[token_text(piece).replace(" ", _SPACE) for piece in row] for row in pieces]
    return {
        "x": {"label": "rank", "names": [str(rank) for rank in range(1, logprobs.shape[1] + 1)]},
        "y": {"label": "after layer", "names": [str(layer) for layer in range(len(logprobs))]},
        "values": [rounded(row) for row in np.exp(logprobs)],
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
        raise readings[0].facts.no_data("There is no stream to show.")
    return {"x": {"label": "layer"}, "y": {"label": "norm", "zero": True}, "models": entries, "lines": lines}
