"""The bar of a model of any name, on a terminal that has few characters."""

from __future__ import annotations

import io
import sys

import pytest

from harness.progress import _new_bar


def test_a_bar_is_drawn_where_characters_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    bar, task = _new_bar("hashing 模 [b] \\xff", "MB", 3)
    bar.update(task, completed=1)
    bar.start()
    bar.stop()
    assert b"hashing \\u6a21 [b] \\xff" in written.getvalue()
