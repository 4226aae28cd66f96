"""Charts of where an adapter changes a model: layers, heads, matrices, tokens and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import metric_info
from gguf_harness.report.charts.base import Chart, Figure, Models, arrays_of, make_chart, make_panel, short_name
from gguf_harness.report.charts.layer_lines import layer_rows, percent, show
from gguf_harness.report.charts.text_charts import text_chart
from gguf_harness.report.charts.weight_charts import OUTSIDE
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_value
from gguf_harness.views.strip_data import strip_words

__all__ = ["place_charts"]

_SHOWN_TOKENS: Final = 12
_SHOWN_CHARACTERS: Final = 34
_LAYERED: Final = ("lora_states_moved", "lora_lens_changed", "lora_attention_moved")


def place_charts(view: RunView, run_dir: Path, names: Sequence[str]) -> list[Chart]:
    """The charts that the run has data for.

    Args:
        view: the run.
        run_dir: its folder.
        names: subjects with adapters.
    """
    charts = [
        _layers(view, names),
        _heads(view, names),
        _matrices(view, run_dir),
        _tokens(view, run_dir),
        text_chart(view, "lora-texts", names, _file_of(view, names), "so a difference comes from the adapter"),
    ]
    return [chart for chart in charts if chart is not None]


def _file_of(view: RunView, names: Sequence[str]) -> str | None:
    """The subject without adapters that those with texts are compared with."""
    written = {row["model"] for rows in view.texts.values() for row in rows}
    facts = {model.name: model.facts for model in view.models}
    return next(
        (str(facts[name]["file"]) for name in names if name in written and facts[name]["file"] in written), None
    )


def _layers(view: RunView, names: Sequence[str]) -> Chart | None:
    panels, told = [], []
    for metric in _LAYERED:
        found = {name: rows for name, rows in layer_rows(view, metric).items() if name in names}
        if not found:
            continue
        info = metric_info(metric)
        share = info.unit == "fraction"
        lines = [
            {
                "name": short_name(view, name),
                "points": [[int(row["layer"]), row["value"], row["se"], f"n = {row['n']}"] for row in rows],
            }
            for name, rows in found.items()
        ]
        y = {"label": info.title + ("" if share else f" ({info.unit})"), "zero": True, "percent": share}
        panels.append(
            make_panel(info.title, info.meaning, {"x": {"label": "layer"}, "y": y, "models": [], "lines": lines})
        )
        for name, rows in found.items():
            most = max(rows, key=lambda row: float(row["value"]))
            value = percent(most["value"]) if share else f"{show(most['value'])} {info.unit}"
            told.append((info.title, name, int(most["layer"]), value))
    if not panels:
        return None
    title, name, layer, value = told[0]
    return make_chart(
        "lora-layers",
        f"{short_name(view, name)}: layer {layer} has the most {title}, {value}",
        "What the adapter changes by layer, on the prompts: the residual stream after a layer, what the logit lens"
        " reads there, and where heads attend.",
        panels,
        "; ".join(f"{each[1]}, {each[0]}: most in layer {each[2]}, {each[3]}" for each in told),
        view="lines",
        how="A layer where a line rises is one at which the adapter acts; later layers carry on what earlier ones"
        " changed.",
        table=(["subject", "what", "most in layer", "value"], [[visible(n), t, str(at), v] for t, n, at, v in told]),
    )


def _heads(view: RunView, names: Sequence[str]) -> Chart | None:
    by_model = {
        name: rows
        for name in names
        if (rows := [row for row in view.rows_of(name, "lora_attention_moved") if row.get("head") is not None])
    }
    values = [float(row["value"]) for rows in by_model.values() for row in rows]
    if not values or max(values) <= 0:
        return None
    scale = {"kind": "share", "title": "attention moved (nats)", "domain": [0, max(values)], "root": True}
    panels = []
    for name, rows in by_model.items():
        layers, heads = (sorted({int(row[key]) for row in rows}) for key in ("layer", "head"))
        cells: list[list[float | None]] = [[None] * len(heads) for _ in layers]
        for row in rows:
            cells[layers.index(int(row["layer"]))][heads.index(int(row["head"]))] = row["value"]
        data = {
            "x": {"label": "head", "names": [str(head) for head in heads]},
            "y": {"label": "layer", "names": [str(layer) for layer in layers]},
            "values": cells,
            "scale": scale,
            "square": True,
        }
        panels.append(make_panel(short_name(view, name), f"{visible(name)}, by layer and head.", data))
    name, most = max(
        ((name, row) for name, rows in by_model.items() for row in rows), key=lambda pair: float(pair[1]["value"])
    )
    where = f"head {most['head']} of layer {most['layer']}"
    return make_chart(
        "lora-heads",
        f"{short_name(view, name)} moves the attention of {where} most, by {show(most['value'])} nats",
        metric_info("lora_attention_moved").meaning + " Mean over rows of all prompts.",
        panels,
        f"{len(values)} heads, {visible(name)}: most in {where}, {format_value(most['value'])} nats.",
        view="matrix",
        how="Dark heads attend elsewhere with the adapter than without. At most it can be ln 2 = 0.69 nats, where both"
        " share no token.",
    )


# -- matrices ---------------------------------------------------------------------------------------------------------


def _matrices(view: RunView, run_dir: Path) -> Chart | None:
    stored = {
        name: {key: array.tolist() for key, array in arrays.items()}
        for name, arrays in arrays_of(view, run_dir, "lora_changes").items()
    }
    sizes = {name: _relative(columns) for name, columns in stored.items()}
    above = [value for each in sizes.values() for value in each if value > 0]
    if not above:
        return None
    domain = [min(above), max(above)]
    panels = [_matrix_panel(view, name, columns, sizes[name], domain) for name, columns in stored.items()]
    name, at = max(
        ((name, at) for name, each in sizes.items() for at in range(len(each))),
        key=lambda cell: sizes[cell[0]][cell[1]],
    )
    tensor = visible(stored[name]["tensor"][at])
    return make_chart(
        "lora-matrices",
        f"{short_name(view, name)} changes {tensor} most: by {percent(sizes[name][at])} of its size",
        "Size of the adapter's change of each matrix, relative to the matrix: Frobenius norms, from the files.",
        panels,
        f"{len(above)} matrices, changed by {percent(domain[0])} to {percent(domain[1])}; most in {tensor}.",
        view="matrix",
        how="Layers go down, kinds of matrices to the right. A small change may do much: it is where training found"
        " that it pays, and weights of a layer differ in what they are worth.",
    )


def _relative(columns: Mapping[str, list[Any]]) -> list[float]:
    return [norm / whole if whole > 0 else 0.0 for norm, whole in zip(columns["norm"], columns["weights"], strict=True)]


def _matrix_panel(
    view: RunView, name: str, columns: Mapping[str, list[Any]], sizes: Sequence[float], domain: Sequence[float]
) -> Figure:
    roles = list(dict.fromkeys(columns["role"]))
    layers = sorted(set(columns["layer"]), key=lambda layer: (layer < 0, layer))
    values: list[list[float | None]] = [[None] * len(roles) for _ in layers]
    notes = [[""] * len(roles) for _ in layers]
    for at, size in enumerate(sizes):
        row, column = layers.index(columns["layer"][at]), roles.index(columns["role"][at])
        values[row][column] = (values[row][column] or 0.0) + size if size > 0 else values[row][column]
        effective = columns["effective_rank"][at]
        rank = f"rank {columns['rank'][at]}" + ("" if math.isnan(effective) else f", effective {effective:.2f}")
        notes[row][column] += ("\n" if notes[row][column] else "") + f"{visible(columns['tensor'][at])}: {rank}"
    data = {
        "x": {"label": "kind", "names": [visible(role) for role in roles]},
        "y": {"label": "layer", "names": [OUTSIDE if layer < 0 else str(layer) for layer in layers]},
        "values": values,
        "notes": notes,
        "cells": [["" if value is None else percent(value) for value in row] for row in values],
        "scale": {
            "kind": "share",
            "domain": list(domain),
            "title": "relative size (logarithmic)",
            "log": True,
            "percent": True,
        },
    }
    return make_panel(short_name(view, name), f"{visible(name)}, by layer and kind of matrix.", data)


# -- tokens -----------------------------------------------------------------------------------------------------------


def _tokens(view: RunView, run_dir: Path) -> Chart | None:
    """The tokens with the largest KL: how likely the text's own token is without and with the adapter."""
    facts = {model.name: model.facts for model in view.models}
    panels, rows = [], []
    for name_of, title in (("lora_tokens_own", "own text"), ("lora_tokens_corpus", "corpus")):
        for name, arrays in arrays_of(view, run_dir, name_of).items():
            pair = [str(facts[name]["file"]), name]
            tokens = _read(arrays)
            panels.append(_token_panel(view, title, pair, tokens))
            rows += [
                [visible(name), title, each["text"], f"{100 * each['p_base']:.2g} %", f"{100 * each['p']:.2g} %",
                 format_value(each["kld"])]
                for each in tokens
            ]  # fmt: skip
    if not panels:
        return None
    first = rows[0]
    return make_chart(
        "lora-tokens",
        f"The adapter changed most what follows {first[2]}: {first[3]} without it, {first[4]} with it",
        "The tokens where predictions with and without the adapter are farthest apart (KL), in their text: the"
        " probability of the token that stands there.",
        panels,
        "; ".join(f"{row[2]} ({row[1]}): {row[3]} to {row[4]}" for row in rows[:_SHOWN_TOKENS]),
        view="dots",
        how="The token in brackets is the text's. On its own text the adapter should make it likelier; where it becomes"
        " less likely, the adapter expects something else there.",
        table=(["subject", "text", "token", "without", "with", "KL (nats)"], rows),
    )


