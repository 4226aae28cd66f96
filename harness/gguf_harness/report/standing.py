"""The standing of a model in a run: one verdict over everything planned for it, with reasons.

Table, headline, report, badge, markdown, JUnit and annotations all use this verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gguf_harness.judge.shards import planned_here

__all__ = ["Failure", "Standing", "Standings", "Undecided", "failures_of", "undecided_gates"]

Entry = Mapping[str, Any]

_FAILED: Final = frozenset({"failed", "error"})
_NOT_KEPT: Final = frozenset({"worse", "missing"})
_ENDED: Final = _FAILED | {"passed", "skipped"}
_UNDECIDED: Final = ", and this test did not decide on it: "


@dataclass(frozen=True, slots=True)
class Undecided:
    """A planned gate or comparison that was not decided.

    Attributes:
        test: id of the test that should have decided it; None if it did not finish.
        outcome: outcome of that test.
        why: a sentence.
        compared: whether it is a comparison with the baseline instead of a gate.
        left_out: whether --gguf-budget had no time for it.
    """

    model: str
    metric: str
    test: str | None
    outcome: str | None
    why: str
    compared: bool = False
    left_out: bool = False

    @property
    def sentence(self) -> str:
        """The sentence for the test that ended without deciding it."""
        return f"{self.model}: {self.metric} has a limit{_UNDECIDED}{self.why}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed test, as stored in the run.

    Attributes:
        kind: one of `gguf_harness.judge.outcomes.Kind`.
        summary: the reason, in one line.
        message: the full text.
    """

    test: str
    model: str | None
    kind: str
    summary: str
    message: str

    @property
    def words(self) -> str:
        """What failed and why, worded by kind; for a measurement, the full message of its error."""
        name = self.test.split("::")[-1]
        if self.kind in {"assertion", "fixture"}:
            return f"{'a fixture of ' if self.kind == 'fixture' else ''}{name} failed: {self.summary}"
        return self.message or self.summary


@dataclass(frozen=True, slots=True)
class Standing:
    """The verdict on a model, with reasons.

    Attributes:
        verdict: the worst that applies: "fail" (a gate failed, it is worse than its baseline, or a test failed by
            itself), "error" (something could not be measured), "incomplete" (something planned was not decided),
            "inconclusive", "pass", or "" if nothing was planned or decided.
        reasons: reasons for the verdict as sentences.
        others: other failures that the verdict does not show.
        undecided: gates and comparisons that were planned and not decided.
        missing: the same as a sentence, if there are any.
    """

    verdict: str
    reasons: tuple[str, ...]
    others: tuple[str, ...]
    undecided: tuple[Undecided, ...]
    missing: tuple[str, ...]


class Standings:
    """Standings of the models of a run.

    Args:
        run: content of a run.json; in older runs without `planned`, the decided gates count as planned.
    """

    def __init__(self, run: Entry) -> None:
        baseline = run.get("baseline") or {}
        self._gates = _by_model(run.get("gates", []))
        self._comparisons = _by_model(baseline.get("comparisons", []))
        self._failures: dict[str | None, list[Failure]] = {}
        for failure in failures_of(run):
            self._failures.setdefault(failure.model, []).append(failure)
        self._undecided: dict[str, list[Undecided]] = {}
        for one in (*undecided_gates(run), *_undecided_comparisons(run)):
            self._undecided.setdefault(one.model, []).append(one)

    def of(self, model: str) -> Standing:
        """The standing of a model."""
        gates, undecided = self._gates.get(model, []), tuple(self._undecided.get(model, []))
        worse = [one["detail"] for one in self._comparisons.get(model, []) if one.get("outcome") in _NOT_KEPT]
        told: dict[str, list[str]] = {}
        for failure in self._failures.get(model, []):
            told.setdefault(failure.kind, []).append(failure.words)
        failed = [gate["detail"] for gate in gates if gate["verdict"] == "fail"] + worse
        # If none is worse, the test failed because there was nothing to compare with.
        failed += [] if worse else told.get("baseline", [])
        failed += told.get("assertion", []) + told.get("fixture", [])
        reasons = {
            "fail": failed,
            "error": [*told.get("measurement", []), *told.get("prompt", [])],
            "incomplete": [self._missing(model)] if undecided else [],
            "inconclusive": [gate["detail"] for gate in gates if gate["verdict"] == "inconclusive"],
        }
        verdict = next((name for name in reasons if reasons[name]), "pass" if gates else "")
        broken = [f"could not be measured: {_first_line(reason)}" for reason in reasons["error"]]
        others = [*(broken if verdict == "fail" else []), *(reasons["incomplete"] if verdict != "incomplete" else [])]
        why = _unique(reasons.get(verdict, []))
        return Standing(verdict, why, _unique(others), undecided, tuple(reasons["incomplete"]))

    def _missing(self, model: str) -> str:
        """`2 of 4 gates decided; not decided: same_top, ppl_ratio (test_x did not run)`; and what is inconclusive."""
        reasons: dict[str, list[str]] = {}
        for one in self._undecided[model]:
            reasons.setdefault(one.why.rstrip("."), []).append(one.metric)
        missing = "; ".join(f"{', '.join(metrics)} ({why})" for why, metrics in reasons.items())
        # Gates of users' own tests count once they are decided.
        tested = {(gate.get("suite"), gate["metric"]): gate["verdict"] for gate in self._gates.get(model, [])}
        open_ones = [metric for (_, metric), verdict in tested.items() if verdict == "inconclusive"]
        made = {one["metric"] for one in self._comparisons.get(model, [])}
        what = "gates and comparisons" if made or self._undecided[model][-1].compared else "gates"
        count = len(tested) + len(made)
        told = f"{count - len(open_ones)} of {count + len(self._undecided[model])} {what} decided; "
        told += f"inconclusive: {', '.join(open_ones)}; " if open_ones else ""
        return f"{told}not decided: {missing}"


