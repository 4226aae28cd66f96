"""Chart of every pair of candidates: which differ, and by how much, on the same windows of the text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.metrics.pairs import Pair, compare_pairs
from gguf_harness.report.charts.base import Chart, Figure, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.data import RunView
from gguf_harness.report.numbers import format_estimate, format_value

if TYPE_CHECKING:
    from gguf_harness.store.arrays import Arrays

__all__ = ["pair_charts"]

_LEVEL: Final = 0.05
_NAMED: Final = 2

Means = dict[str, dict[int, float]]
"""By model, the mean of each window."""


def pair_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The chart, if at least two candidates have means of windows."""
    arrays = arrays_of(view, run_dir, "kld_quantiles")
    kld, nll = (_means(arrays, name) for name in ("window_kld", "window_nll"))
    pairs = compare_pairs(kld)
    if not pairs:
        return []
    together = [pair for pair in pairs if pair.p_adjusted > _LEVEL]
    panels = [
        _panel(view, "KL mean", "KL of the row less that of the column, in nats.", list(kld), pairs),
        _panel(
            view,
            "PPL",
            "Perplexity of the row over that of the column, less 1.",
            list(nll),
            compare_pairs(nll),
            ratio=True,
        ),
    ]
    return [
        make_chart(
            "pairs",
            _title(view, pairs, together),
            "Each candidate with every other, window by window: both read the same text, so that their difference is"
            " known better than either of them.",
            panels,
            f"Differences of {len(pairs)} pairs of candidates.",
            view="matrix",
            how=f"A cell is the row less the column. An outline marks a pair whose difference may be chance: a paired"
            f" t-test over {pairs[0].windows} windows, at {_LEVEL:g} for all {len(pairs)} pairs together (Holm's"
            " correction). Such files are equally good as far as this text can tell: take the smaller one.",
            table=(
                ["pair", "difference of KL means, nats", "p, Holm"],
                [[_named(view, pair, "less"), *_told(pair)] for pair in pairs],
            ),
        )
    ]


def _means(arrays: Mapping[str, Arrays], name: str) -> Means:
    """Of the models whose run kept them."""
    return {
        model: dict(zip(of["window"].tolist(), of[name].tolist(), strict=True))
        for model, of in arrays.items()
        if name in of
    }


def _title(view: RunView, pairs: Sequence[Pair], together: Sequence[Pair]) -> str:
    count = f"{len(pairs)} pairs" if len(pairs) > 1 else "1 pair"
    if not together:
        return f"All candidates differ from each other ({count})" if len(pairs) > 1 else "The two candidates differ"
    named = ", ".join(_named(view, pair, "and") for pair in together[:_NAMED])
    more = f" and {len(together) - _NAMED} more" if len(together) > _NAMED else ""
    return f"{len(together)} of {count} cannot be told apart: {named}{more}"


def _named(view: RunView, pair: Pair, word: str) -> str:
    return f"{short_name(view, pair.first)} {word} {short_name(view, pair.second)}"


def _told(pair: Pair) -> tuple[str, str]:
    return format_estimate(pair.difference, pair.se), format_value(pair.p_adjusted)


def _panel(
    view: RunView, name: str, meaning: str, models: Sequence[str], pairs: Sequence[Pair], *, ratio: bool = False
) -> Figure:
    """A cell for each pair, twice: the row less the column."""
    size = len(models)
    values: list[list[float | None]] = [[None] * size for _ in range(size)]
    notes, cells = ([[""] * size for _ in range(size)] for _ in range(2))
    marked = [[False] * size for _ in range(size)]
    for pair in pairs:
        first, second = models.index(pair.first), models.index(pair.second)
        for row, column, sign in ((first, second, 1.0), (second, first, -1.0)):
            value = sign * pair.difference
            values[row][column] = math.expm1(value) if ratio else value
            error = pair.se * math.exp(value) if ratio else pair.se
            notes[row][column] = f"± {_shown(ratio)(error)}, p = {format_value(pair.p_adjusted)} (Holm)"
            cells[row][column] = _shown(ratio)(values[row][column] or 0.0)
            marked[row][column] = pair.p_adjusted > _LEVEL
    reach = max((abs(value) for line in values for value in line if value is not None), default=1.0)
    names = [short_name(view, model) for model in models]
    data: dict[str, Any] = {
        "x": {"label": "less that of", "names": names},
        "y": {"label": "file", "names": names},
        "values": values,
        "notes": notes,
        "cells": cells,
        "least": 58,
        "marked": marked,
        "marked_means": "cannot be told apart",
        "scale": {"kind": "signed", "domain": [-reach, reach], "title": name, "root": True, "percent": ratio},
    }
    return make_panel(name, meaning, data)


def _shown(ratio: bool) -> Callable[[float], str]:
    return (lambda value: f"{_digits(100 * value)} %") if ratio else _digits


def _digits(value: float) -> str:
    """Three significant digits, zeros at the end too: numbers of a column are as precise as each other."""
    return f"{value:#.3g}".rstrip(".")
