"""What do the files hold?"""

from __future__ import annotations

import pytest

from harness.fixture_types import Record
from harness.records import Estimate
from harness.runner import LoadedModel


@pytest.mark.metric("file_bytes")
def test_file(model: LoadedModel, record: Record) -> None:
    """Size and effective bits per weight."""
    record(Estimate("file_bytes", model.info.bytes, 1))
    record(Estimate("bits_per_weight", model.info.bits_per_weight, 1))
    assert 0 < model.info.bits_per_weight <= 64
