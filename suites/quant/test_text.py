"""How much do texts written by candidates differ from the reference's?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.options import Options
from gguf_harness.inputs.prompts import Prompt, PromptSet
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.texts.calls import Texts
from gguf_harness.metrics.perplexity import perplexity


@pytest.mark.metric("edit_similarity")
def test_text_of_a_prompt(
    candidate: Subject, reference: Subject, prompt: Prompt, generation: Texts, record: Record
) -> None:
    """Greedy continuation of one prompt, compared with the reference's."""
    pair = generation.compare(candidate, reference, prompt)
    scores = generation.compared(candidate, reference).of_prompts[prompt.id]
    if isinstance(scores, NoData):
        pytest.skip(scores.message)
    plain = generation(reference, prompt).templated is False
    record(scores.estimates, detail="no chat template in the file: messages joined plainly" if plain else None)
    (similarity,) = (estimate.value for estimate in scores.estimates if estimate.metric == "edit_similarity")
    assert (similarity == 1) == (pair.candidate_tokens == pair.reference_tokens)


@pytest.mark.metric("edit_similarity")
def test_texts_stay_close_to_reference(
    candidate: Subject,
    reference: Subject,
    prompts: PromptSet,
    generation: Texts,
    record: Record,
    gate: GateCheck,
    harness_options: Options,
) -> None:
    """Greedy continuations of all prompts together; errors by bootstrap over prompts."""
    pairs, problems = generation.compare_all(candidate, reference)
    scores = generation.compared(candidate, reference).together
    if isinstance(scores, NoData):
        pytest.skip(scores.message)
    same = sum(pair.candidate_tokens == pair.reference_tokens for pair in pairs.values())
    left_out = f"; {len(problems)} more could not be compared" if problems else ""
    detail = f"{len(pairs)} prompts, {harness_options.gen_tokens} tokens at most, {same} texts the same{left_out}"
    # For comparison of the perplexity: that of the reference's own texts.
    own = [-p for prompt in prompts.prompts if prompt.id in pairs for p in generation(reference, prompt).logprobs]
    for estimate in scores.estimates:
        compared = estimate.metric == "text_ppl_under_reference"
        record(estimate, detail=f"{detail}; the reference's own: {perplexity(own).value:.4g}" if compared else detail)
    gate(scores.estimates)
