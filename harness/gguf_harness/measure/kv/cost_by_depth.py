"""What a way of running a file costs at each depth of a window, token by token against the plain file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_harness.engine.settings import first_scored
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.by_position import FIRST_POSITION, growth_p_value, slopes, summarize_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.passes.calls import TextRead
    from gguf_harness.metrics.records import Estimate
    from gguf_harness.store.arrays import Arrays

__all__ = ["ByDepth", "Depth"]


@dataclass(frozen=True, slots=True)
class ByDepth:
    """A subject's tokens and its reference's, each [windows, scored tokens]; the first column is position 1.

    Attributes:
        candidate: nll, top, kld and what else a candidate's pass has.
        reference: nll and top.
    """

    candidate: Arrays
    reference: Arrays

    @property
    def second_half(self) -> ByDepth:
        """The tokens that llama-perplexity scores, from position n_ctx/2 on: as a usual pass has them."""
        scored = self.candidate["nll"].shape[1]
        start = first_scored(scored + 1 + FIRST_POSITION) - FIRST_POSITION

        def later(arrays: Arrays) -> Arrays:
            return {name: array[:, start:] if array.ndim > 1 else array for name, array in arrays.items()}

        return ByDepth(later(self.candidate), later(self.reference))

    @property
    def buckets(self) -> list[Estimate]:
        """KL, same top, PPL ratio and RMS of the change of probability, by octave of the position."""
        return summarize_positions(self.candidate, self.reference, FIRST_POSITION)

    @property
    def slopes(self) -> list[tuple[Estimate, float]]:
        """Slopes over depth, each with the one-sided p-value of "it does not rise".

        Raises:
            NoData: windows too short for a slope.
        """
        found = slopes(self.candidate, self.reference, FIRST_POSITION)
        return [(estimate, growth_p_value(estimate)) for estimate in found]


class Depth:
    """Passes that score every position of a window, those with little before them too.

    Args:
        core: runs measurements.
        corpus: the text.
        text: takes what becomes known of the corpus.
    """

    def __init__(self, core: Core, corpus: Corpus, text: TextRead | None = None) -> None:
        self._passes = CorpusPass(core, corpus, text=text, score_from=FIRST_POSITION)

    def __call__(self, subject: Subject, reference: Subject) -> ByDepth:
        """A subject against a reference, token by token: the same file with its plain cache, or another file."""
        self._passes.describe(reference)
        return self._by_depth(self._passes.candidate(subject, reference), reference)

    def joint(self, subject: Subject, references: Sequence[Subject]) -> list[ByDepth]:
        """The same against several references, from one decode."""
        self._passes.describe(references[0])
        compared = self._passes.joint(subject, references)
        return [self._by_depth(each, reference) for each, reference in zip(compared, references, strict=True)]

    def _by_depth(self, candidate: Arrays, reference: Subject) -> ByDepth:
        base = self._passes.reference(reference, logprobs=True)
        return ByDepth(candidate, {name: base[name][: len(candidate["nll"])] for name in ("nll", "top")})
