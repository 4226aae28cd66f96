"""What is in the files?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.metrics.records import Estimate


@pytest.mark.metric("file_bytes")
def test_file(model: Subject, record: Record, gate: GateCheck) -> None:
    """Size and effective bits per weight."""
    estimates = _measure(model)
    record(estimates)
    gate(estimates, relative_to=_measure)


def _measure(model: Subject) -> list[Estimate]:
    return [
        Estimate("file_bytes", model.info.bytes, 1),
        Estimate("bits_per_weight", model.info.bits_per_weight, 1),
    ]
