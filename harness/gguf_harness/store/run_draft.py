"""A run while it is being measured: collects everything from one pytest invocation for run.json.

With `pytest -n` several processes measure. Rows and verdicts travel with the test reports; what belongs to no single
test (models, corpus, engine, arrays) is written by each process into its own part (`store.run_part`), and the parts are
merged at the end.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gguf_harness import __version__
from gguf_harness.metrics.records import SCHEMA_VERSION
from gguf_harness.metrics.registry import METRICS
from gguf_harness.store.runs import write_json

__all__ = ["Course", "CourseOfParts", "Findings", "RunDraft", "TestRecord", "new_run_id"]


def new_run_id() -> str:
    """An id that sorts by time, to the millisecond; its random end keeps runs that start together apart."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}{secrets.token_hex(4)}"


@dataclass(slots=True)
class TestRecord:
    """One test's outcome.

    Attributes:
        kind: of a failure, one of `gguf_harness.judge.outcomes.Kind`; "prompt" for a test that was skipped because of
            its prompt.
        summary: the failure in one line.
        attempts: number of attempts (--reruns); the run holds the results of the last one.
    """

    id: str
    suite: str
    model: str | None
    outcome: str
    message: str
    duration_s: float
    kind: str | None = None
    summary: str | None = None
    attempts: int = 1

    __test__ = False  # a record, not a test class

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TestRecord:
        """Inverse of `to_json`."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def fail(self, kind: str, message: str) -> None:
        """Let it fail by what the whole run says, though it had passed."""
        self.outcome, self.kind, self.message, self.summary = "failed", kind, message, message

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        # Not asdict, which copies every value deeply.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"duration_s": round(self.duration_s, 3)}


@dataclass(slots=True)
class Course:
    """Progress of a session.

    Attributes:
        selected: ids of all tests that are to run, including those of other projects.
        ended: those with a final outcome.
        stopped: why the session ended before its tests; None if it did not.
        exit_status: exit status of pytest when the run was last stored.
    """

    selected: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    stopped: str | None = None
    exit_status: int | None = None

    @property
    def complete(self) -> bool:
        """Whether every selected test has an outcome and nothing stopped the session."""
        return self.stopped is None and self.selected <= self.ended

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        ran = len(self.selected & self.ended) if self.selected else len(self.ended)
        selected = max(len(self.selected), ran)
        return {"selected": selected, "ran": ran, "stopped": self.stopped, "exit_status": self.exit_status}


@dataclass(slots=True)
class CourseOfParts:
    """The same for a run that was merged from parts, whose tests are counted.

    Attributes:
        selected: number of tests that were to run in all parts.
        ran: number of those with a final outcome.
        stopped: why parts are missing or unfinished; None where none is.
        exit_status: of the merge.
    """

    selected: int
    ran: int
    stopped: str | None
    exit_status: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all parts are there and ran to their end."""
        return self.stopped is None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return {
            "selected": self.selected,
            "ran": self.ran,
            "stopped": self.stopped,
            "exit_status": self.exit_status,
        }


