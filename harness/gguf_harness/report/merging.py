"""Merge the parts of a run: one run.json like that of a session that measured everything, decided anew over all.

Estimates, models, texts and arrays are those of the parts, in the order of the plan. Holm's correction, comparisons
with a baseline and planned gates that nothing decided are about the whole: they are settled as at the end of a session.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import GateError, HarnessError, OptionError, visible
from gguf_harness.judge.baseline_notes import notes_of, nothing_compared, uncompared
from gguf_harness.judge.baselines import Baseline, build_baseline, save_baseline, why_unfit
from gguf_harness.judge.gates import Gate
from gguf_harness.judge.regressions import judge
from gguf_harness.judge.shards import machines_of
from gguf_harness.metrics.registry import METRICS, Metric
from gguf_harness.report.badge import render_badge
from gguf_harness.report.html import write_html
from gguf_harness.report.late_comparisons import Against, compare_late
from gguf_harness.report.settling import left_undecided, settle, unchecked
from gguf_harness.report.shard_runs import Parts
from gguf_harness.report.standing import Standings
from gguf_harness.report.sum_of_parts import SumOfParts
from gguf_harness.store.arrays import load_arrays
from gguf_harness.store.run_draft import CourseOfParts, Findings, RunDraft, TestRecord, new_run_id
from gguf_harness.store.runs import write_text

__all__ = ["Merged", "merge_parts"]

_TIMED: Final = frozenset({"timing", "requests"})
"""Of `Metric.estimated`: what depends on the machine."""
_NOT_KEPT: Final = frozenset({"worse", "missing"})
_FAILED: Final = frozenset({"failed", "error"})
_CHARTS: Final = "charts.json"


@dataclass(frozen=True, slots=True)
class Merged:
    """A run that was merged.

    Attributes:
        run: content of its run.json.
        folder: its folder.
        problems: what belongs to no test and fails the run.
        notes: what was left out.
        baseline: file of the baseline that was saved.
    """

    run: Mapping[str, Any]
    folder: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    baseline: Path | None = None

    @property
    def passes(self) -> bool:
        """Whether everything that was planned was measured, and nothing failed."""
        return bool(self.run["session"]["exit_status"] == 0)


def merge_parts(
    parts: Parts, results: Path, command: Sequence[str], *, holm: bool, against: Against | None, save: str | None
) -> Merged:
    """Write the run that parts make, with its report and badge.

    Args:
        parts: checked.
        results: folder of the run: `results`/runs/<id>.
        command: what the person typed.
        holm: whether gates are decided together, whatever the sessions were told.
        against: the baseline to compare with; None for none.
        save: name to save a baseline under; None for none.

    Raises:
        StoreError: files of a part are missing, or the run cannot be written.
    """
    with _metrics_of_plugins(parts):
        merge = _Merge(parts, results, command, holm, against, save)
        try:
            return merge.run()
        except HarnessError:
            shutil.rmtree(merge.folder, ignore_errors=True)
            raise


@contextmanager
def _metrics_of_plugins(parts: Parts) -> Iterator[None]:
    """Know the metrics of plugins that the parts have entries of, as their sessions did."""
    added: list[str] = []
    try:
        for part in parts.parts:
            for entry in part.run.get("metrics") or []:
                metric = Metric.from_json(entry)
                if metric.name not in METRICS:
                    METRICS.add(metric)
                    added.append(metric.name)
        yield
    except GateError as error:
        raise OptionError(f"A metric of a plugin cannot be merged: {error.message}", error.hint) from None
    finally:
        METRICS.remove(added)


class _Merge:
    """One merge; its steps fill the draft in the order of a session."""

    def __init__(
        self,
        parts: Parts,
        results: Path,
        command: Sequence[str],
        holm: bool,
        against: Against | None,
        save: str | None,
    ) -> None:
        self._parts, self._results, self._save = parts, results, save
        self._runs = [part.run for part in parts.parts]
        self._against = against
        self._sum = SumOfParts(parts)
        first = self._runs[0]
        settings = self._settings(results, holm=holm)
        self._holm = bool(settings["holm"])
        self._failing = frozenset({"fail", "inconclusive"} if settings.get("inconclusive") == "fail" else {"fail"})
        machines, commits = ([run.get(name) for run in self._runs] for name in ("machine", "git"))
        self._draft = RunDraft(
            folder=results / "runs" / new_run_id(),
            command=list(command),
            settings=settings,
            machine=machines[0] if all(machine == machines[0] for machine in machines) else None,
            reference_reason=first["reference_reason"],
            reference=first["reference"],
            started=min(datetime.fromisoformat(run["started"]) for run in self._runs),
            # One that was killed at once may not have begun to plan.
            planned=max((list(run.get("planned") or []) for run in self._runs), key=len),
            baseline=against.baseline.name if against is not None else None,
            git=commits[0] if all(commit == commits[0] for commit in commits) else None,
            merged=self._merged(),
            measured_s=sum(run["duration_s"] for run in self._runs),
        )

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self._draft.folder

    def run(self) -> Merged:
        """All steps."""
        draft = self._draft
        self._take_findings()
        self._name_machines()
        problems = self._compare()
        for failure in settle(draft, holm=self._holm, failing=self._failing):
            draft.tests[failure.test].fail(failure.kind, failure.message)
        for failure in left_undecided(draft):
            draft.tests[failure.test].fail(failure.kind, failure.message)
        problems += self._left_unchecked()
        means = self._sum.write(draft.folder, means=self._save is not None)
        draft.course = self._course()
        content = draft.save(settled=True)
        draft.course.exit_status = int(self._fails(content, problems))
        content = draft.save(settled=True, last=True)
        saved, unsaved = self._saved_baseline(content, means)
        if unsaved:
            problems += unsaved
            draft.course.exit_status = 1
            content["session"]["exit_status"] = 1
            draft.rewrite(content)
        write_html(content, draft.folder, draft.folder / "report.html")
        write_text(draft.folder / "badge.svg", render_badge(content))
        return Merged(content, draft.folder, tuple(problems), (*self._parts.notes, *self._lost_charts()), saved)

    # -- what is about the whole ------------------------------------------------------------------------------------

    def _settings(self, results: Path, *, holm: bool) -> dict[str, Any]:
        """The settings of the sessions; None for those of machines that differ."""
        all_settings = [run["settings"] for run in self._runs]
        common = {
            name: value if all(other.get(name) == value for other in all_settings) else None
            for name, value in all_settings[0].items()
        }
        given = None if self._against is None else self._against.file
        return common | {
            "shard": None,
            "holm": holm or bool(common.get("holm")),
            "results": visible(results.name),
            "baseline": common.get("baseline") if given is None else visible(given),
            "save_baseline": self._save,
        }

    def _merged(self) -> dict[str, Any]:
        parts = self._parts
        return {
            "of": parts.of,
            "shards": [
                {
                    "index": part.index,
                    "run": part.run["id"],
                    "started": part.run["started"],
                    "duration_s": part.run["duration_s"],
                    "machine": part.run.get("machine"),
                    "models": parts.owned(part.index),
                }
                for part in parts.parts
            ],
            "missing": [{"index": index, "models": parts.owned(index)} for index in parts.missing],
        }

    def _take_findings(self) -> None:
        """Tests with their outcomes, estimates, and verdicts as each was by itself."""
        draft = self._draft
        tests = [test for run in self._runs for test in run["tests"]]
        for test in sorted(tests, key=lambda test: self._sum.place(test["model"])):
            draft.tests[test["id"]] = TestRecord.from_json(test)
            draft.findings[test["id"]] = Findings()
        together = draft.findings.setdefault("", Findings())
        together.estimates = self._sum.by_model(run["estimates"] for run in self._runs)
        reopened = self._holm and not self._runs[0]["settings"].get("holm")
        if reopened:
            # They failed by a limit alone, and are decided by the adjusted verdicts.
            for record in draft.tests.values():
                if record.kind == "gate":
                    record.outcome, record.kind, record.message, record.summary = "passed", None, "", None
        for gate in self._sum.by_model(run["gates"] for run in self._runs):
            draft.findings.setdefault(gate["test"], Findings()).gates.append(gate)

    def _name_machines(self) -> None:
        """Say of each timing where it was measured, if the parts were measured on different machines."""
        machines = machines_of({"merged": self._draft.merged})
        if not machines:
            return
        for row in self._draft.findings[""].estimates:
            metric = METRICS.get(row["metric"])
            if metric is not None and metric.estimated in _TIMED and row["model"] in machines:
                where = f"on {machines[row['model']]}"
                row["detail"] = f"{row['detail']}; {where}" if row["detail"] else where
        names = "; ".join(dict.fromkeys(machines.values()))
        self._draft.warnings.append(
            f"The parts of this run were measured on different machines ({names}): timings of one say nothing about"
            " those of another. Ratios to the reference were timed in turns on one machine."
        )

    def _compare(self) -> list[str]:
        """Judge the comparisons with a baseline; returns problems that belong to no test."""
        draft, against = self._draft, self._against
        if against is None:
            return []
        draft.planned_comparisons = list(self._parts.plan["comparisons"])
        if against.compared:
            made = self._sum.by_model((run.get("baseline") or {}).get("comparisons", []) for run in self._runs)
        else:
            made = compare_late(self._parts.parts, against, draft.findings[""].estimates)
        baseline: Baseline = against.baseline
        comparisons = judge(made)
        seen = [row["model"] for row in draft.findings[""].estimates]
        absent = uncompared(against.partners, baseline, comparisons, seen)
        draft.settle(draft.gates, [*comparisons, *absent])
        draft.baseline_notes = notes_of(against.partners, baseline, comparisons)
        problems = [f"{one['model']}: {one['detail']}." for one in absent]
        if not comparisons and not problems:
            problems = [nothing_compared(baseline, against.partners)]
            draft.baseline_notes += problems
        return problems

    def _left_unchecked(self) -> list[str]:
        plan = self._parts.plan
        gates = {metric: Gate(**gate) for metric, gate in plan["gates"].items()}
        problems, elsewhere = unchecked(gates, plan["suites"], self._draft.gates)
        self._draft.warnings += [elsewhere] if elsewhere else []
        if self._parts.stopped is not None or not plan["suites"]:
            return []  # a part that is missing may check it
        self._draft.warnings += [f"{problem}: the session fails." for problem in problems]
        return problems

    def _course(self) -> CourseOfParts:
        sessions = [run.get("session") or {} for run in self._runs]
        ran, selected = (sum(session.get(what) or 0 for session in sessions) for what in ("ran", "selected"))
        if self._parts.missing:
            selected = max(selected, int(self._parts.plan["tests"]["count"]))
        return CourseOfParts(selected, ran, self._parts.stopped)

    def _fails(self, content: Mapping[str, Any], problems: Sequence[str]) -> bool:
        """Whether anything failed, was not decided, or is missing."""
        draft = self._draft
        standings = Standings(content)
        undecided = any(standings.of(one["model"]).undecided for one in (*draft.planned, *draft.planned_comparisons))
        return bool(
            problems
            or not content["finished"]
            or undecided
            or any(test.outcome in _FAILED for test in draft.tests.values())
            or any(one.get("outcome") in _NOT_KEPT for one in draft.comparisons)
            or any(map(_failed_otherwise, self._runs))
        )

    def _saved_baseline(self, run: dict[str, Any], means: Mapping[str, Path]) -> tuple[Path | None, list[str]]:
        """(the file of the baseline to save, or None; why it was not saved)."""
        if self._save is None:
            return None, []
        failed = sum(test["outcome"] in _FAILED for test in run["tests"]) + sum(map(_unknown_failures, self._runs))
        if reason := why_unfit(run, unfinished=not run["finished"], failed=failed):
            return None, [f"The baseline {self._save!r} was not saved: {reason}."]
        path = self._results / "baselines" / f"{self._save}.json"
        arrays = {model: load_arrays(file) for model, file in means.items()}
        save_baseline(path, build_baseline(run, arrays, self._parts.plan["compared_with"]))
        return path, []

    def _lost_charts(self) -> list[str]:
        """A note on charts of plugins, which only sessions can draw."""
        drawn = [part.name for part in self._parts.parts if (part.path.parent / _CHARTS).is_file()]
        if not drawn:
            return []
        return [f"charts of plugins are drawn by sessions, and stay in the reports of the parts: {', '.join(drawn)}"]


def _unknown_failures(run: Mapping[str, Any]) -> int:
    """Tests of a part that failed and have no record: of other projects, or of a process that crashed."""
    known = sum(test["outcome"] in _FAILED for test in run["tests"])
    return max(0, int((run.get("shard") or {}).get("failed") or 0) - known)


def _failed_otherwise(run: Mapping[str, Any]) -> bool:
    """Whether the session of a part failed by what its tests do not tell."""
    known = any(test["outcome"] in _FAILED for test in run["tests"])
    status = (run.get("session") or {}).get("exit_status")
    return _unknown_failures(run) > 0 or (bool(status) and not known)
