"""How far is a candidate's embedding space from the reference's?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData, VocabularyMismatch
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.models import check_same_vocabulary
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.embeddings.calls import Embeddings
from gguf_harness.metrics.embedding_estimates import compare_neighbours, compare_prompts, compare_word_spaces, unpack
from gguf_harness.store.arrays import Arrays


@pytest.mark.metric("neighbour_recall")
def test_neighbours_stay(
    any_candidate: Subject, reference: Subject, embeddings: Embeddings, record: Record, gate: GateCheck
) -> None:
    """Do tokens keep their nearest neighbours, and pairs of tokens their order by similarity?"""
    _need_same_vocabulary(any_candidate, reference)
    candidate, base = embeddings(any_candidate), embeddings(reference)
    estimates = compare_neighbours(candidate, base)
    record(estimates, detail=f"{base['neighbours'].shape[1]} neighbours; {_types(candidate, base)}")
    gate(estimates)


@pytest.mark.metric("procrustes_error")
def test_space_stays(
    any_candidate: Subject, reference: Subject, embeddings: Embeddings, record: Record, gate: GateCheck
) -> None:
    """The difference after the best rotation and scale, and linear CKA."""
    _need_same_vocabulary(any_candidate, reference)
    aligned = embeddings.aligned(any_candidate, reference)
    estimates = [unpack(metric, aligned[metric]) for metric in ("procrustes_error", "embedding_cka")]
    record(estimates, detail=_types(embeddings(any_candidate), embeddings(reference)))
    gate(estimates)


@pytest.mark.metric("contextual_cosine")
def test_contexts_stay(
    any_candidate: Subject, reference: Subject, embeddings: Embeddings, record: Record, gate: GateCheck
) -> None:
    """Prompts in context: the final hidden state, or an embedding model's vector."""
    _need_same_vocabulary(any_candidate, reference)
    if any_candidate.info.n_embd != reference.info.n_embd:
        pytest.skip(f"{any_candidate.info.n_embd} dimensions have no cosine with {reference.info.n_embd}")
    try:
        estimates = compare_prompts(embeddings.contexts(any_candidate), embeddings.contexts(reference))
    except NoData as error:
        pytest.skip(str(error))
    record(estimates, detail=f"{estimates[0].n} prompts")
    gate(estimates)


@pytest.mark.metric("word_neighbour_recall")
def test_words_stay(
    any_candidate: Subject, reference: Subject, embeddings: Embeddings, record: Record, gate: GateCheck
) -> None:
    """Words that both models have, for any vocabularies: neighbours, similarities, Procrustes and CKA."""
    candidate, base = embeddings.words(any_candidate), embeddings.words(reference)
    try:
        estimates = compare_word_spaces(candidate, base)
    except NoData as error:
        pytest.skip(error.message)
    for estimate, chance in estimates:
        record(estimate, detail=f"by chance {chance:.2g}; {candidate.detail()}")
    gate([estimate for estimate, _ in estimates])


def _types(candidate: Arrays, reference: Arrays) -> str:
    """The types of both matrices.

    llama.cpp often stores that of small models as Q6_K or Q8_0, whatever was requested.
    """
    return f"stored as {candidate['matrix_type'].item()}, the reference's as {reference['matrix_type'].item()}"


def _need_same_vocabulary(candidate: Subject, reference: Subject) -> None:
    try:
        check_same_vocabulary(candidate.info, reference.info)
    except VocabularyMismatch as error:
        pytest.skip(f"{error.message} Their words are compared.")
