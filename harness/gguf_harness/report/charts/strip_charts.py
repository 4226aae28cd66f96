"""Chart of one window of the text, token by token: where a candidate changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf_harness.report.charts.base import Chart, Models, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_value
from gguf_harness.views.strip_data import LISTED, strip_numbers, strip_values, strip_words

__all__ = ["strip_charts"]

Strip = Mapping[str, Any]
"""A token strip, as `gguf_harness.measure.passes.strip` stores it."""


def strip_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The chart, if the run has a token strip."""
    strips = _load(view, run_dir)
    if not strips:
        return []
    first = next(iter(strips.values()))
    shown = Models(view, list(strips))
    pieces = strip_words(first["piece"].tolist())
    data = {
        "models": shown.entries,
        "tokens": pieces,
        "reference": {
            "nll": strip_numbers(first["nll_reference"]),
            "top": strip_words(first["piece_top_reference"].tolist()),
        },
        "candidates": [_candidate(shown[name], strip) for name, strip in strips.items()],
        "values": strip_values(list(strips.values())),
        "chosen": len(strips) - 1,
        "listed": LISTED,
    }
    name, at = _most_changed(strips)
    strip = strips[name]
    reference = "the reference" if view.reference is None else visible(view.reference)
    chart = make_chart(
        "token-strip",
        f"{short_name(view, name)} gives {_quoted(pieces[at])} a probability of"
        f" {_percent(strip['nll'][at])}, the reference {_percent(strip['nll_reference'][at])}: the token that changed"
        " most",
        f"{_where(view, first, len(pieces))}: the window whose mean loss under {reference} is nearest to that of all"
        " measured ones.",
        [make_panel("tokens", "", data)],
        "; ".join(_told_of(view, name, strip, pieces) for name, strip in strips.items()),
        view="tokens",
        how="Each token stands on the colour of what a candidate changed there, given the same words before it. The"
        " scale is the same for all candidates, so that a good one looks blank. A dotted line is under tokens where the"
        " candidate would have continued with another token than the reference. Point at a token, or move with the"
        " arrow keys, for its numbers.",
        table=_table(view, strips, pieces),
    )
    return [chart]


def _load(view: RunView, run_dir: Path) -> dict[str, Strip]:
    """By candidate, biggest first: its strip, of the same tokens as all others."""
    candidates = {model.name for model in view.candidates}
    stored = arrays_of(view, run_dir, "token_strip")
    strips = {name: strip for name, strip in stored.items() if name in candidates}
    tokens = [strip["token"].tolist() for strip in strips.values()]
    return {name: strip for name, strip in strips.items() if strip["token"].tolist() == tokens[0]}


def _where(view: RunView, strip: Strip, count: int) -> str:
    """Which piece of the text this is, counted from 1."""
    position, window = int(strip["position"][0]), int(strip["window"][0]) + 1
    corpus = view.run.get("corpus") or {}
    of = f" of {corpus['available']}" if corpus.get("available") else ""
    name = f"of {visible(corpus['name'])}, " if corpus.get("name") else "of the text, "
    return f"Tokens {position + 1} to {position + count} {name}window {window}{of}"


def _candidate(place: int, strip: Strip) -> dict[str, Any]:
    other = (strip["top"] != strip["top_reference"]).tolist()
    tops = strip_words(strip["piece_top"].tolist())
    return {
        "model": place,
        # What it would have continued with, where that is not what the reference would have.
        "top": [top if differs else None for top, differs in zip(tops, other, strict=True)],
        **{name: strip_numbers(strip[name]) for name in ("delta_p", "kld", "nll")},
    }


def _most_changed(strips: Mapping[str, Strip]) -> tuple[str, int]:
    largest = {name: _changes(strip) for name, strip in strips.items()}
    name = max(largest, key=lambda name: largest[name].max())
    return name, int(largest[name].argmax())


def _changes(strip: Strip) -> Any:
    """By how much each token's probability changed, up or down."""
    import numpy as np

    return np.nan_to_num(abs(strip["delta_p"]))


def _told_of(view: RunView, name: str, strip: Strip, pieces: Sequence[str]) -> str:
    at = int(_changes(strip).argmax())
    change = 100 * float(strip["delta_p"][at])
    return f"{short_name(view, name)} changed {_quoted(pieces[at])} most, by {change:+.1f} points"


def _table(view: RunView, strips: Mapping[str, Strip], pieces: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """For pages without scripts: the tokens that changed most."""
    rows = []
    for name, strip in strips.items():
        for at in _changes(strip).argsort()[::-1][:LISTED].tolist():
            numbers = [_percent(strip["nll_reference"][at]), _percent(strip["nll"][at])]
            said = [short_name(view, name), str(at + 1), _quoted(pieces[at])]
            rows.append([*said, *numbers, format_value(float(strip["kld"][at]))])
    return ["model", "place", "token", "probability, reference", "probability", "KL (nats)"], rows


def _quoted(piece: str) -> str:
    return f'"{piece.replace(chr(10), "⏎")}"'


def _percent(nll: float) -> str:
    share = 100 * math.exp(-float(nll))
    return f"{share:.0f} %" if share >= 9.95 else f"{share:.1f} %" if share >= 0.1 else "less than 0.1 %"
