"""Charts of the quant suite: quality against size, divergence, speed, memory, content of the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import Metric, metric_info
from gguf_harness.metrics.tradeoff import pareto_frontier
from gguf_harness.report.charts.base import Chart, Figure, Models, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.charts.quant_findings import (
    files_finding,
    memory_finding,
    speed_finding,
    tail_finding,
    texts_finding,
)
from gguf_harness.report.data import Candidate, RunView, saves_cache, visible
from gguf_harness.report.numbers import doubt_mark, format_bytes, format_metric
from gguf_harness.views.model_entries import short_names

__all__ = ["quant_charts"]

_QUALITY: Final = (
    ("kld_mean", True),
    ("ppl_ratio", False),
    ("ppl", False),
    ("same_top", False),
    ("top5_agreement", False),
    ("delta_p_rms", True),
)
"""Metrics to weigh against the size, and whether their axis is logarithmic."""

_SPEED: Final = (
    "tg_speed_ratio", "pp_speed_ratio", "tg_tokens_per_s", "pp_tokens_per_s", "load_s", "served_single_tokens_per_s",
    "served_tokens_per_s", "served_ttft_p50_s", "served_ttft_p99_s", "served_itl_p50_s", "served_itl_p99_s",
)  # fmt: skip
_TEXTS: Final = ("edit_similarity", "exact_prefix_tokens", "bleu", "chrf", "rouge_l", "text_ppl_under_reference")
_MEMORY: Final = ("peak_memory_bytes", "weights_bytes", "kv_cache_bytes", "compute_bytes")
_FLOOR: Final = 1e-9
_MOST_POINTS: Final = 200


def quant_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [
        _quality(view),
        _distribution(view, run_dir),
        _text_scores(view),
        _speed(view),
        _memory(view),
        _tensor_types(view),
    ]
    return [chart for chart in charts if chart is not None]


def _quality(view: RunView) -> Chart | None:
    panels, heads, cells = [], ["model", "bits per weight"], {}
    for metric, log in _QUALITY:
        models = [model for model in view.models if model.facts and view.row(model.name, metric)]
        if models:
            panels.append(_quality_panel(view, models, metric, log=log))
            heads.append(metric_info(metric).title)
            for model in models:
                cells[model.name, metric] = _told(metric_info(metric), _row(view, model, metric))
    if not panels:
        return None
    rows = [
        [
            visible(model.name),
            f"{model.facts['bits_per_weight']:.2f}",
            *(cells.get((model.name, metric), "") for metric, _ in _QUALITY if _any_of(cells, metric)),
        ]
        for model in view.models
        if model.facts and any(key[0] == model.name for key in cells)
    ]
    return make_chart(
        "quality",
        _finding(view),
        "Quality against size: further left is smaller. The dotted line joins the files that no other beats in both;"
        " faint ones are beaten.",
        panels,
        "; ".join(f"{row[0]}: {row[1]} bits per weight" for row in rows),
        view="tradeoff",
        how="Each mark is a file. Its bar is the 95 % interval of the mean over all windows of the text, so that two"
        " files whose bars overlap may be equal. The dashed line is the limit that the gate checks, where it has one:"
        " a file passes if even the bad end of its interval is on the good side.",
        table=(heads, rows),
    )


def _finding(view: RunView) -> str:
    """Where the curve bends: the cheapest and the dearest step down."""
    points = {
        model.name: (float(model.facts["bytes"]), float(row["value"]))
        for model in view.models
        if model.facts and not saves_cache(model.facts) and (row := view.row(model.name, "kld_mean"))
    }
    beaten = [name for name in points if name not in pareto_frontier(points)]
    if len(points) > 1:
        worst = max(points, key=lambda name: points[name][1])
        best = min(points, key=lambda name: points[name][1])
        times = points[worst][1] / points[best][1] if points[best][1] > 0 else 0
        ends = f"{short_name(view, worst)} diverges {times:,.0f} times as much as {short_name(view, best)}"
        told = ends if times >= 2 else ""
        lost = f"{short_name(view, beaten[0])} is beaten by a file that is no bigger" if len(beaten) == 1 else ""
        lost = f"{len(beaten)} files are beaten by others that are no bigger" if len(beaten) > 1 else lost
        if told or lost:
            return "; ".join(filter(None, (told, lost)))
    return "Quality against size"


def _any_of(cells: Mapping[tuple[str, str], str], metric: str) -> bool:
    return any(key[1] == metric for key in cells)


def _quality_panel(view: RunView, models: list[Candidate], metric: str, *, log: bool) -> Figure:
    info = metric_info(metric)
    frontier = _frontier(view, models, metric)
    shown = Models(view, [model.name for model in models])
    points = []
    for model in models:
        row = _row(view, model, metric)
        low, high = _interval(row)
        points.append(
            shown.entries[shown[model.name]]
            | {
                "bits": model.facts["bits_per_weight"],
                "value": row["value"],
                "low": low,
                "high": high,
                "frontier": model.name in frontier,
                "lines": _lines(model, row, info),
            }
        )
    unit = "" if info.unit == "fraction" or not info.unit else f" ({info.unit})"
    data: dict[str, Any] = {
        "x": {"label": "bits per weight (effective)"},
        "y": {"label": f"{info.title}{unit}", "log": log, "percent": info.unit == "fraction", "better": info.better},
        "models": points,
    }
    limits = {
        gate["limit"] for gate in view.run.get("gates", []) if gate["metric"] == metric and gate.get("part") is None
    }
    if len(limits) == 1:
        limit = limits.pop()
        side = "at most" if info.better == "lower" else "at least"
        data["limit"] = {"value": limit, "text": f"limit: {side} {format_metric(info, limit, None)}"}
    return make_panel(info.title, info.meaning, data)


def _row(view: RunView, model: Candidate, metric: str) -> Mapping[str, Any]:
    row = view.row(model.name, metric)
    if row is None:
        raise KeyError(f"{model.name} has no {metric}")
    return row


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval as stored; one standard error to each side in runs that stored none."""
    if row.get("low") is not None and row.get("high") is not None:
        return row["low"], row["high"]
    return row["value"] - (row["se"] or 0), row["value"] + (row["se"] or 0)