def _read(arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    before, pieces = strip_words(arrays["before"].tolist()), strip_words(arrays["piece"].tolist())
    return [
        {
            "text": f"…{_flat(text)[-_SHOWN_CHARACTERS:]}[{_flat(piece)}]",
            "top": [_flat(top) for top in tops],
            "p_base": float(p_base),
            "p": float(p),
            "kld": float(kld),
        }
        for text, piece, tops, p_base, p, kld in zip(
            before,
            pieces,
            zip(strip_words(arrays["piece_base"].tolist()), strip_words(arrays["piece_top"].tolist()), strict=True),
            arrays["p_base"],
            arrays["p"],
            arrays["kld"],
            strict=True,
        )
    ]


def _flat(text: str) -> str:
    return visible(text.replace("\n", "⏎"))


def _token_panel(view: RunView, title: str, pair: Sequence[str], tokens: Sequence[Mapping[str, Any]]) -> Figure:
    models = Models(view, pair)
    dots = [
        {
            "model": models[name],
            "name": f"{at + 1}. {each['text']}",
            "value": each[key],
            "text": f"{'with' if key == 'p' else 'without'}: {100 * each[key]:.2g} %",
            "detail": f"likeliest: {each['top'][key == 'p']}; KL {format_value(each['kld'])} nats",
        }
        for at, each in enumerate(tokens[:_SHOWN_TOKENS])
        for name, key in zip(pair, ("p_base", "p"), strict=True)
    ]
    data = {
        "x": {"label": "probability of the token", "percent": True, "domain": [0, 1]},
        "legend": True,
        "models": models.entries,
        "rows": dots,
    }
    return make_panel(title, f"Tokens of {title} that changed most, the largest KL first.", data)
