"""Tests of suites/kv that take long: of the grid of caches that is measured by default, they are run on a few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gguf_harness.judge.plan import gated_metrics

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder, PlannedSubject
    from gguf_harness.inputs.options import Options
    from gguf_harness.measure.forecast.needs import Asked
    from gguf_harness.pytest_plugin.state import State

__all__ = ["LONG_ON_CACHES", "LONG_ON_FILES", "why_not_on_cache", "why_not_on_file", "why_skipped"]

LONG_ON_CACHES: Final = frozenset(
    {
        "test_attention_with_the_cache",
        "test_facts_are_found_with_this_cache",
        "test_keys_and_values",
        "test_layers_of_the_cache",
        "test_predicted_layers",
        "test_speed_at_depth_with_this_cache",
        "test_texts_stay_the_same",
    }
)
"""Those that use the fixture `chosen_cache`."""
LONG_ON_FILES: Final = frozenset({"test_facts_are_found", "test_speed_at_depth"})
"""Those that use `chosen_file`."""


def why_not_on_cache(test: str, cached: PlannedSubject, state: State, ladder: Ladder) -> str | None:
    """Why a test that takes long is not run on a cache; None for one that is asked for, or chosen of the grid.

    A limit on what the test decides asks for all.

    Args:
        test: name of its function.
        cached: the subject.
        state: of the session.
        ladder: its models.
    """
    decides = {metric for metric, gate in gated_metrics("kv").items() if gate.test == test}
    if not decides.isdisjoint(state.gates) or _is_chosen(cached, ladder, state.options):
        return None
    return "measured where --gguf-kv names the pair of types"


def why_not_on_file(planned: PlannedSubject, state: State, ladder: Ladder) -> str | None:
    """The same for a file with a full cache: it is run where another cache of that file is measured."""
    if planned in ladder.cached:
        return "measured beside the same file with a full cache"
    of_file = [other for other in ladder.cached if other.model == planned.model]
    if _takes_grid(state.options) and not any(_is_chosen(other, ladder, state.options) for other in of_file):
        return "measured where --gguf-kv names types for the cache of this file"
    return None


def why_skipped(asked: Asked, state: State, ladder: Ladder) -> str | None:
    """The same of any test, by its name."""
    if asked.suite != "kv" or asked.subject is None:
        return None
    if asked.test in LONG_ON_CACHES:
        return why_not_on_cache(asked.test, asked.subject, state, ladder)
    return why_not_on_file(asked.subject, state, ladder) if asked.test in LONG_ON_FILES else None


def _takes_grid(options: Options) -> bool:
    """Whether no types of the cache are named: then a grid is measured."""
    return not options.kv or isinstance(options.kv, str)


def _is_chosen(cached: PlannedSubject, ladder: Ladder, options: Options) -> bool:
    """Of the grid that is measured by default: the reference's file with one type for both, K and V."""
    if not _takes_grid(options):
        return True
    of_reference = ladder.reference is not None and cached.model == ladder.reference.model
    return of_reference and cached.kv is not None and cached.kv.k == cached.kv.v
