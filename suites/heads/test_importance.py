"""Which heads matter, and does quantization change which?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.heads.calls import HeadAblation
from gguf_harness.metrics.importance import (
    importance_of_heads,
    rank_correlation,
    screened_importance,
    top_overlap,
    window_rises,
)
from gguf_harness.metrics.records import Place

_TOP = 8


@pytest.mark.metric("head_importance")
def test_importance_of_heads(model: Subject, head_ablation: HeadAblation, record: Record) -> None:
    """Importance of each head: rise of the loss with its output set to zero, or to its mean."""
    estimates = importance_of_heads(head_ablation.sweep(model))
    record(estimates, detail=head_ablation.detail)
    assert all(estimate.value > -1e-5 for estimate in estimates if estimate.metric.endswith("_kl"))


@pytest.mark.metric("head_importance_rank_correlation")
def test_the_same_heads_matter(
    candidate: Subject, reference: Subject, head_ablation: HeadAblation, record: Record, gate: GateCheck
) -> None:
    """Are the reference's important heads also important in the candidate?"""
    sweeps = (head_ablation.sweep(model) for model in (candidate, reference))
    own, base = (window_rises(sweep["nll_zero"], sweep["nll"]) for sweep in sweeps)
    top = min(_TOP, len(base))
    correlation = rank_correlation("head_importance_rank_correlation", own, base)
    overlap = top_overlap(own, base, top)
    record(correlation, detail=f"{len(base)} heads, {head_ablation.detail}")
    record(overlap, detail=f"the {top} most important of {len(base)} heads, {head_ablation.detail}")
    gate(correlation, overlap)


@pytest.mark.metric("head_screen_rank_correlation")
def test_screen_of_heads(reference: Subject, head_ablation: HeadAblation, record: Record) -> None:
    """A cheap estimate of the importance of all heads, from two windows, and how well it orders them."""
    screen = head_ablation.screen(reference)
    effects = screened_importance(screen)
    record(effects, detail=f"{len(screen['windows'])} of {head_ablation.detail}, an estimate")
    sweep = head_ablation.sweep(reference)
    by_place = {effect.place: effect.value for effect in effects}
    screened = [by_place[Place(*head)] for head in sweep["heads"].tolist()]
    correlation = rank_correlation(
        "head_screen_rank_correlation", window_rises(sweep["nll_zero"], sweep["nll"]), screened
    )
    record(correlation, detail=f"{correlation.n} of {len(effects)} heads, {head_ablation.detail}")
