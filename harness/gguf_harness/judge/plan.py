"""The plan of a run: the gates that its suites must decide for each model. Verdicts cover the plan, not just what ran.

A limit that was never checked must not look like one that was kept. So the plan consists of the gates that a suite can
decide and the limits that are set, whatever is deselected, interrupted or skipped later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import GateError
from gguf_harness.metrics.registry import METRICS, GatedBy, compared_by_window

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder
    from gguf_harness.judge.gates import Gate

__all__ = [
    "COMPARING_TEST",
    "check_planned",
    "gated_metrics",
    "homeless",
    "of_other_suites",
    "plan_comparisons",
    "plan_gates",
    "planned_suite",
    "suite_of",
    "suites_under",
]

COMPARING_TEST: Final = "test_no_worse_than_the_baseline"
_SUITES: Final = Path(__file__).parent.parent / "suites"
_COMPARING_SUITE: Final = "quant"
_SUBJECTS: Final = {
    "candidate": "candidates",
    "cached": "cached",
    "adapted": "adapted",
    "adapted_candidate": "adapted_candidates",
}


def gated_metrics(suite: str | None = None) -> dict[str, GatedBy]:
    """Metrics that can be gated by suites, with the test that decides each gate.

    A session fails if a test ran and did not decide its planned gate, so the registry and the tests stay consistent.

    Args:
        suite: suite of the tests; None for all suites.
    """
    tests = {name: metric.gate for name, metric in METRICS.items() if metric.gate is not None}
    return {name: gate for name, gate in tests.items() if suite in {None, gate.suite}}


def check_planned(path: Path, test: str, metric: str) -> None:
    """Check that a bundled suite decides only planned gates: others could be left out unnoticed.

    Args:
        path: of the test's file.
        test: name of its function.
        metric: metric of the gate that it decides.

    Raises:
        GateError: the registry has another test for the metric's gate, or none.
    """
    suite = suite_of(path)
    gate = METRICS[metric].gate if metric in METRICS else None
    if suite is not None and (gate is None or (gate.suite, gate.test) != (suite, test)):
        raise GateError(
            f"{test} of suites/{suite} decides on {metric!r}, which is not planned.",
            f"Add it to the metric's entry in gguf_harness/metrics/registry/: gate=GatedBy({suite!r}, {test!r}).",
        )


@cache
def suite_of(path: Path) -> str | None:
    """Name of the bundled suite that a test file belongs to, in a checkout or installed."""
    # In a checkout that is a link to the top-level folder, whose path users give.
    for place in (_SUITES, _SUITES.resolve()):
        if path.is_relative_to(place) and path != place:
            return path.relative_to(place).parts[0]
    return None


def suites_under(arguments: Iterable[str]) -> set[str]:
    """Names of the bundled suites that arguments of pytest may lead to: files in one, or folders that contain it."""
    places = [Path(argument.split("::")[0]).resolve() for argument in arguments]
    folders = [folder.resolve() for folder in _SUITES.iterdir() if (folder / "__init__.py").is_file()]
    return {
        folder.name
        for folder in folders
        if any(folder.is_relative_to(place) or place.is_relative_to(folder) for place in places)
    }


def planned_suite(path: Path) -> str | None:
    """Name of the suite that a test file belongs to, if its gates are planned: bundled suites, and those of plugins."""
    ours, folder = suite_of(path), path.parent.name
    theirs = {gate.suite for name, gate in gated_metrics().items() if not METRICS.is_built_in(name)}
    return ours if ours is not None else folder if folder in theirs else None


def plan_gates(suites: Iterable[str], ladder: Ladder, gates: Mapping[str, Gate]) -> list[dict[str, Any]]:
    """The gates that the suites must decide: `model`, `suite`, `test` and `metric` of each.

    Args:
        suites: suites of the session.
        ladder: its models.
        gates: limits by metric.
    """
    planned = []
    for suite in sorted(suites):
        gated = gated_metrics(suite)
        for test in dict.fromkeys(gate.test for gate in gated.values()):
            for metric in (metric for metric in gates if metric in gated and gated[metric].test == test):
                models = [model.name for model in getattr(ladder, _SUBJECTS[gated[metric].of])]
                if not models and ladder.reference and gated[metric].any_model and gates[metric].limit is not None:
                    models = [ladder.reference.name]
                planned += [{"model": model, "suite": suite, "test": test, "metric": metric} for model in models]
    return planned


def plan_comparisons(suites: Iterable[str], ladder: Ladder) -> list[dict[str, Any]]:
    """The comparisons with --gguf-baseline to be made: like `plan_gates`."""
    if _COMPARING_SUITE not in suites:
        return []
    return [
        {"model": model.name, "suite": _COMPARING_SUITE, "test": COMPARING_TEST, "metric": metric}
        for model in ladder.candidates
        for metric in compared_by_window()
    ]


def homeless(gates: Iterable[str], decided: Iterable[str]) -> list[str]:
    """Metrics with a limit that no suite checks, and that no other test has decided."""
    return sorted(set(gates) - set(gated_metrics()) - set(decided))


def of_other_suites(gates: Iterable[str], suites: Iterable[str], decided: Iterable[str]) -> str:
    """A sentence on limits that only suites outside this session check; "" if there are none.

    A file of limits may be shared by several sessions, so this is not a failure.

    Args:
        gates: metrics with a limit in the user's file.
        suites: suites of the session.
        decided: metrics whose limit was checked.
    """
    homes, taking_part = gated_metrics(), set(suites)
    left: dict[str, list[str]] = {}
    for metric in sorted(set(gates) & set(homes) - set(decided)):
        if homes[metric].suite not in taking_part:
            left.setdefault(homes[metric].suite, []).append(metric)
    told = "; ".join(f"{', '.join(metrics)} (suites/{suite})" for suite, metrics in left.items())
    return f"--gguf-gates has limits that no suite of this session checks: {told}" if told else ""
