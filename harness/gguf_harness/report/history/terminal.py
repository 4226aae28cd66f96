"""A history in the terminal: a table for each family, with a line of blocks for each series."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import encodable, visible
from gguf_harness.judge.history import Family, History, Series
from gguf_harness.report.history.sentences import (
    change_text,
    findings,
    headline,
    metric_title,
    moment_text,
    span,
    value_text,
    verdict,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["render_history", "sparkline"]

_MIN_WIDTH: Final = 60
_MEASURED_WIDTH: Final = 400
_MOST_RUNS: Final = 32
"""Of a line of blocks: the latest ones."""
_COLUMNS: Final = ("since the last", "since the first")
"""Changes, of which the second is left out first where it does not fit."""
_DIGITS: Final = 12
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_PLAIN: Final = ".,:-=+*#"
_GAP: Final = " "
_BREAK: Final = "|"
_STYLES: Final = {
    "worse": "red",
    "worse than at first": "red",
    "better": "green",
    "better than at first": "green",
    "same file, another number": "yellow",
}


def render_history(history: History, *, width: int, color: bool, encoding: str | None = None) -> str:
    """A table for each family, its findings, and what the words mean.

    Args:
        history: what was read.
        width: of the terminal; the change since the first run is left out where it does not fit.
        color: whether escape sequences are wanted.
        encoding: of the terminal; characters that it lacks are written out.
    """
    width = max(_MIN_WIDTH, width)
    blocks = []
    for family in history:
        blocks += [
            _wrapped([f"{visible(family.name)} ({family.key[:_DIGITS]}): {span(family)}"], width, encoding),
            _table(family, width, color, encoding),
            _wrapped([headline(family), *_notes(family)], width, encoding),
        ]
    left_out = [f"left out: {line}" for line in history.left_out]
    blocks += [_wrapped([*_legend(history), *left_out], width, encoding)]
    # Lines of the table are left.
    return encodable("\n\n".join(block for block in blocks if block) + "\n", encoding)


def sparkline(series: Series, runs: int, encoding: str | None = None, most: int = _MOST_RUNS) -> str:
    """A block for each run, as high as the value within the series; a space where it was not measured.

    A bar stands where a value was measured under other conditions than the one before it: they cannot be compared.

    Args:
        series: what to draw.
        runs: of the family, of which the latest are drawn.
        encoding: of the terminal; other characters stand for blocks where it has none.
        most: runs that are drawn.
    """
    levels = _BLOCKS if _has(encoding, _BLOCKS) else _PLAIN
    points = {point.at: point for point in series.points}
    segment_of = {point.at: place for place, segment in enumerate(series.segments) for point in segment.points}
    values = [point.value for point in points.values()]
    low, reach = min(values), max(values) - min(values)
    text, before = "", None
    for at in range(max(0, runs - most), runs):
        if at not in points:
            text += _GAP
            continue
        text += _BREAK if before is not None and before != segment_of[at] else ""
        # All the same: in the middle, since neither end means anything.
        share = (points[at].value - low) / reach if reach > 0 else 0.5
        text += levels[min(len(levels) - 1, int(share * len(levels)))]
        before = segment_of[at]
    return text


def _has(encoding: str | None, characters: str) -> bool:
    try:
        characters.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _table(family: Family, width: int, color: bool, encoding: str | None) -> str:
    from rich.console import Console

    layouts = ((_COLUMNS, _MOST_RUNS), (_COLUMNS[:1], _MOST_RUNS), (_COLUMNS[:1], 12), ((), 12), ((), 6))
    drawn = (_drawn(family, optional, most, encoding) for optional, most in layouts)
    table = next((one for one in drawn if _needed(one) <= width), _drawn(family, *layouts[-1], encoding))
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def _drawn(family: Family, optional: Sequence[str], most: int, encoding: str | None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("metric", overflow="fold")
    table.add_column("runs", no_wrap=True)
    table.add_column("last value", justify="right", no_wrap=True)
    for title in optional:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    above = ""
    ordered = sorted(family.series, key=lambda series: family.roles.index(series.role))
    for series in ordered:
        last, said = series.last, verdict(series, family.moments)
        changes = dict(zip(_COLUMNS, (last.previous, last.first), strict=True))
        unit = f", {series.metric.unit}" if series.metric.unit not in {"", "fraction", "bytes"} else ""
        cells = [
            "" if series.role == above else visible(series.role),
            f"{metric_title(series.metric)}{unit}",
            sparkline(series, len(family.moments), encoding, most),
            value_text(series.metric, last),
            *(change_text(series.metric, changes[title]) for title in optional),
        ]
        # Before columns are laid out: what stands for a character may be longer.
        told = [Text(encodable(cell, encoding)) for cell in cells]
        table.add_row(*told, Text(said, style=_STYLES.get(said, "")))
        above = series.role
    return table


def _needed(table: Table) -> int:
    from rich.console import Console

    return Console(file=io.StringIO(), width=_MEASURED_WIDTH).measure(table).maximum


def _notes(family: Family) -> list[str]:
    """Other findings, and where other conditions begin."""
    told = [one.says for one in findings(family)][1:]
    begins: dict[str, None] = {}
    for series in family.series:
        for segment in series.segments[1:]:
            at = moment_text(family.moments[segment.points[0].at])
            begins[f"new conditions at {at}: {visible(segment.reason)}; not compared with earlier values"] = None
    unfinished = [moment_text(moment) for moment in family.moments if not moment.finished]
    return [*told, *begins, *([f"not finished: {', '.join(unfinished)}"] if unfinished else [])]


def _legend(history: History) -> list[str]:
    if not any(len(family.moments) > 1 for family in history):
        return []
    changes = [
        change
        for family in history
        for series in family.series
        for point in series.points
        for change in (point.previous, point.first)
        if change is not None
    ]
    lines = []
    if history.tested:
        lines.append(
            f"{history.tested} changes were tested together (Holm's correction): the probability of calling anything"
            " worse that is not is at most 5 %"
        )
    kinds = {change.how for change in changes}
    if "paired" in kinds:
        lines.append("errors of changes are paired by window where both runs stored the means of the same windows")
    if "independent" in kinds:
        lines.append("other errors of changes are those of two independent values, which is too much on the same text")
    reasons = dict.fromkeys(change.reason for change in changes if change.how == "not judged" and change.reason)
    lines += [f"not judged: {visible(reason)}" for reason in reasons]
    return lines


def _wrapped(lines: Iterable[str], width: int, encoding: str | None) -> str:
    return "\n".join(
        textwrap.fill(encodable(line, encoding), width, subsequent_indent="  ", break_on_hyphens=False)
        for line in lines
        if line
    )
