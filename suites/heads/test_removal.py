"""How many heads can be removed?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.heads.calls import HeadAblation
from gguf_harness.metrics.importance import removable


@pytest.mark.metric("heads_removable")
def test_heads_that_can_go(reference: Subject, head_ablation: HeadAblation, record: Record) -> None:
    """Heads are removed one by one, always the one that costs least, until the loss has risen by 1 nat."""
    curve = head_ablation.removal(reference)["nll"]
    estimate = removable(curve)
    record(estimate, detail=f"up to {len(curve) - 1} removed, {head_ablation.detail}")


@pytest.mark.metric("heads_removable")
def test_heads_that_can_go_of_a_candidate(
    candidate: Subject, reference: Subject, head_ablation: HeadAblation, record: Record
) -> None:
    """The candidate loses the same heads in the reference's order."""
    curve = head_ablation.removal(candidate, along=reference)["nll"]
    estimate = removable(curve)
    record(estimate, detail=f"in the reference's order, up to {len(curve) - 1} removed, {head_ablation.detail}")
