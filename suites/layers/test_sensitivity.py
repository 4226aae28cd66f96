"""Which quantized tensors cause the loss?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.weights.calls import TensorSensitivity
from gguf_harness.metrics.records import WHOLE
from gguf_harness.metrics.sensitivity import sensitivity_estimates


@pytest.mark.metric("tensor_group_kld")
def test_groups_of_tensors(
    candidate: Subject,
    reference: Subject,
    sensitivity: TensorSensitivity,
    record: Record,
    gate: GateCheck,
) -> None:
    """KL divergence of the reference with one group of tensors quantized, and of the candidate with one restored."""
    effects = sensitivity(candidate, reference)
    estimates = sensitivity_estimates(effects)
    record(estimates)
    # Up to rounding: a divergence below zero would mean that a mixture is wrong.
    assert all(effect.kld.mean() > -1e-4 for effect in (*effects.roles, *effects.layers, *effects.restored))
    gate([estimate for estimate in estimates if estimate.place != WHOLE])
