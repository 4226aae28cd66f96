"""Charts of suites/kv by depth: what a KV cache costs by position, for facts of long ago, and as texts grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.report.charts.base import Chart, Figure, make_chart, short_name
from gguf_harness.report.charts.layer_lines import Series, line_panel, metric_label, percent, show
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import doubt_mark, format_metric

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["kv_depth_charts"]

_BY_POSITION: Final = ("kld_by_position", "same_top_by_position", "ppl_ratio_by_position", "delta_p_rms_by_position")
_NEEDLES: Final = ("needle_lift", "needle_change", "needle_logprob", "needle_rank")
_SPEED: Final = ("tg_at_depth_ratio", "pp_at_depth_ratio", "tg_at_depth", "pp_at_depth")
_SURVIVAL: Final = "text_survival"
_SLOPES: Final = ("kld_relative_slope", "nll_slope")

Row = Mapping[str, Any]


def kv_depth_charts(view: RunView, _: Path) -> list[Chart]:
    """The charts that the run has numbers for."""
    return [chart for chart in (_by_position(view), _needles(view), _survival(view), _speed(view)) if chart is not None]


def _by_position(view: RunView) -> Chart | None:
    panels = [panel for metric in _BY_POSITION if (panel := _panel(view, metric)) is not None]
    names = [model.name for model in view.models if view.parts_of(model.name, "kld_by_position")]
    if not panels:
        return None
    return make_chart(
        "kv-depth",
        _finding(view, names),
        "Every token of the windows, against the same file with its full cache, by how many tokens it has before it.",
        panels,
        "; ".join(_told(view, name) for name in names),
        view="lines",
        how="To the right the cache holds more: each step is twice as much. A level line costs the same at any depth."
        " A line that rises to the right gets worse with depth, as where positions are turned wrongly. The first steps"
        " are a few tokens that have hardly a cache to read. Bars are one standard error, clustered by window.",
        table=_table(view, names),
    )


def _panel(view: RunView, metric: str) -> Figure | None:
    """A line for each subject over the octaves, which are numbered from 0."""
    info, octaves = metric_info(metric), dict[int, int]()
    series = []
    for model in view.models:
        points = []
        for row in view.parts_of(model.name, metric):
            start = int(str(row["part"]).partition("-")[0])
            octave = start.bit_length() - 1
            octaves[octave] = start
            points.append((octave, row["value"], row["se"], f"positions {row['part']}; n = {row['n']}"))
        if points:
            series.append(Series(model.name, None, sorted(points)))
    y: dict[str, Any] = {"label": metric_label(metric)}
    y |= {"percent": True} if info.unit == "fraction" else {"log": True} if info.unit == "nats" else {"middle": 1}
    x = {"label": "from position", "ticks": [[octave, str(start)] for octave, start in sorted(octaves.items())]}
    return line_panel(view, info.title, info.meaning, y, series, x)


def _finding(view: RunView, names: Sequence[str]) -> str:
    """The subject whose loss or KL surely rises most, or that none was found to."""
    loss = [name for name in names if _surely_rises(view.row(name, "nll_slope"))]
    growth = {name: row for name in names if (row := view.row(name, "kld_relative_slope")) is not None}
    if loss:
        worst = max(loss, key=lambda name: _value(view, name, "nll_slope"))
        cost = _value(view, worst, "nll_slope")
        more = f" (and {len(loss) - 1} more)" if len(loss) > 1 else ""
        return f"{short_name(view, worst)} gets worse with depth: {cost:.2g} nats a doubling of the context{more}"
    rising = [name for name in growth if _surely_rises(growth[name])]
    if rising:
        worst = max(rising, key=lambda name: float(growth[name]["value"]))
        rise = percent(float(growth[worst]["value"]))
        return f"No loss grows with depth; KL of {short_name(view, worst)} grows by {rise} a doubling of the context"
    return "No KV cache was found to cost more with depth" if growth else "KL by depth"


def _surely_rises(row: Row | None) -> bool:
    """Whether zero is below the interval of a slope."""
    return row is not None and row.get("low") is not None and row["low"] > 0


def _value(view: RunView, name: str, metric: str) -> float:
    row = view.row(name, metric)
    return float("nan") if row is None else float(row["value"])


def _told(view: RunView, name: str) -> str:
    rows = _by_start(view.parts_of(name, "kld_by_position"))
    first, last = (format_metric(metric_info("kld_by_position"), row["value"], None) for row in (rows[0], rows[-1]))
    return f"{short_name(view, name)}: KL {first} nats at positions {rows[0]['part']}, {last} at {rows[-1]['part']}"


def _by_start(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: int(str(row["part"]).partition("-")[0]))


def _table(view: RunView, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    starts = {row["part"]: row for name in names for row in view.parts_of(name, "kld_by_position")}
    parts = [str(row["part"]) for row in _by_start(list(starts.values()))]
    rows = []
    for name in names:
        values = {row["part"]: row for row in view.parts_of(name, "kld_by_position")}
        cells = [_cell("kld_by_position", values.get(part)) for part in parts]
        rows.append([short_name(view, name), *cells, *(_cell(metric, view.row(name, metric)) for metric in _SLOPES)])
    heads = ["subject", *(f"KL at {part}" for part in parts), *(metric_info(metric).title for metric in _SLOPES)]
    return heads, rows


def _cell(metric: str, row: Row | None) -> str:
    return "" if row is None else format_metric(metric_info(metric), row["value"], row["se"])


# -- needles ----------------------------------------------------------------------------------------------------------


def _needles(view: RunView) -> Chart | None:
    panels = [panel for metric in _NEEDLES if (panel := _needle_panel(view, metric)) is not None]
    names = [model.name for model in view.models if view.row(model.name, "needle_lift") is not None]
    if not panels or not names:
        return None
    detail = next((row["detail"] for name in names if (row := view.row(name, "needle_lift"))), None)
    return make_chart(
        "kv-needles",
        _found(view, names),
        "A fact that nobody can guess stands somewhere in a text, and is asked for at its end"
        + (f": {visible(str(detail))}." if detail else "."),
        panels,
        "; ".join(
            f"{short_name(view, name)}: {_cell('needle_lift', view.row(name, 'needle_lift'))} nats" for name in names
        ),
        view="lines",
        how="To the left the fact stands at the beginning of the text, to the right shortly before the question."
        " Evidence is how much more probable the answer is than after the same text without the fact: at 0 the model"
        " has not found it, at 2.3 it is ten times as probable. Bars are one standard error over facts.",
        table=_needle_table(view, names),
    )


def _needle_panel(view: RunView, metric: str) -> Figure | None:
    info, shares = metric_info(metric), set[int]()
    series = []
    for model in view.models:
        points = []
        for row in view.parts_of(model.name, metric):
            share = int(str(row["part"]).removesuffix(" %"))
            shares.add(share)
            points.append((share, row["value"], row["se"], f"n = {row['n']}"))
        if points:
            series.append(Series(model.name, None, sorted(points)))
    y: dict[str, Any] = {"label": metric_label(metric)}
    y |= (
        {"log": True}
        if metric == "needle_rank"
        else {"middle": 0}
        if metric in {"needle_lift", "needle_change"}
        else {}
    )
    x = {"label": "text before the fact", "ticks": [[share, f"{share} %"] for share in sorted(shares)]}
    return line_panel(view, info.title, info.meaning, y, series, x)


def _found(view: RunView, names: Sequence[str]) -> str:
    """Whether facts are found at all, and which cache surely loses most of them."""
    lifts = {name: row for name in names if (row := view.row(name, "needle_lift")) is not None}
    finding = [name for name in names if _surely_rises(lifts[name])]
    if not finding:
        return "No model was found to remember facts from so far back"
    best = max(finding, key=lambda name: float(lifts[name]["value"]))
    told = (
        f"{short_name(view, best)} finds facts: reading one adds {show(float(lifts[best]['value']))} nats to its answer"
    )
    changes = {name: row for name in names if (row := view.row(name, "needle_change")) is not None}
    losing = [name for name, row in changes.items() if row.get("high") is not None and row["high"] < 0]
    if losing:
        worst = min(losing, key=lambda name: float(changes[name]["value"]))
        return f"{told}; {short_name(view, worst)} loses {show(-float(changes[worst]['value']))} of log p"
    return f"{told}; no cache was found to lose any" if changes else told


def _needle_table(view: RunView, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    heads = ["subject", *(metric_info(metric).title for metric in _NEEDLES)]
    return heads, [
        [short_name(view, name), *(_cell(metric, view.row(name, metric)) for metric in _NEEDLES)] for name in names
    ]


# -- texts ------------------------------------------------------------------------------------------------------------


def _survival(view: RunView) -> Chart | None:
    """The share of texts that are still the same, over tokens in doublings."""
    info, counts = metric_info(_SURVIVAL), set[int]()
    last: dict[str, tuple[int, Row]] = {}
    series = []
    for model in view.models:
        points = []
        for row in view.parts_of(model.name, _SURVIVAL):
            tokens = int(str(row["part"]).removesuffix(" tokens"))
            counts.add(tokens)
            points.append((tokens, row["value"], row["se"], f"n = {row['n']}"))
            last[model.name] = max(last.get(model.name, (0, row)), (tokens, row), key=lambda found: found[0])
        if points:
            series.append(Series(model.name, None, sorted(points)))
    y = {"label": info.title, "percent": True, "zero": True}
    x = {"label": "tokens", "ticks": [[tokens, str(tokens)] for tokens in sorted(counts) if tokens not in {1, 2}]}
    panel = line_panel(view, info.title, info.meaning, y, series, x)
    if panel is None:
        return None
    metrics = ("tokens_until_different", _SURVIVAL)
    rows = [
        [
            short_name(view, name),
            _cell(metrics[0], view.row(name, metrics[0])),
            f"{_cell(_SURVIVAL, row)} after {tokens}",
        ]
        for name, (tokens, row) in last.items()
    ]
    return make_chart(
        "kv-texts",
        _kept(view, last),
        "Greedy continuations of the prompts with each cache, against those of the same file with a full one.",
        [panel],
        "; ".join(f"{name}: {kept}" for name, _, kept in rows),
        view="lines",
        how="A line begins with all texts the same and falls where texts take another word for the first time. A text"
        " that has parted is not worse for it: it is another one. Bars are one standard error (Greenwood's).",
        table=(["subject", *(metric_info(metric).title for metric in metrics)], rows),
    )


def _kept(view: RunView, last: Mapping[str, tuple[int, Row]]) -> str:
    """Of the caches that keep most and fewest texts."""
    best, worst = (pick(last, key=lambda name: float(last[name][1]["value"])) for pick in (max, min))

    def share(name: str) -> str:
        return f"{percent(float(last[name][1]['value']))} with {short_name(view, name)}"

    told = share(best) if best == worst else f"{share(best)}, {share(worst)}"
    return f"After {last[best][0]} tokens the same texts: {told}"


# -- speed ------------------------------------------------------------------------------------------------------------


def _speed(view: RunView) -> Chart | None:
    panels = [panel for metric in _SPEED if (panel := _speed_panel(view, metric)) is not None]
    if not panels:
        return None
    names = [model.name for model in view.models if view.parts_of(model.name, "tg_at_depth")]
    rows = [
        [short_name(view, name), str(row["part"])[1:], _cell(metric, row), metric_info(metric).title]
        for metric in _SPEED
        for name in names
        for row in view.parts_of(name, metric)
    ]
    return make_chart(
        "kv-speed",
        _faster(view, names),
        "Prompt and generation speed with so many tokens in the cache (llama-bench's -d), and each cache's over that of"
        " a full one, timed in turns. What is in doubt (?) is explained in the warnings.",
        panels,
        f"Speeds of {len(names)} subjects with a filled cache.",
        view="lines",
        how="The more tokens the cache holds, the more of it each new token reads. A ratio above 1 is faster than with"
        " a full cache. Bars are one standard error over repetitions.",
        table=(["subject", "tokens in the cache", "value", "what"], rows),
    )


def _speed_panel(view: RunView, metric: str) -> Figure | None:
    info, depths = metric_info(metric), set[int]()
    series = []
    for model in view.models:
        points = []
        for row in view.parts_of(model.name, metric):
            depth = int(str(row["part"])[1:])
            depths.add(depth)
            points.append((depth, row["value"], row["se"], f"n = {row['n']}{doubt_mark(row)}"))
        if points:
            series.append(Series(model.name, None, sorted(points)))
    y: dict[str, Any] = {"label": metric_label(metric)} | ({"middle": 1} if metric.endswith("_ratio") else {})
    x = {"label": "tokens in the cache", "ticks": [[depth, str(depth)] for depth in sorted(depths)]}
    return line_panel(view, info.title, info.meaning, y, series, x)


def _faster(view: RunView, names: Sequence[str]) -> str:
    """The cache whose generation differs most from a full one's at the greatest depth, if any ratio was measured."""
    rows = {name: found for name in names if (found := view.parts_of(name, "tg_at_depth_ratio"))}
    if not rows:
        return "Speed with a filled cache"
    deepest = {name: max(found, key=lambda row: int(str(row["part"])[1:])) for name, found in rows.items()}
    sure = [name for name, row in deepest.items() if abs(row["value"] - 1) > 2 * (row["se"] or 0)]
    if not sure:
        return "No KV cache was found to change the speed of generation"
    most = max(sure, key=lambda name: abs(float(deepest[name]["value"]) - 1))
    depth, ratio = str(deepest[most]["part"])[1:], float(deepest[most]["value"])
    return f"After {depth} tokens {short_name(view, most)} generates {show(ratio)} times as fast as with a full cache"
