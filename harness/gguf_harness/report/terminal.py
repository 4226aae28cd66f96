"""Summary of a session on the terminal: one table, one line per candidate, and notes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import encodable
from gguf_harness.judge.claims import judge_claims, speed_ratio
from gguf_harness.judge.verdicts import name_briefly
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.registry import Column, Metric
from gguf_harness.report.data import Candidate, RunView, describe_windows, visible
from gguf_harness.report.model_groups import Group, groups_of
from gguf_harness.report.numbers import format_bytes, format_column, format_estimate, format_ratio
from gguf_harness.report.prices import price_note
from gguf_harness.report.times import wrong_forecast

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["render_terminal", "verdict_line"]

_MIN_WIDTH, _MAX_WIDTH = 60, 140
_MEASURED_WIDTH: Final = 400
"""Width used to measure how wide a table is: more than any needs."""
_COLORS: Final = {
    "pass": "green",
    "fail": "red",
    "error": "red",
    "incomplete": "yellow",
    "inconclusive": "yellow",
    "reference": "dim",
}


def render_terminal(
    run: Mapping[str, Any], *, width: int, color: bool, told: str = "", encoding: str | None = None
) -> str:
    """The whole summary.

    Args:
        run: content of a run.json.
        width: width of the terminal; columns that do not fit are left out, least important first.
        color: whether escape sequences are wanted.
        encoding: of the terminal; characters that it lacks are written out before lines and columns are laid out.
        told: what stands above the summary. Verdicts whose sentences are there are only named.
    """
    view = RunView(run)
    width = max(_MIN_WIDTH, min(width, _MAX_WIDTH))
    more = [*_warnings(view, told), *view.correction_notes()]
    notes = [*_notes(view), *(f"note: {visible(line)}" for line in more)]
    described = [model for model in view.models if _is_told(view, model)]
    blocks = [
        *([_table(view, group, width, color, encoding).rstrip("\n")] for group in groups_of(view)),
        [
            _colored(_wrap(encodable(verdict_line(view, model, told), encoding), width), model.verdict, color)
            for model in described
        ],
        [_wrap(encodable(note, encoding), width) for note in notes],
        [_wrap(encodable(view.headline(), encoding), width)],
    ]
    return encodable("\n\n".join("\n".join(block) for block in blocks if block) + "\n", encoding)


def _is_told(view: RunView, model: Candidate) -> bool:
    """Whether a model gets a sentence: not one that only others of its file, run otherwise, were compared with."""
    if model.is_reference or not model.facts:
        return not model.is_reference or bool(model.reasons)
    file = model.facts.get("file")
    run_otherwise = any(other.facts.get("file") == file and other.facts.get("variant") for other in view.models)
    return bool(model.verdict) or bool(model.facts.get("variant")) or not run_otherwise


def verdict_line(view: RunView, model: Candidate, told: str = "") -> str:
    """The result of a model, as a sentence; of verdicts whose sentences are in `told`, names and numbers only."""
    name = visible(model.name)
    others = [f"also: {visible(_first_line(_named(view, other, told)))}" for other in model.standing.others]
    if model.verdict == "error":
        more = "".join(f"; {other}" for other in others)
        return f"{name}: could not be measured. {visible(_first_line(model.reasons[0]))}{more}"
    parts = [*_gate_words(view, model, told), *_gain_words(view, model), *others]
    if model.dominated_by:
        other = visible(model.dominated_by)
        parts.append(f"dominated by {other}, which is no bigger and no worse")
    return f"{name}: {model.label}" + (f"; {'; '.join(parts)}" if parts else "")


def _gate_words(view: RunView, model: Candidate, told: str) -> list[str]:
    if model.reasons:
        what = "could not be measured: " if model.standing.verdict == "error" else ""
        reasons = [_named(view, reason, told) for reason in model.reasons]
        return [what + visible(_first_line(reason)).rstrip(".") for reason in reasons]
    row = view.row(model.name, "kld_mean")
    return [f"KL {format_estimate(row['value'], row['se'])} nats"] if row else []


def _named(view: RunView, reason: str, told: str) -> str:
    """A reason with names instead of the sentences that stand elsewhere."""
    if not told:
        return reason
    for gate in view.run.get("gates", []):
        if gate["detail"] in told:
            reason = reason.replace(gate["detail"], name_briefly(gate, view.metrics.get(gate["metric"])))
    for one in (view.run.get("baseline") or {}).get("comparisons", []):
        if one.get("outcome") == "worse" and one["detail"] in told:
            where = str(Place.of(one))
            worse = f"{view.title(one['metric'])}{f' ({where})' if where else ''} worse than in the baseline"
            reason = reason.replace(one["detail"], worse)
    return reason


def _warnings(view: RunView, told: str) -> list[str]:
    """Warnings of the run, without those whose sentences are above."""
    above = [told, *(reason for model in view.models for reason in model.reasons)]
    repeated = [
        gate["detail"]
        for gate in view.run.get("gates", [])
        if gate["verdict"] == "inconclusive" and any(gate["detail"] in text for text in above)
    ]
    return [warning for warning in view.run.get("warnings", []) if not any(each in warning for each in repeated)]


def _gain_words(view: RunView, model: Candidate) -> list[str]:
    reference = next((other for other in view.models if other.is_reference), None)
    if reference is None or not reference.facts or not model.facts:
        return []
    words = [f"{100 * model.facts['bytes'] / reference.facts['bytes']:.0f} % of the reference's size"]
    if model.facts.get("variant") and model.facts.get("file") == reference.facts.get("file"):
        words = []  # the same file, run otherwise
    # Only for speeds timed in turns and undisturbed: speeds measured at different times have no valid ratio.
    ratio = speed_ratio(view.run, model.name)
    if ratio is not None:
        low, high = (format_ratio(bound) for bound in (ratio.low, ratio.high))
        words.append(f"{format_ratio(ratio.value)} x its generation speed ({low} to {high})")
    return words


def _notes(view: RunView) -> list[str]:
    run = view.run
    notes = []
    reference = view.reference
    floor = view.row(reference, "floor_kld_mean") if reference else None
    if floor:
        notes.append(
            f"noise floor: KL of the reference against itself in other batches is {_floor(floor['value'])} nats"
            f" (n = {floor['n']}); differences of that size are meaningless"
        )
    if corpus := run.get("corpus"):
        notes.append(
            f"corpus: {visible(corpus['name'])}, {describe_windows(corpus)},"
            f" {corpus['scored_tokens']} scored; ± is one standard error, clustered by window"
        )
    notes += [*view.early_notes(), *view.baseline_notes(), *_answers(view)]
    cache = run.get("cache") or {"hits": 0, "misses": 0}
    total = cache["hits"] + cache["misses"]
    if total:
        notes.append(
            f"cache: all {total} measurements came from the cache, nothing was decoded; --gguf-fresh measures again"
            if cache["hits"] == total
            else f"cache: {cache['hits']} of {total} measurements came from the cache"
        )
    if (wrong := wrong_forecast(run)) is not None:
        notes.append(wrong)
    if view.interrupted is not None:
        notes.append(f"{view.interrupted}: results up to then are shown")
    return notes + view.attempt_notes()


def _answers(view: RunView) -> list[str]:
    """Lines on prices of smaller files, and on claims that the run tests."""
    price = price_note(view)
    claims = [finding for finding in judge_claims(view.run) if finding.verdict != "not tested"]
    words = (f"'{finding.claim.says}' {finding.verdict} ({finding.numbers})" for finding in claims)
    told = [f"claims, on this machine and text: {'; '.join(words)}"] if claims else []
    return [*([price] if price else []), *told]


def _table(view: RunView, group: Group, width: int, color: bool, encoding: str | None) -> str:
    columns = [
        (metric, metric.column)
        for metric in view.metrics.values()
        if metric.column and group.measured(view, metric.name)
    ]
    while len(columns) > 1 and _drawn(view, group, columns, encoding)[1] > width:
        columns.remove(max(columns, key=lambda column: column[1].rank))
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(_drawn(view, group, columns, encoding)[0])
    return file.getvalue()


def _drawn(
    view: RunView, group: Group, columns: list[tuple[Metric, Column]], encoding: str | None
) -> tuple[Table, int]:
    """A rendered table, and the width that it needs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(group.head, overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for metric, column in columns:
        table.add_column(Text(column.head or metric.title), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for model in group.models:
        rows = [(metric, view.row(model.name, metric.name)) for metric, _ in columns]
        size = format_bytes(model.facts["bytes"]) if model.facts else "-"
        # Text, not markup: a model name may contain [brackets].
        table.add_row(
            Text(encodable(visible(model.name), encoding)),
            size,
            *("-" if row is None else encodable(format_column(metric, row), encoding) for metric, row in rows),
            Text(model.label, style=_COLORS.get(model.verdict, "")),
        )
    return table, Console(file=io.StringIO(), width=_MEASURED_WIDTH).measure(table).maximum


def _floor(value: float) -> str:
    return "below 1e-6" if abs(value) < 1e-6 else f"{value:.1e}"


def _wrap(text: str, width: int) -> str:
    return textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False)


def _colored(text: str, verdict: str, color: bool) -> str:
    codes = {"green": "32", "red": "31", "yellow": "33", "dim": "2"}
    code = codes.get(_COLORS.get(verdict, ""))
    return f"\x1b[{code}m{text}\x1b[0m" if color and code else text


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"
