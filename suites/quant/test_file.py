"""What do the files hold?"""

from __future__ import annotations

import pytest

from gguf_harness.inputs.subjects import Subject
from gguf_harness.metrics.records import Estimate
from gguf_harness.pytest_plugin.fixture_types import GateCheck, Record


@pytest.mark.metric("file_bytes")
def test_file(model: Subject, record: Record, gate: GateCheck) -> None:
    """Size and effective bits per weight."""
    estimates = _measure(model)
    record(*estimates.values())
    gate.where_set(*estimates.values(), measure=_measure)


def _measure(model: Subject) -> dict[str, Estimate]:
    return {
        "file_bytes": Estimate("file_bytes", model.info.bytes, 1),
        "bits_per_weight": Estimate("bits_per_weight", model.info.bits_per_weight, 1),
    }
