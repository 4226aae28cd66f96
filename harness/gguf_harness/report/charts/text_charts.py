"""Chart of what models write: continuations of the prompts side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.report.charts.base import Chart, Models, make_chart, make_panel, short_name
from gguf_harness.report.data import RunView, visible, visible_lines
from gguf_harness.report.numbers import format_metric

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["text_chart", "text_charts"]

_EQUAL: Final = "exact_prefix_tokens"
_SCORES: Final = ("edit_similarity", "bleu", "rouge_l")
_SHOWN: Final = 160
_MOST_ROWS: Final = 400
"""Of the table for pages without scripts."""

Row = Mapping[str, Any]


def text_charts(view: RunView, _: Path) -> list[Chart]:
    """The chart, if the run has texts. Files with adapters have one of their own."""
    adapted = {model.name for model in view.models if model.facts.get("adapters")}
    written = {row["model"] for rows in view.texts.values() for row in rows}
    if written & adapted and len(written - adapted) < 2:
        return []
    names = [model.name for model in view.models if model.name not in adapted]
    chart = text_chart(view, "texts", names, view.reference, "so a difference comes from the file")
    return [] if chart is None else [chart]


def text_chart(view: RunView, identifier: str, among: Sequence[str], base: str | None, why: str) -> Chart | None:
    """Texts of some models beside those of one of them; None where none has written any.

    Args:
        view: the run.
        identifier: of the chart.
        among: names of the models.
        base: the one that others are compared with; the first with texts if it has none.
        why: what a difference means, for the end of a sentence.
    """
    texts = view.texts
    written = {row["model"] for rows in texts.values() for row in rows}
    names = [model.name for model in view.models if model.name in written and model.name in {*among, base}]
    if not any(name in among for name in names):
        return None
    base = base if base in names else names[0]
    candidates = [name for name in names if name != base]
    shown = Models(view, names)
    measured = _measured(view)
    prompts = [_prompt(prompt, rows, base, candidates, measured) for prompt, rows in texts.items()]
    titles = [metric_info(metric).title for metric in _SCORES]
    data = {
        "models": shown.entries,
        "reference": shown[base],
        "candidates": [shown[name] for name in candidates],
        "scores": titles,
        "prompts": prompts,
        "chosen": _first_choice(prompts),
    }
    return make_chart(
        identifier,
        _finding(view, candidates, prompts),
        f"Each prompt was continued by every model, always with its most likely token, and compared with"
        f" {visible(base)}. The same model gives the same text, {why}.",
        [make_panel("texts", "", data)],
        "; ".join(_told_of(view, name, at, prompts) for at, name in enumerate(candidates))
        or f"Texts of {visible(base)}.",
        view="texts",
        how="A cell says after how many tokens a candidate's text parts from the reference's: the darker, the earlier."
        " Choose a cell to read both texts. Once one token differs, all that follows may: a text that parts early is"
        " not a worse text, it is another one. The scores say how alike the two are.",
        table=_table(base, prompts, candidates),
    )


def _measured(view: RunView) -> dict[tuple[str, str, str], float]:
    """By model, prompt and metric: the estimates of single prompts."""
    return {
        (row["model"], row["prompt"], row["metric"]): row["value"]
        for row in view.run.get("estimates", [])
        if row.get("prompt") is not None and row["metric"] in {_EQUAL, *_SCORES}
    }


def _prompt(
    prompt: str,
    rows: Sequence[Row],
    base: str,
    candidates: Sequence[str],
    measured: Mapping[tuple[str, str, str], float],
) -> dict[str, Any]:
    """A prompt and its texts; a text that is the reference's is not repeated."""
    by_model = {row["model"]: row for row in rows}
    reference = by_model.get(base)
    pairs = []
    for name in candidates:
        row = by_model.get(name)
        pair = _text(row)
        if pair["text"] is not None and reference is not None and pair["text"] == _text(reference)["text"]:
            pair |= {"same": True, "text": None}
        equal = measured.get((name, prompt, _EQUAL))
        scores = [
            format_metric(metric_info(metric), value, None)
            if (value := measured.get((name, prompt, metric))) is not None
            else None
            for metric in _SCORES
        ]
        pairs.append(pair | {"equal": None if equal is None else int(equal), "scores": scores})
    said = {True: "in the chat template of the file", False: "no chat template in the file: messages joined plainly"}
    return {
        "name": visible(prompt),
        "given": visible_lines(rows[0].get("given") or ""),
        "note": said.get(bool(rows[0]["templated"])) if rows[0].get("templated") is not None else None,
        "reference": _text(reference),
        "pairs": pairs,
    }


