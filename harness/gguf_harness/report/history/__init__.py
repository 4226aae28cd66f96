"""A history as people read it: a table in the terminal, a page, and rows for other programs."""

from __future__ import annotations

from gguf_harness.report.history.page import write_history
from gguf_harness.report.history.rows import COLUMNS, history_csv, history_json, history_rows
from gguf_harness.report.history.terminal import render_history

__all__ = ["COLUMNS", "history_csv", "history_json", "history_rows", "render_history", "write_history"]
