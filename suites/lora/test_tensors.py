"""Which matrices does an adapter change, by how much, and in how many directions?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.lora.calls import LoraEffects
from gguf_harness.metrics.low_rank import change_estimates


@pytest.mark.metric("lora_relative_norm")
def test_changes_of_matrices(adapted_reference: Subject, lora: LoraEffects, record: Record) -> None:
    """Size and rank of each change, from the adapter's file and the model's."""
    arrays = lora.changes(adapted_reference)
    record(change_estimates(arrays), detail="as the adapter's file has it, at the scale it is applied with")
    lora.note(adapted_reference, "lora_changes", "Changes by an adapter, by matrix.", arrays)
