"""Charts of suites/lora: what an adapter changes, what of it quantized bases keep, and how strongly to apply it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.metrics.stats import confidence_bound
from gguf_harness.report.charts.base import Chart, Figure, Models, make_chart, make_panel, short_name
from gguf_harness.report.charts.layer_lines import percent, show
from gguf_harness.report.charts.lora_places import place_charts
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_metric

__all__ = ["lora_charts"]

Row = Mapping[str, Any]

_KEPT: Final = {
    "lora_effect_retained": "retained",
    "lora_loss_retained": "gain",
    "lora_effect_correlation": "correlation",
}
_SCALE: Final = "scale "
_CONFIDENCE: Final = 0.975
"""Of each end of an interval."""


def lora_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    names = [model.name for model in view.models if model.facts.get("adapters")]
    if not names:
        return []
    charts = [_effects(view, names), _retained(view, names), _merged(view, names), _scales(view, names)]
    return [*(chart for chart in charts if chart is not None), *place_charts(view, run_dir, names)]


def _found(view: RunView, names: Sequence[str], metric: str) -> dict[str, Row]:
    """Rows of whole subjects, in the order of the models."""
    return {name: row for name in names if (row := view.row(name, metric)) is not None}


def _dots(view: RunView, rows: Sequence[tuple[str, str | None, str, Row]]) -> dict[str, Any]:
    """Marks of (name, group, metric, row), and the models that give them their colours."""
    shown = Models(view, [row["model"] for *_, row in rows])
    marks = [
        {
            "model": shown[row["model"]],
            "name": name,
            **({} if group is None else {"group": group}),
            "value": row["value"],
            **_interval(row),
            "text": _said(metric, row),
            "detail": visible(str(row.get("detail") or "")),
        }
        for name, group, metric, row in rows
    ]
    return {"models": shown.entries, "rows": marks}


def _interval(row: Row) -> dict[str, float]:
    """Ends of the 95 % interval; of an estimate that stores none, from its standard error."""
    if row.get("se") is None:
        return {}
    ends = {"low": row.get("low"), "high": row.get("high")}
    return {
        name: confidence_bound(row["value"], row["se"], row["clusters"], _CONFIDENCE, upper=name == "high")
        if end is None
        else end
        for name, end in ends.items()
    }


def _said(metric: str, row: Row) -> str:
    info = metric_info(metric)
    unit = f" {info.unit}" if info.unit == "nats" else ""
    return format_metric(info, row["value"], row["se"]) + unit


# -- what it changes --------------------------------------------------------------------------------------------------


def _effects(view: RunView, names: Sequence[str]) -> Chart | None:
    own, elsewhere = (_found(view, names, metric) for metric in ("lora_loss_change", "lora_corpus_loss_change"))
    if not own and not elsewhere:
        return None
    groups = (("its own text", "lora_loss_change", own), ("the corpus", "lora_corpus_loss_change", elsewhere))
    rows = [
        (short_name(view, name), group, metric, row) for group, metric, found in groups for name, row in found.items()
    ]
    moved = {name: _found(view, [name], "lora_corpus_kld").get(name) for name in names}
    return make_chart(
        "lora-effect",
        _effect_finding(view, names, own, elsewhere),
        "Change of the loss, in nats per token, from a file without the adapter to the same file with it.",
        [make_panel("loss", "", {"x": {"label": "change of loss (nats)", "middle": 0}} | _dots(view, rows))],
        "; ".join(f"{name} on {group}: {_said(metric, row)}" for name, group, metric, row in rows),
        view="dots",
        how="Left of zero the adapter makes a text likelier. It should do so for a text of its own, and change little"
        " for the corpus, for which it was not made.",
        table=(
            ["subject", "loss, own text", "KL, own text", "loss, corpus", "KL, corpus"],
            [
                [
                    visible(name),
                    *(_cell(view, name, metric) for metric in ("lora_loss_change", "lora_kld")),
                    *(_cell(view, name, metric) for metric in ("lora_corpus_loss_change", "lora_corpus_kld")),
                ]
                for name in names
                if name in own or moved[name]
            ],
        ),
    )


def _effect_finding(view: RunView, names: Sequence[str], own: Mapping[str, Row], elsewhere: Mapping[str, Row]) -> str:
    name = next(name for name in names if name in own or name in elsewhere)
    who = short_name(view, name)
    if name not in own:
        return f"{who} changes the loss on the corpus by {show(elsewhere[name]['value'])} nats"
    saved = -own[name]["value"]
    told = f"{who} {'saves' if saved > 0 else 'costs'} {show(abs(saved))} nats per token on its own text"
    if name in elsewhere:
        told += f", and changes the corpus by {elsewhere[name]['value']:+.2g}"
    return told


def _cell(view: RunView, name: str, metric: str) -> str:
    row = view.row(name, metric)
    return "" if row is None else format_metric(metric_info(metric), row["value"], row["se"])


# -- what is kept of it -----------------------------------------------------------------------------------------------


def _retained(view: RunView, names: Sequence[str]) -> Chart | None:
    found = {metric: _found(view, names, metric) for metric in _KEPT}
    kept = found["lora_effect_retained"]
    if not kept:
        return None
    rows = [
        (short_name(view, name), group, metric, row)
        for metric, group in _KEPT.items()
        for name, row in found[metric].items()
    ]
    least, most = (choose(kept, key=lambda name: float(kept[name]["value"])) for choose in (min, max))
    told = f"{short_name(view, least)} keeps {percent(kept[least]['value'])} of the adapter's effect"
    if most != least:
        told += f", {short_name(view, most)} {percent(kept[most]['value'])}"
    data = {"x": {"label": "beside the reference", "percent": True, "middle": 1}} | _dots(view, rows)
    return make_chart(
        "lora-retained",
        told,
        "The adapter's effect on each quantized base, beside its effect on the reference: how much likelier it makes"
        " each token of its own text.",
        [make_panel("retained", "", data)],
        "; ".join(f"{name}, {group}: {_said(metric, row)}" for name, group, metric, row in rows),
        view="dots",
        how="At 100 % a base takes the adapter as the reference does. Retained below that is a weaker effect, and a low"
        " correlation one that falls on other tokens: both can be off on their own. The gain is what its own text"
        " becomes likelier by in all.",
        table=(
            ["subject", *(metric_info(metric).title for metric in (*_KEPT, "lora_effect_kld"))],
            [[visible(name), *(_cell(view, name, metric) for metric in (*_KEPT, "lora_effect_kld"))] for name in kept],
        ),
    )


def _merged(view: RunView, names: Sequence[str]) -> Chart | None:
    gains = _found(view, names, "lora_merging_gain")
    if not gains:
        return None
    ways = {"applied": "lora_applied_kld", "merged first": "lora_merged_kld"}
    rows = [
        (short_name(view, name), way, metric, row)
        for way, metric in ways.items()
        for name, row in _found(view, names, metric).items()
    ]
    clear = [name for name, row in gains.items() if row["se"] and abs(row["value"]) > 2 * row["se"]]
    if clear:
        most = max(clear, key=lambda name: abs(gains[name]["value"]))
        better = "merging before quantizing" if gains[most]["value"] > 0 else "applying at run time"
        told = f"At the bits of {short_name(view, most)}, {better} is better by {show(abs(gains[most]['value']))} nats"
    else:
        told = "Merging before quantizing and applying at run time are alike at equal bits"
    log = all(row["value"] > 0 for _, _, _, row in rows)
    data = {"x": {"label": "KL (nats)", **({"log": True} if log else {})}} | _dots(view, rows)
    return make_chart(
        "lora-merged",
        told,
        "KL from the reference with the adapter: to the quantized base with the adapter at run time, and to a file of"
        " the same type that the adapter was merged into before it was quantized.",
        [make_panel("merged", "", data)],
        "; ".join(f"{name}, {way}: {_said(metric, row)}" for name, way, metric, row in rows),
        view="dots",
        how="Merged, the adapter is rounded with the weights; at run time it stays exact on top of rounded weights, and"
        " costs a little time. The difference is measured token by token, so that it is known better than both.",
        table=(
            ["subject", *ways, "gain of merging (nats)"],
            [[visible(name), *(_cell(view, name, m) for m in (*ways.values(), "lora_merging_gain"))] for name in gains],
        ),
    )


# -- how strongly to apply it -----------------------------------------------------------------------------------------


def _scales(view: RunView, names: Sequence[str]) -> Chart | None:
    panels, rows = [], []
    best: dict[str, tuple[float, float]] = {}
    for metric, title in (("lora_scale_loss_change", "loss, own text"), ("lora_scale_corpus_kld", "KL, corpus")):
        lines = {name: points for name in names if (points := _sweep(view, name, metric))}
        if not lines:
            continue
        panels.append(_scale_panel(view, metric, title, lines))
        rows += [
            [visible(name), title, f"{scale:g}", format_metric(metric_info(metric), value, se)]
            for name, points in lines.items()
            for scale, value, se, _ in points
        ]
        if metric == "lora_scale_loss_change":
            best = {name: min((point[1], point[0]) for point in points) for name, points in lines.items()}
    if not panels:
        return None
    name = next(iter(best), None)
    told = (
        "What the adapter does at several scales"
        if name is None
        else f"{short_name(view, name)} is best on its own text at {best[name][1]:g} times its scale"
        f" ({best[name][0]:+.2f} nats)"
    )
    return make_chart(
        "lora-scale",
        told,
        "The adapter applied more weakly and more strongly than it is meant to be: change of the loss on its own text,"
        " and how far it moves predictions on the corpus.",
        panels,
        "; ".join(f"{row[0]}, {row[1]} at scale {row[2]}: {row[3]}" for row in rows),
        view="lines",
        how="At 0 it is the model without the adapter. The KL on the corpus grows with the square of a small scale;"
        " where the loss on its own text stops falling, the adapter is too strong.",
        table=(["subject", "", "scale", "value"], rows),
    )


def _sweep(view: RunView, name: str, metric: str) -> list[tuple[float, float, float | None, str]]:
    """(scale, value, standard error, what else is said), in the order of scales."""
    return sorted(
        (float(str(row["part"]).removeprefix(_SCALE)), row["value"], row["se"], f"n = {row['n']}")
        for row in view.run.get("estimates", [])
        if row["model"] == name and row["metric"] == metric and str(row.get("part") or "").startswith(_SCALE)
    )


def _scale_panel(
    view: RunView, metric: str, title: str, lines: Mapping[str, Sequence[tuple[float, float, float | None, str]]]
) -> Figure:
    info = metric_info(metric)
    shown = Models(view, list(lines))
    data = {
        "x": {"label": "scale, times the adapter's own"},
        "y": {"label": f"{info.title} (nats)", "middle": 0},
        "models": shown.entries,
        "lines": [
            {"model": shown[name], "name": short_name(view, name), "points": [list(point) for point in points]}
            for name, points in lines.items()
        ],
    }
    return make_panel(title, info.meaning, data)
