"""Rows of heads and layers, and maps of them: what charts of heads have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gguf_harness.report.data import RunView

__all__ = ["Place", "Row", "frame_of", "head_map", "head_rows", "layer_rows", "told"]

Place = tuple[int, int]
"""Layer and head."""

Row = Mapping[str, Any]


def told(place: Place) -> str:
    """`2.7`: head 7 of layer 2."""
    return f"{place[0]}.{place[1]}"


def frame_of(places: Iterable[Place]) -> tuple[list[int], list[int]]:
    """Layers and heads of a map, the same in each panel of a chart."""
    known = set(places)
    return sorted({layer for layer, _ in known}), sorted({head for _, head in known})


def head_map(
    frame: tuple[Sequence[int], Sequence[int]],
    values: Mapping[Place, float | int],
    notes: Mapping[Place, str],
    scale: Mapping[str, Any],
) -> dict[str, Any]:
    """Data of the matrix view: square tiles, the first layer at the top; empty where there is no value."""
    layers, heads = frame
    return {
        "x": {"label": "head", "names": [str(head) for head in heads]},
        "y": {"label": "layer", "names": [str(layer) for layer in layers]},
        "values": [[values.get((layer, head)) for head in heads] for layer in layers],
        "notes": [[notes.get((layer, head), "") for head in heads] for layer in layers],
        "scale": dict(scale),
        "square": True,
    }


def head_rows(view: RunView, model: str, metric: str) -> list[Row]:
    """Rows of single heads."""
    return [row for row in view.rows_of(model, metric) if row.get("head") is not None]


def layer_rows(view: RunView, model: str, metric: str) -> list[Row]:
    """Rows of layers, in order; means over the heads of each, where layers were not measured as a whole."""
    rows = [row for row in view.rows_of(model, metric) if row.get("layer") is not None]
    whole = [row for row in rows if row.get("head") is None]
    return sorted(whole or _layer_means(rows), key=lambda row: int(row["layer"]))


def _layer_means(rows: list[Row]) -> list[Row]:
    """Means over the heads of each layer, without errors: the errors of single heads are not independent."""
    layers: dict[int, list[float]] = {}
    for row in rows:
        layers.setdefault(int(row["layer"]), []).append(float(row["value"]))
    return [{"layer": layer, "value": sum(values) / len(values), "se": None} for layer, values in layers.items()]
