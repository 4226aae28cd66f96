"""What does each head do, and does it still do so after quantization?"""

from __future__ import annotations

import numpy as np
import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.analyses.calls import Analytics
from gguf_harness.measure.attention.calls import Attention
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.taxonomy import head_groups, match_heads, profile_vector, shared_features


@pytest.mark.metric("head_entropy")
def test_behaviour(model: Subject, attention: Attention, record: Record) -> None:
    """Scores of each head: on the prompts, on repeated random tokens, and from its weights."""
    estimates = attention(model).estimates()
    record(estimates)
    assert all(0 <= estimate.value <= 1 for estimate in estimates if estimate.unit == "fraction")


@pytest.mark.metric("heads_redundant")
def test_redundancy(model: Subject, attention: Attention, record: Record) -> None:
    """Heads that attend like another head, over all prompts."""
    behaviour = attention(model)
    if not np.isfinite(behaviour.similarity).all():
        pytest.skip("no prompt has two tokens: heads cannot differ")
    groups = [[behaviour.heads[head] for head in group] for group in head_groups(behaviour.similarity)]
    shown = _told(groups)
    count = sum(len(group) for group in groups)
    record(Estimate("heads_redundant", count / len(behaviour.heads), len(behaviour.heads)), detail=shown or "none")


def _told(groups: list[list[tuple[int, int]]]) -> str:
    """`0.1, 0.3; 2.0, 2.4`: groups of heads, as the report's charts read them."""
    return "; ".join(", ".join(f"{layer}.{head}" for layer, head in group) for group in groups)


@pytest.mark.metric("head_clusters")
def test_clusters(model: Subject, attention: Attention, analytics: Analytics, record: Record) -> None:
    """Heads grouped by their scores: how many groups are there, and how well separated?"""
    behaviour = attention(model)
    profiles = [profile.values for profile in behaviour.profiles]
    features = shared_features(profiles)
    points = np.stack([profile_vector(profile, features) for profile in profiles])
    for method in ("kmeans", "hdbscan"):
        try:
            clustering = analytics.cluster(points, method)
        except NoData as error:
            pytest.skip(f"{len(points)} heads cannot be grouped. {error.message}")
        detail = f"{method}, {clustering.backend}"
        if clustering.clusters:
            groups = [np.flatnonzero(clustering.labels == number).tolist() for number in range(clustering.clusters)]
            shown = _told([[behaviour.heads[head] for head in group] for group in groups])
            record(Estimate("head_clusters", clustering.clusters, len(points)), detail=f"{detail}: {shown}")
        if clustering.clusters > 1:
            spread = analytics.silhouette(points, clustering.labels)
            record(Estimate("head_cluster_silhouette", spread.mean, int((clustering.labels >= 0).sum())), detail=detail)


@pytest.mark.metric("head_kind_kept")
def test_heads_keep_their_behaviour(
    candidate: Subject, reference: Subject, attention: Attention, record: Record, gate: GateCheck
) -> None:
    """Kinds and scores of heads compared with the reference's, and matching heads of both."""
    own, base = attention(candidate), attention(reference)
    if own.heads != base.heads:
        pytest.skip("the candidate has other layers or heads than the reference: there is nothing to compare")
    changed = [
        f"{layer}.{head} {before.kind} -> {after.kind}"
        for (layer, head), before, after in zip(base.heads, base.kinds, own.kinds, strict=True)
        if before.kind != after.kind
    ]
    n = len(base.heads)
    kept = Estimate("head_kind_kept", 1 - len(changed) / n, n)
    record(kept, detail=", ".join(changed) or "all the same")
    matches = match_heads([profile.values for profile in own.profiles], [profile.values for profile in base.profiles])
    matched = Estimate("head_matched_to_itself", float(np.mean([match.first == match.second for match in matches])), n)
    record(matched)
    gate(kept, matched)
