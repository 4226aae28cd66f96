"""How long units of tests are expected to take, for the schedule of `pytest -n`: a forecast that times no file.

The schedule needs to know what is long and what is short, not what a clock will show. Of the bundled suites, what was
learned from sessions of one process counts; sessions with -n teach nothing, since their processes slow each other down.
Of other projects' tests only earlier runs tell anything.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.engine.machine import identify_machine
from gguf_harness.errors import HarnessError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.measure.forecast.expected import Expecting, durations_on, seconds_by_test
from gguf_harness.measure.forecast.needs import is_foreseen
from gguf_harness.pytest_plugin.default_grid import why_skipped
from gguf_harness.store.learned_durations import FOLDER
from gguf_harness.store.runs import load_run

if TYPE_CHECKING:
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.measure.forecast.needs import Asked
    from gguf_harness.pytest_plugin.state import State

__all__ = ["expected_seconds", "history_of", "read_history", "seconds_of_others"]

History = Mapping[str, Mapping[tuple[int, int], float]]
"""Seconds by suite, and by parameters and bytes of the model."""

_OTHER: Final = (1.0, 100.0)
"""Seconds of tests that nothing is known of: for any model, and for each 10^9 parameters."""
_RUNS: Final = 3
"""So many of the latest runs are read: a run.json has up to some megabytes."""


def expected_seconds(units: Mapping[str, Collection[Asked]], state: State) -> dict[str, float]:
    """Seconds of each unit, by its name.

    A measurement that several units need counts for the first.

    Args:
        units: what the tests of each ask for, in their order; tests about no subject ask for nothing.
        state: of the session.
    """
    options, ladder = state.options, state.ladder
    expecting = Expecting(options.threads, lambda: len(load_corpus(options.corpus).text), ladder.infos)
    if (options.cache / FOLDER).is_dir():
        expecting.durations = durations_on(options, identify_machine())
    asked = dict.fromkeys(each for tests in units.values() for each in tests)
    measured = [each for each in asked if why_skipped(each, state, ladder) is None]
    known = seconds_by_test(expecting, measured, ladder, options, state.prompts)
    history = {} if all(map(is_foreseen, asked)) else read_history(options.results)

    def seconds(tests: Collection[Asked]) -> float:
        total = sum(known.get(each, 0.0) for each in dict.fromkeys(tests))
        other = next((each for each in tests if not is_foreseen(each)), None)
        if other is None or other.subject is None:
            return total
        return total + seconds_of_others(expecting.info(other.subject.model), other.suite, history)

    return {unit: seconds(tests) for unit, tests in units.items()}


def seconds_of_others(info: ModelInfo | None, suite: str, history: History) -> float:
    """Seconds that the tests of a folder are expected to take for a model, where nobody knows what they measure.

    Args:
        info: of the model; None if it cannot be read.
        suite: name of the tests' folder.
        history: of earlier runs. The model nearest in parameters counts, of several the one nearest in bytes, with its
            time in proportion to the parameters.
    """
    parameters, size = (0, 0) if info is None else (info.parameters, info.bytes)
    known = history.get(suite)
    if known and parameters > 0:
        nearest = min(known, key=lambda other: (_apart(other[0], parameters), _apart(other[1], size)))
        return known[nearest] * parameters / nearest[0]
    fixed, each = _OTHER
    return fixed + each * parameters / 1e9


def _apart(one: int, other: int) -> float:
    return abs(math.log(max(one, 1) / max(other, 1)))


def read_history(results: Path) -> History:
    """What the latest runs in a folder took; empty if there are none that can be read.

    Args:
        results: of --gguf-results.
    """
    found = []
    for path in sorted((results / "runs").glob("*/run.json"), reverse=True)[:_RUNS]:
        with contextlib.suppress(HarnessError, OSError):
            found.append(load_run(path))
    return history_of(found)


def history_of(runs: Iterable[Mapping[str, Any]]) -> History:
    """Seconds by suite and model, over runs.

    The longest counts: a run that found its measurements in the cache took less.
    """
    history: dict[str, dict[tuple[int, int], float]] = {}
    for run in runs:
        sizes = {model["name"]: (model.get("parameters") or 0, model["bytes"]) for model in run["models"]}
        taken: dict[tuple[str, str], float] = {}
        for test in run["tests"]:
            model, suite, seconds = test.get("model"), test.get("suite"), test.get("duration_s")
            if model in sizes and suite and seconds is not None and test["outcome"] == "passed":
                taken[suite, model] = taken.get((suite, model), 0.0) + seconds
        for (suite, model), seconds in taken.items():
            if sizes[model][0] > 0 and seconds > 0:
                of_suite = history.setdefault(suite, {})
                of_suite[sizes[model]] = max(of_suite.get(sizes[model], 0.0), seconds)
    return history