def _frontier(view: RunView, models: list[Candidate], metric: str) -> set[str]:
    sign = -1 if metric_info(metric).better == "higher" else 1
    points = {
        model.name: (float(model.facts["bytes"]), sign * float(_row(view, model, metric)["value"])) for model in models
    }
    return set(pareto_frontier(points))


def _told(info: Metric, row: Mapping[str, Any]) -> str:
    return f"{format_metric(info, row['value'], row['se'])}{doubt_mark(row)}"


def _lines(model: Candidate, row: Mapping[str, Any], info: Metric) -> list[str]:
    lines = [f"{info.title}: {_told(info, row)}"]
    if row.get("low") is not None and row.get("high") is not None:
        low, high = (format_metric(info, row[end], None) for end in ("low", "high"))
        lines.append(f"95 % interval: {low} to {high}")
    if row["se_iid"] is not None and row["se_iid"] != row["se"]:
        lines.append(f"error if tokens were independent: {format_metric(info, row['se_iid'], None)}")
    lines.append(f"n = {row['n']}" + (f" in {row['clusters']} windows" if row.get("clusters") else ""))
    if model.facts:
        lines.append(f"{format_bytes(model.facts['bytes'])}, {model.facts['bits_per_weight']:.2f} bits per weight")
    return lines