def undecided_gates(run: Entry) -> list[Undecided]:
    """Planned gates that no test decided, with the reason as far as the run has it.

    Of a part of a run, those that this part has to decide.
    """
    decided = {(gate["model"], gate.get("suite"), gate["metric"]) for gate in run.get("gates", [])}
    tests = _by_function(run)
    return [
        _undecided(gate, next(iter(tests.get(_function_of(gate), [])), None), run)
        for gate in planned_here(run, run.get("planned") or [])
        if (gate["model"], gate["suite"], gate["metric"]) not in decided
    ]


def failures_of(run: Entry) -> list[Failure]:
    """Failed tests, except those that failed only because they did not decide their gate."""
    failures = []
    for test in run.get("tests", []):
        if test["outcome"] in _FAILED:
            kind = test.get("kind") or _old_kind(test, run)
            message = test["message"].strip()
            summary = test.get("summary") or _summary(message)
            failures.append(Failure(test["id"], test.get("model"), kind, summary, message))
    return [failure for failure in failures if failure.kind != "undecided"]


def _undecided_comparisons(run: Entry) -> list[Undecided]:
    """Planned comparisons with the baseline whose tests did not finish; a finished test made those it had to."""
    baseline = run.get("baseline") or {}
    made = {(one["model"], one["metric"]) for one in baseline.get("comparisons", [])}
    tests = _by_function(run)
    return [
        _undecided(one, None, run, compared=True)
        for one in planned_here(run, baseline.get("planned") or [])
        if (one["model"], one["metric"]) not in made
        and not any(one["metric"] in _parameters(test["id"]) for test in tests.get(_function_of(one), []))
    ]


def _undecided(planned: Entry, test: Entry | None, run: Entry, *, compared: bool = False) -> Undecided:
    name = planned["test"]
    outcome = test["outcome"] if test is not None else None
    ended = outcome in _ENDED
    left_out = outcome in {None, "skipped"} and _is_left_out(planned, run)
    if left_out and test is None:
        why = "left out for the budget."
    elif left_out and test is not None:
        why = test.get("summary") or _summary(test["message"])
    elif test is None or not ended:
        why = f"{name} did not run." if run.get("finished", True) else _why_unfinished(planned["model"], run)
    elif test.get("kind") == "undecided":
        # The test failed for it, with this sentence after the others.
        why = str(test["message"]).rsplit(_UNDECIDED, maxsplit=1)[-1]
    elif outcome == "passed":
        why = f"{name} passed without deciding it."
    else:
        told = test.get("summary") or _summary(test["message"])
        why = f"{name} {'was skipped' if outcome == 'skipped' else 'failed'}: {told}"
    identifier = test["id"] if test is not None and ended else None
    metric = f"{planned['metric']} against the baseline" if compared else planned["metric"]
    return Undecided(planned["model"], metric, identifier, outcome, why, compared, left_out)


def _is_left_out(planned: Entry, run: Entry) -> bool:
    """Whether --gguf-budget had no time for the test that decides."""
    place = {key: planned[key] for key in ("suite", "test", "model")}
    return place in (run.get("budget") or {}).get("left_out", [])


def _why_unfinished(model: str, run: Entry) -> str:
    merged = run.get("merged") or {}
    for shard in merged.get("missing", []):
        if model in shard["models"]:
            return f"shard {shard['index']} of {merged['of']} is missing."
    return "the run was interrupted."


def _by_model(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    entries_by_model: dict[str, list[Entry]] = {}
    for entry in entries:
        entries_by_model.setdefault(entry["model"], []).append(entry)
    return entries_by_model


def _by_function(run: Entry) -> dict[tuple[str | None, str, str], list[Entry]]:
    """Tests by model, suite and name."""
    entries_by_function: dict[tuple[str | None, str, str], list[Entry]] = {}
    for test in run.get("tests", []):
        name = test["id"].split("::")[-1].split("[")[0]
        entries_by_function.setdefault((test.get("model"), test["suite"], name), []).append(test)
    return entries_by_function


def _function_of(planned: Entry) -> tuple[str | None, str, str]:
    return planned["model"], planned["suite"], planned["test"]


def _parameters(identifier: str) -> list[str]:
    """`kld_mean` and `model` of `test[kld_mean-model]`, in any order; names with dashes are split."""
    return identifier.partition("[")[2].rstrip("]").split("-")


def _old_kind(test: Entry, run: Entry) -> str:
    """The kind of a failure in a run that does not store it, derived from the sentences of its gates."""
    compared = (run.get("baseline") or {}).get("comparisons", [])
    for kind, decided in (("gate", run.get("gates", [])), ("baseline", compared)):
        if any(one.get("verdict") != "pass" and one["detail"] in test["message"] for one in decided):
            return kind
    return "measurement"


def _summary(message: str) -> str:
    """The line that pytest marks as the error, or the first line."""
    lines = message.strip().splitlines()
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return next(iter(marked or lines), "no reason was given")


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no reason was given")


def _unique(told: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(told))
