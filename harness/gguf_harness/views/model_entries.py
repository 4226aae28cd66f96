"""Models as views get them: names, role, and the place that fixes their colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_harness.errors import visible

__all__ = ["model_entries", "short_names"]


def model_entries(
    names: Sequence[str], reference: str | None, series: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """[{name, short, role, series}]: candidates count from 0 in the order of the names.

    Args:
        names: all models of a comparison, whose order fixes the colours.
        reference: the one that the others are compared with; None where there is none.
        series: places of candidates in the sequence of colours, if not those in the order of the names.
    """
    if series is None:
        series = {name: place for place, name in enumerate(name for name in names if name != reference)}
    return [
        {
            "name": visible(name),
            "short": visible(short),
            "role": "reference" if name == reference else "candidate",
            "series": series.get(name, 0),
        }
        for name, short in zip(names, short_names(names), strict=True)
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the prefix that all of them share, up to a dash, dot or slash."""
    prefix = names[0] if names else ""
    for other in names[1:]:
        while not other.startswith(prefix):
            prefix = prefix[:-1]
    cut = max(prefix.rfind("-"), prefix.rfind("."), prefix.rfind("/")) + 1
    return [name[cut:] if len(names) > 1 and len(name) > cut else name for name in names]
