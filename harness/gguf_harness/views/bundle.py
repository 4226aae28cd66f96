"""The bundle of all views, made by `make views` and stored in the package: nobody needs npm to see a report."""

from __future__ import annotations

from importlib import resources

__all__ = ["report_script"]


def report_script() -> str:
    """The script of a stored report: its views, and what makes its tables sort and its pictures appear."""
    return (resources.files("gguf_harness.views") / "built" / "report.js").read_text(encoding="utf-8")
