"""A run.json as the reports read it: typed, tolerant of what a run did not measure, and with the conclusions drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.metrics.tradeoff import dominated_by, smallest_passing
from harness.records import WHOLE, Place
from harness.report.numbers import format_bytes

__all__ = ["MOST_ESTIMATES", "Candidate", "RunView", "place", "visible", "visible_lines"]

MOST_ESTIMATES: Final = 2000
"""Rows of a page: a browser sorts and filters as many at once. A run of many heads or prompts has tens of thousands."""

_PREFERRED_LOSS: Final = ("kld_mean", "ln_ppl_ratio", "ppl")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a run, with what the run says of it.

    Attributes:
        verdict: "pass", "fail", "inconclusive", "error" (a test could not measure), "reference", or "" (not gated).
        reasons: sentences behind the verdict.
        dominated_by: a model that is no bigger and no worse, and better in one of both.
    """

    name: str
    facts: Mapping[str, Any]
    is_reference: bool
    verdict: str
    reasons: tuple[str, ...]
    dominated_by: str | None


class RunView:
    """Looks things up in a run.

    Args:
        run: content of a run.json.
    """

    def __init__(self, run: Mapping[str, Any]) -> None:
        self.run = run
        self._rows: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._placed: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in run.get("estimates", []):
            # A row of one prompt, layer, head or group of tensors says nothing of the whole.
            if Place.of(row) == WHOLE:
                self._rows.setdefault((row["model"], row["metric"]), row)
            elif row.get("part") is None:
                self._placed.setdefault((row["model"], row["metric"]), []).append(row)
        models = sorted(run.get("models", []), key=lambda model: (-model["bytes"], model.get("order", 0)))
        tested = {test["model"] for test in run.get("tests", []) if test.get("model")}
        self._facts: dict[str, Mapping[str, Any]] = {model["name"]: model for model in models}
        # A model whose file never loaded has tests and no facts: it still gets its line.
        self._facts |= {name: {} for name in sorted(tested - set(self._facts))}
        self._dominated = dominated_by(self._points())
        self.models = [self._candidate(name) for name in self._facts]

    def row(self, model: str, metric: str) -> Mapping[str, Any] | None:
        """The row of a model's metric over everything, None if it was not measured."""
        return self._rows.get((model, metric))

    def rows_of(self, model: str, metric: str) -> list[Mapping[str, Any]]:
        """Rows of a model's metric over layers and heads, of all prompts together."""
        return [row for row in self._placed.get((model, metric), []) if row.get("prompt") is None]

    def shown_estimates(self, most: int = MOST_ESTIMATES) -> list[Mapping[str, Any]]:
        """Those of the page's table, in their order: all of the whole; up to `most`, of layers before all others."""
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
        """The smallest candidate that passes every gate."""
        costs = {model.name: float(model.facts["bytes"]) for model in self.candidates if model.facts}
        name = smallest_passing(costs, (model.name for model in self.candidates if model.verdict == "pass"))
        return next((model for model in self.candidates if model.name == name), None)

    def headline(self) -> str:
        """The answer in one sentence."""
        best = self.recommended
        if best is not None:
            size = f"{format_bytes(best.facts['bytes'])}{self._share(best)}"
            return f"Smallest candidate that passes every gate: {visible(best.name)}, {size}"
        gated = [model for model in self.candidates if model.verdict in {"fail", "inconclusive", "error"}]
        if gated:
            undecided = sum(model.verdict == "inconclusive" for model in gated)
            more = f"; {undecided} undecided, more --gguf-chunks would tell" if undecided else ""
            return f"No candidate passes every gate ({len(gated)} tested{more})"
        if not self.candidates:
            return "No candidates: nothing was compared with the reference"
        return "No gate was decided in this run"

    def baseline_notes(self) -> list[str]:
        """What got better than in the baseline, and what else has changed since."""
        baseline = self.run.get("baseline")
        if not baseline:
            return []
        worse, better, missing = (self._comparisons(outcome) for outcome in ("worse", "better", "missing"))
        changes = dict.fromkeys(f"{c['model']}: {change}" for c in baseline["comparisons"] for change in c["changes"])
        made = len(baseline["comparisons"]) - len(missing)
        summary = f"baseline {baseline['name']}: {made} comparisons, {len(worse)} worse, {len(better)} better"
        if missing:
            summary += f", {len(missing)} could not be made"
        if changes:
            summary += f"; changed since: {', '.join(changes)}"
        sentences = dict.fromkeys(f"{finding['model']}: {finding['detail']}" for finding in [*missing, *better])
        return [visible(line) for line in (summary, *baseline.get("notes", []), *sentences)]

    def _comparisons(self, outcome: str) -> list[Mapping[str, Any]]:
        found = (self.run.get("baseline") or {}).get("comparisons", [])
        return [comparison for comparison in found if comparison.get("outcome") == outcome]

    def early_notes(self) -> list[str]:
        """What --gguf-until-decided spared."""
        return [
            f"{visible(part['model'])}: all gates of its pass were decided after {part['windows']} of {part['planned']}"
            f" windows; {part['saved_tokens']} tokens were saved, and its estimates lean towards the decision"
            for part in self.run.get("early", [])
            if part["saved_tokens"]
        ]

    def correction_notes(self) -> list[str]:
        """Verdicts that do not stand once Holm's correction counts all gates of the run, a line per model."""
        gates = self.run.get("gates", [])
        family = sum(gate.get("p_adjusted") is not None for gate in gates)
        weak: dict[tuple[str, str], list[str]] = {}
        for gate in gates:
            if gate.get("verdict_adjusted", gate["verdict"]) != gate["verdict"]:
                where = f" of {place}" if (place := Place.of(gate)) != WHOLE else ""
                change = f"{gate['metric']}{where} (p = {gate['p_value']:.2g} -> {gate['p_adjusted']:.2g})"
                weak.setdefault((gate["model"], gate["verdict"]), []).append(change)
        return [
            f"{model}: '{verdict}' stands alone, but not among the run's {family} gates after Holm's correction"
            f" (--gguf-holm decides that way): {', '.join(changes)}"
            for (model, verdict), changes in weak.items()
        ]

    def _share(self, model: Candidate) -> str:
        reference = next((other for other in self.models if other.is_reference and other.facts), None)
        if reference is None:
            return ""
        share = model.facts["bytes"] / reference.facts["bytes"]
        return f" ({share:.0%} of {visible(reference.name)})"

    def _points(self) -> dict[str, tuple[float, float]]:
        for metric in _PREFERRED_LOSS:
            points = {
                name: (float(facts["bytes"]), float(row["value"]))
                for name, facts in self._facts.items()
                if facts and (row := self._rows.get((name, metric)))
            }
            if points:
                return points
        return {}

    def _candidate(self, name: str) -> Candidate:
        facts = self._facts[name]
        is_reference = bool(facts.get("reference"))
        gates = [gate for gate in self.run.get("gates", []) if gate["model"] == name]
        findings = [*self._comparisons("worse"), *self._comparisons("missing")]
        worse = [finding for finding in findings if finding["model"] == name]
        decided = [*gates, *worse]
        broken = [t["message"] for t in self.run.get("tests", []) if t.get("model") == name and _is_broken(t, decided)]
        if broken:
            verdict, reasons = "error", tuple(dict.fromkeys(broken))
        elif is_reference:
            verdict, reasons = "reference", ()
        else:
            outcomes = {gate["verdict"] for gate in gates} | ({"fail"} if worse else set())
            verdict = next((outcome for outcome in ("fail", "inconclusive", "pass") if outcome in outcomes), "")
            reasons = tuple(gate["detail"] for gate in gates if gate["verdict"] == verdict)
            reasons += tuple(dict.fromkeys(finding["detail"] for finding in worse))
        return Candidate(name, facts, is_reference, verdict, reasons, self._dominated.get(name))


def _detail_of(row: Mapping[str, Any]) -> int:
    """0 for a row of the whole, 1 of a layer or a group of tensors, 2 of a head or a prompt."""
    if row.get("head") is not None or row.get("prompt") is not None:
        return 2
    return int(Place.of(row) != WHOLE)


def place(layer: int | None, head: int | None) -> str:
    """`layer 2, head 7`; empty for a model as a whole."""
    return ", ".join(f"{name} {value}" for name, value in (("layer", layer), ("head", head)) if value is not None)


def _is_broken(test: Mapping[str, Any], findings: list[Mapping[str, Any]]) -> bool:
    """A test that failed for another reason than a gate (perhaps an inconclusive one) or a baseline."""
    decided = any(found.get("verdict") != "pass" and found["detail"] in test["message"] for found in findings)
    return test["outcome"] == "error" or (test["outcome"] == "failed" and not decided)


def visible(text: str) -> str:
    """A text with control characters shown as symbols: it cannot move the cursor or break a line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def visible_lines(text: str) -> str:
    """The same with the lines and tabs of a text kept."""
    return "\n".join(visible(line.expandtabs(4)) for line in text.split("\n"))
