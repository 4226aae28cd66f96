"""How far are a candidate's weights from the reference's?"""

from __future__ import annotations

import pytest

from gguf_harness.gguf.groups import by_layers, by_role
from gguf_harness.metrics.weight_errors import TensorError, merge_errors, summarize_error
from gguf_harness.pytest_plugin.fixture_types import GateCheck, Record, WeightErrors
from gguf_harness.runner import LoadedModel

_OF_PARTS = frozenset({"weight_relative_rmse", "weight_max_error", "weight_cosine", "weight_snr_db", "weight_bits"})


@pytest.mark.metric("weight_relative_rmse")
def test_weights_stay_close_to_reference(
    candidate: LoadedModel, reference: LoadedModel, weight_errors: WeightErrors, record: Record, gate: GateCheck
) -> None:
    """Errors of all weights together, by layer and by role; the report shows single tensors."""
    errors = {error.name: error for error in weight_errors(candidate, reference)}
    whole = merge_errors(list(errors.values()), "all tensors")
    estimates = summarize_error(whole)
    exact = sum(error.squared_error == 0 for error in errors.values())
    record(*estimates, detail=f"{len(errors)} tensors, {exact} of them exact: {whole.type}")
    for (layer, _), names in by_layers(errors, len(errors)).items():
        _record_part(record, [errors[name] for name in names], f"layer {layer}", layer)
    for role, names in by_role(errors).items():
        _record_part(record, [errors[name] for name in names], role, None)
    gate.where_set(*estimates)
    assert whole.relative_rmse is not None
    assert whole.relative_rmse < 1, f"the weights of {candidate.name} have nothing in common with the reference's"


def _record_part(record: Record, errors: list[TensorError], name: str, layer: int | None) -> None:
    part = merge_errors(errors, name)
    if part.squared_error == 0:
        return  # norms and biases, which are copied
    kept = [estimate for estimate in summarize_error(part) if estimate.metric in _OF_PARTS]
    role = name if layer is None else None
    record(*kept, layer=layer, part=role, detail=f"{name}: {part.type}" if layer is None else part.type)
