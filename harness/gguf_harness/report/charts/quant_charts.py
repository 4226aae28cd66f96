"""Charts of the quant suite: quality against size, divergence, speed, memory, content of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, Figure, label, make_chart, short, style
from gguf_harness.report.data import Candidate, RunView, visible
from gguf_harness.report.numbers import doubt_mark, format_bytes, format_value

__all__ = ["quant_charts"]

_TYPE_COLORS: Final = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#F0E442", "#7F7F7F")
_QUALITY: Final = (
    ("kld_mean", "log"),
    ("ppl_ratio", "linear"),
    ("ppl", "linear"),
    ("same_top", "linear"),
    ("top5_agreement", "linear"),
)


def quant_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [_quality(view), _distribution(view, run_dir), _speed(view), _memory(view), _tensor_types(view)]
    return [chart for chart in charts if chart is not None]


def _quality(view: RunView) -> Chart | None:
    figures = []
    for metric, scale in _QUALITY:
        models = [model for model in view.models if model.facts and view.row(model.name, metric)]
        if models:
            figures.append(_quality_figure(view, models, metric, scale))
    if not figures:
        return None
    return make_chart(
        "quality",
        "Quality against size",
        "Further left is smaller. The line joins the candidates that no other beats in both size and quality; "
        "the faint ones are dominated by others. Bars are one standard error to each side, clustered by window.",
        figures,
        "; ".join(
            f"{visible(m.name)}: {m.facts['bits_per_weight']:.2f} bits per weight" for m in view.models if m.facts
        ),
    )


def _quality_figure(view: RunView, models: list[Candidate], metric: str, scale: str) -> Figure:
    info = METRICS[metric]
    traces: list[dict[str, Any]] = []
    factor = 100 if info.unit == "fraction" else 1
    frontier = _frontier(view, models, metric)
    if len(frontier) > 1:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [model.facts["bits_per_weight"] for model in frontier],
                "y": [factor * _row(view, model, metric)["value"] for model in frontier],
                "line": {"dash": "dot", "width": 1.5, "color": "#7F7F7F"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    for model in models:
        row, look = _row(view, model, metric), style(view, model.name)
        se = row["se"] or 0
        muted = model not in frontier and not model.is_reference
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": label(model.name),
                "x": [model.facts["bits_per_weight"]],
                "y": [factor * row["value"]],
                "error_y": {"type": "data", "array": [factor * se], "visible": se > 0, "thickness": 1.5},
                "text": [label(short(model.name, models))],
                "textposition": "top center",
                "cliponaxis": False,
                "opacity": 0.45 if muted else 1,
                "marker": {"size": 12, "color": look["color"], "symbol": look["symbol"]},
                "hovertemplate": _hover(model, row, factor) + "<extra></extra>",
            }
        )
    unit = "%" if info.unit == "fraction" else info.unit
    layout = {
        "xaxis": {
            "title": {"text": "bits per weight (effective)"},
            "rangemode": "tozero" if len(models) < 2 else "normal",
        },
        "yaxis": {
            "title": {"text": f"{info.title}{f' ({unit})' if unit else ''}"},
            "type": scale,
            **({"dtick": "D2"} if scale == "log" else {}),
        },
        "showlegend": False,
    }
    return {"name": info.title, "meaning": info.meaning, "traces": traces, "layout": layout}


def _row(view: RunView, model: Candidate, metric: str) -> dict[str, Any]:
    row = view.row(model.name, metric)
    if row is None:
        raise KeyError(f"{model.name} has no {metric}")
    return dict(row)


def _frontier(view: RunView, models: list[Candidate], metric: str) -> list[Candidate]:
    from gguf_harness.metrics.tradeoff import pareto_frontier

    sign = -1 if METRICS[metric].better == "higher" else 1
    points = {
        model.name: (float(model.facts["bytes"]), sign * float(_row(view, model, metric)["value"])) for model in models
    }
    names = pareto_frontier(points)
    return sorted((m for m in models if m.name in names), key=lambda model: float(model.facts["bits_per_weight"]))


def _hover(model: Candidate, row: dict[str, Any], factor: int) -> str:
    lines = [
        f"<b>{label(model.name)}</b>",
        f"{label(METRICS[row['metric']].title)}: {format_value(factor * row['value'])}",
    ]
    if row["se"] is not None:
        lines.append(f"standard error, by window: {format_value(factor * row['se'])}")
    if row.get("low") is not None and row.get("high") is not None:
        lines.append(f"95 % interval: {format_value(factor * row['low'])} to {format_value(factor * row['high'])}")
    if row["se_iid"] is not None and row["se_iid"] != row["se"]:
        lines.append(f"as if tokens were independent: {format_value(factor * row['se_iid'])}")
    lines.append(f"n = {row['n']}" + (f" in {row['clusters']} windows" if row.get("clusters") else ""))
    lines.append(f"{format_bytes(model.facts['bytes'])}, {model.facts['bits_per_weight']:.2f} bits per weight")
    return "<br>".join(lines).replace("{", "(").replace("}", ")")


def _distribution(view: RunView, run_dir: Path) -> Chart | None:
    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    traces = []
    for entry in view.run.get("arrays", []):
        if entry["name"] != "kld_quantiles" or not run_file(run_dir, entry["file"]).is_file():
            continue
        arrays = load_arrays(run_file(run_dir, entry["file"]))
        # The logarithm of a KL at or below the numerical noise is meaningless: draw it at the floor.
        values = [max(float(value), 1e-9) for value in arrays["kld"].tolist()]
        look, name = style(view, entry["model"]), label(entry["model"])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": [100 * float(share) for share in arrays["q"].tolist()],
                "y": values,
                "line": {"color": look["color"], "width": 2},
                "hovertemplate": f"{name}<br>%{{x:.1f}} % of tokens below %{{y:.3g}} nats<extra></extra>",
            }
        )
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": "share of tokens (%)"}, "range": [0, 100]},
        "yaxis": {"title": {"text": "KL (nats)"}, "type": "log", "exponentformat": "power"},
        "legend": {"orientation": "h", "y": -0.25},
    }
    return make_chart(
        "distribution",
        "Distribution of the divergence",
        "KL divergence of single tokens, sorted: at 90 % is the value that nine of ten tokens are below. Two "
        "candidates with the same mean can differ in the tail, where text goes wrong.",
        [
            {
                "name": "KL",
                "meaning": "Quantiles of the candidate's KL divergence over the tokens of the corpus.",
                "traces": traces,
                "layout": layout,
            }
        ],
        f"Quantile curves of {len(traces)} candidates.",
    )


def _speed(view: RunView) -> Chart | None:
    figures = []
    for metric in ("tg_tokens_per_s", "tg_speed_ratio", "pp_tokens_per_s", "pp_speed_ratio", "load_s"):
        rows = [(model, row) for model in view.models if (row := view.row(model.name, metric))]
        if rows:
            figures.append(_bars(view, metric, [(model, dict(row)) for model, row in rows]))
    if not figures:
        return None
    return make_chart(
        "speed",
        "Speed",
        "Mean over repetitions, with one standard error to each side. Measured on the machine named at the end, "
        "in a separate process. Different models were measured at different times: use the ratios, timed in "
        "turns with the reference, to compare them. Faint bars (?) are in doubt; see the warnings.",
        figures,
        "Bars of tokens per second by model.",
    )


def _memory(view: RunView) -> Chart | None:
    metrics = [
        name
        for name in ("peak_memory_bytes", "weights_bytes", "kv_cache_bytes", "compute_bytes")
        if view.measured(name)
    ]
    if not metrics:
        return None
    figures = [
        _bars(view, metric, [(m, dict(row)) for m in view.models if (row := view.row(m.name, metric))])
        for metric in metrics
    ]
    detail = next((row["detail"] for row in view.run["estimates"] if row["metric"] == "peak_memory_bytes"), None)
    return make_chart("memory", "Memory", f"Peak: {detail}." if detail else "", figures, "Bars of memory by model.")


def _bars(view: RunView, metric: str, rows: list[tuple[Candidate, dict[str, Any]]]) -> Figure:
    info = METRICS[metric]
    divisor, unit = (1e6, "MB") if info.unit == "bytes" else (1, info.unit)
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [f"{label(model.name)}{doubt_mark(row)}" for model, row in rows],
        "x": [row["value"] / divisor for _, row in rows],
        "error_x": {"type": "data", "array": [(row["se"] or 0) / divisor for _, row in rows], "thickness": 1.5},
        "marker": {
            "color": [style(view, model.name)["color"] for model, _ in rows],
            "opacity": [0.35 if row.get("doubt") else 1 for _, row in rows],
        },
        "hovertemplate": [f"%{{y}}: %{{x:.4g}} {unit}<br>n = {row['n']}<extra></extra>" for _, row in rows],
    }
    layout = {
        "xaxis": {"title": {"text": f"{info.title}{f' ({unit})' if unit else ''}"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "showlegend": False,
    }
    return {"name": info.title, "meaning": info.meaning, "traces": [trace], "layout": layout}


def _tensor_types(view: RunView) -> Chart | None:
    models = [model for model in view.models if model.facts]
    if not models:
        return None
    types = list(dict.fromkeys(kind for model in models for kind in model.facts["tensor_types"]))
    traces = []
    for index, kind in enumerate(types):
        rows = [model.facts["tensor_types"].get(kind, {"bytes": 0, "tensors": 0}) for model in models]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "y": [label(model.name) for model in models],
                "x": [row["bytes"] / 1e6 for row in rows],
                "marker": {"color": _TYPE_COLORS[index % len(_TYPE_COLORS)]},
                "hovertemplate": [
                    f"{kind}: %{{x:.4g}} MB in {row['tensors']} tensors<extra>%{{y}}</extra>" for row in rows
                ],
            }
        )
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "MB of tensors"}},
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "legend": {"orientation": "h", "y": -0.25},
    }
    return make_chart(
        "files",
        "Content of the files",
        "Bytes by tensor type. A name such as Q4_K_M is a recipe: tensors whose rows do not fit get other types.",
        [{"name": "tensor types", "meaning": "", "traces": traces, "layout": layout}],
        "Stacked bars of tensor types by model.",
    )
