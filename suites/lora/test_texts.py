"""What does a model write with an adapter?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.texts.calls import Texts


@pytest.mark.metric("lora_text_similarity")
def test_texts_with_the_adapter(adapted_reference: Subject, base: Subject, generation: Texts, record: Record) -> None:
    """Greedy continuations of all prompts with and without the adapter."""
    scores = generation.compared(adapted_reference, base)
    if isinstance(scores.together, NoData):
        pytest.skip(scores.together.message)
    alike = [each for each in scores.together.estimates if each.metric == "edit_similarity"]
    record([replace(each, metric="lora_text_similarity") for each in alike])
    for prompt, found in scores.of_prompts.items():
        if not isinstance(found, NoData):
            record([each.of_prompt(prompt) for each in found.estimates])
