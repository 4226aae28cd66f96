"""A run.json as the reports read it: typed, tolerant of missing measurements, with the conclusions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gguf_harness.errors import visible, visible_lines
from gguf_harness.judge.shards import part_models, planned_here, shard_words
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.registry import Metric, metrics_of_run
from gguf_harness.metrics.tradeoff import dominated_by, smallest_passing
from gguf_harness.report.caches import smallest_cache
from gguf_harness.report.kept_effects import smallest_base
from gguf_harness.report.numbers import format_bytes
from gguf_harness.report.standing import Standing, Standings, failures_of, undecided_gates

__all__ = [
    "MOST_ESTIMATES",
    "Candidate",
    "RunView",
    "describe_windows",
    "place",
    "saves_cache",
    "visible",
    "visible_lines",
]

MOST_ESTIMATES: Final = 2000
"""Most rows of a page, which a browser can still sort and filter. A run with many heads or prompts has tens of
thousands.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a run, with its results.

    Attributes:
        verdict: the verdict of its standing, see `gguf_harness.report.standing`; "reference" for the reference.
        reasons: reasons for the verdict as sentences; for the reference, what failed.
        standing: its standing, whatever its role.
        dominated_by: a model that is no bigger and no worse, and better in one of the two.
        measured: whether the run has any estimate of it.
    """

    name: str
    facts: Mapping[str, Any]
    is_reference: bool
    verdict: str
    reasons: tuple[str, ...]
    standing: Standing
    dominated_by: str | None
    measured: bool = True

    @property
    def label(self) -> str:
        """The verdict as shown."""
        return self.verdict or ("measured, not gated" if self.measured else "not measured, not gated")


class RunView:
    """Lookups in a run.

    Args:
        run: content of a run.json.

    Attributes:
        run: the same.
        metrics: metrics that can be shown, by name, in the order of tables.
        models: its models, biggest first.
    """

    def __init__(self, run: Mapping[str, Any]) -> None:
        self.run = run
        self._rows: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._placed: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        self._parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in run.get("estimates", []):
            # Skip rows of a single prompt, layer, head or group of tensors.
            if Place.of(row) == WHOLE:
                self._rows.setdefault((row["model"], row["metric"]), row)
            elif row.get("part") is None:
                self._placed.setdefault((row["model"], row["metric"]), []).append(row)
            elif row.get("layer") is None and row.get("prompt") is None:
                self._parts.setdefault((row["model"], row["metric"]), []).append(row)
        models = sorted(run.get("models", []), key=lambda model: (-model["bytes"], model.get("order", 0)))
        tested = {test["model"] for test in run.get("tests", []) if test.get("model")}
        # One that a budget had no time for has a line, too: its gates are open.
        tested |= {row["model"] for row in (run.get("budget") or {}).get("left_out", []) if row["model"]}
        self._facts: dict[str, Mapping[str, Any]] = {model["name"]: model for model in models}
        # A model whose file never loaded has tests but no facts: it still gets a line.
        self._facts |= {name: {} for name in sorted(tested - set(self._facts))}
        self.metrics = metrics_of_run(run)
        self._dominated = dominated_by(self._points())
        self._standings = Standings(run)
        self.models = [self._candidate(name) for name in self._facts]

    def row(self, model: str, metric: str) -> Mapping[str, Any] | None:
        """The row of a model's metric over everything; None if it was not measured."""
        return self._rows.get((model, metric))

    def title(self, metric: str) -> str:
        """Title of a metric; its name if unknown."""
        return self.metrics[metric].title if metric in self.metrics else metric

    def used_metrics(self) -> list[Metric]:
        """The metrics that the run has estimates of, in the order of the registry."""
        used = {row["metric"] for row in self.run.get("estimates", [])}
        return [metric for metric in self.metrics.values() if metric.name in used]

    @property
    def losses(self) -> list[str]:
        """Metrics to weigh models against their size, the best first."""
        losses = [metric for metric in self.metrics.values() if metric.loss]
        return [metric.name for metric in sorted(losses, key=lambda metric: metric.loss)]

    def rows_of(self, model: str, metric: str) -> list[Mapping[str, Any]]:
        """Rows of a model's metric over layers and heads, of all prompts together."""
        return [row for row in self._placed.get((model, metric), []) if row.get("prompt") is None]

    def parts_of(self, model: str, metric: str) -> list[Mapping[str, Any]]:
        """Rows of a model's metric by part, such as positions of a window, over all layers and prompts."""
        return self._parts.get((model, metric), [])

    def shown_estimates(self, most: int = MOST_ESTIMATES) -> list[Mapping[str, Any]]:
        """Estimates for the page's table, in order: whole models, then layers, then others, up to `most`."""
        rows = self.run.get("estimates", [])
        ranked = sorted(range(len(rows)), key=lambda index: _detail_of(rows[index]))
        whole = sum(_detail_of(row) == 0 for row in rows)
        return [rows[index] for index in sorted(ranked[: max(most, whole)])]

    def measured(self, metric: str) -> bool:
        """Whether any model has this metric."""
        return any(key[1] == metric for key in self._rows)

    @property
    def reference(self) -> str | None:
        """Name of the reference."""
        return next((model.name for model in self.models if model.is_reference), None)

    @property
    def candidates(self) -> list[Candidate]:
        """All models but the reference, biggest first."""
        return [model for model in self.models if not model.is_reference]

    @property
    def texts(self) -> dict[str, list[Mapping[str, Any]]]:
        """By prompt: how each model continued it, the reference first."""
        order = {model.name: place for place, model in enumerate(self.models)}
        rows = sorted(
            self.run.get("texts") or [], key=lambda row: (row["model"] != self.reference, order.get(row["model"], 0))
        )
        texts: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            texts.setdefault(row["prompt"], []).append(row)
        return texts

    @property
    def recommended(self) -> Candidate | None:
        """The smallest candidate that passes every planned gate; None in a part of a run, which lacks the others."""
        if self.run.get("shard") is not None:
            return None
        costs = {model.name: float(model.facts["bytes"]) for model in self.candidates if model.facts}
        compared = self._compared
        passing = (model.name for model in self.candidates if model.verdict == "pass" and model.name in compared)
        name = smallest_passing(costs, passing)
        return next((model for model in self.candidates if model.name == name), None)

    @property
    def _compared(self) -> set[str]:
        """Models that a gate compared with the reference, not only with their own file run otherwise."""
        gates = ((gate["model"], self.metrics.get(gate["metric"])) for gate in self.run.get("gates", []))
        return {model for model, entry in gates if not (entry and entry.gate and entry.gate.of != "candidate")}

    @property
    def alone(self) -> Candidate | None:
        """The only model of a run without candidates."""
        return self.models[0] if len(self.models) == 1 and not self.candidates else None

    @property
    def interrupted(self) -> str | None:
        """`interrupted: 3 of 14 tests ran`, and why; of merged parts, which are missing; None for a finished run."""
        if self.run.get("finished", True):
            return None
        session = self.run.get("session") or {}
        if self.run.get("merged"):
            return f"incomplete: {visible(str(session.get('stopped') or 'tests are missing'))}"
        told = "interrupted"
        if session.get("selected"):
            told += f": {session['ran']} of {session['selected']} tests ran"
        why = next(iter(str(session.get("stopped") or "").splitlines()), "")
        return told + (f" ({visible(why)})" if why else "")

    @property
    def others_failed(self) -> bool:
        """Whether anything failed besides the verdicts of candidates: another test, or the session itself."""
        names = {model.name for model in self.candidates}
        if any(failure.model not in names for failure in failures_of(self.run)):
            return True
        status = (self.run.get("session") or {}).get("exit_status")
        return bool(status) and all(model.verdict in {"pass", ""} for model in self.candidates)

    def headline(self) -> str:
        """The answer in one sentence."""
        part = self.part
        if self.interrupted is not None:
            return f"{part}, {self.interrupted}" if part else f"I{self.interrupted[1:]}"
        if part is not None:
            return f"{part}: {self._of_part()}"
        best = self.recommended
        if best is not None:
            size = f"{format_bytes(best.facts['bytes'])}{self._share(best)}"
            rest = [model for model in self.candidates if model.verdict == "incomplete"]
            more = f"; {len(rest)} of {len(self.candidates)} candidates incomplete" if rest else ""
            more += "; other tests failed" if self.others_failed else ""
            return f"Smallest candidate that passes every gate: {visible(best.name)}, {size}{more}"
        if not self._compared and (cache := smallest_cache(self)) is not None:
            return cache
        if not self._compared and (base := smallest_base(self)) is not None:
            return base
        return self._without_pass()

    @property
    def part(self) -> str | None:
        """`Shard 2 of 3`; None for a whole run."""
        words = shard_words(self.run)
        return None if words is None else f"S{words[1:]}"

    def _of_part(self) -> str:
        """What a part of a run says: its verdicts are those of its own models, and none is on the whole."""
        shard, planned = self.run["shard"], self.run.get("planned") or []
        if not (self.run.get("session") or {}).get("selected"):
            files = len({model["file"] for model in shard["plan"]["models"]})
            why = f"the run has {files} {'file' if files == 1 else 'files'}"
            why = "no selected test is about its files" if part_models(shard["plan"], shard["index"]) else why
            return f"nothing to do, since {why}; merge the others"
        own = len(planned_here(self.run, planned))
        decided = own - len(undecided_gates(self.run))
        told = f"{decided} of {len(planned)} gates are decided here" if planned else "measured, not gated"
        verdicts = [gate["verdict"] for gate in self.run.get("gates", [])]
        for verdict, called in (("fail", "failed"), ("inconclusive", "inconclusive")):
            told += f", {verdicts.count(verdict)} {called}" if verdict in verdicts else ""
        told += f", {own - decided} of its own {'is' if own - decided == 1 else 'are'} not" if own > decided else ""
        if (self.run.get("settings") or {}).get("holm"):
            told += ", each by itself"
        told += "; other tests failed" if self.others_failed else ""
        return f"{told}; merge the runs to decide the rest"

    def _without_pass(self) -> str:
        gated = [model for model in self.candidates if model.verdict]
        count = {name: sum(model.verdict == name for model in gated) for name in ("inconclusive", "incomplete")}
        if gated and count["incomplete"] == len(gated):
            return f"Incomplete: planned gates were not decided ({len(gated)} tested)"
        if gated:
            more = (
                f"; {count['inconclusive']} undecided, more --gguf-chunks would decide" if count["inconclusive"] else ""
            )
            more += f"; {count['incomplete']} incomplete" if count["incomplete"] else ""
            # A baseline, or a user's own test, can fail a model that passes all gates.
            beyond = {gate["model"] for gate in self.run.get("gates", []) if gate["verdict"] == "fail"}
            kept = any(model.verdict == "fail" and model.name not in beyond for model in gated)
            return f"No candidate passes{'' if kept else ' every gate'} ({len(gated)} tested{more})"
        if self.candidates:
            return "Measured, not gated: no limit was set for what was measured"
        if self.alone is not None and self.alone.standing.verdict:
            said = {"pass": "passes every gate", "inconclusive": "is undecided", "incomplete": "is incomplete"}
            said |= {"fail": "fails", "error": "could not be measured"}
            return f"{visible(self.alone.name)} {said[self.alone.standing.verdict]}; nothing was compared with it"
        return "No candidates: nothing was compared with the reference"

    def attempt_notes(self) -> list[str]:
        """Notes on tests that were run more than once."""
        again = [test for test in self.run.get("tests", []) if test.get("attempts", 1) > 1]
        return [
            f"{visible(test['id'].split('::')[-1])}: {test['outcome']} at attempt {test['attempts']}; only the last one"
            " counts"
            for test in again
        ]

    def baseline_notes(self) -> list[str]:
        """Notes on improvements over the baseline, and other changes since."""
        baseline = self.run.get("baseline")
        if not baseline:
            return []
        worse, better, missing = (self._comparisons(outcome) for outcome in ("worse", "better", "missing"))
        changes = dict.fromkeys(f"{c['model']}: {change}" for c in baseline["comparisons"] for change in c["changes"])
        made = len(baseline["comparisons"]) - len(missing)
        summary = f"baseline {baseline['name']}: {made} comparisons"
        summary += (
            ", judged with those of the other parts" if self.part else f", {len(worse)} worse, {len(better)} better"
        )
        if missing:
            summary += f", {len(missing)} could not be made"
        if changes:
            summary += f"; changed since: {', '.join(changes)}"
        sentences = dict.fromkeys(f"{finding['model']}: {finding['detail']}" for finding in [*missing, *better])
        return [visible(line) for line in (summary, *baseline.get("notes", []), *sentences)]

    def _comparisons(self, outcome: str) -> list[Mapping[str, Any]]:
        comparisons = (self.run.get("baseline") or {}).get("comparisons", [])
        return [comparison for comparison in comparisons if comparison.get("outcome") == outcome]

    def early_notes(self) -> list[str]:
        """Notes on the tokens that --gguf-until-decided saved."""
        notes = []
        for part in self.run.get("early", []):
            name, share = visible(part["model"]), f"{part['windows']} of {part['planned']} windows"
            if not part["saved_tokens"]:
                continue
            if part["model"] == self.run.get("reference"):
                notes.append(
                    f"{name}: no candidate needed more than {share} of it; {part['saved_tokens']} tokens were saved"
                )
                continue
            notes.append(
                f"{name}: its gates were decided after {share}; {part['saved_tokens']} tokens were saved,"
                " and its estimates are biased towards the decision"
            )
        return notes

    def correction_notes(self) -> list[str]:
        """Notes on verdicts that change when Holm's correction counts all gates of the run, a line per model."""
        gates = self.run.get("gates", [])
        family = sum(gate.get("p_adjusted") is not None for gate in gates)
        weak: dict[tuple[str, str], list[str]] = {}
        for gate in gates:
            if gate.get("verdict_adjusted", gate["verdict"]) != gate["verdict"]:
                where = f" of {place}" if (place := Place.of(gate)) != WHOLE else ""
                change = f"{gate['metric']}{where} (p = {gate['p_value']:.2g} -> {gate['p_adjusted']:.2g})"
                weak.setdefault((gate["model"], gate["verdict"]), []).append(change)
        return [
            f"{model}: '{verdict}' holds by itself, but not after Holm's correction over the run's {family} gates "
            f"(--gguf-holm applies it): {', '.join(changes)}"
            for (model, verdict), changes in weak.items()
        ]

    def _share(self, model: Candidate) -> str:
        reference = next((other for other in self.models if other.is_reference and other.facts), None)
        if reference is None:
            return ""
        share = model.facts["bytes"] / reference.facts["bytes"]
        return f" ({100 * share:.0f} % of {visible(reference.name)})"

    def _points(self) -> dict[str, tuple[float, float]]:
        """Size and loss of files, by name."""
        for metric in self.losses:
            points = {
                name: (float(facts["bytes"]), float(row["value"]))
                for name, facts in self._facts.items()
                if facts and not saves_cache(facts) and (row := self._rows.get((name, metric)))
            }
            if points:
                return points
        return {}

    def _candidate(self, name: str) -> Candidate:
        facts = self._facts[name]
        is_reference = bool(facts.get("reference")) or name == self.run.get("reference")
        standing = self._standings.of(name)
        verdict = "reference" if is_reference else standing.verdict
        measured = any(name == model for model, _ in (*self._rows, *self._placed))
        dominated_by = self._dominated.get(name)
        return Candidate(name, facts, is_reference, verdict, standing.reasons, standing, dominated_by, measured)


