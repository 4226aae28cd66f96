"""What needs a whole run to be decided: in the session that measured it, and where its parts are merged.

These are Holm's correction over gates and over comparisons with a baseline, and planned gates that a test did not
decide. A test that passed by itself may fail by that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_harness.judge.gates import Gate, load_gates
from gguf_harness.judge.plan import homeless, of_other_suites
from gguf_harness.judge.verdicts import adjust
from gguf_harness.report.standing import undecided_gates

if TYPE_CHECKING:
    from gguf_harness.judge.outcomes import Kind
    from gguf_harness.store.run_draft import RunDraft

__all__ = ["LateFailure", "left_undecided", "settle", "unchecked"]


@dataclass(frozen=True, slots=True)
class LateFailure:
    """A test that passed by itself, and fails by what the whole run says.

    Attributes:
        message: a sentence a line.
        gates: the verdicts of the test, if it fails by them.
    """

    test: str
    kind: Kind
    message: str
    gates: tuple[dict[str, Any], ...] = ()


def settle(draft: RunDraft, *, holm: bool, failing: frozenset[str]) -> list[LateFailure]:
    """Apply Holm's correction to the gates of a run, and find the tests that fail only by it, or by its comparisons.

    Args:
        draft: the run, with comparisons that are judged; its gates are replaced.
        holm: whether adjusted verdicts become the verdicts.
        failing: verdicts that fail a test.
    """
    gates, comparisons = adjust(draft.gates, enforce=holm), draft.comparisons
    wrong = [gate for gate in gates if holm and gate["verdict"] in failing]
    wrong += [comparison for comparison in comparisons if comparison.get("outcome") == "worse"]
    draft.settle(gates, comparisons)
    messages: dict[str, list[str]] = {}
    for finding in wrong:
        # A comparison that is made when parts are merged belongs to no test.
        messages.setdefault(finding.get("test", ""), []).append(f"{finding['model']}: {finding['detail']}")
    failures = []
    for test, lines in messages.items():
        if test in draft.tests and draft.tests[test].outcome == "passed":
            own = tuple(gate for gate in gates if gate["test"] == test)
            failures.append(LateFailure(test, "gate" if own else "baseline", "\n".join(lines), own))
    return failures


def left_undecided(draft: RunDraft) -> list[LateFailure]:
    """The tests that ran and did not decide their planned gate."""
    messages: dict[str, list[str]] = {}
    tests = [test.to_json() for test in draft.tests.values()]
    content = {"planned": draft.planned, "gates": draft.gates, "tests": tests}
    for gate in undecided_gates(content | {"shard": draft.shard, "budget": draft.budget}):
        if gate.left_out:
            continue
        if gate.test is not None and gate.outcome in {"passed", "skipped"}:
            messages.setdefault(gate.test, []).append(gate.sentence)
    return [LateFailure(test, "undecided", "\n".join(lines)) for test, lines in messages.items()]


def unchecked(
    gates: Mapping[str, Gate], suites: Iterable[str], decided: Iterable[Mapping[str, Any]]
) -> tuple[list[str], str]:
    """(problems with limits that nothing checks, a sentence on those of other suites or "").

    Args:
        gates: the limits of the session.
        suites: its suites.
        decided: its verdicts.
    """
    metrics = {gate["metric"] for gate in decided}
    built_in = load_gates(None)
    own = [metric for metric, limit in gates.items() if limit != built_in.get(metric)]
    lost = homeless(gates, metrics)
    problems = [f"--gguf-gates has a limit for {', '.join(lost)}, and no test checks it"] if lost else []
    return problems, of_other_suites(own, suites, metrics)
