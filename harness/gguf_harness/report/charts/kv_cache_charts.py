"""Charts of what types of the KV cache change in it: keys, values and attention by head, and what each layer causes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.report.charts.base import Chart, Figure, make_chart, make_panel, short_name
from gguf_harness.report.charts.head_maps import Place, Row, frame_of, head_map, head_rows, layer_rows, told
from gguf_harness.report.charts.layer_lines import percent
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_estimate, format_metric

__all__ = ["kv_cache_charts"]

_ERRORS: Final = (("kv_key_error", "keys"), ("kv_value_error", "values"))
_PATTERN: Final = "kv_pattern_cosine"
_CAUSED, _RANK, _FLOOR = "kv_layer_kld", "kv_prediction_rank", "kv_layer_floor"
_PREDICTIONS: Final = ("kv_layer_stream_change", "kv_layer_predicted")
"""Of the residual stream; where that is not known, of attention's output."""
_MOST_SUBJECTS: Final = 4
"""Subjects whose heads are drawn: those that change most. The table has all."""


def kv_cache_charts(view: RunView, _run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    return [chart for chart in (_heads(view), _layers(view)) if chart is not None]


def _subjects(view: RunView, metric: str) -> list[str]:
    """Subjects with a metric, largest first."""
    found = {model.name: row for model in view.models if (row := view.row(model.name, metric)) is not None}
    return sorted(found, key=lambda name: -float(found[name]["value"]))


# -- heads ------------------------------------------------------------------------------------------------------------


def _heads(view: RunView) -> Chart | None:
    """Maps of heads: errors of keys, of values, and of attention."""
    subjects = _subjects(view, _ERRORS[0][0])
    shown = subjects[:_MOST_SUBJECTS]
    kinds: list[tuple[str, str, dict[str, dict[Place, Row]]]] = []
    for metric, name in (*_ERRORS, (_PATTERN, "attention")):
        rows = {subject: {_place(row): row for row in head_rows(view, subject, metric)} for subject in shown}
        kept = {subject: of_heads for subject, of_heads in rows.items() if of_heads}
        if kept:
            kinds.append((metric, name, kept))
    if not kinds:
        return None
    panels = [
        panel for metric, name, rows in kinds for panel in _maps(view, metric, name, rows, opens=metric == kinds[-1][0])
    ]
    return make_chart(
        "kv-heads",
        _finding(view, kinds),
        "Relative errors of keys and of values as the cache holds them, and one minus the cosine of attention patterns"
        " computed from them, against the same file's full cache; means over the prompts.",
        panels,
        "; ".join(" ".join(row) for row in _table(view, subjects)),
        view="matrix",
        how="Errors grow from layer to layer, since each layer reads what those before it changed. Keys and values have"
        " fewer heads than attention where heads share them. The colours mean the same numbers for all caches, and use"
        " the square root, so that small changes can be seen.",
        table=(
            ["file and cache", "keys", "values", "attention cosine", "head that changed most"],
            _table(view, subjects),
        ),
    )


def _place(row: Row) -> Place:
    return int(row["layer"]), int(row["head"])


def _change(metric: str, row: Row) -> float:
    return 1 - row["value"] if metric == _PATTERN else float(row["value"])


def _maps(view: RunView, metric: str, name: str, rows: Mapping[str, dict[Place, Row]], *, opens: bool) -> list[Figure]:
    frame = frame_of(place for of_heads in rows.values() for place in of_heads)
    most = max(_change(metric, row) for of_heads in rows.values() for row in of_heads.values())
    title = "1 - cosine with the full cache" if metric == _PATTERN else metric_info(metric).title
    scale = {"kind": "share", "domain": [0, max(most, 1e-9)], "title": title, "root": True}
    panels = []
    for index, (subject, of_heads) in enumerate(rows.items()):
        worst = max(of_heads, key=lambda place: _change(metric, of_heads[place]))
        notes = {place: f"± {format_estimate(row['se'], None)}" for place, row in of_heads.items() if row["se"]}
        values = {place: _change(metric, row) for place, row in of_heads.items()}
        meaning = (
            f"{visible(subject)}: head {told(worst)} has the largest value, {format_estimate(values[worst], None)}."
        )
        data = head_map(frame, values, notes, scale)
        panels.append(make_panel(f"{name}, {short_name(view, subject)}", meaning, data, opens=opens and index == 0))
    return panels


def _finding(view: RunView, kinds: list[tuple[str, str, dict[str, dict[Place, Row]]]]) -> str:
    metric, name, rows = kinds[-1]
    subject, of_heads = next(iter(rows.items()))
    worst = max(of_heads, key=lambda place: _change(metric, of_heads[place]))
    row = of_heads[worst]
    value = format_estimate(row["value"], row["se"])
    what = f"its attention has cosine {value}" if metric == _PATTERN else f"its {name} are off by {value}"
    return f"Head {told(worst)} suffers most from {short_name(view, subject)}: {what}"


def _table(view: RunView, subjects: list[str]) -> list[list[str]]:
    table = []
    for subject in subjects:
        cells = [_cell(view.row(subject, metric), metric) for metric, _ in _ERRORS]
        heads = head_rows(view, subject, _PATTERN)
        worst = min(heads, key=lambda row: float(row["value"]), default=None)
        cells.append(_cell(view.row(subject, _PATTERN), _PATTERN))
        cells.append("" if worst is None else f"{told(_place(worst))}: {_cell(worst, _PATTERN)}")
        table.append([visible(subject), *cells])
    return table


def _cell(row: Row | None, metric: str) -> str:
    return "" if row is None else format_metric(metric_info(metric), row["value"], row["se"])


# -- layers -----------------------------------------------------------------------------------------------------------


def _layers(view: RunView) -> Chart | None:
    """What each layer's cache causes, beside what its keys and values let expect."""
    panels, table = [], []
    for subject in _subjects(view, _CAUSED):
        caused = layer_rows(view, subject, _CAUSED)
        if not caused or sum(max(float(row["value"]), 0.0) for row in caused) <= 0:
            continue
        panels.append(_shares(view, subject, caused))
        worst = max(caused, key=lambda row: float(row["value"]))
        table.append(
            [
                visible(subject),
                f"{worst['layer']}: {_cell(worst, _CAUSED)}",
                *(
                    _cell(view.row(subject, metric), metric)
                    for metric in (_CAUSED, "kv_run_kld", "kv_patched_gap", _FLOOR)
                ),
                _cell(view.row(subject, _RANK), _RANK),
            ]
        )
    if not panels:
        return None
    return make_chart(
        "kv-layers",
        _layers_finding(view),
        "KL divergence with only one layer's keys and values stored in the types, beside what follows from them alone:"
        " the square of the change of the residual stream, since KL grows with the square. Each as a share of all"
        " layers' sum.",
        panels,
        "; ".join(
            f"{row[0]}: layer {row[1]} nats, all {row[2]}, rank correlation {row[6] or 'not known'}" for row in table
        ),
        view="dots",
        how="Where both dots of a layer lie together, keys and values alone tell what the layer's cache costs. Where"
        " the KL is further right, later layers make more of the error. KL of single layers need not add up to that of"
        " all. Rounding is the KL that a millionth in the first layer causes: what is not well above it says nothing of"
        " the cache. All numbers of the table but the last are in nats.",
        table=(
            [
                "file and cache",
                "worst layer",
                "all layers",
                "as it runs",
                "between both",
                "rounding",
                "rank corr.",
            ],
            table,
        ),
    )


def _shares(view: RunView, subject: str, caused: list[Row]) -> Figure:
    parts = [
        {"name": name, "short": name, "role": "candidate", "series": place}
        for place, name in enumerate(("KL that it causes", "predicted"))
    ]
    rows: list[dict[str, Any]] = []
    metric = next((name for name in _PREDICTIONS if layer_rows(view, subject, name)), None)
    sides = [(_CAUSED, caused, 1)]
    if metric is not None:
        sides.append((metric, layer_rows(view, subject, metric), 2))
    for place, (name, of_layers, power) in enumerate(sides):
        whole = sum(max(float(row["value"]), 0.0) ** power for row in of_layers)
        for row in of_layers:
            value, se = float(row["value"]), row["se"] or 0.0
            ends = {"value": value, "low": value - se, "high": value + se}
            shares = {end: max(each, 0.0) ** power / whole for end, each in ends.items()}
            text = f"{metric_info(name).title}: {_cell(row, name)}"
            rows.append({"model": place, "name": f"layer {row['layer']}", "text": text} | shares)
    rank = view.row(subject, _RANK)
    meaning = f"{visible(subject)}: bars are one standard error to each side, clustered by prompt."
    if rank is not None:
        meaning += f" Rank correlation over layers {_cell(rank, _RANK)}."
    data = {
        "x": {"label": "share of all layers", "percent": True},
        "legend": True,
        "models": parts,
        "rows": sorted(rows, key=lambda row: int(row["name"].split()[1])),
    }
    return make_panel(short_name(view, subject), meaning, data)


def _layers_finding(view: RunView) -> str:
    subject = _subjects(view, _CAUSED)[0]
    caused = layer_rows(view, subject, _CAUSED)
    worst = max(caused, key=lambda row: float(row["value"]))
    share = float(worst["value"]) / sum(max(float(row["value"]), 0.0) for row in caused)
    told_rank = view.row(subject, _RANK)
    floor = view.row(subject, _FLOOR)
    if floor is not None and float(worst["value"]) < 2 * float(floor["value"]):
        text = f"No layer's cache of {short_name(view, subject)} causes more than rounding does"
        return f"{text}, {_cell(floor, _FLOOR)} nats"
    text = f"Layer {worst['layer']} causes {percent(share)} of what {short_name(view, subject)} costs layer by layer"
    return (
        text
        if told_rank is None
        else f"{text}; predictions order layers with a rank correlation of {_cell(told_rank, _RANK)}"
    )
