"""Attention of every head on a prompt: reference, candidate and difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gguf_harness.report.charts.base import Chart, Figure, Models, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_percent
from gguf_harness.views.attention_data import first_shares, pattern_data, side_of

__all__ = ["attention_grid"]

_MOST_BYTES: Final = 850_000
"""Bytes of weights of all prompts and models. Base64 makes 1.1 MB of them."""

_MOST_TOKENS: Final = 48
_MOST_PANELS: Final = 4
_MAJORITY: Final = 0.5

Arrays = Mapping[str, Any]


def attention_grid(view: RunView, run_dir: Path) -> Chart | None:
    """Patterns of all heads; None if the run kept none."""
    kept = arrays_of(view, run_dir, "attention")
    if not kept:
        return None
    panels = _panels(view, kept)
    told = panels[0]["data"]
    return make_chart(
        "attention-patterns",
        _finding(view, kept),
        "A tile is a head: rows are the tokens of the prompt, columns the tokens that they attend to, both starting"
        " with the first. Measured while llama.cpp decoded the prompt with each file.",
        panels,
        f"Attention of {len(told['models'][0]['heads'])} heads of {len(kept)} models over"
        f" {len(told['tokens'])} tokens.",
        view="attention",
        how="A vertical line is a token that all later ones attend to, a diagonal one the token at a fixed distance"
        " before. In the tiles colour is the square root of the weight or difference, so that weak attention can be"
        " seen; the single head is drawn in weights. The reference and all candidates have the same colours for the"
        " same weights; differences are candidate minus reference, with zero in the middle of their scale. Many heads"
        " put what they do not need on the first token (a sink): leave it out to see the rest on a scale of its own."
        " The row of the first token, whose only weight is 1, does not count for the scales. Weights are rounded to"
        " 1/255 of their square root; a smaller difference counts as none. A raised dot is a space. Attention that"
        " moved is the mean total variation from the reference's over heads and tokens of the first prompt.",
        table=_table(kept),
    )


def _panels(view: RunView, kept: Mapping[str, Arrays]) -> list[Figure]:
    """The first prompt, with as many tokens as there is room for; others if all of their tokens fit as well."""
    first = next(iter(kept.values()))
    panels, left = [], _MOST_BYTES
    for number, prompt in enumerate(first["kept_prompts"].tolist()[:_MOST_PANELS]):
        heads = sum(len(arrays["kept"]) for arrays in kept.values() if f"pattern_{number}" in arrays)
        whole = max(arrays[f"pattern_{number}"].shape[1] for arrays in kept.values() if f"pattern_{number}" in arrays)
        wanted = min(whole, _MOST_TOKENS)
        side = min(wanted, side_of(left / heads))
        if number and side < wanted:
            break
        left -= heads * side * (side + 1) // 2
        panels.append(_panel(view, kept, number, visible(str(prompt)), side))
    return panels


def _panel(view: RunView, kept: Mapping[str, Arrays], number: int, prompt: str, side: int) -> Figure:
    own = {name: arrays for name, arrays in kept.items() if f"pattern_{number}" in arrays}
    shown = Models(view, list(own))
    texts = {name: _tokens(arrays, number) for name, arrays in own.items()}
    first = next(iter(own))
    models = []
    for name, arrays in own.items():
        entry = shown.entries[shown[name]] | pattern_data(arrays["kept"].tolist(), arrays[f"pattern_{number}"], side)
        # Only a model with another tokenizer reads other tokens.
        models.append(entry if texts[name] == texts[first] else entry | {"tokens": texts[name][: entry["side"]]})
    tokens = len(texts[first])
    cut = f"its first {side} tokens of {tokens}" if side < tokens else f"all of its {tokens} tokens"
    data = {"tokens": texts[first][:side], "of": tokens, "models": models}
    return make_panel(prompt if len(prompt) < 40 else f"{prompt[:38]}…", f"The prompt {prompt!r}: {cut}.", data)


def _tokens(arrays: Arrays, number: int) -> list[str]:
    return [visible(piece.decode("utf-8", "replace")) for piece in arrays[f"pieces_{number}"].tolist()]


def _finding(view: RunView, kept: Mapping[str, Arrays]) -> str:
    """How much attention goes elsewhere in the worst candidate, and what the first token takes if that is most."""
    name = next((model.name for model in view.models if model.is_reference and model.name in kept), next(iter(kept)))
    moved = {other: share for other in kept if other != name and (share := _moved(kept[name], kept[other])) is not None}
    parts = []
    if moved:
        worst = max(moved, key=lambda other: moved[other])
        told = format_percent(float(f"{moved[worst]:.2g}"), None)
        parts.append(f"{short_name(view, worst)} moves {told} of the attention to other tokens")
    first = float(first_shares(kept[name]["pattern_0"]).mean())
    if first > _MAJORITY:
        told = format_percent(round(first, 2), None)
        parts.append(f"the first token takes {told} of {'all' if moved else 'the attention'}")
    finding = "; ".join(parts) or "Where heads attend"
    # The name of a model keeps its letters.
    return finding if moved else finding[0].upper() + finding[1:]


def _moved(reference: Arrays, candidate: Arrays) -> float | None:
    """Weight that a position gives to other tokens than in the reference: mean total variation over heads and rows."""
    same = ("kept", "pieces_0")
    if not all(np.array_equal(reference[name], candidate[name]) for name in same):
        return None
    apart = reference["pattern_0"].astype(np.float32) - candidate["pattern_0"].astype(np.float32)
    return float(np.abs(apart).sum(axis=2).mean() / 2)


def _table(kept: Mapping[str, Arrays]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    rows = []
    for name, arrays in kept.items():
        shares = first_shares(arrays["pattern_0"])
        rows.append([visible(name), str(len(arrays["kept"])), format_percent(round(float(shares.mean()), 3), None)])
    return ["model", "heads", "weight on the first token"], rows
