"""Charts of the prompt whose states are stored by token: errors, norms, and the logit lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.report.charts.base import Chart, Figure, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.charts.layer_lines import percent, show
from gguf_harness.report.data import RunView, visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_harness.store.arrays import Arrays

__all__ = ["state_charts"]

_LENS_TOKENS: Final = 16
_LONGEST_NAME: Final = 12
_LEAST_WIDTH: Final = 46
_DIGITS: Final = 6

Grid = list[list[float]]


def state_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    drawn = arrays_of(view, run_dir, "layers")
    charts = [_errors(view, drawn), _norms(view, drawn), _lens(view, drawn)]
    return [chart for chart in charts if chart is not None]


def _errors(view: RunView, drawn: Mapping[str, Arrays]) -> Chart | None:
    grids = {
        model: _grid(arrays["error_resid_post"]) for model, arrays in drawn.items() if "error_resid_post" in arrays
    }
    if not grids:
        return None
    model, layer, place, worst = _highest(grids)
    token = _shown(_texts(drawn[model]["text"])[place])
    return make_chart(
        "layer-states",
        f"{short_name(view, model)} is furthest off at token {place}, “{token}”, after layer {layer}: {percent(worst)}",
        f"Error of the residual stream by token. {_prompt(view)} The norm of the difference from the reference's"
        " stream, divided by its norm.",
        _panels(view, drawn, grids, "relative error", percentages=True),
        f"Layers by tokens, for {len(grids)} candidates; the largest error is {percent(worst)}.",
        view="matrix",
        how="Layers go down, tokens to the right. All candidates have the same colours. A dark column is a token that"
        " the candidate gets wrong from there on; a row that is darker than the one above it is a layer that adds"
        " error.",
    )


def _norms(view: RunView, drawn: Mapping[str, Arrays]) -> Chart | None:
    grids = {model: _grid(arrays["norm"]) for model, arrays in drawn.items() if "norm" in arrays}
    if not grids:
        return None
    base = view.reference if view.reference in grids else next(iter(grids))
    model, layer, place, norm = _highest({base: grids[base]})
    middle = sorted(grids[base][layer])[len(grids[base][layer]) // 2]
    token = _shown(_texts(drawn[model]["text"])[place])
    times = f", {show(norm / middle)} times the median token" if middle > 0 and norm >= 2 * middle else ""
    return make_chart(
        "layer-token-norms",
        f"Token {place}, “{token}”, has the longest stream: norm {show(norm)} after layer {layer}{times}",
        f"Norm of the residual stream by token. {_prompt(view)}",
        _panels(view, drawn, grids, "norm", percentages=False),
        f"Layers by tokens, for {len(grids)} models; the largest norm is {show(norm)}.",
        view="matrix",
        how="Layers go down, tokens to the right. All models have the same colours. Many models keep one or a few"
        " tokens, often the first, with a norm far above all others: attention rests on these.",
    )


def _panels(
    view: RunView, drawn: Mapping[str, Arrays], grids: Mapping[str, Grid], title: str, *, percentages: bool
) -> list[Figure]:
    """A panel for each model, all on one scale; a logarithmic one, as models differ by orders of magnitude."""
    values = [value for grid in grids.values() for row in grid for value in row]
    positive = [value for value in values if value > 0]
    log = len(positive) > 0 and max(positive) > 3 * min(positive)
    scale = {
        "kind": "share",
        "domain": [min(positive), max(positive)] if log else [min(values), max(values)],
        "title": f"{title} (logarithmic)" if log else title,
        **({"log": True} if log else {}),
        **({"percent": True} if percentages else {}),
    }
    return [
        make_panel(
            short_name(view, model),
            visible(model),
            {"x": _tokens(drawn[model]["text"]), "y": _layers(len(grid)), "values": grid, "scale": scale},
        )
        for model, grid in grids.items()
    ]


def _lens(view: RunView, drawn: Mapping[str, Arrays]) -> Chart | None:
    shown = {model: arrays for model, arrays in drawn.items() if "lens_text" in arrays}
    if not shown:
        return None
    base = shown.get(view.reference or "")
    marks = {model: _differing(arrays, base) for model, arrays in shown.items()}
    return make_chart(
        "logit-lens",
        _lens_finding(view, marks),
        f"The logit lens: the most likely next token after each layer, as if it were the last one. {_prompt(view)} The"
        " colour is its probability.",
        [_lens_panel(view, model, arrays, base, marks[model]) for model, arrays in shown.items()],
        "Tables of layers and tokens with the most likely token in each cell.",
        view="matrix",
        how="Read a column from the top: it is the guess for what comes after the token above it, layer by layer. The"
        " last row is what the model predicts. · is a space.",
    )


def _differing(arrays: Arrays, base: Arrays | None) -> list[list[bool]] | None:
    """Whether a cell's token is another than the reference's; None for the reference, and for other tokens."""
    tokens = arrays["text"].tolist()
    same_shape = base is not None and base["lens_text"].shape == arrays["lens_text"].shape
    if base is None or base is arrays or not same_shape or base["text"].tolist() != tokens:
        return None
    pairs = zip(arrays["lens_text"].tolist(), base["lens_text"].tolist(), strict=True)
    return [[ours != theirs for ours, theirs in zip(*rows, strict=True)][:_LENS_TOKENS] for rows in pairs]


def _lens_finding(view: RunView, marks: Mapping[str, list[list[bool]] | None]) -> str:
    compared = {model: rows for model, rows in marks.items() if rows}
    if not compared:
        return "What each layer would predict"
    model = max(compared, key=lambda name: (sum(compared[name][-1]), sum(map(sum, compared[name]))))
    last, count = sum(compared[model][-1]), len(compared[model][-1])
    if not last:
        return f"All candidates predict the reference's token at all {count} places"
    early = sum(sum(row) for row in compared[model][:-1])
    before = f", and in {early} of {count * (len(compared[model]) - 1)} cells before" if early else ""
    return f"{short_name(view, model)} predicts another token than the reference at {last} of {count} places{before}"


def _lens_panel(
    view: RunView, model: str, arrays: Arrays, base: Arrays | None, marked: list[list[bool]] | None
) -> Figure:
    cells = [_texts(row) for row in arrays["lens_text"][:, :_LENS_TOKENS]]
    theirs = [_texts(row) for row in base["lens_text"][:, :_LENS_TOKENS]] if base is not None and marked else cells
    data: dict[str, Any] = {
        "x": _tokens(arrays["text"][:_LENS_TOKENS]),
        "y": _layers(len(cells)),
        "values": _grid(arrays["lens_p"][:, :_LENS_TOKENS]),
        "cells": [[_shown(cell) for cell in row] for row in cells],
        "notes": [
            [
                f"token “{cell}”" + (f", the reference “{other}”" if cell != other else "")
                for cell, other in zip(row, others, strict=True)
            ]
            for row, others in zip(cells, theirs, strict=True)
        ],
        "least": _LEAST_WIDTH,
        "scale": {"kind": "share", "domain": [0, 1], "title": "probability"},
    }
    if marked:
        data |= {"marked": marked, "marked_means": "another token than the reference's"}
    return make_panel(short_name(view, model), f"{visible(model)}: the token that each layer would predict next.", data)


def _prompt(view: RunView) -> str:
    """Of which prompt the states are, as the suite described its arrays."""
    said = next((entry.get("description") for entry in view.run.get("arrays", []) if entry["name"] == "layers"), "")
    return visible(str(said)) if said else "The first tokens of one prompt."


def _tokens(texts: NDArray[Any]) -> dict[str, Any]:
    names = [_shown(text) for text in _texts(texts)]
    short = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    return {"label": "token", "names": short}


def _layers(count: int) -> dict[str, Any]:
    return {"label": "layer", "names": [str(layer) for layer in range(count)]}


def _grid(values: NDArray[Any]) -> Grid:
    """Floats as short as they are precise enough to look at: pages have tens of thousands of them."""
    return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in values.tolist()]


def _highest(grids: Mapping[str, Grid]) -> tuple[str, int, int, float]:
    """(model, layer, place of the token, value) of the highest cell."""
    return max(
        (
            (model, layer, place, value)
            for model, grid in grids.items()
            for layer, row in enumerate(grid)
            for place, value in enumerate(row)
        ),
        key=lambda cell: cell[3],
    )


def _texts(tokens: Sequence[Any] | NDArray[Any]) -> list[str]:
    return [visible(str(token)) for token in tokens]


def _shown(token: str) -> str:
    """A token whose spaces can be seen."""
    return token.replace(" ", "·")
