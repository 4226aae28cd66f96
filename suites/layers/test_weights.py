"""How far are a candidate's weights from the reference's?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.gguf.groups import by_layers, by_role
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.weights.calls import WeightErrors
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.weight_errors import TensorError, merge_errors, summarize_error

_OF_PARTS = frozenset({"weight_relative_rmse", "weight_max_error", "weight_cosine", "weight_snr_db", "weight_bits"})


@pytest.mark.metric("weight_relative_rmse")
def test_weights_stay_close_to_reference(
    candidate: Subject, reference: Subject, weight_errors: WeightErrors, record: Record, gate: GateCheck
) -> None:
    """Errors of all weights together, by layer and by role; the report shows single tensors."""
    errors = {error.name: error for error in weight_errors(candidate, reference)}
    whole = merge_errors(list(errors.values()), "all tensors")
    exact = sum(error.squared_error == 0 for error in errors.values())
    estimates = summarize_error(whole)
    record(estimates, detail=f"{len(errors)} tensors, {exact} of them exact: {whole.type}")
    for (layer, _), names in by_layers(errors, len(errors)).items():
        part = merge_errors([errors[name] for name in names], f"layer {layer}")
        record(_of_part(part, Place(layer)), detail=part.type)
    for role, names in by_role(errors).items():
        part = merge_errors([errors[name] for name in names], role)
        record(_of_part(part, Place(part=role)), detail=f"{role}: {part.type}")
    gate(estimates)
    assert whole.relative_rmse is not None
    assert whole.relative_rmse < 1, f"the weights of {candidate.name} have nothing in common with the reference's"


def _of_part(error: TensorError, place: Place) -> list[Estimate]:
    if error.squared_error == 0:
        return []  # copied norms and biases
    return [estimate for estimate in summarize_error(error, place) if estimate.metric in _OF_PARTS]
