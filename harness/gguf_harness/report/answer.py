"""The answer of a run, for a person who must decide: what stands behind the headline, a sentence for each question."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.report.caches import smallest_cache
from gguf_harness.report.charts.base import short_name
from gguf_harness.report.data import RunView, visible
from gguf_harness.report.numbers import format_metric, format_value
from gguf_harness.report.times import budget_told

__all__ = ["Fact", "answer_of", "noise_of"]

_SUITES: Final = ("quant", "kv", "lora", "attention", "heads", "layers", "embeddings")
_SIDES: Final = {"lower": "at most", "higher": "at least"}
_BEYOND: Final = {"lower": "more than", "higher": "less than"}
_MOST_REASONS: Final = 3
_NO_WIDTH: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Fact:
    """One question and its answer.

    Attributes:
        asks: the question, in a word or two.
        says: the answer, in sentences.
    """

    asks: str
    says: str


def answer_of(view: RunView) -> list[Fact]:
    """What a run says besides its headline, as far as it has it."""
    facts = (
        ("Tightest margin", _margin(view)),
        ("Together", _together(view)),
        ("KV cache", _cache(view)),
        ("Texts", _texts(view)),
        ("Limits", _limits(view)),
        ("Not measured", _not_measured(view)),
    )
    return [Fact(asks, says) for asks, says in facts if says]


def noise_of(view: RunView) -> list[Fact]:
    """How far the run's numbers can be trusted on its machine: rounding, other processes, timings in doubt."""
    facts = (("Rounding", _rounding(view)), ("Other processes", _in_doubt(view)))
    return [Fact(asks, says) for asks, says in facts if says]


def _rounding(view: RunView) -> str:
    """The reference against itself, in other batches: what differs by less is rounding."""
    reference = view.reference
    row = view.row(reference, "floor_kld_mean") if reference is not None else None
    if row is None:
        return ""
    floor = abs(float(row["value"]))
    told = f"The reference against itself, in other batches: KL mean {format_value(floor)} nats"
    same = view.row(str(reference), "floor_same_top")
    told += (
        "" if same is None else f", same top {format_metric(view.metrics.get('floor_same_top'), same['value'], None)}"
    )
    least = [
        float(one["value"])
        for model in view.candidates
        if (one := view.row(model.name, "kld_mean")) and one["value"] > 0
    ]
    if least and floor > 0:
        told += f". The candidate that differs least is {round(min(least) / floor):,} times further away"
    return f"{told}."


def _in_doubt(view: RunView) -> str:
    rows = view.run.get("estimates", [])
    timed = [row for row in rows if (metric := view.metrics.get(row["metric"])) and metric.estimated == "timing"]
    doubted = [row for row in rows if row.get("doubt")]
    if doubted:
        what = "estimate is" if len(doubted) == 1 else "estimates are"
        return (
            f"{len(doubted)} {what} in doubt (?), because other processes ran meanwhile: they decide nothing, and"
            " the next run measures them again."
        )
    return "Nothing that was timed was disturbed." if timed else ""


def _margin(view: RunView) -> str:
    """Which gate of the recommended file came closest to its limit; without one, of the file that failed least."""
    best = view.recommended
    gates = [gate for gate in view.run.get("gates", []) if best is None or gate["model"] == best.name]
    gates = [gate for gate in gates if best is not None or gate["verdict"] != "pass"]
    margins = [(margin, gate) for gate in gates if (margin := _margin_of(gate)) is not None]
    if not margins:
        return ""
    _, gate = min(margins, key=lambda pair: pair[0]) if best is not None else max(margins, key=lambda pair: pair[0])
    name = "" if best is not None else f"{visible(gate['model'])}: "
    limit = f"the limit is {_SIDES[gate['better']]} {_value(view, gate, 'limit')}"
    return (
        f"{name}{view.title(gate['metric'])}{_where(gate)} {_value(view, gate, 'value')}{_sure(view, gate)}; {limit}."
    )


def _sure(view: RunView, gate: Mapping[str, Any]) -> str:
    """What the bound says that decided the gate: the bad end of the interval where it passed, the good end else."""
    if gate.get("bound") is None:
        return ""
    side = _SIDES if gate["verdict"] == "pass" else _BEYOND
    confidence, bound = f"{100 * gate['confidence']:.0f} %", _value(view, gate, "bound")
    if gate["verdict"] == "inconclusive":
        return f", undecided: its {confidence} bound is {bound}"
    return f", with {confidence} confidence {side[gate['better']]} {bound}"


def _margin_of(gate: Mapping[str, Any]) -> float | None:
    """Distance of the value from its limit in widths of the bound; positive inside. Infinite without an error."""
    if gate.get("value") is None or gate.get("limit") is None:
        return None
    sign = 1 if gate["better"] == "lower" else -1
    distance = sign * (gate["limit"] - gate["value"])
    width = abs((gate["value"] if gate.get("bound") is None else gate["bound"]) - gate["value"])
    return (
        distance / width if width > _NO_WIDTH * abs(gate["value"] or 1) else (float("inf") if distance >= 0 else None)
    )


