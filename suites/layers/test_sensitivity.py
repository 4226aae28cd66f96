"""Which tensors is it that quantization does its harm in?"""

from __future__ import annotations

from typing import TypedDict

import pytest

from gguf_harness.inputs.subjects import Subject
from gguf_harness.metrics.records import PlacedEstimate
from gguf_harness.metrics.sensitivity import TensorGroup, additivity, group_kld, group_shares, restored_gain
from gguf_harness.pytest_plugin.fixture_types import GateCheck, Record
from gguf_harness.runner.weights import TensorSensitivity


@pytest.mark.metric("tensor_group_kld")
def test_groups_of_tensors(
    candidate: Subject,
    reference: Subject,
    sensitivity: TensorSensitivity,
    record: Record,
    gate: GateCheck,
) -> None:
    """KL divergence of the reference with one group of tensors quantized, and of the candidate with one restored."""
    found = sensitivity(candidate, reference)
    windows = f"{len(found.candidate)} windows"
    record(group_kld(found.candidate), detail=f"all that differ, {windows}")
    roles = [effect.kld for effect in found.roles]
    record(additivity(roles, found.candidate), detail=f"sum of {len(roles)} roles, {windows}")
    for effect, share in zip(found.roles, group_shares(roles), strict=True):
        record(group_kld(effect.kld), share, part=effect.group.name, detail=effect.group.described)
    for effect in found.layers:
        record(group_kld(effect.kld), **_place(effect.group), detail=effect.group.described)
    gained = []
    for effect in found.restored:
        growth = effect.group.reference_bytes - effect.group.bytes
        gains = restored_gain(found.candidate, effect.kld, growth)
        record(*gains, **_place(effect.group), detail=f"{effect.group.described}, restored")
        gained += [PlacedEstimate(gain, **_place(effect.group)) for gain in gains]
    # Rounding aside: a divergence below zero would mean that a mixture is not what it is said to be.
    assert all(effect.kld.mean() > -1e-4 for effect in (*found.roles, *found.layers, *found.restored))
    groups = [PlacedEstimate(group_kld(each.kld), **_place(each.group)) for each in (*found.roles, *found.layers)]
    gate.where_set(*groups, *gained)


class _Where(TypedDict):
    layer: int | None
    part: str | None


def _place(group: TensorGroup) -> _Where:
    """The layer of a group that is one; the name of a role, or of several layers."""
    return {"layer": group.layer, "part": None if group.layer is not None else group.name}
