"""The bundle of all views, made by `make views` and stored in the package: nobody needs npm to see a report."""

from __future__ import annotations

from importlib import resources

__all__ = ["explorer_script", "report_script"]


def report_script() -> str:
    """The script of a stored report: its views, and what makes its tables sort and its pictures appear."""
    return _built("report.js")


def explorer_script() -> str:
    """The script of the explorer's page."""
    return _built("explorer.js")


def _built(name: str) -> str:
    return (resources.files("gguf_harness.views") / "built" / name).read_text(encoding="utf-8")
