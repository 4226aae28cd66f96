"""Summaries of the heads of one model, or of two models side by side, for the terminal."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gguf_harness.metrics.taxonomy import match_heads
from gguf_harness.report.data import visible

if TYPE_CHECKING:
    from rich.table import Table

    from gguf_harness.measure.attention.pattern_results import HeadBehaviour

__all__ = ["render_heads", "render_matched_heads"]

_LEAST_COLUMNS: Final = 3
_MEASURED_WIDTH: Final = 400
_COLUMNS: Final = {
    "previous_token": "previous",
    "current_token": "current",
    "first_token": "first",
    "local": "local",
    "distance": "distance",
    "entropy": "entropy",
    "induction": "induction",
    "same_word": "same word",
}


def render_heads(name: str, behaviour: HeadBehaviour, *, width: int, color: bool) -> str:
    """A line per head: its kind, its main scores, and the rule that names it."""
    rows = []
    for (layer, head), profile, kind in zip(behaviour.heads, behaviour.profiles, behaviour.kinds, strict=True):
        scores = [f"{profile.values[score]:.2f}" if score in profile.values else "–" for score in _COLUMNS]
        rows.append([f"{layer}.{head}", kind.kind, *scores])
    title = f"{visible(name)}: {len(rows)} heads on {len(behaviour.prompts)} prompts"
    return _table(title, ["head", "kind", *_COLUMNS.values()], rows, width, color)


def render_matched_heads(
    names: Sequence[str], first: HeadBehaviour, second: HeadBehaviour, *, width: int, color: bool
) -> str:
    """A line per pair of matching heads, the most similar first."""
    matches = match_heads([each.values for each in first.profiles], [each.values for each in second.profiles])
    rows = []
    for match in sorted(matches, key=lambda match: match.distance):
        places = first.heads[match.first], second.heads[match.second]
        kinds = first.kinds[match.first].kind, second.kinds[match.second].kind
        rows.append([*(f"{a}.{b} {kind}" for (a, b), kind in zip(places, kinds, strict=True)), f"{match.distance:.3f}"])
    alone = abs(len(first.heads) - len(second.heads))
    title = f"{len(matches)} pairs of heads" + (f", {alone} of the larger model alone" if alone else "")
    return _table(title, [*(visible(name) for name in names), "distance"], rows, width, color)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, color: bool) -> str:
    """A table; columns that do not fit are left out, the last ones first, and named."""
    from rich.console import Console

    kept = len(columns)
    while kept > _LEAST_COLUMNS and _needed_width(_drawn(columns[:kept], rows)) > width:
        kept -= 1
    output = io.StringIO()
    Console(file=output, width=width, force_terminal=color).print(_drawn(columns[:kept], rows))
    left_out = f"left out at this width: {', '.join(columns[kept:])}" if kept < len(columns) else ""
    blocks = (textwrap.fill(title, width), output.getvalue().rstrip("\n"), textwrap.fill(left_out, width))
    return "\n".join(block for block in blocks if block) + "\n"


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 or column == "kind" else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[: len(columns)]))
    return table


def _needed_width(table: Table) -> int:
    from rich.console import Console

    return Console(file=io.StringIO(), width=_MEASURED_WIDTH).measure(table).maximum
