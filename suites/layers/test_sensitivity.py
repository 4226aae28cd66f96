"""Which tensors is it that quantization does its harm in?"""

from __future__ import annotations

import pytest

from harness.fixture_types import Record, TensorSensitivity
from harness.metrics.sensitivity import additivity, group_kld, group_shares, restored_gain
from harness.runner import LoadedModel


@pytest.mark.metric("tensor_group_kld")
def test_groups_of_tensors(
    candidate: LoadedModel, reference: LoadedModel, sensitivity: TensorSensitivity, record: Record
) -> None:
    """KL divergence of the reference with one group of tensors quantized, and of the candidate with one restored."""
    found = sensitivity(candidate, reference)
    windows = f"{len(found.candidate)} windows"
    # First, for rows without a layer that come later are of a role.
    record(group_kld(found.candidate), detail=f"all that differ, {windows}")
    roles = [effect.kld for effect in found.roles]
    record(additivity(roles, found.candidate), detail=f"sum of {len(roles)} roles, {windows}")
    for effect, share in zip(found.roles, group_shares(roles), strict=True):
        record(group_kld(effect.kld), share, detail=effect.group.described)
    for effect in found.layers:
        record(group_kld(effect.kld), layer=effect.group.layer, detail=effect.group.described)
    for effect in found.restored:
        growth = effect.group.reference_bytes - effect.group.bytes
        record(*restored_gain(found.candidate, effect.kld, growth), detail=f"{effect.group.described}, restored")
    # Rounding aside: a divergence below zero would mean that a mixture is not what it is said to be.
    assert all(effect.kld.mean() > -1e-4 for effect in (*found.roles, *found.layers, *found.restored))
