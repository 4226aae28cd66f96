"""How long the tests of a suite are expected to take for a model: as in earlier runs, otherwise by its parameters.

The schedule of `pytest -n` needs to know what is long and what is short, not what a clock will show.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import HarnessError
from gguf_harness.store.runs import load_run

__all__ = ["SUITES", "History", "expected_seconds", "history_of", "read_history"]

History = Mapping[str, Mapping[tuple[int, int], float]]
"""Seconds by suite, and by parameters and bytes of the model."""

SUITES: Final[Mapping[str, tuple[float, float]]] = {
    "attention": (3.0, 800.0),
    "embeddings": (1.5, 140.0),
    "heads": (3.0, 2800.0),
    "kv": (10.0, 80.0),
    "layers": (8.0, 1000.0),
    "lora": (5.0, 300.0),
    "quant": (12.0, 400.0),
}
"""Seconds that a suite takes for one model on two cores: for any model, and for each 10^9 parameters.

From runs of tiny (5 million parameters) and SmolLM2-135M in several types, with the default settings. Types of a model
differ by less than a factor of two, and not in the order of their sizes. Other things ran on those cores, and that of
suites/lora is from tiny alone. So they are good to a factor of two: they say what is long and what is short, and what
is worth loading a file for.
"""

_OTHER: Final = (1.0, 100.0)
"""The same for a suite that nobody has measured: tests of another project."""

_RUNS: Final = 3
"""So many of the latest runs are read: a run.json has up to some megabytes."""


def expected_seconds(parameters: int, size: int, suite: str, history: History) -> float:
    """Seconds that a suite is expected to take for a model.

    Args:
        parameters: of the model; 0 if unknown.
        size: bytes of its file.
        suite: name of the suite's folder.
        history: of earlier runs. The model nearest in parameters counts, of several the one nearest in bytes, with its
            time in proportion to the parameters.
    """
    known = history.get(suite)
    if known and parameters > 0:
        nearest = min(known, key=lambda other: (_apart(other[0], parameters), _apart(other[1], size)))
        return known[nearest] * parameters / nearest[0]
    fixed, each = SUITES.get(suite, _OTHER)
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
