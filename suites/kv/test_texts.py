"""How long do texts stay the same with a quantized KV cache?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.options import Options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.texts.calls import Texts
from gguf_harness.metrics.survival import summarize_survival


@pytest.mark.usefixtures("chosen_cache")
@pytest.mark.metric("tokens_until_different")
def test_texts_stay_the_same(
    cached: Subject,
    full_cache: Subject,
    generation: Texts,
    record: Record,
    gate: GateCheck,
    harness_options: Options,
) -> None:
    """Greedy continuations of the prompts, and after how many tokens they part from those with a full cache."""
    times = generation.part_times(cached, full_cache)
    if not times:
        raise NoData("No prompt was continued with both caches.", "The tests of texts of suites/quant say why.")
    at, parted = zip(*times.values(), strict=True)
    estimates = summarize_survival(at, parted, harness_options.gen_tokens)
    record(estimates, detail=f"{len(times)} prompts, {harness_options.gen_tokens} tokens at most, {sum(parted)} part")
    gate(estimates[0])
