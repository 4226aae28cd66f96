"""Charts of suites/kv: what types of the KV cache cost, by K and V, against their size, and on top of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.metrics.tradeoff import pareto_frontier
from gguf_harness.report.caches import CacheOfRun, cache_share, caches_of, smallest_cache
from gguf_harness.report.charts.base import Chart, Figure, Models, make_chart, make_panel, short_name
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_metric

__all__ = ["kv_charts"]

_FULL: Final = "f16"
_SIZE: Final = "kv_bytes_per_token"
_PRECISION: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Types from the most precise on, as the grid shows them."""
_COSTS: Final = (("kv_weights_kld", "weights"), ("kv_kld", "cache"), ("kv_total_kld", "both"))


def kv_charts(view: RunView, _run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    caches = caches_of(view)
    if not caches:
        return []
    charts = [_grid(view, caches), _frontier(view, caches), _costs(view, caches)]
    return [chart for chart in charts if chart is not None]


def _by_file(caches: list[CacheOfRun]) -> dict[str, list[CacheOfRun]]:
    files: dict[str, list[CacheOfRun]] = {}
    for cache in caches:
        files.setdefault(cache.file, []).append(cache)
    return files


def _row(view: RunView, subject: str, metric: str = "kv_kld") -> Mapping[str, Any]:
    row = view.row(subject, metric)
    if row is None:
        raise KeyError(f"{subject} has no {metric}")
    return row


# -- K by V -----------------------------------------------------------------------------------------------------------


def _grid(view: RunView, caches: list[CacheOfRun]) -> Chart | None:
    """A tile for each pair of types, a panel for each file that was run with a grid of them, rotated or not."""
    info = metric_info("kv_kld")
    groups: dict[tuple[str, bool], list[CacheOfRun]] = {}
    for cache in caches:
        groups.setdefault((cache.file, cache.rotated), []).append(cache)
    grids = {key: some for key, some in groups.items() if len({c.k for c in some}) > 1 and len({c.v for c in some}) > 1}
    if not grids:
        return None
    values = [float(_row(view, cache.subject)["value"]) for some in grids.values() for cache in some]
    above = [value for value in values if value > 0]
    if not above:
        return None
    scale = {"kind": "share", "title": f"{info.title} (nats)", "log": True, "domain": [min(above), max(above)]}
    panels = [
        _grid_panel(view, file + ("" if rotated else ", not rotated"), some, scale)
        for (file, rotated), some in grids.items()
    ]
    rows = [
        [visible(c.file), c.types, format_metric(info, (row := _row(view, c.subject))["value"], row["se"]), c.verdict]
        for some in grids.values()
        for c in some
    ]
    return make_chart(
        "kv-grid",
        _grid_finding(view, next(iter(grids.values()))),
        "Mean KL of next-token distributions, from the file with a full KV cache to the same file with this one, by the"
        " types of K (rows) and V (columns).",
        panels,
        "; ".join(f"{row[0]} {row[1]}: {row[2]} nats" for row in rows),
        view="matrix",
        how="The stronger the colour, the further from what the file predicts with a full cache. An outline marks what"
        " fails its gate."
        " Compare a row with a column: where rows differ more than columns, keys bear less than values.",
        table=(["file", "K/V", "KL (nats)", "gate"], rows),
    )


def _grid_panel(view: RunView, name: str, caches: list[CacheOfRun], scale: Mapping[str, Any]) -> Figure:
    info = metric_info("kv_kld")
    ks, vs = ([t for t in _PRECISION if t in {getattr(c, side) for c in caches} | {_FULL}] for side in ("k", "v"))
    found = {(cache.k, cache.v): cache for cache in caches}
    cells: list[list[CacheOfRun | None]] = [[found.get((k, v)) for v in vs] for k in ks]

    def each(tell: Any, otherwise: Any) -> list[list[Any]]:
        return [[otherwise if cache is None else tell(cache) for cache in row] for row in cells]

    def note(cache: CacheOfRun) -> str:
        row, share = _row(view, cache.subject), cache_share(cache.k, cache.v)
        size = "" if share is None else f"{100 * share:.0f} % of f16/f16\n"
        verdict = cache.verdict or "not gated"
        return f"{size}± {format_metric(info, row['se'], None) if row['se'] is not None else '?'}, gate: {verdict}"

    data = {
        "x": {"label": "type of V", "names": vs},
        "y": {"label": "type of K", "names": ks},
        "values": each(lambda c: _row(view, c.subject)["value"], None),
        "cells": each(lambda c: format_metric(info, _row(view, c.subject)["value"], None), ""),
        "notes": each(note, ""),
        "marked": each(lambda c: c.verdict == "fail", otherwise=False),
        "marked_means": "fails its gate",
        "least": 64,
        "scale": dict(scale),
    }
    return make_panel(visible(name), info.meaning, data)


def _grid_finding(view: RunView, caches: list[CacheOfRun]) -> str:
    """Whether keys or values bear less, of the pair of types that tells most."""
    value = {(c.k, c.v): float(_row(view, c.subject)["value"]) for c in caches}
    told = smallest_cache(view)
    for low in reversed(_PRECISION):
        keys, values = value.get((low, _FULL)), value.get((_FULL, low))
        if keys and values:
            worse, better = ("K", "V") if keys > values else ("V", "K")
            times = max(keys, values) / min(keys, values)
            if times >= 1.2:
                return f"{worse} in {low} costs {times:.1f} times as much as {better} in {low}" + _then(told)
            return f"K and V in {low} cost about the same" + _then(told)
    return told or "What types of K and V cost"


def _then(sentence: str | None) -> str:
    return "" if sentence is None else f"; {sentence[0].lower()}{sentence[1:].replace(' kV ', ' KV ')}"


# -- against size -----------------------------------------------------------------------------------------------------


def _frontier(view: RunView, caches: list[CacheOfRun]) -> Chart | None:
    """KL against bytes per token of context, a panel for each file."""
    info = metric_info("kv_kld")
    panels, rows = [], []
    for file, alike in _by_file(caches).items():
        sizes = {c.subject: row["value"] for c in alike if (row := view.row(c.subject, _SIZE)) is not None}
        sized = [cache for cache in alike if cache.subject in sizes]
        points = {c.subject: (float(sizes[c.subject]), float(_row(view, c.subject)["value"])) for c in sized}
        if len(points) < 2:
            continue
        panels.append(_frontier_panel(view, file, sized, set(pareto_frontier(points))))
        told = ((c, _row(view, c.subject)) for c in sized)
        rows += [
            [visible(file), c.types, f"{sizes[c.subject]:,.0f}", format_metric(info, row["value"], row["se"])]
            for c, row in told
        ]
    if not panels:
        return None
    return make_chart(
        "kv-frontier",
        smallest_cache(view) or "KL against the size of the cache",
        "KL of the cache against its size: further left is smaller. The dotted line joins the caches that no other"
        " beats in both; faint ones are beaten.",
        panels,
        "; ".join(f"{row[0]} {row[1]}: {row[2]} bytes, {row[3]} nats" for row in rows),
        view="tradeoff",
        how="Each mark is a pair of types for K and V. Its bar is the 95 % interval over windows of the text. Below the"
        " dashed line, a cache passes if even the bad end of its interval is there.",
        table=(["file", "K/V", "bytes per token", "KL (nats)"], rows),
    )


def _frontier_panel(view: RunView, file: str, caches: list[CacheOfRun], best: set[str]) -> Figure:
    info = metric_info("kv_kld")
    shown = Models(view, [cache.subject for cache in caches])
    points = []
    for cache in caches:
        row, size = _row(view, cache.subject), _row(view, cache.subject, _SIZE)["value"]
        said = f"{info.title}: {format_metric(info, row['value'], row['se'])} nats"
        points.append(
            shown.entries[shown[cache.subject]]
            | {"short": cache.types, "bits": size, "value": row["value"], "frontier": cache.subject in best}
            | {"low": row.get("low"), "high": row.get("high"), "lines": [said, f"{size:,.0f} bytes per token"]}
        )
    data: dict[str, Any] = {
        "x": {"label": "bytes of the cache for a token of context"},
        "y": {"label": "KL of the cache (nats)", "log": True, "better": "lower"},
        "models": points,
    }
    limits = {gate["limit"] for gate in view.run.get("gates", []) if gate["metric"] == "kv_kld"}
    if len(limits) == 1:
        limit = limits.pop()
        data["limit"] = {"value": limit, "text": f"limit: at most {format_metric(info, limit, None)}"}
    return make_panel(visible(file), info.meaning, data)


# -- on top of the weights --------------------------------------------------------------------------------------------


def _costs(view: RunView, caches: list[CacheOfRun]) -> Chart | None:
    """Weights, cache, and both together, side by side, for each file and pair of types."""
    both = [cache for cache in caches if view.row(cache.subject, "kv_interaction_loss") is not None]
    if not both:
        return None
    rows, table = [], []
    for cache in both:
        told = []
        for place, (metric, name) in enumerate(_COSTS):
            row, info = _row(view, cache.subject, metric), metric_info(metric)
            text = format_metric(info, row["value"], row["se"])
            told.append(text)
            rows.append(
                {
                    "model": place,
                    "name": short_name(view, cache.subject),
                    "value": row["value"],
                    "text": f"{name}: {text} nats",
                }
                | {"low": row.get("low"), "high": row.get("high"), "detail": info.meaning}
            )
        loss = _row(view, cache.subject, "kv_interaction_loss")
        told.append(format_metric(metric_info("kv_interaction_loss"), loss["value"], loss["se"]))
        table.append([visible(cache.subject), *told])
    parts = [
        {"name": name, "short": name, "role": "candidate", "series": place} for place, (_, name) in enumerate(_COSTS)
    ]
    panel = make_panel(
        "all files",
        "KL from the reference with a full cache; the cache alone: from the same file with a full one.",
        {"x": {"label": "KL (nats)", "log": True}, "legend": True, "models": parts, "rows": rows},
    )
    return make_chart(
        "kv-costs",
        _costs_finding(view, both),
        "What quantized weights cost, what the quantized cache costs, and what both cost together.",
        [panel],
        "; ".join(f"{row[0]}: weights {row[1]}, cache {row[2]}, both {row[3]} nats" for row in table),
        view="dots",
        how="Where both together are as far right as the larger of the two, the other does not matter. The interaction"
        " in the table is in nats of loss: above 0, weights and cache make each other worse.",
        table=(["file and cache", "weights", "cache", "both", "interaction in loss"], table),
    )


def _costs_finding(view: RunView, caches: list[CacheOfRun]) -> str:
    """How many files lose more by the cache than by their weights, and where the two interact."""
    worse = [
        cache
        for cache in caches
        if _row(view, cache.subject)["value"] > _row(view, cache.subject, "kv_weights_kld")["value"]
    ]
    interact = [
        cache
        for cache in caches
        if (row := _row(view, cache.subject, "kv_interaction_loss")).get("low") is not None
        and (row["low"] > 0 or row["high"] < 0)
    ]
    told = f"The cache costs more than the weights in {len(worse)} of {len(caches)} combinations"
    return f"{told}; the two interact in {len(interact) or 'none'}"
