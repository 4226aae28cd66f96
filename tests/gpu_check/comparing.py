"""Two runs of the same files, on two devices: what must be equal, and what may differ by how much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gguf_harness.metrics.registry import METRICS, texts
from tests.gpu_check.floors import FLOORS
from tests.gpu_check.verdicts import Outcome

__all__ = ["MOST_BEYOND", "compare_runs"]

MOST_BEYOND: Final = 0.01
"""Most estimates that may be further apart than three standard errors. Both devices see the same windows and
prompts, so that all should be much closer: on an H200 none of 2,488 was.
"""

_ERRORS: Final = 3.0
_MACHINE: Final = frozenset({"timing", "requests", "memory"})
_EXACT: Final = frozenset({"file", "weights", "adapter file"})
_TEXTS: Final = frozenset(metric.name for metric in texts.METRICS)
"""Of greedy texts, which part for good at the first near tie: they are told, and decide nothing."""

_PLACE: Final = ("suite", "test", "model", "reference", "prompt", "layer", "head", "part", "metric")
_GATE: Final = ("test", "metric", "layer", "head", "part", "prompt")
_SHOWN: Final = 5


def compare_runs(cpu: Mapping[str, Any], gpu: Mapping[str, Any]) -> Outcome:
    """Estimates and verdicts of a run on the CPU and one on the GPU, each as in its run.json.

    Perplexities and what was read from files alone have limits of their own; of everything else that has a standard
    error, nearly all must agree within three of them. All verdicts but those on timings and memory must be the same.
    """
    ours, theirs = _by_place(cpu), _by_place(gpu)
    both = sorted(set(ours) & set(theirs), key=str)
    numbers: dict[str, Any] = {"estimates": len(both)}
    wrong = [
        *_missing(ours, theirs, numbers),
        *_exact(ours, theirs, both, numbers),
        *_perplexities(ours, theirs, both, numbers),
        *_within_errors(ours, theirs, both, numbers),
        *_verdicts(cpu, gpu, numbers),
    ]
    if not both:
        return Outcome("fail", "the runs have no estimate in common", numbers)
    if wrong:
        return Outcome("fail", "; ".join(wrong), numbers)
    return Outcome(
        "pass",
        f"{len(both)} estimates in both runs, {numbers['beyond']} of {numbers['with_errors']} more than three standard"
        f" errors apart; {numbers['verdicts']} verdicts the same",
        numbers,
    )


def _by_place(run: Mapping[str, Any]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    return {tuple(each[name] for name in _PLACE): each for each in run["estimates"]}


def _kind(place: tuple[Any, ...]) -> str:
    metric = METRICS.get(place[-1])
    return "" if metric is None else metric.estimated


def _missing(ours: Iterable[Any], theirs: Iterable[Any], numbers: dict[str, Any]) -> list[str]:
    """Metrics of one run alone. Single places may be: worst heads, and layers of a text that ends, are found ones."""
    first, second = ({place[-1] for place in run if _kind(place) not in _MACHINE} for run in (ours, theirs))
    numbers["only_cpu"], numbers["only_gpu"] = sorted(first - second), sorted(second - first)
    return [
        f"only the {device} has {', '.join(names[:_SHOWN])}"
        for device, names in (("CPU", numbers["only_cpu"]), ("GPU", numbers["only_gpu"]))
        if names
    ]


def _exact(ours: Mapping[Any, Any], theirs: Mapping[Any, Any], both: list[Any], numbers: dict[str, Any]) -> list[str]:
    """What is read from files must be the same number."""
    places = [place for place in both if _kind(place) in _EXACT]
    numbers["from_files"] = len(places)
    other = [place for place in places if not _close(ours[place]["value"], theirs[place]["value"])]
    return [f"{len(other)} numbers that are read from files differ, such as {_name(other[0])}"] if other else []


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)


def _perplexities(
    ours: Mapping[Any, Any], theirs: Mapping[Any, Any], both: list[Any], numbers: dict[str, Any]
) -> list[str]:
    places = [place for place in both if place[-1] == "ppl"]
    numbers["perplexities"] = {
        str(place[2]): {"cpu": ours[place]["value"], "gpu": theirs[place]["value"]} for place in places
    }
    if not places:
        return ["no perplexity is in both runs"]
    wrong = []
    for place in places:
        changed = math.log(theirs[place]["value"] / ours[place]["value"])
        limit = FLOORS["float" if "F16" in place[2] or "F32" in place[2] else "quantized"].ln_ppl
        # Also beyond it if it is no number.
        if not abs(changed) <= limit:
            wrong.append(f"ln PPL of {place[2]} changed by {changed:.2g}, expected at most {limit:g}")
    return wrong


def _within_errors(
    ours: Mapping[Any, Any], theirs: Mapping[Any, Any], both: list[Any], numbers: dict[str, Any]
) -> list[str]:
    apart: list[tuple[float, Any]] = []
    for place in both:
        error = max(ours[place]["se"] or 0.0, theirs[place]["se"] or 0.0)
        if error > 0 and _kind(place) not in _MACHINE | _EXACT | {"floor"} and place[-1] not in _TEXTS:
            apart.append((abs(theirs[place]["value"] - ours[place]["value"]) / error, place))
    apart.sort(key=lambda each: -each[0])
    beyond = [place for errors, place in apart if not errors <= _ERRORS]
    numbers["with_errors"], numbers["beyond"] = len(apart), len(beyond)
    numbers["furthest"] = [{"place": _name(place), "errors": round(errors, 2)} for errors, place in apart[:_SHOWN]]
    same_texts = [place for place in both if place[-1] == "exact_prefix_tokens"]
    numbers["texts"] = len(same_texts)
    numbers["texts_alike"] = sum(ours[place]["value"] == theirs[place]["value"] for place in same_texts)
    if not apart:
        return ["no estimate with a standard error is in both runs"]
    if len(beyond) > MOST_BEYOND * len(apart):
        named = Counter(place[-1] for place in beyond).most_common(_SHOWN)
        which = ", ".join(f"{count} of {metric}" for metric, count in named)
        return [f"{len(beyond)} of {len(apart)} estimates are more than three standard errors apart: {which}"]
    return []


def _verdicts(cpu: Mapping[str, Any], gpu: Mapping[str, Any], numbers: dict[str, Any]) -> list[str]:
    first, second = (
        {
            tuple(gate[name] for name in _GATE): gate["verdict"]
            for gate in run["gates"]
            if (metric := METRICS.get(gate["metric"])) is None or metric.estimated not in _MACHINE
        }
        for run in (cpu, gpu)
    )
    # The place of a worst head is found by the run: the gate is the same one.
    first, second = _without_places(first), _without_places(second)
    numbers["verdicts"] = len(first)
    other = [
        f"{test.rpartition('::')[2]}: {metric} is {first.get((test, metric), 'missing')} on the CPU,"
        f" {second.get((test, metric), 'missing')} on the GPU"
        for test, metric in sorted(set(first) | set(second))
        if first.get((test, metric)) != second.get((test, metric))
    ]
    numbers["other_verdicts"] = other
    if not first and not second:
        return ["neither run has a verdict"]
    return [f"{len(other)} verdicts differ: {'; '.join(other[:3])}"] if other else []


def _without_places(gates: Mapping[tuple[Any, ...], str]) -> dict[tuple[str, str], str]:
    """Verdicts by test and metric; of several places the worst."""
    worst = {"fail": 0, "inconclusive": 1, "pass": 2}
    kept: dict[tuple[str, str], str] = {}
    for (test, metric, *_), verdict in gates.items():
        before = kept.get((test, metric))
        if before is None or worst.get(verdict, 0) < worst.get(before, 0):
            kept[test, metric] = verdict
    return kept


def _name(place: tuple[Any, ...]) -> str:
    where = [
        f"{name} {value}" for name, value in zip(_PLACE, place, strict=True) if value is not None and name in _LOCAL
    ]
    return " ".join([str(place[-1]), *where])


_LOCAL: Final = ("model", "prompt", "layer", "head", "part")
