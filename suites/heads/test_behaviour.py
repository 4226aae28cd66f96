"""What does each head do?"""

from __future__ import annotations

import pytest

from harness.fixture_types import Attend, Record
from harness.runner import LoadedModel


@pytest.mark.metric("head_entropy")
def test_behaviour(model: LoadedModel, attention: Attend, record: Record) -> None:
    """Scores of each head on the prompts, and on repeated random tokens."""
    behaviour = attention(model)
    for (layer, head), profile in behaviour:
        record(*profile.estimates(), layer=layer, head=head)
    assert len(behaviour.heads) == len(behaviour.profiles)
