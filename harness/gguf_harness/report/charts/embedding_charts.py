"""Charts of the embeddings suite: a three-dimensional map of words, and the share of kept neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, Figure, label, make_chart, style
from gguf_harness.report.data import RunView
from gguf_harness.report.numbers import format_value

__all__ = ["embedding_charts"]

# Okabe and Ito (2008) first, then lighter and darker shades of the same hues: there are many groups, and hovering shows
# their names.
_GROUP_COLORS: Final = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#004D73", "#B38F00", "#66C2A5",
    "#7A3B69", "#A6D5F2", "#F2A06B", "#5C4A12", "#3B7A57", "#9467BD", "#C49C94", "#17BECF",
)  # fmt: skip
_OTHER_COLOR: Final = "#9A9A9A"
_UNGROUPED: Final = frozenset({"analogies", "common tokens"})
_STAY: Final = (
    "neighbour_recall", "word_neighbour_recall", "similarity_rank_correlation", "procrustes_error", "embedding_cka",
    "contextual_cosine", "last_token_cosine", "pooled_cosine",
)  # fmt: skip
_CAMERA: Final = {"eye": {"x": 1.4, "y": 1.4, "z": 0.8}, "center": {"x": 0, "y": 0, "z": -0.15}}

_METHODS: Final = {"pca": "PC", "umap": "UMAP", "tsne": "t-SNE"}

Points = dict[str, Any]


def embedding_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    return [chart for chart in (_map(view, run_dir), _neighbours(view)) if chart is not None]


def _load(view: RunView, run_dir: Path, name: str) -> dict[str, Points]:
    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    points = {}
    known = {model.name for model in view.models}
    for entry in view.run.get("arrays", []):
        if entry["name"] == name and entry["model"] in known and run_file(run_dir, entry["file"]).is_file():
            arrays = load_arrays(run_file(run_dir, entry["file"]))
            points[entry["model"]] = {key: array.tolist() for key, array in arrays.items()}
    return points


def _map(view: RunView, run_dir: Path) -> Chart | None:
    own, aligned = _load(view, run_dir, "embedding_map"), _load(view, run_dir, "embedding_map_aligned")
    figures = []
    for model in view.models:
        if model.name in aligned:
            figures.append(_moved(model.name, aligned[model.name]))
        elif model.name in own:
            figures.append(_alone(model.name, own[model.name]))
    # The reference first: the other figures use its axes.
    figures.sort(key=lambda figure: figure["name"] != label(view.reference or ""))
    if not figures:
        return None
    points = own.get(view.reference or "") or next(iter((own | aligned).values()))
    return make_chart(
        "embedding-map",
        "Words in the embedding space",
        f"Token embeddings of words, by group, and of common tokens, {_layout_of(points)} A candidate with the "
        "reference's vocabulary is aligned with it by rotation and scale (Procrustes); lines lead from a word's "
        "position in the reference to that in the candidate. Hover to see the nearest words. Drag to rotate: the "
        "view is kept when you choose another model.",
        figures,
        f"{len(points['texts'])} points of {len(set(points['groups']))} groups, for {len(figures)} models.",
    )


def _layout_of(points: Points) -> str:
    if points["method"] != "pca":
        return (
            f"laid out by {_METHODS[points['method']]}: which points are near each other is meaningful, distances "
            "and axes are not."
        )
    shares = ", ".join(f"{100 * share:.3g} %" for share in points["shares"])
    return (
        f"in the reference's first three principal components ({shares} of the variance of these points): most of "
        "the space is not visible here."
    )


def _alone(name: str, points: Points) -> Figure:
    hovers = [_hover(points, place) for place in range(len(points["texts"]))]
    return _figure(name, f"The words of {label(name)}, without comparison.", points, _groups(points, hovers))


def _moved(name: str, points: Points) -> Figure:
    lines: dict[str, list[float | None]] = {"x": [], "y": [], "z": []}
    for there, here in zip(points["from_xyz"], points["xyz"], strict=True):
        for axis, start, end in zip("xyz", there, here, strict=True):
            lines[axis] += [start, end, None]
    hovers = [
        f"{_hover(points, place)}<br>{stay} of {len(points['near'][place])} are also nearest in the reference"
        for place, stay in enumerate(points["stay"])
    ]
    trace = {
        "type": "scatter3d",
        "mode": "lines",
        "name": "from the reference",
        **lines,
        "line": {"color": "#7F7F7F", "width": 3},
        "hoverinfo": "skip",
    }
    meaning = f"Positions of the words in {label(name)}, and their distance from those in the reference."
    return _figure(name, meaning, points, [trace, *_groups(points, hovers)])


def _groups(points: Points, hovers: list[str]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(points["groups"]))
    colored = [name for name in names if name not in _UNGROUPED]
    traces = []
    for name in [*colored, *(name for name in names if name in _UNGROUPED)]:
        places = [place for place, group in enumerate(points["groups"]) if group == name]
        plain = name in _UNGROUPED
        color = _OTHER_COLOR if plain else _GROUP_COLORS[colored.index(name) % len(_GROUP_COLORS)]
        traces.append(
            {
                "type": "scatter3d",
                "mode": "markers",
                "name": label(name),
                **{axis: [points["xyz"][place][row] for place in places] for row, axis in enumerate("xyz")},
                "text": [hovers[place] for place in places],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"size": 3 if plain else 5, "color": color, "opacity": 0.5 if plain else 0.9},
            }
        )
    return traces


def _hover(points: Points, place: int) -> str:
    tokens = points["tokens"][place]
    lines = [f"<b>{label(points['texts'][place])}</b> ({label(points['groups'][place])})"]
    if tokens > 1:
        lines.append(f"mean of {tokens} tokens")
    lines.append(f"nearest: {', '.join(label(word) for word in points['near'][place])}")
    return "<br>".join(lines)


def _figure(name: str, meaning: str, points: Points, traces: list[dict[str, Any]]) -> Figure:
    axis, title = {"showspikes": False}, _METHODS.get(points["method"], "PC")
    layout = {
        "scene": {
            **{f"{letter}axis": {"title": {"text": f"{title} {row}"}, **axis} for row, letter in enumerate("xyz", 1)},
            "camera": _CAMERA,
            "aspectmode": "data",
            # The same in all figures, so that a rotation is kept.
            "uirevision": "embedding-map",
        },
        "legend": {"itemsizing": "constant"},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
    }
    return {"name": label(name), "meaning": meaning, "traces": traces, "layout": layout}


def _neighbours(view: RunView) -> Chart | None:
    figures = []
    for metric in _STAY:
        rows = [(model.name, row) for model in view.candidates if (row := view.row(model.name, metric))]
        if rows:
            figures.append(_dots(view, metric, [(name, dict(row)) for name, row in rows]))
    if not figures:
        return None
    return make_chart(
        "embedding-neighbours",
        "How much of the embedding space is kept",
        "Candidates compared with the reference, with one standard error to each side. Token embeddings are "
        "those in the file: llama.cpp often stores that matrix as Q6_K or Q8_0 whatever type is requested, so "
        "candidates can be equal here. Contexts are the final states of the whole model on the prompts.",
        figures,
        "A point for each candidate.",
    )


def _dots(view: RunView, metric: str, rows: list[tuple[str, dict[str, Any]]]) -> Figure:
    info = METRICS[metric]
    factor = 100 if info.unit == "fraction" else 1
    details = [f"<br>{label(row['detail'])}" if row.get("detail") else "" for _, row in rows]
    trace = {
        # Points instead of bars: most values are near one, and bars must start at zero.
        "type": "scatter",
        "mode": "markers",
        "y": [label(name) for name, _ in rows],
        "x": [factor * row["value"] for _, row in rows],
        "error_x": {"type": "data", "array": [factor * (row["se"] or 0) for _, row in rows], "thickness": 1.5},
        "marker": {
            "size": 12,
            "color": [style(view, name)["color"] for name, _ in rows],
            "symbol": [style(view, name)["symbol"] for name, _ in rows],
        },
        "text": [
            f"{format_value(factor * row['value'])}, n = {row['n']}{detail}"
            for (_, row), detail in zip(rows, details, strict=True)
        ],
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    unit = " (%)" if info.unit == "fraction" else ""
    layout = {
        "xaxis": {"title": {"text": f"{info.title}{unit}"}},
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "showlegend": False,
    }
    return {"name": info.title, "meaning": info.meaning, "traces": [trace], "layout": layout}
