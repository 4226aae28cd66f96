"""Charts of the embeddings suite: a map of words in three dimensions, and how much of the space is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import Metric, metric_info
from gguf_harness.report.charts.base import Chart, Figure, Models, make_chart, make_panel, short_name
from gguf_harness.report.charts.embedding_layout import Layout, changed_words, load_points, tell_models
from gguf_harness.report.charts.word_charts import analogies_chart, cosines_chart
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import doubt_mark, format_metric, format_percent

__all__ = ["embedding_charts"]

_STAY: Final = (
    "neighbour_recall", "word_neighbour_recall", "similarity_rank_correlation", "procrustes_error", "embedding_cka",
    "contextual_cosine", "last_token_cosine", "pooled_cosine",
)  # fmt: skip
_METHODS: Final = {"pca": "PC", "umap": "UMAP", "tsne": "t-SNE"}
_TOLD: Final = 10


def embedding_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = (_map(view, run_dir), analogies_chart(view, run_dir), cosines_chart(view, run_dir), _kept(view))
    return [chart for chart in charts if chart is not None]


# -- the map ----------------------------------------------------------------------------------------------------------


def _map(view: RunView, run_dir: Path) -> Chart | None:
    own = load_points(view, run_dir, "embedding_map")
    moved = load_points(view, run_dir, "embedding_map_aligned")
    layout = Layout.from_maps(view, own, moved)
    if layout is None:
        return None
    names = [model.name for model in view.models if model.name in layout.of]
    entries = zip(Models(view, names).entries, names, strict=True)
    data = layout.data() | {"models": [entry | layout.about(name) for entry, name in entries]}
    title, rows = _moved(view, moved)
    return make_chart(
        "embedding-map",
        title,
        "Each dot is the token embedding of a word, or the mean of its tokens. All models are in one layout, the"
        " reference's: choose another model, and only the words move.",
        [make_panel("words", f"{_layout_of(layout)}{_same(view, layout)}", data)],
        f"{len(data['words'])} words of {len(data['groups'])} groups, in {len(data['models'])} models.",
        view="space",
        how="Drag or use the arrow keys to rotate; nearer words are larger. A line leads from a word's place in the"
        " reference to that in the candidate: without lines nothing has moved. Click a word or search for it to see"
        " which words are nearest to it, in all dimensions, and which of them it has lost. Colours are the groups of"
        " the word list: words of a group should be near each other, whatever the model.",
        table=(["model", "words whose nearest words changed", "those that changed most"], rows),
    )


def _layout_of(layout: Layout) -> str:
    if layout.method != "pca":
        return (
            f"Laid out by {_METHODS[layout.method]}: which points are near each other is meaningful, distances and"
            " axes are not. The layout was made for the reference; candidates' words are put among its words."
        )
    shares = ", ".join(f"{100 * share:.1f} %" for share in layout.shares)
    return (
        f"The reference's first three principal components, with {shares} of the variance of these points: most of the"
        " space is not visible here. Candidates are aligned by rotation and scale (Procrustes)."
    )


def _same(view: RunView, layout: Layout) -> str:
    """What a reader would otherwise take for a mistake: choosing another model changes nothing."""
    told = [", ".join(short_name(view, name) for name in names) for names in layout.same()]
    return "".join(f" These store the same embeddings: {names}." for names in told)


def _moved(view: RunView, moved: Mapping[str, dict[str, Any]]) -> tuple[str, list[list[str]]]:
    """The finding, and a row for each candidate."""
    changed = {model.name: changed_words(moved[model.name]) for model in view.candidates if model.name in moved}
    if not changed:
        return "Words in the embedding space", []
    rows = []
    for name, words in changed.items():
        texts = moved[name]["texts"]
        examples = ", ".join(visible(texts[place]) for place in words[:_TOLD])
        rows.append([visible(name), f"{len(words)} of {len(texts)}", examples])
    most = max(len(words) for words in changed.values())
    if most == 0:
        return "Every word keeps its nearest words in every candidate", rows
    worst = [name for name, words in changed.items() if len(words) == most]
    count = len(moved[worst[-1]]["texts"])
    told = tell_models(view, worst, "change")
    return f"{told[0].upper()}{told[1:]} the nearest words of {most} of {count} words", rows


# -- what is kept -----------------------------------------------------------------------------------------------------


def _kept(view: RunView) -> Chart | None:
    panels = []
    for metric in _STAY:
        rows = [(model.name, row) for model in view.candidates if (row := view.row(model.name, metric))]
        if rows:
            panels.append(_dots(view, metric_info(metric), rows))
    if not panels:
        return None
    return make_chart(
        "embedding-neighbours",
        _least(view),
        "Token embeddings are those in the file. llama.cpp often stores that matrix as Q6_K or Q8_0 whatever type is"
        " requested, so candidates can be equal here. Contexts are the final states of the whole model on the prompts.",
        panels,
        "A point for each candidate, by metric.",
        view="dots",
        how="The line is the 95 % interval, or one standard error to each side where no interval was stored. Near the"
        " best value is a space that search, clustering and retrieval can rely on as on the reference's.",
        table=_table(view),
    )


def _least(view: RunView) -> str:
    """What the worst candidates keep: of the embeddings in the file, and of those in context, which differ more."""
    words = _least_neighbours(view)
    told = [words[0].upper() + words[1:]] if words else []
    for metric in ("contextual_cosine", "pooled_cosine"):
        cosines = {model.name: row["value"] for model in view.candidates if (row := view.row(model.name, metric))}
        if cosines:
            worst = min(cosines, key=lambda name: cosines[name])
            told.append(f"in context the cosine is {cosines[worst]:.3f} for {short_name(view, worst)}")
            break
    return "; ".join(told) if words else "How much of the embedding space is kept"


def _least_neighbours(view: RunView) -> str:
    """Of the first metric that speaks of neighbours."""
    for metric, what in (("neighbour_recall", "nearest neighbours"), ("word_neighbour_recall", "nearest words")):
        kept = {model.name: row["value"] for model in view.candidates if (row := view.row(model.name, metric))}
        if not kept:
            continue
        least = min(kept.values())
        told = tell_models(view, [name for name, value in kept.items() if value == least], "keep")
        return f"{told} {format_percent(least, None)} of {what}"
    return ""


def _table(view: RunView) -> tuple[list[str], list[list[str]]]:
    metrics = [metric_info(name) for name in _STAY if any(view.row(model.name, name) for model in view.candidates)]
    rows = []
    for model in view.candidates:
        cells = [view.row(model.name, info.name) for info in metrics]
        if any(cells):
            rows.append(
                [visible(model.name)]
                + [_told(info, row) if row else "" for info, row in zip(metrics, cells, strict=True)]
            )
    return ["model", *(info.title for info in metrics)], rows


def _dots(view: RunView, info: Metric, rows: list[tuple[str, Mapping[str, Any]]]) -> Figure:
    shown = Models(view, [name for name, _ in rows])
    dots = []
    for name, row in rows:
        low, high = row.get("low"), row.get("high")
        if low is None or high is None:
            low, high = row["value"] - (row["se"] or 0), row["value"] + (row["se"] or 0)
        detail = f"; {visible(row['detail'])}" if row.get("detail") else ""
        dots.append(
            {
                "model": shown[name],
                "name": f"{short_name(view, name)}{doubt_mark(row)}",
                "value": row["value"],
                "low": low,
                "high": high,
                "text": _told(info, row),
                "detail": f"n = {row['n']}{detail}",
            }
        )
    x = {"label": info.title} | ({"percent": True} if info.unit == "fraction" else {})
    return make_panel(info.title, info.meaning, {"x": x, "models": shown.entries, "rows": dots})


def _told(info: Metric, row: Mapping[str, Any]) -> str:
    return f"{format_metric(info, row['value'], row['se'])}{doubt_mark(row)}"
