"""How many heads can be removed?"""

from __future__ import annotations

from typing import Any

import pytest
from numpy.typing import NDArray

from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.heads.calls import HeadAblation
from gguf_harness.metrics.importance import NEGLIGIBLE_RISE, removable


@pytest.mark.metric("heads_removable")
def test_heads_that_can_go(reference: Subject, head_ablation: HeadAblation, record: Record) -> None:
    """Heads are removed one by one, always the one that changes predictions least, until the loss of each window rises.

    The loss is that of other windows than those that chose the heads.
    """
    curve = head_ablation.removal(reference)["nll"]
    record(removable(curve), detail=f"{_told(curve)}, {head_ablation.detail}")


@pytest.mark.metric("heads_removable")
def test_heads_that_can_go_of_a_candidate(
    candidate: Subject, reference: Subject, head_ablation: HeadAblation, record: Record
) -> None:
    """The candidate loses the same heads in the reference's order."""
    curve = head_ablation.removal(candidate, along=reference)["nll"]
    record(removable(curve), detail=f"in the reference's order, {_told(curve)}, {head_ablation.detail}")


def _told(curve: NDArray[Any]) -> str:
    """How many were removed, and whether more could have been."""
    losses = curve.mean(axis=(1, 2))
    short = (losses - losses[0]).max() <= NEGLIGIBLE_RISE
    more = f", and the loss had not risen by {NEGLIGIBLE_RISE} nats: at least" if short else ""
    return f"up to {len(curve) - 1} removed{more}"
