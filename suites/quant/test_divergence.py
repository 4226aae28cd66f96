"""How far is a candidate's next-token distribution from the reference's?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.divergence import summarize_delta_p, summarize_divergence, summarize_same_top, summarize_top5
from gguf_harness.metrics.perplexity import compare_perplexity


@pytest.mark.metric("floor_kld_mean")
def test_noise_floor(reference: Subject, corpus_pass: CorpusPass, record: Record) -> None:
    """The reference against itself, decoded in other batches: smaller differences are meaningless."""
    floor, base = corpus_pass.floor(reference)
    estimates = {e.metric: e for e in summarize_divergence(floor["kld"], floor["kld_reverse"])}
    estimates |= {e.metric: e for e in compare_perplexity(floor["nll"], base["nll"])}
    estimates["same_top"] = summarize_same_top(floor["top"], base["top"])
    names = ("kld_mean", "kld_max", "ln_ppl_ratio", "same_top")
    record([replace(estimates[name], metric=f"floor_{name}") for name in names])
    # A tenth of the built-in limit for candidates: beyond it, verdicts would not be about quantization.
    assert estimates["kld_mean"].value < 0.01, "the reference does not agree with itself"


@pytest.mark.metric("kld_mean")
def test_distribution_stays_close_to_reference(
    candidate: Subject, reference: Subject, corpus_pass: CorpusPass, record: Record, gate: GateCheck
) -> None:
    """Mean KL divergence from the reference's next-token distribution, its percentiles, and the other direction."""
    arrays = corpus_pass(candidate, against=reference)
    estimates = summarize_divergence(arrays["kld"], arrays["kld_reverse"])
    record(estimates)
    gate(estimates)


@pytest.mark.metric("same_top")
def test_most_likely_token_stays_the_same(
    candidate: Subject, reference: Subject, corpus_pass: CorpusPass, record: Record, gate: GateCheck
) -> None:
    """Share of positions at which greedy decoding chooses the reference's token."""
    arrays = corpus_pass(candidate, against=reference)
    estimate = summarize_same_top(arrays["top"], corpus_pass(reference, windows_of=arrays)["top"])
    record(estimate)
    gate(estimate)


@pytest.mark.metric("top5_agreement")
def test_most_likely_token_stays_among_the_first(
    candidate: Subject, reference: Subject, corpus_pass: CorpusPass, record: Record, gate: GateCheck
) -> None:
    """Share of positions where the reference's most likely token is among the candidate's five likeliest."""
    estimate = summarize_top5(corpus_pass(candidate, against=reference)["in_top5"])
    record(estimate)
    gate(estimate)


@pytest.mark.metric("delta_p_rms")
def test_probability_of_the_correct_token(
    candidate: Subject, reference: Subject, corpus_pass: CorpusPass, record: Record, gate: GateCheck
) -> None:
    """Change of the probability of the correct token."""
    arrays = corpus_pass(candidate, against=reference)
    estimates = summarize_delta_p(arrays["nll"], corpus_pass(reference, windows_of=arrays)["nll"])
    record(estimates)
    gate(estimates)
