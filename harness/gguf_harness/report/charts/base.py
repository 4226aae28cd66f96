"""Common parts of all charts: plain Plotly figures with traces and layout, without colours of the page's theme."""

from __future__ import annotations

from typing import Any, Final

from gguf_harness.report.data import Candidate, RunView, visible

__all__ = ["Chart", "Figure", "label", "make_chart", "short", "style"]

Figure = dict[str, Any]
"""{name, meaning, traces, layout}"""

Chart = dict[str, Any]
"""{id, title, meaning, figures, summary}: one or several figures to choose from."""

# Okabe and Ito (2008), Color Universal Design: distinguishable with every kind of colour vision; shapes help too.
_COLORS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#7F7F7F")
_SYMBOLS: Final = ("circle", "diamond", "square", "triangle-up", "cross", "star", "triangle-down", "pentagon")


def style(view: RunView, name: str) -> dict[str, Any]:
    """Color and symbol of a model, the same in all charts."""
    index = [model.name for model in view.models].index(name)
    return {"color": _COLORS[index % len(_COLORS)], "symbol": _SYMBOLS[index % len(_SYMBOLS)]}


def make_chart(identifier: str, title: str, meaning: str, figures: list[Figure], summary: str) -> Chart:
    """Make a chart with at least one figure; the summary is for people who cannot see it."""
    return {"id": identifier, "title": title, "meaning": meaning, "figures": figures, "summary": summary}


def label(text: str) -> str:
    """Escape text for Plotly labels, which may contain HTML: a model name must not be read as HTML."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(name: str, models: list[Candidate]) -> str:
    """The name without the common prefix of all names."""
    names = [model.name for model in models]
    prefix = names[0]
    for other in names[1:]:
        while not other.startswith(prefix):
            prefix = prefix[:-1]
    cut = max(prefix.rfind("-"), prefix.rfind("."), prefix.rfind("/")) + 1
    return name[cut:] if len(names) > 1 and len(name) > cut else name
