"""What the package ships of the views: bundles made by `make views`, so that nobody needs npm, and their styles."""

from __future__ import annotations

from importlib import resources
from typing import Final

__all__ = ["explorer_script", "report_script", "views_style", "widget_module"]

_SCOPE: Final = ".gguf-view"


def report_script() -> str:
    """The script of a stored report: its views, and what makes its tables sort and its pictures appear."""
    return _text("built", "report.js")


def explorer_script() -> str:
    """The script of the explorer's page."""
    return _text("built", "explorer.js")


def widget_module() -> str:
    """An ES module whose default export renders any view, with its styles: the front end of an anywidget widget."""
    return _text("built", "widget.js")


def views_style(scope: str = ":root") -> str:
    """CSS of all views with the colours of both themes, as custom properties.

    Light or dark follows the machine, or the attribute `data-theme` of the scope: `light` or `dark`.

    Args:
        scope: selector of the element that views stand in: that of a whole page, or one that others share a page with.
    """
    return _text("src", "views.css").replace(_SCOPE, scope)


def _text(*path: str) -> str:
    return resources.files("gguf_harness.views").joinpath(*path).read_text(encoding="utf-8")