def _distribution(view: RunView, run_dir: Path) -> Chart | None:
    shown = Models(view)
    lines, curves = [], {}
    for model, arrays in arrays_of(view, run_dir, "kld_quantiles").items():
        # The logarithm of a KL at or below the numerical noise is meaningless: draw it at the floor.
        curves[model] = list(zip(arrays["q"].tolist(), arrays["kld"].tolist(), strict=True))
        points = [[100 * float(share), max(float(value), _FLOOR), None, None] for share, value in curves[model]]
        place = shown[model]
        few = points[:: -(-len(points) // _MOST_POINTS)]
        lines.append({"model": place, "name": shown.entries[place]["name"], "points": few})
    if not lines:
        return None
    data = {
        "x": {"label": "share of tokens (%)"},
        "y": {"label": "KL (nats)", "log": True},
        "models": shown.entries,
        "lines": lines,
    }
    return make_chart(
        "distribution",
        tail_finding(view, curves),
        "KL divergence of single tokens, sorted. Two candidates with the same mean can differ in the tail, where text"
        " goes wrong.",
        [make_panel("KL", "Quantiles of each candidate's KL divergence over the tokens of the corpus.", data)],
        f"Quantile curves of {len(lines)} candidates.",
        view="lines",
        how="At 90 % is the value that nine of ten tokens are below. A curve that rises steeply at its right end has"
        " few tokens that diverge much.",
    )


def _text_scores(view: RunView) -> Chart | None:
    panels = _dots_of(view, _TEXTS)
    if not panels:
        return None
    return make_chart(
        "text-scores",
        texts_finding(view),
        "Greedy continuations of the prompts, compared with the reference's: mean over prompts with its 95 % interval"
        " or, without one, one standard error to each side.",
        panels,
        "A point for each candidate.",
        view="dots",
        how="Of a prompt's tokens one that differs can change all that follow: texts differ sooner than predictions do."
        " Intervals are over prompts. BLEU, chrF and ROUGE-L are near 100 for the same text; the loss of a text under"
        " the reference says whether what differs is also less likely.",
    )


def _speed(view: RunView) -> Chart | None:
    panels = _dots_of(view, _SPEED)
    if not panels:
        return None
    return make_chart(
        "speed",
        speed_finding(view),
        "In a process of its own, on the machine named at the end. Models were measured at different times: to compare"
        " them use the ratios, which were timed in turns with the reference. What is in doubt (?) is explained in the"
        " warnings.",
        panels,
        "Speeds by model, with their intervals.",
        view="dots",
        how="Ratios are to the reference, at the line of 1: further right is faster. Only they compare models; speeds"
        " in tokens per second also differ by what else the machine did. A ? marks what was disturbed and decides"
        " nothing.",
    )


def _memory(view: RunView) -> Chart | None:
    panels = _dots_of(view, _MEMORY)
    if not panels:
        return None
    detail = next((row["detail"] for row in view.run["estimates"] if row["metric"] == "peak_memory_bytes"), None)
    meaning = f"Peak: {visible(detail)}." if detail else "Bytes that llama.cpp allocated."
    return make_chart(
        "memory",
        memory_finding(view),
        meaning,
        panels,
        "Memory by model.",
        view="dots",
        how="The peak is what a machine needs to run the file. Weights shrink with the type; the KV cache grows with"
        " the context and not with the file; buffers for computing grow with the batch.",
    )


def _dots_of(view: RunView, metrics: tuple[str, ...]) -> list[Figure]:
    """A panel for each metric that was measured: a dot and its interval for each model."""
    panels = []
    for metric in metrics:
        models = [model for model in view.models if view.row(model.name, metric)]
        if models:
            panels.append(_dots(view, models, metric_info(metric)))
    return panels


def _dots(view: RunView, models: list[Candidate], info: Metric) -> Figure:
    shown = Models(view, [model.name for model in models])
    divisor, unit = (1e6, "MB") if info.unit == "bytes" else (1.0, info.unit)
    rows = []
    for model in models:
        row = _row(view, model, info.name)
        low, high = _interval(row)
        rows.append(
            {
                "model": shown[model.name],
                "name": f"{short_name(view, model.name)}{doubt_mark(row)}",
                "value": row["value"] / divisor,
                "low": low / divisor,
                "high": high / divisor,
                "text": _told(info, row),
                "detail": f"n = {row['n']}",
            }
        )
    x: dict[str, Any] = {"label": f"{info.title}{f' ({unit})' if unit not in {'', 'fraction'} else ''}"}
    x |= {"percent": True} if unit == "fraction" else {}
    x |= {"middle": 1} if info.name.endswith("_ratio") else {}
    return make_panel(info.title, info.meaning, {"x": x, "models": shown.entries, "rows": rows})


def _tensor_types(view: RunView) -> Chart | None:
    # One bar for each file, however many ways it was run.
    files: dict[str, Candidate] = {}
    for model in view.models:
        if model.facts:
            files.setdefault(model.facts.get("file", model.name), model)
    if not files:
        return None
    models = list(files.values())
    types = list(dict.fromkeys(kind for model in models for kind in model.facts["tensor_types"]))
    parts = []
    for kind in types:
        rows = [model.facts["tensor_types"].get(kind, {"bytes": 0, "tensors": 0}) for model in models]
        notes = [f"{format_bytes(row['bytes'])} in {row['tensors']} tensors" for row in rows]
        parts.append({"name": kind, "values": [row["bytes"] / 1e6 for row in rows], "notes": notes})
    data = {
        "x": {"label": "MB of tensors"},
        "names": [visible(file) for file in short_names(list(files))],
        "parts": parts,
    }
    return make_chart(
        "files",
        files_finding(view),
        "Bytes by tensor type. A name such as Q4_K_M is a recipe: tensors whose rows do not fit get other types.",
        [make_panel("tensor types", "", data)],
        "Stacked bars of tensor types by model.",
        view="bars",
        how="The length of a bar is the size of the file; its parts are types of tensors. What is in a type of more"
        " bits than the name of the file says is what the recipe protects, or what could not be stored in the type it"
        " asks for.",
    )
