"""Which heads matter, and does quantization change which?"""

from __future__ import annotations

import pytest

from gguf_harness.inputs.subjects import Subject
from gguf_harness.metrics.importance import importance, main_effects, rank_correlation, top_overlap, window_rises
from gguf_harness.metrics.records import Estimate
from gguf_harness.pytest_plugin.fixture_types import GateCheck, Record
from gguf_harness.runner.heads import HeadAblation

_TOP = 8


@pytest.mark.metric("head_importance")
def test_importance_of_heads(model: Subject, head_ablation: HeadAblation, record: Record) -> None:
    """What each head is worth: it gives zero, or its mean, and the next tokens become less likely."""
    found = head_ablation.sweep(model)
    base = found["nll"]
    for place, (layer, head) in enumerate(found["heads"].tolist()):
        estimates = (
            importance("head_importance", found["nll_zero"][place], base),
            importance("head_importance_kl", found["kld_zero"][place]),
            importance("head_importance_mean", found["nll_mean"][place], base),
            importance("head_importance_mean_kl", found["kld_mean"][place]),
        )
        record(*estimates, layer=layer, head=head, detail=head_ablation.detail)
        assert all(estimate.value > -1e-5 for estimate in estimates if estimate.metric.endswith("_kl"))


@pytest.mark.metric("head_importance_rank_correlation")
def test_the_same_heads_matter(
    candidate: Subject, reference: Subject, head_ablation: HeadAblation, record: Record, gate: GateCheck
) -> None:
    """Do the reference's important heads stay the important ones?"""
    sweeps = (head_ablation.sweep(model) for model in (candidate, reference))
    own, base = (window_rises(sweep["nll_zero"], sweep["nll"]) for sweep in sweeps)
    top = min(_TOP, len(base))
    correlation = rank_correlation("head_importance_rank_correlation", own, base)
    overlap = top_overlap(own, base, top)
    record(correlation, detail=f"{len(base)} heads, {head_ablation.detail}")
    record(overlap, detail=f"the {top} most important of {len(base)} heads, {head_ablation.detail}")
    gate.where_set(correlation, overlap)


@pytest.mark.metric("head_screen_rank_correlation")
def test_screen_of_heads(reference: Subject, head_ablation: HeadAblation, record: Record) -> None:
    """A cheap estimate of importance, from ablations of random subsets, and how well it orders the heads."""
    screen = head_ablation.screen(reference)
    found = main_effects("head_importance_screen", screen["subsets"] != 0, screen["rises"])
    effects: dict[tuple[int, int], Estimate] = {}
    for estimate, (layer, head) in zip(found, screen["heads"].tolist(), strict=True):
        effects[layer, head] = estimate
        record(estimate, layer=layer, head=head, detail=f"{len(screen['rises'])} random subsets, an estimate")
    sweep = head_ablation.sweep(reference)
    screened = [effects[layer, head].value for layer, head in sweep["heads"].tolist()]
    correlation = rank_correlation(
        "head_screen_rank_correlation", window_rises(sweep["nll_zero"], sweep["nll"]), screened
    )
    record(correlation, detail=f"{correlation.n} of {len(effects)} heads, {head_ablation.detail}")