@dataclass(slots=True)
class Findings:
    """The results of one test: rows, verdicts of gates, comparisons with a baseline."""

    estimates: list[dict[str, Any]] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class RunDraft:
    """The run.json of a running session. Saved after every test, so that a killed session keeps its results.

    Attributes:
        findings: by test id; a later attempt at a test replaces the earlier one.
        planned: gates that the suites must decide, as `gguf_harness.judge.plan.plan_gates` gives them.
        planned_comparisons: the same for comparisons with the baseline.
        git: commit of the folder that the session ran in, as `gguf_harness.inputs.commit.commit_of` gives it.
        warnings: of the session as a whole.
        shard: which part of a run it is, and the plan of the whole; None for a whole run.
        merged: the parts that it was merged from; None for what one session measured.
        measured_s: seconds that these took together.
        forecast: seconds that were predicted, and that it took; None for a session that was not foreseen.
        budget: its time, and what was left out for it; None without one.
    """

    folder: Path
    command: list[str]
    settings: dict[str, Any]
    machine: dict[str, Any] | None
    reference_reason: str
    reference: str | None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    tests: dict[str, TestRecord] = field(default_factory=dict)
    findings: dict[str, Findings] = field(default_factory=dict)
    planned: list[dict[str, Any]] = field(default_factory=list)
    planned_comparisons: list[dict[str, Any]] = field(default_factory=list)
    baseline: str | None = None
    git: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    course: Course | CourseOfParts = field(default_factory=Course)
    shard: dict[str, Any] | None = None
    merged: dict[str, Any] | None = None
    measured_s: float | None = None
    baseline_notes: list[str] = field(default_factory=list)
    forecast: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    _clock: float = field(default_factory=time.monotonic)

    @property
    def gates(self) -> list[dict[str, Any]]:
        """All gate verdicts."""
        return [gate for findings in self.findings.values() for gate in findings.gates]

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """All comparisons."""
        return [comparison for findings in self.findings.values() for comparison in findings.comparisons]

    def settle(self, gates: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
        """Replace individual verdicts and comparisons by those decided over the whole run."""
        for findings in self.findings.values():
            findings.gates, findings.comparisons = [], []
        for gate in gates:
            self.findings[gate["test"]].gates.append(gate)
        for comparison in comparisons:
            # A comparison that could not be made belongs to no test.
            self.findings.setdefault(comparison.get("test", ""), Findings()).comparisons.append(comparison)

    def save(self, *, settled: bool, last: bool = False) -> dict[str, Any]:
        """Write run.json and return its content.

        Args:
            settled: results that need the whole run are decided; without them, the run is not finished.
            last: nothing more will be added: the parts of other processes can be removed.
        """
        content = self._assemble(settled and self.course.complete)
        write_json(self.folder / "run.json", content, lasting=settled)
        if last:
            shutil.rmtree(self.folder / "parts", ignore_errors=True)
        return content

    def rewrite(self, content: dict[str, Any]) -> None:
        """Write run.json again, with what was found out only after it was complete."""
        write_json(self.folder / "run.json", content)

    def _assemble(self, finished: bool) -> dict[str, Any]:
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("parts/*.json"))]
        models: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        texts: dict[str, Any] = {}
        early: dict[str, Any] = {}
        heads: dict[str, Any] = {}
        for part in parts:
            heads |= part["heads"]
            texts = part["texts"] | texts
            for model, row in part["early"].items():
                # A reference is decoded on by whichever process needs more of it.
                if model not in early or early[model]["windows"] < row["windows"]:
                    early[model] = row
            models = part["models"] | models
            arrays = part["arrays"] | arrays
        return {
            "schema_version": SCHEMA_VERSION,
            "id": self.folder.name,
            "command": self.command,
            "started": self.started.isoformat(timespec="seconds"),
            "duration_s": round(self.measured_s or time.monotonic() - self._clock, 3),
            "finished": finished,
            "session": self.course.to_json(),
            "shard": self.shard,
            "merged": self.merged,
            "harness": __version__,
            "git": self.git,
            "machine": self.machine,
            "engine": next((part["engine"] for part in parts if part["engine"]), None),
            "models": [model | {"reference": model["name"] == self.reference} for model in models.values()],
            "reference": self.reference,
            "reference_reason": self.reference_reason,
            "corpus": next((part["corpus"] for part in parts if part["corpus"]), None),
            "prompts": next((part["prompts"] for part in parts if part["prompts"]), None),
            "texts": [row for rows in texts.values() for row in rows],
            "settings": self.settings,
            "tests": [test.to_json() for test in self.tests.values()],
            "estimates": [row for findings in self.findings.values() for row in findings.estimates],
            "metrics": self._foreign_metrics(),
            "arrays": list(arrays.values()),
            "planned": self.planned,
            "gates": self.gates,
            "early": list(early.values()),
            "heads": [row for rows in heads.values() for row in rows],
            "nodes": _together(part["nodes"] for part in parts),
            "analytics": sorted({backend for part in parts for backend in part["analytics"]}),
            "baseline": self._compared() if self.baseline else None,
            "forecast": self.forecast,
            "budget": self.budget,
            "warnings": list(dict.fromkeys([*(w for part in parts for w in part["warnings"]), *self._warnings()])),
            "cache": {key: sum(part["cache"][key] for part in parts) for key in ("hits", "misses")},
        }

    def _foreign_metrics(self) -> list[dict[str, Any]]:
        """Entries of used metrics that come from plugins: a reader of the run may not have these plugins."""
        rows = (row for findings in self.findings.values() for row in (*findings.estimates, *findings.gates))
        used = dict.fromkeys(row["metric"] for row in rows)
        theirs = [name for name in used if name in METRICS and not METRICS.is_built_in(name)]
        return [METRICS[name].to_json() for name in theirs]

    def _compared(self) -> dict[str, Any]:
        return {
            "name": self.baseline,
            "planned": self.planned_comparisons,
            "comparisons": self.comparisons,
            "notes": self.baseline_notes,
        }

    def _warnings(self) -> list[str]:
        undecided = (gate for gate in self.gates if gate["verdict"] == "inconclusive")
        told = (f"{gate['model']}: {gate['metric']} is inconclusive. {gate['detail']}" for gate in undecided)
        return [*told, *self.warnings]


def _together(parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Nodes of a cluster that have measured, each once, with the calls of all processes."""
    nodes: dict[str, dict[str, Any]] = {}
    for node in (node for part in parts for node in part):
        known = nodes.setdefault(node["node"], node | {"calls": 0})
        known["calls"] += node["calls"]
    return list(nodes.values())
