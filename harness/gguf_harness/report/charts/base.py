"""Common parts of all charts: what a view of the page draws, as plain data without colours of the page's theme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.report.charts.plain_tables import table_of
from gguf_harness.report.data import Candidate, RunView, visible
from gguf_harness.views.model_entries import model_entries, short_names

if TYPE_CHECKING:
    from gguf_harness.store.arrays import Arrays

__all__ = [
    "PLOTLY", "Chart", "Figure", "Models", "arrays_of", "label", "make_chart", "make_panel", "short", "short_name",
]  # fmt: skip

Figure = dict[str, Any]
"""One panel of a chart, of which a reader sees one at a time: {name, meaning, data} for a view of ours, {name, meaning,
traces, layout} for a figure of Plotly, as plugins draw them.
"""

Chart = dict[str, Any]
"""{id, title, meaning, summary, view, figures, how, table}; see `make_chart`."""

PLOTLY: Final = "figure"
"""The view that draws figures of Plotly."""


class Models:
    """The models of a chart, as its view gets them: name, short name, role, and the place that fixes their colour.

    Args:
        view: the run.
        names: the models that the chart shows; all of the run if None. A model looks the same in every chart.
    """

    def __init__(self, view: RunView, names: Sequence[str] | None = None) -> None:
        reference = next((model.name for model in view.models if model.is_reference), None)
        entries = model_entries([model.name for model in view.models], reference, _series(view))
        shown = [
            (model, entry)
            for model, entry in zip(view.models, entries, strict=True)
            if names is None or model.name in names
        ]
        self._places = {model.name: place for place, (model, _) in enumerate(shown)}
        self.entries: list[dict[str, Any]] = [entry for _, entry in shown]

    def __getitem__(self, name: str) -> int:
        """The place of a model in `entries`."""
        return self._places[name]

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self.entries)


def _series(view: RunView) -> dict[str, int]:
    """Places in the sequence of colours: files from the biggest to the smallest, then files that are run otherwise.

    With an adapter of which there is one, a file keeps its colour: what is compared is files.
    """
    plain = [model.name for model in view.candidates if not model.facts.get("variant")]
    series = {name: place for place, name in enumerate(plain)}
    of_file = {model.facts.get("file", model.name): model.name for model in view.candidates if model.name in series}
    others = [model for model in view.candidates if model.name not in series]
    adapted = [model for model in others if str(model.facts["variant"]).startswith("lora=")]
    one_each = len({model.facts.get("file") for model in adapted}) == len(adapted)
    after = len(plain)
    for model in others:
        file = of_file.get(model.facts.get("file"))
        if file is not None and one_each and model in adapted:
            series[model.name] = series[file]
        else:
            series[model.name] = after
            after += 1
    return series


def arrays_of(view: RunView, run_dir: Path, name: str) -> dict[str, Arrays]:
    """Arrays of a name by model, in the order of the models; those whose file is missing are left out.

    Raises:
        StoreError: a file is not in the folder of the run, or damaged.
    """
    from gguf_harness.store.arrays import load_arrays
    from gguf_harness.store.runs import run_file

    entries = [entry for entry in view.run.get("arrays", []) if entry["name"] == name]
    files = {entry["model"]: run_file(run_dir, entry["file"]) for entry in entries}
    names = [model.name for model in view.models if model.name in files and files[model.name].is_file()]
    return {name: load_arrays(files[name]) for name in names}


def make_panel(name: str, meaning: str, data: dict[str, Any], *, opens: bool = False) -> Figure:
    """A panel of a chart.

    Args:
        name: what distinguishes it from the others: a model, a metric.
        meaning: a sentence that stands above it.
        data: what the view draws; the views' modules say what that is. JSON types only, and no NaN.
        opens: it is the one that is seen first, since the chart's title is about it; else the first one is.
    """
    return {"name": name, "meaning": meaning, "data": data} | ({"opens": True} if opens else {})


def make_chart(
    identifier: str,
    title: str,
    meaning: str,
    figures: Sequence[Figure],
    summary: str,
    *,
    view: str = PLOTLY,
    how: str = "",
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
) -> Chart:
    """Make a chart with at least one panel.

    Args:
        identifier: lower-case letters, digits and dashes.
        title: its finding where there is one, else what it shows.
        meaning: a sentence or two on what is measured.
        figures: its panels.
        summary: what it says, for people who cannot see it.
        view: name of the view that draws its panels.
        how: how to read it, for people who see such a picture for the first time.
        table: (heads, rows) of the most important numbers, for where there are no scripts; the numbers of the first
            panel, if None, for views whose data is a list of numbers.
    """
    if table is None and "data" in figures[0]:
        table = table_of(view, figures[0]["data"])
    return {
        "id": identifier,
        "title": title,
        "meaning": meaning,
        "figures": list(figures),
        "summary": summary,
        "view": view,
        "how": how,
        "table": None if table is None else [list(table[0]), [list(row) for row in table[1]]],
    }


def label(text: str) -> str:
    """Escape text for Plotly labels, which may contain HTML: a model name must not be read as HTML."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(name: str, models: list[Candidate]) -> str:
    """The name without the common prefix of all names."""
    names = [model.name for model in models]
    return short_names([*names, name])[-1] if len(names) > 1 else name


def short_name(view: RunView, name: str) -> str:
    """The same of a run's models, as text to show."""
    return visible(short(name, view.models))
