"""How results look at the end of a cell: a short text, and a small table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from gguf_harness.errors import visible

__all__ = ["first_pieces", "short_repr", "summary_html", "table_html"]

_LONGEST: Final = 480
_LONGEST_VALUE: Final = 120


def short_repr(name: str, values: Mapping[str, Any]) -> str:
    """`Attention(tokens=12, layers=5)`: arrays by their shape, texts cut; shorter than 500 characters."""
    told = f"{name}({', '.join(f'{key}={_short(value)}' for key, value in values.items())})"
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}…)"


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<{'×'.join(map(str, value.shape))} {value.dtype}>"
    if isinstance(value, float):
        return f"{value:.4g}"
    told = visible(repr(value))
    return told if len(told) <= _LONGEST_VALUE else f"{told[:_LONGEST_VALUE]}…"


def first_pieces(pieces: Sequence[str], most: int = 12) -> str:
    """The first tokens of a text, a bar between them."""
    told = "|".join(visible(piece.replace("\n", "↵")) for piece in pieces[:most])
    return f"{told} … ({len(pieces)})" if len(pieces) > most else told


def summary_html(title: str, facts: Mapping[str, str], hint: str, extra: str = "") -> str:
    """A title, a table of facts, and what to do next. Everything but `extra` is escaped."""
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return (
        f"<div><strong>{html.escape(title)}</strong><table><tbody>{rows}</tbody></table>{extra}"
        f"<p><small>{html.escape(hint)}</small></p></div>"
    )


def table_html(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table; cells are escaped."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
