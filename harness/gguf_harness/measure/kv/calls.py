"""Passes of files with other types of the KV cache, against the same file with a full one and against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_harness.inputs.models import check_comparable
from gguf_harness.metrics.cache_cost import summarize_cache, summarize_interaction, summarize_together

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.passes.calls import CorpusPass
    from gguf_harness.metrics.records import Estimate
    from gguf_harness.store.arrays import Arrays

__all__ = ["CacheCost"]


class CacheCost:
    """Compares what one file predicts with several caches, and with the reference.

    Args:
        core: runs measurements.
        passes: over the corpus, all of its windows.
        ladder: the subjects of the session.
    """

    def __init__(self, core: Core, passes: CorpusPass, ladder: Ladder) -> None:
        self._core = core
        self._passes = passes
        self._ladder = ladder

    def tokens(self, cached: Subject, full: Subject) -> tuple[Arrays, Arrays]:
        """Values per token of a file with a cache, against itself with a full one; and those of the latter."""
        arrays = self._passes.candidate(cached, full)
        return arrays, self._passes.reference(full, logprobs=True)

    def alone(self, cached: Subject, full: Subject) -> list[Estimate]:
        """What the cache costs in this file; see `summarize_cache`."""
        self._passes.describe(full)
        return summarize_cache(*self.tokens(cached, full))

    def together(self, cached: Subject, full: Subject, reference: Subject) -> list[Estimate]:
        """What weights and cache cost together, each alone, and whether they interact.

        Args:
            cached: the file with the cache in question.
            full: the same file with a full cache.
            reference: of the session, with a full cache.

        Of the reference's own file, whose weights cost nothing, both together is what the cache costs.
        """
        if cached.sha256 == reference.sha256:
            return [replace(self.alone(cached, full)[0], metric="kv_total_kld")]
        check_comparable(cached.info, reference.info, asked_for=self._ladder.asked_for)
        full_reference = replace(reference, settings=full.settings, variant=full.variant)
        reference_cached = replace(reference, settings=cached.settings, variant=cached.variant)
        both = self._passes.candidate(cached, full_reference)
        weights = self._passes.candidate(full, full_reference)
        cache = self._passes.candidate(reference_cached, full_reference)
        base = self._passes.reference(full_reference, logprobs=True)
        return [*summarize_together(both, weights), *summarize_interaction(both, weights, cache, base)]
