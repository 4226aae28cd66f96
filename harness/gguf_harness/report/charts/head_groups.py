"""Groups of heads: kinds with their reasons, clusters by behaviour, and heads that attend alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.metrics.taxonomy import KINDS
from gguf_harness.report.charts.base import Chart, Figure, Models, make_chart, make_panel, short_name
from gguf_harness.report.charts.head_maps import Place, Row, frame_of, head_map, head_rows, told
from gguf_harness.report.charts.head_profiles import PROFILE
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_percent, format_value

__all__ = ["alike_map", "clusters", "kinds", "redundancy", "separation"]

_WELL_APART: Final = 0.5
"""Silhouette from which Kaufman and Rousseeuw (1990) call a structure reasonable."""

_TOLD_GROUPS, _TOLD_HEADS, _COLORED = 3, 4, 6
_TOLD_CHANGES: Final = 12
_HEAD: Final = re.compile(r"(\d+)\.(\d+)")
_GROUPS: Final = re.compile(r"\d+\.\d+([,;] \d+\.\d+)*")


def kinds(view: RunView) -> Chart | None:
    """Which kind each head is of, and why."""
    known: dict[str, dict[Place, Row]] = {}
    for row in view.run.get("heads", []):
        known.setdefault(row["model"], {})[row["layer"], row["head"]] = row
    models = [model.name for model in view.models if model.name in known]
    if not models:
        return None
    used = {row["kind"] for rows in known.values() for row in rows.values()}
    names = [kind for kind in KINDS if kind in used] + sorted(used - set(KINDS))
    frame = frame_of(place for name in models for place in known[name])
    rest = names[-1] == KINDS[-1]
    scale = {"kind": "names", "names": [visible(name) for name in names], "title": "kind", "rest": rest}
    base = known.get(view.reference or "")
    worst = _most_changed(view, models, known)
    panels = []
    for name in models:
        values = {place: names.index(row["kind"]) for place, row in known[name].items()}
        notes = {place: visible(row["reason"]) for place, row in known[name].items()}
        meaning = _kinds_meaning(name, known[name], None if name == view.reference else base)
        data = head_map(frame, values, notes, scale)
        panels.append(make_panel(short_name(view, name), meaning, data, opens=name == worst))
    counts = {name: Counter(row["kind"] for row in known[name].values()) for name in models}
    return make_chart(
        "head-kinds",
        _kinds_finding(view, worst, known),
        "Each head is of the first kind whose rule holds, from the most to the least specific; the tile tells the rule"
        " and its number.",
        panels,
        "; ".join(f"{visible(n)}: {', '.join(f'{c} {visible(k)}' for k, c in counts[n].items())}" for n in models),
        view="matrix",
        how="Kinds are named after the target of the attention. A head near a threshold can change its kind without"
        " having changed much: read its reason, and how far its pattern moved above.",
        table=(["model", *map(visible, names)], [[visible(n), *(str(counts[n][k]) for k in names)] for n in models]),
    )  # fmt: skip


def _changed(rows: Mapping[Place, Row], base: Mapping[Place, Row]) -> list[tuple[Place, str, str]]:
    return [
        (place, base[place]["kind"], rows[place]["kind"])
        for place in sorted(rows)
        if place in base and rows[place]["kind"] != base[place]["kind"]
    ]


def _kinds_meaning(name: str, rows: Mapping[Place, Row], base: Mapping[Place, Row] | None) -> str:
    if base is None:
        return f"The {len(rows)} heads of {visible(name)}."
    changed = _changed(rows, base)
    if not changed:
        return f"{visible(name)}: every head is of the same kind as in the reference."
    listed = ", ".join(f"{told(p)} {visible(old)} → {visible(new)}" for p, old, new in changed[:_TOLD_CHANGES])
    more = f" and {len(changed) - _TOLD_CHANGES} more" if len(changed) > _TOLD_CHANGES else ""
    return f"{visible(name)}: {len(changed)} of {len(rows)} heads changed their kind: {listed}{more}."


def _most_changed(view: RunView, models: list[str], known: Mapping[str, Mapping[Place, Row]]) -> str | None:
    """The candidate in which most heads changed their kind; the smallest of equals."""
    base = known.get(view.reference or "")
    others = [name for name in reversed(models) if name != view.reference]
    return None if base is None or not others else max(others, key=lambda name: len(_changed(known[name], base)))


def _kinds_finding(view: RunView, worst: str | None, known: Mapping[str, Mapping[Place, Row]]) -> str:
    if worst is None:
        return "Kinds of heads"
    changed = len(_changed(known[worst], known[view.reference or ""]))
    if not changed:
        return "Every head keeps its kind in all candidates"
    return f"{changed} of {len(known[worst])} heads are of another kind in {short_name(view, worst)}"


def redundancy(view: RunView) -> Chart | None:
    """Heads that attend like another one."""
    measured = {model.name: row for model in view.models if (row := view.row(model.name, "heads_redundant"))}
    if not measured:
        return None
    shown, info = Models(view, list(measured)), METRICS["heads_redundant"]
    rows = [
        {
            "model": shown[name],
            "name": short_name(view, name),
            "value": row["value"],
            "text": format_percent(row["value"], row["se"]),
            "detail": f"of {row['n']} heads: {_alike(row)}",
        }
        for name, row in measured.items()
    ]
    data = {
        "x": {"label": info.title, "percent": True, "domain": [0, max(0.1, *(row["value"] for row in rows))]},
        "models": shown.entries,
        "rows": rows,
    }
    table = [[row["name"], row["text"], _alike(measured[name])] for name, row in zip(measured, rows, strict=True)]
    first = view.reference if view.reference in measured else next(iter(measured))
    groups = _groups(measured[first])
    if groups:
        count = sum(map(len, groups))
        told_groups = f"in {len(groups)} groups" if len(groups) > _TOLD_GROUPS else _alike(measured[first])
        finding = f"{count} of {measured[first]['n']} heads attend like another one: {told_groups}"
    else:
        finding = "No head attends like another one"
    return make_chart(
        "head-redundancy",
        finding,
        info.meaning,
        [make_panel(info.title, "Share of the heads that are in a group with another one.", data)],
        "; ".join(f"{row['name']}: {row['text']}" for row in rows),
        view="dots",
        how="Two heads are alike if the cosine of their patterns over all prompts is 0.9 or more. Alike does not mean"
        " that one of them can go: they may carry different values.",
        table=(["model", "share", "groups"], table),
    )


def alike_map(view: RunView) -> Chart | None:
    """Which heads attend alike, as a map; None where none do."""
    found = {model.name: _groups(row) for model in view.models if (row := view.row(model.name, "heads_redundant"))}
    if not any(found.values()):
        return None
    places = {(row["layer"], row["head"]) for row in view.run.get("heads", []) if row["model"] in found}
    places |= {place for groups in found.values() for group in groups for place in group}
    frame, most = frame_of(places), max(map(len, found.values()))
    names = [f"group {number}" for number in range(1, min(most, _COLORED) + 1)]
    names += [*(["a smaller group"] if most > _COLORED else []), "like no other"]
    scale = {"kind": "names", "names": names, "title": "attends like", "rest": True}
    sizes = {name: max(map(len, groups), default=0) for name, groups in found.items()}
    where = max(sizes, key=lambda name: sizes[name])
    panels = []
    for name, groups in found.items():
        own = {(row["layer"], row["head"]) for row in view.run.get("heads", []) if row["model"] == name}
        values, notes = dict.fromkeys(own, len(names) - 1), dict.fromkeys(own, "")
        for number, group in enumerate(sorted(groups, key=len, reverse=True)):
            values |= dict.fromkeys(group, min(number, _COLORED))
            notes |= dict.fromkeys(group, f"one of a group of {len(group)}")
        meaning = (
            f"{visible(name)}: groups of {', '.join(map(str, sorted(map(len, groups), reverse=True)[:_COLORED]))}."
        )
        meaning = meaning if groups else f"{visible(name)}: no head attends like another one."
        data = head_map(frame, values, notes, scale)
        panels.append(make_panel(short_name(view, name), meaning, data, opens=name == where))
    return make_chart(
        "head-alike",
        f"{sizes[where]} heads of {short_name(view, where)} attend alike: the largest group",
        "Heads of one colour attend alike: the cosine of the patterns of neighbours in the group is 0.9 or more.",
        panels,
        "; ".join(f"{visible(name)}: {len(groups)} groups" for name, groups in found.items()),
        view="matrix",
        how="Groups are chains: two heads of a group may be less alike than each is to a third. Groups are numbered by"
        " size in each model. Heads that put most of their weight on the first token are alike in that alone.",
    )


def _alike(row: Row) -> str:
    """`0.1 and 0.3; 2.0, 2.4 and 3.1`; of many, the first and how many more."""
    groups = _groups(row)
    more = f"; and {len(groups) - _TOLD_GROUPS} more groups" if len(groups) > _TOLD_GROUPS else ""
    return "; ".join(map(_listed, groups[:_TOLD_GROUPS])) + more if groups else "none"


def _listed(group: list[Place]) -> str:
    heads = [told(place) for place in group]
    if len(heads) > _TOLD_HEADS:
        return f"{', '.join(heads[: _TOLD_HEADS - 1])} and {len(heads) - _TOLD_HEADS + 1} more"
    return f"{', '.join(heads[:-1])} and {heads[-1]}"


def _groups(row: Row) -> list[list[Place]]:
    """Groups of heads as a detail tells them: `0.1, 0.3; 2.0, 2.4`, after a colon if other words come first.

    A detail that tells anything else, such as the version of a library, has no groups.
    """
    text = (row.get("detail") or "").rpartition(": ")[2]
    if _GROUPS.fullmatch(text) is None:
        return []
    return [[(int(layer), int(head)) for layer, head in _HEAD.findall(group)] for group in text.split(";")]


def clusters(view: RunView) -> Chart | None:
    """Clusters of heads by their scores: which heads, and what they do. None where runs did not store which heads."""
    rows = [row for row in view.run.get("estimates", []) if row["metric"] == "head_clusters" and _groups(row)]
    if not rows:
        return None
    name = str(view.reference if any(row["model"] == view.reference for row in rows) else rows[0]["model"])
    panels = []
    for row in rows:
        if row["model"] == name:
            panels += _panels_of(view, name, _method(row), _groups(row))
    first = next(row for row in rows if row["model"] == name)
    method, groups = _method(first), _groups(first)
    table = [[f"{method} {number}", ", ".join(map(told, group))] for number, group in enumerate(groups, start=1)]
    return make_chart(
        "head-clusters",
        f"By what they do, heads fall into {len(groups)} groups ({method})",
        f"Heads of {visible(name)}, grouped by their scores without any rule of ours.",
        panels,
        "; ".join(f"{visible(row['model'])}, {_method(row)}: {row['value']:.0f} groups" for row in rows),
        view="matrix",
        how="k-means puts every head into a group and takes the number of groups of the best silhouette; HDBSCAN leaves"
        " heads out that are in no dense group. The numbers of groups have no order.",
        table=(["group", "heads"], table),
    )


def separation(view: RunView) -> Chart | None:
    """How many clusters, and how well apart."""
    counts = {
        (row["model"], _method(row)): row["value"]
        for row in view.run.get("estimates", [])
        if row["metric"] == "head_clusters"
    }
    spreads = [row for row in view.run.get("estimates", []) if row["metric"] == "head_cluster_silhouette"]
    if not spreads:
        return None
    order = [model.name for model in view.models]
    spreads.sort(key=lambda row: order.index(row["model"]))
    shown, info = Models(view, [row["model"] for row in spreads]), METRICS["head_cluster_silhouette"]
    rows = []
    for row in spreads:
        groups = counts.get((row["model"], _method(row)))
        text = f"silhouette {format_value(row['value'])}" + ("" if groups is None else f", {groups:.0f} groups")
        rows.append(
            {
                "model": shown[row["model"]],
                "name": short_name(view, row["model"]),
                "group": _method(row),
                "value": row["value"],
                "text": text,
                "detail": f"{row['n']} heads are in a group",
            }
        )
    # Not the best of all models and methods, which would be high by choice: the reference's, by its first method.
    told_of = next((row for row in spreads if row["model"] == view.reference), spreads[0])
    apart = "well apart" if told_of["value"] >= _WELL_APART else "not well apart"
    what = f"{short_name(view, told_of['model'])}, {_method(told_of)}"
    data = {"x": {"label": info.title}, "models": shown.entries, "rows": rows}
    return make_chart(
        "head-separation",
        f"Groups of heads are {apart}: silhouette {told_of['value']:.2f} ({what})",
        "Heads grouped by their scores: a silhouette of 1 means groups that are far apart, 0 groups that touch.",
        [make_panel(info.title, info.meaning, data)],
        "; ".join(f"{row['name']}, {row['group']}: {row['text']}" for row in rows),
        view="dots",
        how="Up to 0.5 the structure is weak and may be artificial (Kaufman and Rousseeuw, 1990). HDBSCAN's silhouette"
        " leaves out the heads that are in no group: compare models by one method.",
        table=(["model", "method", "found"], [[row["name"], row["group"], row["text"]] for row in rows]),
    )


def _panels_of(view: RunView, model: str, method: str, groups: list[list[Place]]) -> list[Figure]:
    scores = {
        metric: {(row["layer"], row["head"]): row["value"] for row in head_rows(view, model, metric)}
        for metric in PROFILE[:-1]
    }
    scores = {metric: values for metric, values in scores.items() if values}
    places = {place for values in scores.values() for place in values} | {place for group in groups for place in group}
    return [_where(method, groups, places), _what(view, model, method, groups, scores)]


def _method(row: Row) -> str:
    name = (row.get("detail") or "").partition(",")[0]
    return {"kmeans": "k-means", "hdbscan": "HDBSCAN"}.get(name, visible(name) or "clusters")


def _where(method: str, groups: list[list[Place]], places: set[Place]) -> Figure:
    values = {place: number for number, group in enumerate(groups) for place in group}
    names = [f"group {number + 1} ({len(group)})" for number, group in enumerate(groups)]
    alone = places - set(values)
    if alone:
        names.append(f"in none ({len(alone)})")
        values |= dict.fromkeys(alone, len(groups))
    scale = {"kind": "names", "names": names, "title": "group", "rest": bool(alone)}
    return make_panel(
        f"{method}: which heads", f"Groups of heads by {method}.", head_map(frame_of(places), values, {}, scale)
    )


def _what(
    view: RunView, model: str, method: str, groups: list[list[Place]], scores: Mapping[str, Mapping[Place, float]]
) -> Figure:
    kinds_of = {(row["layer"], row["head"]): row["kind"] for row in view.run.get("heads", []) if row["model"] == model}
    data: dict[str, Any] = {
        "x": {"label": "", "names": [METRICS[metric].title for metric in scores]},
        "y": {"label": "group", "names": [f"{number + 1} ({len(group)})" for number, group in enumerate(groups)]},
        "values": [[_mean(values, group) for values in scores.values()] for group in groups],
        "scale": {"kind": "share", "domain": [0, 1], "title": "mean over the group's heads"},
    }
    data["cells"] = [["" if value is None else f"{value:.2f}" for value in row] for row in data["values"]]
    said = []
    for number, group in enumerate(groups, start=1):
        counts = Counter(kinds_of[place] for place in group if place in kinds_of).most_common(3)
        said.append(f"group {number} has {', '.join(f'{count} {visible(kind)}' for kind, count in counts)}")
    return make_panel(f"{method}: what they do", f"Mean scores of each group. By kind: {'; '.join(said)}.", data)


def _mean(values: Mapping[Place, float], group: list[Place]) -> float | None:
    own = [values[place] for place in group if place in values]
    return round(sum(own) / len(own), 4) if own else None
