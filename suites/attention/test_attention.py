"""How does attention of candidates differ from the reference's?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.attention.calls import Attention
from gguf_harness.metrics.pattern_comparison import attention_estimates, head_estimates
from gguf_harness.metrics.records import whole


@pytest.mark.metric("attn_cosine")
def test_attention_of_a_prompt(
    candidate: Subject, reference: Subject, prompt: Prompt, attention: Attention, record: Record
) -> None:
    """Patterns of all heads on one prompt, compared with the reference's."""
    drift = attention.drift(candidate, reference)
    if prompt.id not in drift.patterns:
        pytest.skip("it is one token, or the model cannot take it: there is no attention to compare")
    record(attention_estimates([drift.patterns[prompt.id]], drift.heads))


@pytest.mark.metric("attn_cosine")
def test_attention_stays_close_to_reference(
    candidate: Subject, reference: Subject, attention: Attention, record: Record, gate: GateCheck
) -> None:
    """Patterns of all heads on all prompts; errors clustered by prompt."""
    drift = attention.drift(candidate, reference)
    estimates = attention_estimates(list(drift.patterns.values()), drift.heads)
    record(estimates)
    gate(estimates)


@pytest.mark.metric("attn_cosine")
def test_each_head_stays_close_to_reference(
    candidate: Subject, reference: Subject, attention: Attention, record: Record
) -> None:
    """Patterns of each head, and of each layer: which changed most?"""
    drift = attention.drift(candidate, reference)
    estimates = head_estimates(list(drift.patterns.values()), drift.heads)
    record(estimates)
    assert {(estimate.place.layer, estimate.place.head) for estimate in estimates} == set(drift.heads)


@pytest.mark.metric("attn_scores_error")
def test_queries_keys_and_values_stay_close_to_reference(
    candidate: Subject, reference: Subject, attention: Attention, record: Record, gate: GateCheck
) -> None:
    """Relative errors and CKA of queries, keys, values and scores, overall and by layer."""
    estimates = attention.drift(candidate, reference).vectors()
    record(estimates)
    gate(whole(estimates))
