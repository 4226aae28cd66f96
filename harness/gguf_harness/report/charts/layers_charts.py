"""Charts of the layers suite: errors by layer, patching, what blocks add, norms, the stream, the logit lens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.charts.base import Chart, Figure, make_chart, short_name
from gguf_harness.report.charts.layer_lines import (
    LAYER,
    Series,
    change_panel,
    layer_rows,
    line_panel,
    metric_label,
    percent,
    series_of,
    show,
)
from gguf_harness.report.charts.state_charts import state_charts
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_estimate

__all__ = ["layers_charts"]

_LOG: Final[Mapping[str, Any]] = {"log": True}
_SHARE: Final[Mapping[str, Any]] = {"percent": True}
_ERRORS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("resid_relative_error", {"log": True, "percent": True}),
    ("attn_out_relative_error", {"log": True, "percent": True}),
    ("mlp_out_relative_error", {"log": True, "percent": True}),
    ("error_amplification", {"log": True, "middle": 1}),
    ("resid_cosine", {}),
    ("resid_cka", {}),
)
_STREAM: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("resid_norm", _LOG),
    ("resid_growth", {"middle": 1}),
    ("token_similarity", {}),
    ("token_similarity_centered", {"middle": 0}),
    ("effective_rank", {}),
    ("participation_ratio", {}),
    ("outlier_kurtosis", _LOG),
    ("massive_activations", {}),
)
_LENS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("lens_agreement", _SHARE),
    ("lens_final_p", _SHARE),
    ("lens_kl", {"zero": True}),
    ("lens_entropy", {"zero": True}),
)
_BY_PROMPT: Final = "Bars are one standard error to each side, clustered by prompt."
_MOST_TICKS: Final = 8


def layers_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The charts that the run has data for."""
    charts = [
        _errors(view),
        _patching(view),
        _contributions(view),
        *state_charts(view, run_dir),
        _lens(view),
        _norms(view),
        _stream(view),
    ]
    return [chart for chart in charts if chart is not None]


def _panels(view: RunView, metrics: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Figure]:
    """A panel for each metric that was measured: a line for each model."""
    panels = (
        line_panel(
            view,
            METRICS[metric].title,
            METRICS[metric].meaning,
            {"label": metric_label(metric)} | dict(look),
            series_of(layer_rows(view, metric)),
        )
        for metric, look in metrics
    )
    return [panel for panel in panels if panel is not None]


def _errors(view: RunView) -> Chart | None:
    panels = _panels(view, _ERRORS)
    if not panels:
        return None
    rows = []
    for model, found in layer_rows(view, "resid_relative_error").items():
        grown = _growth(view, model)
        said = "" if grown is None else f"{show(grown['value'])} times in layer {grown['layer']}"
        rows.append([visible(model), percent(found[-1]["value"]), said])
    return make_chart(
        "layer-errors",
        _error_finding(view) or "Errors by layer",
        "Distance of a candidate's hidden states from the reference's after each layer, on the same tokens, and by how"
        f" much each layer changes the incoming error. {_BY_PROMPT}",
        panels,
        "; ".join(f"{row[0]}: {row[1]} after the last layer" for row in rows) or "Curves over layers, one per model.",
        view="lines",
        how="A relative error is the norm of the difference from the reference's state, divided by the norm of that"
        " state: 100 % is as far off as the state is long. Errors of all layers so far add up in the residual stream,"
        " so the curve rises; where it rises faster than before, a layer is worth more bits. Amplification is the step"
        " from one layer to the next: 1 keeps the error as it is. That of the first layer is over the error of the"
        " embeddings alone.",
        table=(["model", "error after the last layer", "grows most"], rows) if rows else None,
    )


def _growth(view: RunView, model: str) -> Mapping[str, Any] | None:
    """The layer whose block lets a model's error grow most. Layer 0 is left out: embeddings have little error."""
    rows = [row for row in layer_rows(view, "error_amplification").get(model, []) if row["layer"] > 0]
    return max(rows, key=lambda row: float(row["value"]), default=None)


