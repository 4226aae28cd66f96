"""What is each model's space of token embeddings like, also for words?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.embeddings.calls import Embeddings
from gguf_harness.metrics.embedding_estimates import describe_space


@pytest.mark.metric("embedding_anisotropy")
def test_token_embeddings(model: Subject, embeddings: Embeddings, record: Record) -> None:
    """Anisotropy, variance in the first principal components, and intrinsic dimension of the token embeddings."""
    space = embeddings(model)
    record(describe_space(space), detail=f"stored as {space['matrix_type'].item()}")


@pytest.mark.metric("word_silhouette")
def test_word_groups(model: Subject, embeddings: Embeddings, record: Record, gate: GateCheck) -> None:
    """Are words of the same group near each other? Errors are clustered by group."""
    try:
        estimates = embeddings.groups(model)
    except NoData as error:
        pytest.skip(error.message)
    record(estimates, detail=embeddings.words(model).detail())
    gate(estimates, relative_to=embeddings.groups)


@pytest.mark.metric("analogy_mrr")
def test_analogies(model: Subject, embeddings: Embeddings, record: Record, gate: GateCheck) -> None:
    """Is the word nearest to a - b + c the right one of all words of the list? Errors are clustered by pair."""
    try:
        estimates = embeddings.analogies(model)
    except NoData as error:
        pytest.skip(error.message)
    record(estimates, detail=f"the answer is one of {embeddings.words(model).detail()}")
    gate(estimates, relative_to=embeddings.analogies)