def saves_cache(facts: Mapping[str, Any]) -> bool:
    """Whether a subject has types of its KV cache of its own: what these save is not in the size of its file."""
    return str(facts.get("variant") or "").startswith("kv=")


def _detail_of(row: Mapping[str, Any]) -> int:
    """0 for a row of the whole model, 1 for a layer or a group of tensors, 2 for a head or a prompt."""
    if row.get("head") is not None or row.get("prompt") is not None:
        return 2
    return int(Place.of(row) != WHOLE)


def describe_windows(corpus: Mapping[str, Any]) -> str:
    """`16 of 237 windows of 512 tokens, drawn from the whole text`; runs of older versions used the first windows."""
    windows, available, n_ctx = corpus["windows"], corpus.get("available"), corpus["n_ctx"]
    if available is None:
        return f"the first {windows} windows of {n_ctx} tokens"
    if windows == available:
        return f"all {windows} windows of {n_ctx} tokens"
    if corpus.get("order") == "first":
        return f"the first {windows} of {available} windows of {n_ctx} tokens"
    return f"{windows} of {available} windows of {n_ctx} tokens, drawn from the whole text"


def place(layer: int | None, head: int | None) -> str:
    """`layer 2, head 7`; empty for a model as a whole."""
    return ", ".join(f"{name} {value}" for name, value in (("layer", layer), ("head", head)) if value is not None)