def _text(row: Row | None) -> dict[str, Any]:
    if row is None:
        return {"text": None, "tokens": None, "problem": "it was not asked"}
    text, problem = row.get("text"), row.get("problem")
    return {
        "text": None if text is None else visible_lines(text),
        "tokens": row.get("tokens"),
        "problem": visible_lines(str(problem)) if problem else None if text is not None else "it has no text",
    }


@dataclass(frozen=True, slots=True)
class _Parted:
    """How a candidate's texts part from the reference's.

    Attributes:
        after: tokens that are equal, of the texts that differ and whose tokens were compared.
        differ: number of texts that differ.
        of: number of prompts that both continued.
        equal: mean of the tokens that are equal, over all of those.
    """

    after: list[int]
    differ: int
    of: int
    equal: float

    @property
    def median(self) -> int:
        """Tokens after which a text that differs parts."""
        return round(statistics.median(self.after))


def _parted(prompts: Sequence[Mapping[str, Any]], at: int) -> _Parted:
    both = [
        (prompt["reference"], pair)
        for prompt in prompts
        if prompt["reference"]["text"] is not None and ((pair := prompt["pairs"][at])["text"] or pair.get("same"))
    ]
    after = [pair["equal"] for _, pair in both if not pair.get("same") and pair["equal"] is not None]
    same = [reference["tokens"] for reference, pair in both if pair.get("same")]
    differ = len(both) - len(same)
    equal = statistics.mean([*after, *same]) if after or same else 0.0
    return _Parted(after, differ, len(both), equal)


def _finding(view: RunView, candidates: Sequence[str], prompts: Sequence[Mapping[str, Any]]) -> str:
    """The candidate whose texts part first, and the one whose texts stay the same longest."""
    parted = {name: each for at, name in enumerate(candidates) if (each := _parted(prompts, at)).of}
    if not parted:
        return "What the models write"
    if not any(each.differ for each in parted.values()):
        return "Every continuation is the same as the reference's"
    worst, best = (choose(parted, key=lambda name: parted[name].equal) for choose in (min, max))
    told = f"{_said(view, worst, parted[worst], 'texts part ')} ({parted[worst].differ} of {parted[worst].of} differ)"
    if best == worst:
        return told
    return f"{told}, {_said(view, best, parted[best], '')} ({parted[best].differ} of {parted[best].of})"


def _said(view: RunView, name: str, parted: _Parted, verb: str) -> str:
    name = short_name(view, name)
    if not parted.differ:
        return f"{name}'s are the same"
    if not parted.after:
        return f"{name}'s {verb or 'part '}somewhere"
    tokens = "at once" if parted.median == 0 else f"after {parted.median} token{'' if parted.median == 1 else 's'}"
    return f"{name}'s {verb}{tokens}"


def _told_of(view: RunView, name: str, at: int, prompts: Sequence[Mapping[str, Any]]) -> str:
    parted = _parted(prompts, at)
    where = f", after {parted.median} tokens (median)" if parted.after else ""
    return f"{short_name(view, name)}: {parted.differ} of {parted.of} texts differ{where}"


def _first_choice(prompts: Sequence[Mapping[str, Any]]) -> list[int]:
    """(prompt, candidate) to show at first: of the one whose texts part first, the text that parts last."""
    parted = {at: each for at in range(len(prompts[0]["pairs"])) if (each := _parted(prompts, at)).after}
    if not parted:
        return [0, 0]
    worst = min(parted, key=lambda at: parted[at].equal)
    differ = {
        number: pair["equal"]
        for number, prompt in enumerate(prompts)
        if not (pair := prompt["pairs"][worst]).get("same") and pair["text"] and pair["equal"] is not None
    }
    return [max(differ, key=lambda number: differ[number]), worst]


def _table(
    base: str, prompts: Sequence[Mapping[str, Any]], candidates: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """For pages without scripts: how each text begins."""
    rows = []
    for prompt in prompts:
        rows.append([prompt["name"], "prompt", prompt["note"] or "", _flat(prompt["given"])])
        reference = prompt["reference"]
        rows.append([prompt["name"], visible(base), _tokens(reference), _flat(reference["text"])])
        for name, pair in zip(candidates, prompt["pairs"], strict=True):
            rows.append([prompt["name"], visible(name), _outcome(pair), _flat(pair["text"])])
    return ["prompt", "model", "", "text"], rows[:_MOST_ROWS]


def _tokens(text: Mapping[str, Any]) -> str:
    return f"could not be generated: {text['problem']}" if text["problem"] else f"{text['tokens']} tokens"


def _outcome(pair: Mapping[str, Any]) -> str:
    if pair["problem"]:
        return _tokens(pair)
    if pair.get("same"):
        return "the same"
    return "differs" if pair["equal"] is None else f"parts after {pair['equal']} of {pair['tokens']} tokens"


def _flat(text: str | None) -> str:
    line = (text or "").replace("\n", " ⏎ ")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
