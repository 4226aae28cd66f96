"""Charts of the heads suite: importance of each head, what makes a candidate differ, and how many can be removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.importance import NEGLIGIBLE_RISE
from gguf_harness.report.charts.base import Chart, Models, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.charts.head_groups import alike_map, clusters, kinds, redundancy, separation
from gguf_harness.report.charts.head_maps import Place, Row, frame_of, head_map, told
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_estimate, format_percent, format_value

__all__ = ["head_charts"]

_SHOWN: Final = {
    "head_importance": "rise of the loss with the head set to zero: +",
    "head_importance_mean": "rise of the loss with the head set to its mean: +",
    "head_importance_kl": "KL with the head set to zero: ",
    "head_importance_mean_kl": "KL with the head set to its mean: ",
    "head_importance_screen": "screen (an estimate): +",
    "head_interchange_share": "share of the KL from the reference that restoring this head removes: ",
}
"""Values told of a head, in this order."""

Cells = dict[Place, dict[str, Row]]


def head_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    cells = _cells(view)
    charts = [
        *(_importance(view, cells), _interchange(view, cells), _removal(view, run_dir)),
        *(kinds(view), clusters(view), separation(view), redundancy(view), alike_map(view)),
    ]
    return [chart for chart in charts if chart is not None]


def _cells(view: RunView) -> dict[str, Cells]:
    """By model and head, what was measured of it."""
    cells: dict[str, Cells] = {}
    for row in view.run.get("estimates", []):
        if row["metric"] in _SHOWN and row.get("layer") is not None and row.get("head") is not None:
            of_model = cells.setdefault(row["model"], {})
            of_model.setdefault((row["layer"], row["head"]), {})[row["metric"]] = row
    return cells


def _of(cells: Cells, metric: str) -> dict[Place, float]:
    return {place: float(rows[metric]["value"]) for place, rows in cells.items() if metric in rows}


def _notes(cells: Cells) -> dict[Place, str]:
    return {place: "\n".join(_lines(rows)) for place, rows in cells.items()}


def _lines(rows: Mapping[str, Row]) -> list[str]:
    lines = []
    for metric, words in _SHOWN.items():
        if metric in rows:
            row = rows[metric]
            sign = "" if row["value"] < 0 else "+" if words.endswith("+") else ""
            lines.append(f"{words.removesuffix('+')}{sign}{format_estimate(row['value'], row['se'])}")
    return lines


def _measured(view: RunView, cells: Mapping[str, Cells], metric: str) -> dict[str, dict[Place, float]]:
    values = {model.name: _of(cells.get(model.name, {}), metric) for model in view.models}
    return {name: of_model for name, of_model in values.items() if of_model}


def _top(values: Mapping[Place, float], count: int = 3) -> list[Place]:
    return sorted(values, key=lambda place: -values[place])[:count]


def _importance(view: RunView, cells: Mapping[str, Cells]) -> Chart | None:
    values = _measured(view, cells, "head_importance")
    if not values:
        return None
    frame = frame_of(place for of_model in values.values() for place in of_model)
    most = max(abs(value) for of_model in values.values() for value in of_model.values()) or 1.0
    scale = {"kind": "signed", "domain": [-most, most], "title": "rise of the loss (nats)", "root": True}
    panels = [
        make_panel(
            short_name(view, name),
            f"{visible(name)}: {_most_important(of_model)} matter most.",
            head_map(frame, of_model, _notes(cells[name]), scale),
        )
        for name, of_model in values.items()
    ]
    first = view.reference if view.reference in values else next(iter(values))
    best = _top(values[first], 1)[0]
    row = cells[first][best]["head_importance"]
    some = f" of the {len(values[first])} measured" if _limited(view, first, len(values[first])) else ""
    cost = f"{'rises' if row['value'] >= 0 else 'falls'} by {format_estimate(abs(row['value']), row['se'])} nats"
    return make_chart(
        "head-importance",
        f"Head {told(best)} matters most{some}: without it the loss {cost}",
        "The output of each head alone is set to zero, which makes the following tokens less likely: the colour shows"
        " by how much.",
        panels,
        "; ".join(f"{visible(name)}: {_most_important(of_model)}" for name, of_model in values.items()),
        view="matrix",
        how="The scale is the same for all models. It uses the square root, since some heads matter a hundred times"
        " more than others; of the other sign are heads without which the loss falls. A tile is empty if the head was"
        " not removed. Heads that can replace each other all look unimportant; heads whose errors overlap may be equal."
        " The other numbers of a head are told at its tile.",
        table=(["model", "heads that matter most"], [[visible(n), _most_important(v)] for n, v in values.items()]),
    )


def _most_important(values: Mapping[Place, float]) -> str:
    return ", ".join(f"{told(place)} ({values[place]:+.3g} nats)" for place in _top(values))


def _interchange(view: RunView, cells: Mapping[str, Cells]) -> Chart | None:
    """Which heads make a candidate differ."""
    values = _measured(view, cells, "head_interchange_share")
    if not values:
        return None
    frame = frame_of(place for of_model in values.values() for place in of_model)
    most = max(abs(value) for of_model in values.values() for value in of_model.values()) or 1.0
    scale = {"kind": "signed", "domain": [-most, most], "title": "share of the KL removed", "root": True}
    panels, rows = [], []
    for name, of_model in values.items():
        best = _top(of_model, 1)[0]
        row = cells[name][best]["head_interchange_share"]
        share = format_percent(row["value"], row["se"])
        rows.append([visible(name), told(best), share])
        meaning = f"{visible(name)}: with head {told(best)} of the reference its KL is {share} smaller."
        data = head_map(frame, of_model, _notes(cells[name]), scale)
        panels.append(make_panel(short_name(view, name), meaning, data, opens=name == list(values)[-1]))
    # The smallest file: it has the most to explain.
    worst, place, share = list(values)[-1], *rows[-1][1:]
    return make_chart(
        "head-interchange",
        f"Head {place} of the reference would take {share} off {short_name(view, worst)}'s KL, more than any other"
        " measured",
        "Each head's output in the candidate is replaced by the reference's: the share of the KL divergence that this"
        " removes.",
        panels,
        "; ".join(f"{row[0]}: head {row[1]}, {row[2]}" for row in rows),
        view="matrix",
        how="A positive share: the head is a cause of the divergence. A negative one: without its error others no"
        " longer cancel, or chance. Shares do not add up to all of it, and heads whose errors overlap may be equal. A"
        " candidate that hardly diverges has shares with large errors.",
        table=(["model", "head", "share of the KL removed"], rows),
    )


def _removal(view: RunView, run_dir: Path) -> Chart | None:
    import numpy as np

    shown, lines = Models(view), []
    of_all: dict[str, int] = {}
    for model, arrays in arrays_of(view, run_dir, "head_removal").items():
        if "all" in arrays:  # not in the first runs
            of_all[model] = int(arrays["all"])
        losses = arrays["nll"].astype(np.float64).mean(axis=1)
        removed = [None, *(f"the last removed: {told((layer, head))}" for layer, head in arrays["heads"].tolist())]
        rises = (losses - losses[0]).tolist()
        points = [[count, rise, None, last] for count, (rise, last) in enumerate(zip(rises, removed, strict=True))]
        place = shown[model]
        lines.append((place, {"model": place, "name": shown.entries[place]["name"], "points": points}))
    if not lines:
        return None
    data: dict[str, Any] = {
        "x": {"label": "heads removed"},
        "y": {"label": "rise of the loss (nats per token)"},
        "models": shown.entries,
        "lines": [line for _, line in sorted(lines, key=lambda pair: pair[0])],
        "limit": {"value": NEGLIGIBLE_RISE, "text": f"{NEGLIGIBLE_RISE} nats"},
    }
    counts = [[visible(m.name), format_value(row["value"])] for m in view.models if (row := _removable(view, m.name))]
    return make_chart(
        "head-removal",
        _removal_finding(view, of_all),
        "Heads are removed one by one, always the one that changes the reference's predictions least; for candidates in"
        " that order.",
        [make_panel("loss", "Rise of the loss on the next tokens.", data)],
        f"Curves of the loss over heads removed of {len(lines)} models.",
        view="lines",
        how=f"The dotted line is a rise of {NEGLIGIBLE_RISE} nats. The loss is that of other windows than those that"
        " chose the order: on its own tokens an order looks far better than it is. Below zero: the loss is lower"
        " without these heads.",
        table=(["model", f"heads that can go before the loss rises by {NEGLIGIBLE_RISE} nats"], counts),
    )


def _limited(view: RunView, model: str, measured: int) -> bool:
    """Whether the run measured only some of the heads of a model."""
    return measured < sum(1 for row in view.run.get("heads", []) if row["model"] == model)


def _removable(view: RunView, model: str) -> Row | None:
    return view.row(model, "heads_removable")


def _removal_finding(view: RunView, of_all: Mapping[str, int]) -> str:
    name = next((model.name for model in view.models if _removable(view, model.name)), None)
    row = None if name is None else _removable(view, name)
    if name is None or row is None:
        return "Heads that can be removed"
    of_which = f" of {of_all[name]}" if name in of_all else ""
    count = "None" if row["value"] == 0 and of_which else format_value(row["value"])
    heads = "head" if row["value"] == 1 and not of_which else "heads"
    return f"{count}{of_which} {heads} can go before the loss rises by {NEGLIGIBLE_RISE} nats"