def _value(view: RunView, gate: Mapping[str, Any], key: str) -> str:
    return format_metric(view.metrics.get(gate["metric"]), gate[key], None)


def _where(gate: Mapping[str, Any]) -> str:
    place = Place.of(gate)
    return f" of {visible(str(place))}" if place != WHOLE else ""


def _together(view: RunView) -> str:
    """Whether the verdicts hold when all gates of the run are judged together."""
    gates = [gate for gate in view.run.get("gates", []) if gate.get("p_adjusted") is not None]
    if len(gates) < 2:
        return ""
    changed = [gate for gate in gates if gate.get("verdict_adjusted", gate["verdict"]) != gate["verdict"]]
    if not changed:
        return f"All {len(gates)} gates keep their verdicts when they are judged together (Holm's correction)."
    names = ", ".join(f"{view.title(gate['metric'])} of {short_name(view, gate['model'])}" for gate in changed[:4])
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    verb = "does" if len(changed) == 1 else "do"
    return (
        f"{len(changed)} of {len(gates)} verdicts {verb} not hold when all gates are judged together (Holm's"
        f" correction): {names}{more}. --gguf-holm applies it."
    )


def _cache(view: RunView) -> str:
    """The smallest KV cache that passes, where the headline is about something else."""
    told = smallest_cache(view) if view.part is None else None
    return "" if told in {None, view.headline()} else f"{told}."


def _texts(view: RunView) -> str:
    """How many continuations differ from the reference's, and after how many tokens."""
    texts = view.texts
    reference = view.reference
    if not texts or reference is None:
        return ""
    prefix: dict[tuple[str, str], float] = {
        (row["model"], row["prompt"]): row["value"]
        for row in view.run.get("estimates", [])
        if row["metric"] == "exact_prefix_tokens" and row.get("prompt") is not None
    }
    told = []
    # With an adapter a file is meant to write something else.
    for model in (one for one in view.candidates if not one.facts.get("adapters")):
        pairs = [
            (prompt, by_model[model.name]["text"] == by_model[reference]["text"])
            for prompt, rows in texts.items()
            if {model.name, reference} <= (by_model := {row["model"]: row for row in rows}).keys()
            and None not in (by_model[model.name]["text"], by_model[reference]["text"])
        ]
        if not pairs:
            continue
        parted = [prefix[model.name, prompt] for prompt, same in pairs if not same and (model.name, prompt) in prefix]
        middle = round(statistics.median(parted)) if parted else 0
        after = f", after {middle} {'token' if middle == 1 else 'tokens'}" if parted else ""
        differ = sum(not same for _, same in pairs)
        name = short_name(view, model.name)
        told.append(f"{name} {differ} of {len(pairs)}{after}" if differ else f"{name} none of {len(pairs)}")
    if not told:
        return ""
    return f"Continuations that differ from the reference's, and after how many tokens (median): {'; '.join(told)}."


def _limits(view: RunView) -> str:
    """Where the limits come from."""
    if not view.run.get("gates") and not view.run.get("planned"):
        return "None were set."
    source = (view.run.get("settings") or {}).get("gates")
    words = "The ones that come with gguf-harness" if not source else f"From {visible(str(source))}"
    baseline = (view.run.get("baseline") or {}).get("name")
    more = f", and no worse than the baseline {visible(str(baseline))}" if baseline else ""
    return f"{words}{more}. They are a choice, not a fact: what a use can bear decides."


def _skipped(tests: list[Mapping[str, Any]]) -> list[str]:
    """Reasons of skipped tests, the most frequent first; those that differ in numbers only are one."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        if test["outcome"] == "skipped":
            words = str(test["message"]).removeprefix("Skipped: ")
            reason = next(iter(words.splitlines()), "").partition(";")[0] or "no reason given"
            reasons.setdefault((test["suite"], re.sub(r"[\d.]+", "#", reason)), []).append(reason)
    ordered = sorted(reasons.items(), key=lambda item: len(item[1]), reverse=True)
    told = [
        f"{len(alike)} {'tests' if len(alike) > 1 else 'test'} of {visible(suite)} skipped: {visible(alike[0])}"
        for (suite, _), alike in ordered[:_MOST_REASONS]
    ]
    rest = sum(len(alike) for _, alike in ordered[_MOST_REASONS:])
    return [*told, f"{rest} more skipped for other reasons"] if rest else told


def _not_measured(view: RunView) -> str:
    """What the run does not say: suites that did not run, tests that were skipped."""
    tests = view.run.get("tests", [])
    ran = {test["suite"] for test in tests}
    absent = [suite for suite in _SUITES if suite not in ran]
    told = [f"The suites {', '.join(absent)} did not run"] if absent and ran else []
    told += _skipped(tests)
    told += [f"For the budget of {budget}"] if (budget := budget_told(view.run)) else []
    corpus = view.run.get("corpus")
    if corpus and corpus.get("available") and corpus["windows"] < corpus["available"]:
        told.append(
            f"{corpus['available'] - corpus['windows']} of the text's {corpus['available']} windows were not read;"
            " the errors cover them"
        )
    return "; ".join(told) + "." if told else ""
