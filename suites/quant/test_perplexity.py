"""How well do the models predict real text?"""

from __future__ import annotations

import pytest

from harness.fixture_types import CorpusPass, GateCheck, Record
from harness.metrics.perplexity import compare_perplexity, perplexity
from harness.runner import LoadedModel


@pytest.mark.metric("ppl")
def test_perplexity(model: LoadedModel, corpus_pass: CorpusPass, record: Record) -> None:
    """Perplexity of every model, in llama-perplexity's windows."""
    estimate = perplexity(corpus_pass(model)["nll"])
    record(estimate)
    assert estimate.value >= 1


@pytest.mark.metric("ppl_ratio")
def test_perplexity_stays_close_to_reference(
    candidate: LoadedModel,
    reference: LoadedModel,
    corpus_pass: CorpusPass,
    record: Record,
    gate: GateCheck,
) -> None:
    """Perplexity over the reference's, paired token by token."""
    estimates = compare_perplexity(corpus_pass(candidate, against=reference)["nll"], corpus_pass(reference)["nll"])
    record(*estimates)
    gate(next(estimate for estimate in estimates if estimate.metric == "ppl_ratio"))
