"""Which heads' errors make a candidate differ from its reference?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.inputs.subjects import Subject
from gguf_harness.metrics.importance import interchange_share
from gguf_harness.pytest_plugin.fixture_types import Record
from gguf_harness.runner.heads import HeadAblation


@pytest.mark.metric("layer_interchange_share")
def test_interchange_of_heads(
    candidate: Subject, reference: Subject, head_ablation: HeadAblation, record: Record
) -> None:
    """How much of the divergence is gone where a head, or all heads of a layer, give what the reference's do."""
    found = head_ablation.interchange(candidate, reference)
    before = found["kld"]
    try:
        layers = [interchange_share("layer_interchange_share", before, after) for after in found["kld_layers"]]
    except NoData as error:
        pytest.skip(error.message)
    for layer, share in zip(found["layers"].tolist(), layers, strict=True):
        record(share, layer=layer, detail=head_ablation.detail)
    for (layer, head), after in zip(found["heads"].tolist(), found["kld_heads"], strict=True):
        share = interchange_share("head_interchange_share", before, after)
        record(share, layer=layer, head=head, detail=head_ablation.detail)
    # KL is not negative: no more than all of a divergence can go.
    assert all(share.value <= 1 + 1e-3 for share in layers)
