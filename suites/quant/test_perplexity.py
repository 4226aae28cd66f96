"""How well do the models predict real text?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.perplexity import compare_perplexity, perplexity
from gguf_harness.metrics.records import Estimate


@pytest.mark.metric("ppl")
def test_perplexity(model: Subject, corpus_pass: CorpusPass, record: Record, gate: GateCheck) -> None:
    """Perplexity of every model, in llama-perplexity's windows."""
    arrays = corpus_pass(model)
    estimate = perplexity(arrays["nll"])
    record(estimate)

    def measure(reference: Subject) -> Estimate:
        return perplexity(corpus_pass(reference, windows_of=arrays)["nll"])

    def ratio(reference: Subject) -> dict[str, Estimate]:
        ratios = compare_perplexity(arrays["nll"], corpus_pass(reference, windows_of=arrays)["nll"])
        return {"ppl": next(ratio for ratio in ratios if ratio.metric == "ppl_ratio")}

    gate(estimate, relative_to=measure, paired=ratio)


@pytest.mark.metric("ppl_ratio")
def test_perplexity_stays_close_to_reference(
    candidate: Subject,
    reference: Subject,
    corpus_pass: CorpusPass,
    record: Record,
    gate: GateCheck,
) -> None:
    """Perplexity over the reference's, paired token by token."""
    arrays = corpus_pass(candidate, against=reference)
    estimates = compare_perplexity(arrays["nll"], corpus_pass(reference, windows_of=arrays)["nll"])
    record(estimates)
    gate(estimates)
