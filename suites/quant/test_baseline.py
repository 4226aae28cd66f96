"""Has a candidate become worse since a baseline was saved? Collected with --gguf-baseline only."""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.comparing import BaselineCheck
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.registry import compared_by_window


@pytest.mark.parametrize("metric", compared_by_window())
def test_no_worse_than_the_baseline(
    candidate: Subject, reference: Subject, corpus_pass: CorpusPass, baseline: BaselineCheck, metric: str
) -> None:
    """By window if the same text was decoded; corrected for the number of comparisons."""
    arrays = corpus_pass(candidate, against=reference)
    baseline(metric, candidate, arrays, corpus_pass(reference, windows_of=arrays))