def _error_finding(view: RunView) -> str | None:
    rows = layer_rows(view, "resid_relative_error")
    if not rows:
        return None
    model = max(rows, key=lambda name: float(rows[name][-1]["value"]))
    last, grown = rows[model][-1], _growth(view, model)
    told = f"{short_name(view, model)}'s error reaches {percent(last['value'])} after layer {last['layer']}"
    if grown is None or grown["value"] <= 1:
        return told
    if 1.95 <= grown["value"] < 2.05:
        return f"{told}; it doubles in layer {grown['layer']}"
    return f"{told}; it grows most in layer {grown['layer']}, {show(grown['value'])}-fold"


def _patching(view: RunView) -> Chart | None:
    panels = [panel for panel in (_kl_left(view), *_panels(view, [("layer_importance", {"zero": True})])) if panel]
    if not panels:
        return None
    causes = [cause for model in view.candidates if (cause := _cause(view, model.name))]
    rows = [[visible(model), where, percent(share)] for model, where, share in causes]
    return make_chart(
        "layer-patching",
        _patching_finding(view, causes),
        "KL left: the part of the candidate's divergence that remains when its stream after a layer is replaced by the"
        f" reference's. Importance: rise of the loss on the prompts when a block is skipped. {_BY_PROMPT}",
        panels,
        "; ".join(f"{model}: {where} causes {share} of the divergence" for model, where, share in rows)
        or "Curves over layers, one per model.",
        view="lines",
        how="Read the curve of KL left from left to right: where it drops, the layer between the two points causes the"
        " loss. The first point has the reference's embeddings and the candidate's layers. What is left after the last"
        " layer comes from the final norm and the output matrix.",
        table=(["model", "causes most", "share of the divergence"], rows) if rows else None,
    )


