"""What files with other types of the KV cache predict, against the same file with a full one and the reference.

A subject is decoded once for all of suites/kv: every position is scored, and compared with both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_harness.errors import HarnessError
from gguf_harness.inputs.models import check_comparable
from gguf_harness.metrics.cache_cost import summarize_cache, summarize_interaction, summarize_together, summarize_total

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.kv.cost_by_depth import ByDepth, Depth
    from gguf_harness.metrics.records import Estimate

__all__ = ["CacheCost"]


class CacheCost:
    """Compares what one file predicts with several caches, and with the reference.

    Args:
        core: runs measurements.
        depth: passes over the corpus.
        ladder: the subjects of the session.
    """

    def __init__(self, core: Core, depth: Depth, ladder: Ladder) -> None:
        self._core = core
        self._depth = depth
        self._ladder = ladder

    def by_depth(self, cached: Subject, full: Subject) -> ByDepth:
        """A file with a cache against itself with a full one, token by token, at every position."""
        reference = self._reference(cached)
        if reference is None:
            return self._depth(cached, full)
        return self._depth.joint(cached, (full, _run_as(reference, full)))[0]

    def alone(self, cached: Subject, full: Subject) -> list[Estimate]:
        """What the cache costs in this file; see `summarize_cache`. Scored are the tokens that llama-perplexity scores.

        Those have half a window before them.
        """
        tokens = self.by_depth(cached, full).second_half
        return summarize_cache(tokens.candidate, tokens.reference)

    def together(self, cached: Subject, full: Subject, reference: Subject) -> list[Estimate]:
        """What weights and cache cost together, each alone, and whether they interact.

        Of the reference's own file, whose weights cost nothing, both together is what the cache costs.

        Args:
            cached: the file with the cache in question.
            full: the same file with a full cache.
            reference: of the session.
        """
        if cached.sha256 == reference.sha256:
            return [summarize_total(self.by_depth(cached, full).second_half.candidate)]
        check_comparable(cached.info, reference.info, asked_for=self._ladder.asked_for)
        base = _run_as(reference, full)
        both = self._depth.joint(cached, (full, base))[1].second_half
        weights = self._depth(full, base).second_half
        cache = self._depth(_run_as(reference, cached), base).second_half
        return [
            *summarize_together(both.candidate, weights.candidate),
            *summarize_interaction(both.candidate, weights.candidate, cache.candidate, both.reference),
        ]

    def _reference(self, cached: Subject) -> Subject | None:
        """The session's reference, if this is another file that can be compared with it."""
        reference = self._core.sound(self._ladder.reference)
        if reference is None or reference.sha256 == cached.sha256:
            return None
        try:
            check_comparable(cached.info, reference.info, asked_for=self._ladder.asked_for)
        except HarnessError:
            return None  # the test that needs the comparison says so
        return reference


def _run_as(subject: Subject, other: Subject) -> Subject:
    """A subject's file, run as another one is."""
    return replace(subject, settings=other.settings, variant=other.variant)
