"""Which heads cause the difference between a candidate and its reference?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.heads.calls import HeadAblation
from gguf_harness.metrics.importance import interchange_shares


@pytest.mark.metric("layer_interchange_share")
def test_interchange_of_heads(
    candidate: Subject, reference: Subject, head_ablation: HeadAblation, record: Record
) -> None:
    """Share of the divergence removed by replacing a head, or all heads of a layer, by the reference's."""
    try:
        shares = interchange_shares(head_ablation.interchange(candidate, reference))
    except NoData as error:
        pytest.skip(error.message)
    record(shares, detail=head_ablation.detail)
    # KL is not negative: at most all of a divergence can be removed.
    assert all(share.value <= 1 + 1e-3 for share in shares if share.place.head is None)
