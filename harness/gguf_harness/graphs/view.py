"""An interactive page of a graph: one HTML file that opens from disk, without network."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.graphs.graph import Column, Graph, Table
from gguf_harness.report.charts.base import label
from gguf_harness.report.data import visible
from gguf_harness.report.html import embed_json, page_style, plotly_js
from gguf_harness.report.numbers import format_bytes

__all__ = ["MOST_EDGES", "render_view"]

MOST_EDGES: Final = 20_000
"""Most edges that a browser shows quickly; of more, the strongest are shown. The tables have all."""

_PLACES: Final = frozenset({"id", "kind", "label", "x", "y", "source", "target", "weight"})
_MOST_CHOICES: Final = 256
_LONGEST_LABEL: Final = 12


def render_view(graph: Graph) -> str:
    """Render the page. Labels are always shown as text."""
    import jinja2
    from markupsafe import Markup

    assets = resources.files("gguf_harness.graphs") / "assets"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    template = environment.from_string((assets / "graph.html.j2").read_text(encoding="utf-8"))
    kept = _strongest(np.asarray(graph.edges["weight"].values, dtype=np.float64))
    # Our own files, and JSON that embed_json made safe: everything else is escaped.
    return template.render(
        graph=graph,
        shown=len(kept),
        data=Markup(embed_json(_data(graph, kept))),  # noqa: S704
        css=Markup(page_style()),  # noqa: S704
        script=Markup((assets / "graph.js").read_text(encoding="utf-8")),  # noqa: S704
        plotly=Markup(plotly_js()),  # noqa: S704
    )


def _strongest(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """The edges to show, in order."""
    if len(weights) <= MOST_EDGES:
        return np.arange(len(weights))
    return np.sort(np.argsort(-np.abs(weights), kind="stable")[:MOST_EDGES])


def _data(graph: Graph, kept: NDArray[np.int64]) -> dict[str, Any]:
    """Data for the page: labels are escaped for Plotly, which interprets some HTML."""
    number = {name: index for index, name in enumerate(np.asarray(graph.nodes["id"].values).tolist())}
    edges = {name: [_plain(column.values[index]) for index in kept.tolist()] for name, column in graph.edges.items()}
    labels = [visible(str(text)) for text in graph.nodes["label"].values]
    facets = {
        name: sorted(set(edges[name]))
        for name, column in graph.edges.items()
        if name not in _PLACES and column.type == "int64"
    }
    return {
        "axes": list(graph.axes),
        "tree": graph.kind == "structure",
        "nodes": {
            "x": [round(float(value), 5) for value in graph.nodes["x"].values],
            "y": [round(float(value), 5) for value in graph.nodes["y"].values],
            "kind": [label(str(kind)) for kind in graph.nodes["kind"].values],
            "text": [label(text if graph.kind == "structure" else _cut(text)) for text in labels],
            "search": [text.lower() for text in labels],
            "hover": _hovers(graph.nodes),
        },
        "edges": {
            "source": [number[name] for name in edges["source"]],
            "target": [number[name] for name in edges["target"]],
            "weight": [round(weight, 6) for weight in edges["weight"]],
            "kind": [label(kind) for kind in edges["kind"]],
            **{name: edges[name] for name in facets},
        },
        "facets": {name: values for name, values in facets.items() if 1 < len(values) <= _MOST_CHOICES},
    }


def _cut(text: str) -> str:
    """The label shortened to the room at a node; hovering shows all of it."""
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def _hovers(table: Table) -> list[str]:
    """Hover texts of nodes: label, kind, and all other columns."""
    names = [name for name in table if name not in _PLACES]
    hovers = []
    for row in range(len(table["id"].values)):
        lines = [f"<b>{label(str(table['label'].values[row]))}</b>", label(str(table["kind"].values[row]))]
        for name in names:
            text = _shown(name, table[name], row)
            if text:
                lines.append(f"{label(name)}: {label(text)}")
        hovers.append("<br>".join(lines))
    return hovers


def _shown(name: str, column: Column, row: int) -> str:
    value = _plain(column.values[row])
    if value is None:
        return ""
    if name == "bytes":
        return f"{format_bytes(value)} ({value:,})"
    if column.type == "list<int64>":
        return " × ".join(f"{number:,}" for number in value)
    return f"{value:,}" if column.type == "int64" else f"{value:.4g}" if column.type == "float64" else str(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