def _kl_left(view: RunView) -> Figure | None:
    """The curves begin with the embeddings, one place before layer 0."""
    series = []
    for line in series_of(layer_rows(view, "layer_kl_left")):
        row = view.row(line.model, "embed_kl_left")
        start = [] if row is None else [(-1, row["value"], row["se"], "the reference's embeddings")]
        series.append(Series(line.model, None, [*start, *line.points]))
    last = max((layer for line in series for layer, *_ in line.points), default=0)
    step = -(-(last + 1) // _MOST_TICKS)
    ticks = [[-1, "embed"], *([layer, str(layer)] for layer in range(0 if step == 1 else step, last + 1, step))]
    info = METRICS["layer_kl_left"]
    axis = {"label": info.title, "percent": True, "zero": True}
    return line_panel(view, info.title, info.meaning, axis, series, x=LAYER | {"ticks": ticks})


def _cause(view: RunView, model: str) -> tuple[str, str, float] | None:
    """What causes most of a candidate's divergence: (model, `layer 3`, share of the KL)."""
    rows = layer_rows(view, "layer_kl_left").get(model, [])
    start = view.row(model, "embed_kl_left")
    # Where --gguf-layers left layers out, a drop has more than one cause.
    if not rows or [row["layer"] for row in rows] != list(range(len(rows))):
        return None
    curve = [("the embeddings", start["value"])] if start else []
    curve += [(f"layer {row['layer']}", row["value"]) for row in rows]
    before = [1.0, *(value for _, value in curve)]
    # Without the embeddings' point the first drop is theirs and the first layer's together.
    drops = [(name, was - value) for was, (name, value) in zip(before, curve, strict=False)]
    drops.append(("what comes after the layers", curve[-1][1]))
    where, share = max(drops, key=lambda drop: drop[1])
    return (model, where, share) if share > 0 else None


def _patching_finding(view: RunView, causes: Sequence[tuple[str, str, float]]) -> str:
    told = []
    if causes:
        model, where, share = causes[-1]
        verb = "cause" if where == "the embeddings" else "causes"
        told.append(f"{where} {verb} {percent(share)} of {short_name(view, model)}'s divergence")
    rows = layer_rows(view, "layer_importance")
    base = rows.get(view.reference or "") or next(iter(rows.values()), [])
    if base:
        most = max(base, key=lambda row: float(row["value"]))
        told.append(f"skipping layer {most['layer']} costs most, {show(most['value'])} nats")
    title = "; ".join(told) or "What single layers do"
    return title[0].upper() + title[1:]


def _contributions(view: RunView) -> Chart | None:
    size = (("attn_share", "attention"), ("mlp_share", "MLP"))
    logit = (("direct_attn", "attention"), ("direct_mlp", "MLP"))
    turn = (("attn_update_cosine", "attention"), ("mlp_update_cosine", "MLP"))
    panels = [
        _side_by_side(
            view, "logits", "Contribution of each update to the logit of the predicted token, with the final norm's"
            " scale held fixed.", {"label": "logits of the predicted token", "middle": 0}, logit,
        ),
        change_panel(view, "logits: change", "change of the contribution (logits)", logit, ratio=False),
        _side_by_side(
            view, "size", "Norm of the update divided by that of the stream it is added to.",
            {"label": "size of the update / the stream", "log": True}, size,
        ),
        change_panel(view, "size: change", "candidate / reference", size, ratio=True),
        _side_by_side(
            view, "direction", "Cosine of the update and the stream: above 0 it makes the stream longer, below 0 it"
            " takes away.", {"label": "cosine", "middle": 0}, turn,
        ),
    ]  # fmt: skip
    present = [panel for panel in panels if panel is not None]
    if not present:
        return None
    return make_chart(
        "layer-contributions",
        _contribution_finding(view, logit) or "What blocks add",
        f"What attention and the MLP of each layer add to the residual stream. {_BY_PROMPT}",
        present,
        "Curves over layers for attention and MLP side by side, one per model.",
        view="lines",
        how="Both halves have the same axes. A candidate that does what the reference does lies on the grey line; the"
        " panels named `change` show the difference alone.",
    )


def _side_by_side(
    view: RunView, name: str, meaning: str, y: Mapping[str, Any], parts: Sequence[tuple[str, str]]
) -> Figure | None:
    series = [line for metric, title in parts for line in series_of(layer_rows(view, metric), title)]
    return line_panel(view, name, meaning, y, series)


def _contribution_finding(view: RunView, parts: Sequence[tuple[str, str]]) -> str | None:
    """Where the reference gets its prediction from, and which candidate's contribution changes most."""
    base = {
        (title, int(row["layer"])): float(row["value"])
        for metric, title in parts
        for row in layer_rows(view, metric).get(view.reference or "", [])
    }
    if not base:
        return None
    (title, layer), most = max(base.items(), key=lambda item: abs(item[1]))
    does = "adds most to" if most > 0 else "takes most from"
    told = f"Layer {layer}'s {title} {does} the predicted logit ({show(abs(most))})"
    changed = [
        (abs(row["value"] - base[place]), row["value"] - base[place], model, place)
        for metric, part in parts
        for model, rows in layer_rows(view, metric).items()
        for row in rows
        if model != view.reference and (place := (part, int(row["layer"]))) in base
    ]
    if not changed:
        return told
    _, change, model, (part, where) = max(changed)
    return f"{told}; {short_name(view, model)} changes most in layer {where}'s {part}, by {change:+.2g}".replace(
        "by -", "by −"
    )


def _norms(view: RunView) -> Chart | None:
    parts = (("attn_norm_gain", "before attention"), ("mlp_norm_gain", "before the MLP"))
    final = [(model.name, row) for model in view.models if (row := view.row(model.name, "final_norm_gain"))]
    rows = [[visible(model), format_estimate(row["value"], row["se"])] for model, row in final]
    ends = sorted({show(row["value"]) for _, row in final}, key=float)
    said = (
        f" After the last layer the final norm scales by {' to '.join(dict.fromkeys((ends[0], ends[-1])))}."
        if ends
        else ""
    )
    panels = [
        _side_by_side(
            view, "gain", "Norm of a block's input over the stream's: what the layer norm makes of it."
            + said,
            {"label": "norm after / before", "log": True}, parts,
        ),
        change_panel(view, "change", "candidate / reference", parts, ratio=True),
    ]  # fmt: skip
    present = [panel for panel in panels if panel is not None]
    if not present:
        return None
    return make_chart(
        "layer-norm-gains",
        _norm_finding(view, parts),
        f"By how much the norms scale the residual stream before attention and before the MLP. {_BY_PROMPT}",
        present,
        "; ".join(f"{model}: final norm {gain}" for model, gain in rows) or "Curves over layers, one per model.",
        view="lines",
        how="A norm divides a state by its size and multiplies it by learned weights. As the stream grows from layer to"
        " layer, the gain falls. A candidate off the reference's line has a stream of another size.",
        table=(["model", "gain of the final norm"], rows) if rows else None,
    )


def _norm_finding(view: RunView, parts: Sequence[tuple[str, str]]) -> str:
    base = [
        (float(row["value"]), int(row["layer"]), title)
        for metric, title in parts
        for row in layer_rows(view, metric).get(view.reference or "", [])
    ]
    if not base:
        return "What layer norms do to the stream's size"
    (high, layer, where), (low, lowest, there) = max(base), min(base)
    told = f"Norms scale the stream by {show(high)} {where} in layer {layer}, by {show(low)} {there} in layer {lowest}"
    panel = change_panel(view, "", "", parts, ratio=True)
    if panel is None:
        return told
    off = max(abs(point[1] - 1) for line in panel["data"]["lines"] for point in line["points"])
    return f"{told}; candidates differ by up to {percent(off)}"


def _stream(view: RunView) -> Chart | None:
    panels = _panels(view, _STREAM)
    if not panels:
        return None
    return make_chart(
        "layer-stream",
        _stream_finding(view) or "The residual stream by layer",
        f"Size and shape of each model's own residual stream after each layer; neither direction is better."
        f" {_BY_PROMPT}",
        panels,
        "Curves over layers, one per model.",
        view="lines",
        how="Lines that lie on each other are models whose streams have the same shape. The norm says how much later"
        " layers can still change: what a block adds counts against it. Similar tokens and a low rank mean that the"
        " states of different tokens become alike; a massive state is one far above the rest, often the first token's.",
    )


def _stream_finding(view: RunView) -> str | None:
    rows = layer_rows(view, "resid_norm").get(view.reference or "", [])
    if len(rows) < 2 or not rows[0]["value"] > 0:
        return None
    first, last = rows[0], rows[-1]
    verb = "grows" if last["value"] > first["value"] else "shrinks"
    told = (
        f"The stream's norm {verb} from {show(first['value'])} to {show(last['value'])} between layers"
        f" {first['layer']} and {last['layer']}"
    )
    # Layer 0's growth is over the embeddings, which are short.
    steps = [row for row in layer_rows(view, "resid_growth").get(view.reference or "", []) if row["layer"] > 0]
    jump = max(steps, key=lambda row: float(row["value"]), default=None)
    return (
        told
        if jump is None or jump["value"] < 2
        else f"{told}; layer {jump['layer']} makes it {show(jump['value'])} times as long"
    )


def _lens(view: RunView) -> Chart | None:
    panels = _panels(view, _LENS)
    if not panels:
        return None
    return make_chart(
        "lens-by-layer",
        "; ".join(_lens_findings(view)) or "When a prediction is decided",
        "What each layer would predict if it were the last, over all tokens of the prompts, beside what the model"
        f" predicts in the end. {_BY_PROMPT}",
        panels,
        "Curves over layers, one per model.",
        view="lines",
        how="At the last layer the lens is the model's own prediction. Where a curve rises steeply, the prediction is"
        " made; a candidate whose curve rises later, or ends lower, needs more layers for the same, or predicts"
        " something else.",
    )


def _lens_findings(view: RunView) -> Iterator[str]:
    decided = {model.name: row["value"] for model in view.models if (row := view.row(model.name, "lens_decided_layer"))}
    reference = view.reference or ""
    if reference not in decided:
        return
    yield f"The reference's prediction stands from layer {decided.pop(reference):.1f} on, on average"
    if decided:
        low, high = min(decided.values()), max(decided.values())
        ends = dict.fromkeys((f"{low:.1f}", f"{high:.1f}"))
        yield f"candidates' from {' to '.join(ends)}"
