"""The structure chart: every tensor of each model with its type, size and error, by layer and kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_harness.report.charts.base import Chart, make_chart, make_panel, short_name
from gguf_harness.report.charts.layer_lines import percent
from gguf_harness.report.charts.weight_charts import Columns, load_columns
from gguf_harness.report.data import Candidate, RunView, visible
from gguf_harness.report.numbers import format_bytes
from gguf_harness.views.structure_data import fallback_note, scales_of, structure_of

__all__ = ["structure_charts"]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of a model. Its error is None in the reference."""

    name: str
    layer: int
    kind: str
    type: str
    weights: int
    bits: float
    error: float | None
    fallback: Mapping[str, Any] | None

    @property
    def bytes(self) -> float:
        return self.weights * self.bits / 8


def structure_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """The chart, if the run compared the tensors of a candidate with the reference's."""
    candidates = load_columns(view, run_dir, "weight_errors")
    if not candidates:
        return []
    models = {model.name: model for model in view.models}
    tensors = {name: _of_candidate(models[name], columns) for name, columns in candidates.items()}
    if view.reference in models:
        # All candidates were compared with the same tensors.
        tensors = {view.reference: _of_reference(models[view.reference], next(iter(candidates.values())))} | tensors
    everything = [tensor for found in tensors.values() for tensor in found]
    scales = scales_of(
        [tensor.bits for tensor in everything],
        [tensor.bytes for tensor in everything],
        [tensor.error for tensor in everything if tensor.error],
    )
    panels = [
        make_panel(short_name(view, name), _meaning(models[name], found), _data(found, scales))
        for name, found in tensors.items()
    ]
    rows = [[visible(name), _types(found)] for name, found in tensors.items()]
    return [
        make_chart(
            "structure",
            _finding(view, tensors),
            "Every tensor of a model, by layer and kind: its type, its size, and how far it is from the reference's.",
            panels,
            "; ".join(f"{model}: {types}" for model, types in rows),
            view="structure",
            how="Layers go down, kinds of tensors to the right, in the order of the file; below are the tensors that"
            " belong to no layer. Choose what the colours say: all models of the run have the same scales. An outline"
            " marks a tensor whose rows are no multiple of 256, so that it got another type than the recipe wanted.",
            table=(["model", "types"], rows),
        )
    ]


def _of_candidate(model: Candidate, columns: Columns) -> list[_Tensor]:
    fallbacks = {entry["tensor"]: entry for entry in model.facts.get("fallbacks") or []}
    return [
        _Tensor(
            name=name,
            layer=columns["layer"][index],
            kind=columns["role"][index],
            type=columns["type"][index],
            weights=columns["weights"][index],
            bits=columns["bits"][index],
            error=columns["relative_rmse"][index],
            fallback=fallbacks.get(name),
        )
        for index, name in enumerate(columns["tensor"])
    ]


def _of_reference(model: Candidate, columns: Columns) -> list[_Tensor]:
    """The tensors that candidates were compared with. Bits per weight of a type are those of all its tensors."""
    bits = {
        kind: 8 * facts["bytes"] / facts["parameters"]
        for kind, facts in model.facts.get("tensor_types", {}).items()
        if facts["parameters"]
    }
    return [
        _Tensor(
            name=name,
            layer=columns["layer"][index],
            kind=columns["role"][index],
            type=columns["reference_type"][index],
            weights=columns["weights"][index],
            bits=bits[columns["reference_type"][index]],
            error=None,
            fallback=None,
        )
        for index, name in enumerate(columns["tensor"])
        if columns["reference_type"][index] in bits
    ]


def _data(tensors: Sequence[_Tensor], scales: Mapping[str, list[float] | None]) -> dict[str, Any]:
    rows = [
        {
            "layer": tensor.layer if tensor.layer >= 0 else None,
            "kind": visible(tensor.kind),
            "name": visible(tensor.name),
            "type": visible(tensor.type),
            "bits": tensor.bits,
            "weights": tensor.weights,
            "bytes": tensor.bytes,
            "error": tensor.error,
            "fallback": None if tensor.fallback is None else fallback_note(tensor.fallback, tensor.weights),
        }
        for tensor in tensors
    ]
    return structure_of(rows, scales)


def _meaning(model: Candidate, tensors: Sequence[_Tensor]) -> str:
    size = format_bytes(sum(tensor.bytes for tensor in tensors))
    return f"{visible(model.name)}: {len(tensors)} tensors, {size}. {_types(tensors)}."


def _types(tensors: Sequence[_Tensor]) -> str:
    """`Q4_K 18 MB in 30 tensors, F32 0.1 MB in 61 tensors`, the biggest first."""
    by_type: dict[str, list[_Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.type, []).append(tensor)
    ranked = sorted(by_type.items(), key=lambda item: -sum(tensor.bytes for tensor in item[1]))
    return ", ".join(
        f"{visible(kind)} {format_bytes(sum(tensor.bytes for tensor in found))} in {_count(found)}"
        for kind, found in ranked
    )


def _count(tensors: Sequence[_Tensor]) -> str:
    return f"{len(tensors)} {'tensor' if len(tensors) == 1 else 'tensors'}"


def _finding(view: RunView, tensors: Mapping[str, Sequence[_Tensor]]) -> str:
    """What fell back; else what part of the smallest candidate's bytes is outside of layers."""
    fallen = {name: sum(tensor.fallback is not None for tensor in found) for name, found in tensors.items()}
    model = max(fallen, key=lambda name: fallen[name])
    if fallen[model]:
        return (
            f"{fallen[model]} of {short_name(view, model)}'s {len(tensors[model])} tensors have another type than its"
            " recipe wanted"
        )
    model, found = list(tensors.items())[-1]
    total = sum(tensor.bytes for tensor in found)
    outside = sum(tensor.bytes for tensor in found if tensor.layer < 0)
    biggest = max(found, key=lambda tensor: tensor.bytes)
    return (
        f"{percent(outside / total)} of {short_name(view, model)}'s bytes are outside of layers; its biggest tensor is"
        f" {visible(biggest.name)}, {format_bytes(biggest.bytes)}"
    )
