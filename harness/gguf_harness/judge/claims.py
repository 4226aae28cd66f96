"""Common claims about quantization types, tested on the data of one run.

A claim is held if the confidence bounds of the measured values are within the claimed range, not held if they are
outside, and undecided otherwise. This applies to the files and the text of the run, on its machine. Types are those in
the metadata of the files (`general.file_type`); a file is compared with others of the same architecture and dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from gguf_harness.judge.shards import machines_of
from gguf_harness.metrics.timings import streams_disagree

__all__ = ["CLAIMS", "Claim", "ClaimFinding", "ClaimVerdict", "Range", "judge_claims", "speed_ratio"]

_Judge = Callable[["_Run"], Iterator["_Answer"]]

ClaimVerdict = Literal["held", "not held", "undecided", "not tested"]

_CONFIDENCE: Final = 0.95
"""Confidence of each one-sided bound: a claim is wrongly held, or wrongly not held, in at most one of twenty cases."""

_LEAST_REFERENCE_BITS: Final = 8.0
_QUANTIZED_BITS: Final = 9.0
"""Q8_0 takes 8.5 bits per weight; the claims are not about files with more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A common claim about quantization.

    Attributes:
        says: the claim.
        means: how it is interpreted here, in numbers.
        judge: evaluates it on a run; returns nothing if the run has no data for it.
    """

    says: str
    means: str
    judge: _Judge


@dataclass(frozen=True, slots=True)
class ClaimFinding:
    """The result of a claim on a run.

    Attributes:
        claim: the claim.
        verdict: "not tested" if the run has no data for it.
        numbers: the measured numbers, in a few words without names; empty for "not tested".
        detail: one sentence with the files and the numbers, or why it was not tested.
    """

    claim: Claim
    verdict: ClaimVerdict
    numbers: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Answer:
    verdict: ClaimVerdict
    numbers: str
    detail: str


@dataclass(frozen=True, slots=True)
class Range:
    """A measured number with confidence bounds."""

    value: float
    low: float
    high: float

    def within(self, least: float, most: float) -> ClaimVerdict:
        """Whether its bounds are between two values, as a verdict."""
        if least <= self.low and self.high <= most:
            return "held"
        return "not held" if self.low > most or self.high < least else "undecided"

    def mapped(self, function: Callable[[float], float]) -> Range:
        """The range under an increasing function."""
        return Range(function(self.value), function(self.low), function(self.high))


def judge_claims(run: Mapping[str, Any]) -> list[ClaimFinding]:
    """Judge every claim, once for each file that it is about.

    Args:
        run: content of a run.json; nothing else is read.
    """
    table = _Run(run)
    findings = []
    for claim in CLAIMS:
        answers = list(claim.judge(table)) or [_Answer("not tested", "", "No such files were in this run.")]
        findings += [ClaimFinding(claim, answer.verdict, answer.numbers, answer.detail) for answer in answers]
    return findings


class _Run:
    """Files and rows of a run."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        models = run.get("models") or []
        self.models: list[Mapping[str, Any]] = sorted(models, key=lambda model: model.get("order", 0))
        self._machines = machines_of(run)
        self._rows = {
            (row["model"], row["metric"]): row
            for row in reversed(run.get("estimates") or [])
            if all(row.get(part) is None for part in ("prompt", "layer", "head"))
        }

    def of_type(self, quantization: str) -> list[Mapping[str, Any]]:
        """Candidates whose metadata gives a certain type."""
        return [m for m in self.models if m.get("quantization") == quantization and not m.get("reference")]

    def relative_of(self, model: Mapping[str, Any], quantization: str | None = None) -> Mapping[str, Any] | None:
        """The file of the same family with a certain type, or the reference."""
        for other in self.models:
            fits = other.get("reference") if quantization is None else other.get("quantization") == quantization
            if fits and other is not model and _same_family(model, other):
                return other
        return None

    def row(self, model: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
        return self._rows.get((model["name"], metric))

    def ln_ppl_ratio(self, model: Mapping[str, Any], base: Mapping[str, Any]) -> Range | None:
        """Ln of a perplexity over another's.

        Relative to the reference, with the paired error. Between two candidates, the difference of their ratios to the
        reference; the windows are the same, so the errors are correlated, but a run does not store how. The error of
        a difference is at most the sum of both, whatever their correlation (Minkowski): that bound is used.
        """
        ours = self.row(model, "ln_ppl_ratio")
        if ours is None or base.get("reference"):
            return None if ours is None else _range(ours["value"], ours["se"], ours["clusters"])
        theirs = self.row(base, "ln_ppl_ratio")
        if theirs is None:
            return None
        known = ours["se"] is not None and theirs["se"] is not None
        clusters = [row["clusters"] for row in (ours, theirs) if row["clusters"] is not None]
        return _range(
            ours["value"] - theirs["value"],
            ours["se"] + theirs["se"] if known else None,
            min(clusters) if clusters else None,
        )

    def speed_ratio(self, model: Mapping[str, Any], base: Mapping[str, Any]) -> Range | str:
        """Ratio of two generation speeds, from their ratios to the reference, or why there is none.

        Each ratio was timed in turns with the reference, so they share no repetition: squared errors of the logarithms
        add up.
        """
        if not (model.get("reference") or base.get("reference")):
            ours, theirs = (self._machines.get(which["name"]) for which in (model, base))
            if ours != theirs:
                return f"{model['name']}: it was timed on {ours}, {base['name']} on {theirs}"
        value, errors, clusters = 0.0, [], []
        for which, sign in ((model, 1), (base, -1)):
            if which.get("reference"):
                continue  # 1, without an error
            if doubt := self.speed_doubt(which):
                return doubt
            row = self._rows[which["name"], "tg_speed_ratio"]
            value += sign * math.log(row["value"])
            errors.append(row["se"] / row["value"])
            clusters.append(row["clusters"])
        return _range(value, math.hypot(*errors), min(clusters)).mapped(math.exp)

    def speed_doubt(self, model: Mapping[str, Any]) -> str | None:
        """Why a model's speed cannot be compared with the reference's; None if it can."""
        name = model["name"]
        ratio, speed = self._rows.get((name, "tg_speed_ratio")), self._rows.get((name, "tg_tokens_per_s"))
        single = self._rows.get((name, "served_single_tokens_per_s"))
        if ratio is None or ratio["se"] is None:
            reason = (speed or {}).get("doubt") or "its generation was not timed in turns with the reference's"
            return f"{name}: {reason}"
        if speed and single and streams_disagree(speed["value"], single["value"]):
            return f"{name}: the speed for a server's only client differs from that of plain generation"
        return None


def speed_ratio(run: Mapping[str, Any], model: str) -> Range | None:
    """A model's generation speed over the reference's with its 95 % interval; None if it is not reliable.

    Args:
        run: content of a run.json.
        model: its name.
    """
    from gguf_harness.metrics.stats import confidence_bound

    table = _Run(run)
    if table.speed_doubt({"name": model}) is not None:
        return None
    row = table.row({"name": model}, "tg_speed_ratio")
    if row is None:
        return None
    # Both sides together are wrong in one of twenty cases. On the log scale the interval is symmetric, and the ratio
    # stays positive.
    value, se = math.log(row["value"]), row["se"] / row["value"]
    both = 1 - (1 - _CONFIDENCE) / 2
    low, high = (confidence_bound(value, se, row["clusters"], both, upper=upper) for upper in (False, True))
    return Range(value, low, high).mapped(math.exp)


def _range(value: float, se: float | None, clusters: int | None) -> Range:
    from gguf_harness.metrics.stats import confidence_bound

    if se is None:  # a single window or repetition gives no standard error
        return Range(value, -math.inf, math.inf)
    low, high = (confidence_bound(value, se, clusters, _CONFIDENCE, upper=upper) for upper in (False, True))
    return Range(value, low, high)


def _same_family(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(fact) == other.get(fact) for fact in ("architecture", "n_layer", "n_embd", "n_vocab"))


# -- claims ---------------------------------------------------------------------------------------------------------


def _loses(quantization: str, base_type: str | None, least: float, most: float, saves: float = 0.0) -> _Judge:
    """A type's perplexity is above another's, or the reference's, by a share in [least, most], and its file smaller."""

    def judge(run: _Run) -> Iterator[_Answer]:
        for model in run.of_type(quantization):
            base = run.relative_of(model, base_type)
            if base is None or (base_type is None and base["bits_per_weight"] < _LEAST_REFERENCE_BITS):
                needed = base_type or f"reference of at least {_LEAST_REFERENCE_BITS:g} bits per weight"
                yield _Answer("not tested", "", f"{model['name']} was in this run, but no {needed} of the same model.")
                continue
            ratio = run.ln_ppl_ratio(model, base)
            if ratio is None:
                yield _Answer("not tested", "", f"The perplexity of {model['name']} was not compared in this run.")
                continue
            loss = ratio.mapped(_grown)
            verdicts = [loss.within(least, most)]
            numbers, words = f"{_signed(loss.value)}", f"perplexity {_above(loss, base)}"
            if saves:
                saved = 1 - model["bytes"] / base["bytes"]
                verdicts.append("held" if saved >= saves else "not held")
                numbers += f", {_smaller(saved)}"
                words += f", file {_smaller(saved)}"
            yield _Answer(_together(verdicts), numbers, f"{model['name']}: {words}{_fallbacks(model)}.")

    return judge


def _each_step_speeds_up(least: float, most: float) -> _Judge:
    """Check that each quantized file, by size, generates faster than the next bigger one by a share in a range."""

    def judge(run: _Run) -> Iterator[_Answer]:
        families: list[list[Mapping[str, Any]]] = []
        for model in sorted(run.models, key=lambda model: -model["bytes"]):
            if model["bits_per_weight"] > _QUANTIZED_BITS or run.row(model, "tg_tokens_per_s") is None:
                continue
            family = next((family for family in families if _same_family(family[0], model)), None)
            if family is None:
                families.append([model])
            elif model["bytes"] < family[-1]["bytes"]:
                family.append(model)
        for family in families:
            steps = [
                (f"{bigger['name']} to {smaller['name']}", run.speed_ratio(smaller, bigger))
                for bigger, smaller in itertools.pairwise(family)
            ]
            if steps:
                yield _judge_steps(steps, least, most)

    return judge


def _judge_steps(steps: list[tuple[str, Range | str]], least: float, most: float) -> _Answer:
    """Judge all steps of a family; a step that was not measured leaves the claim open, unless another one breaks it."""
    gains = {name: ratio.mapped(lambda ratio: ratio - 1) for name, ratio in steps if isinstance(ratio, Range)}
    doubts = "; ".join(dict.fromkeys(ratio for _, ratio in steps if isinstance(ratio, str)))
    if not gains:
        return _Answer("not tested", "", f"{doubts}.")
    verdicts = [gain.within(least, most) for gain in gains.values()]
    kept = f"{verdicts.count('held')} of {len(steps)} steps"
    words = "; ".join(f"{name} {_signed(gain.value)} ({_bounds(gain)})" for name, gain in gains.items())
    if doubts:
        words += f"; not measured: {doubts}"
        verdicts.append("undecided")
    return _Answer(
        _together(verdicts),
        f"in {kept}; {', '.join(_signed(gain.value) for gain in gains.values())}",
        f"Generation speed from each file to the next smaller one, in that range in {kept}: {words}.",
    )


CLAIMS: Final = (
    Claim(
        "Q5_K_M is within 1 % of Q8_0 in perplexity and a third smaller",
        "at most 1 % above Q8_0's perplexity, and a file at least 30 % smaller",
        _loses("Q5_K_M", "Q8_0", -math.inf, 0.01, saves=0.30),
    ),
    Claim(
        "Q4_K_M is about 2 % behind",
        "at most 3 % above the reference's perplexity",
        _loses("Q4_K_M", None, -math.inf, 0.03),
    ),
    Claim(
        "IQ3_XS is 5 to 10 % behind",
        "5 to 10 % above the reference's perplexity",
        _loses("IQ3_XS", None, 0.05, 0.10),
    ),
    Claim(
        "Smaller is 10 to 20 % faster",
        "of the files of up to 9 bits per weight in the order of their size, each generates 10 to 20 % more tokens per"
        " second than the next bigger one",
        _each_step_speeds_up(0.10, 0.20),
    ),
)
"""Sayings about quantized models, with how they are read. "Within" and "behind" are about being worse: a file that is
better than the one that it is compared with does not break them."""


def _together(verdicts: list[ClaimVerdict]) -> ClaimVerdict:
    """All parts of a claim have to hold."""
    if "not held" in verdicts:
        return "not held"
    return "undecided" if "undecided" in verdicts else "held"


def _grown(ln_ratio: float) -> float:
    """Relative change from the logarithm of a ratio: exp(x) - 1."""
    try:
        return math.expm1(ln_ratio)
    except OverflowError:
        return math.inf


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _above(change: Range, base: Mapping[str, Any]) -> str:
    side = "above" if change.value >= 0 else "below"
    return f"{abs(100 * change.value):.1f} % {side} {base['name']}'s ({_bounds(change)})"


def _bounds(change: Range) -> str:
    if math.isinf(change.low) or math.isinf(change.high):
        return "measured once, so no standard error is available"
    return f"{_signed(change.low)} to {_signed(change.high)}"


def _smaller(saved: float) -> str:
    return f"{abs(100 * saved):.0f} % {'smaller' if saved >= 0 else 'bigger'}"


def _fallbacks(model: Mapping[str, Any]) -> str:
    count = len(model.get("fallbacks") or ())
    return f"; {count} of its tensors fell back to other types than the name says" if count else ""
