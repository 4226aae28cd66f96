"""What of a session fits into a time: fewer windows, heads, prompts, candidates and variants, the best kept.

A budget only chooses options, before anything is measured: all numbers keep their definitions, and their errors grow.
There is a chain of choices, each of which measures at least what the one before it does, from the least that is worth a
run to all that was asked for; the largest that fits is taken. So more time never measures less. Options that a person
gave stay as they are.

The order of the chain: some windows first, since every gate of suites/quant needs them; then candidates, the smallest
first, then the largest, and so on towards the middle, since those are furthest from their limits; then prompts and more
windows in turn, as errors fall with the square root of each. A candidate is there before its other caches and adapters,
of which each file has one before any has two. Tests that change heads come after all that, with few
heads first: to choose these takes longer than all other suites together. Mixtures of tensors, which decide nothing
unless somebody sets a limit, are decoded when all else is there.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import OptionError
from gguf_harness.inputs.prompts import PromptSet
from gguf_harness.measure.forecast.needs import NEEDS
from gguf_harness.metrics.number_format import format_duration

if TYPE_CHECKING:
    from gguf_harness.inputs.options import Options

__all__ = [
    "AIM",
    "CHANGING",
    "LEFT_OUT",
    "OPTIONS",
    "Choice",
    "Reduced",
    "chain",
    "choose",
    "fewer_prompts",
    "options_of",
    "reduced",
]

LEFT_OUT: Final = "left out for the budget"
AIM: Final = 0.95
"""Share of the time that a plan fills: a report is written after it. What turns out to be too late is not begun."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How much is measured of each thing; None for all that there is.

    Attributes:
        variants: files with another KV cache, and as many with adapters.
        ablations: whether heads are changed at all, 0 or 1.
    """

    candidates: int
    variants: int
    chunks: int | None
    prompts: int
    ablations: int
    head_windows: int
    head_limit: int | None
    sensitivity: int | None


_LEAST: Final[dict[str, int]] = {
    "candidates": 1,
    "variants": 1,
    "chunks": 4,
    "prompts": 6,
    "ablations": 0,
    "head_windows": 2,
    "head_limit": 8,
    "sensitivity": 0,
}
_STEPS: Final[tuple[tuple[str, int], ...]] = (
    ("chunks", 8),
    ("candidates", 2),
    ("variants", 2),
    ("prompts", 9),
    ("candidates", 3),
    ("variants", 4),
    ("prompts", 12),
    ("chunks", 10),
    ("candidates", 6),
    ("variants", 8),
    ("chunks", 12),
    ("prompts", 18),
    ("candidates", 10),
    ("variants", 16),
    ("chunks", 14),
    ("candidates", 20),
    ("prompts", 24),
    ("chunks", 16),
    ("ablations", 1),
    ("head_limit", 24),
    ("head_windows", 3),
    ("head_limit", 48),
    ("head_windows", 4),
    ("head_limit", 64),
)
"""What is raised to what, one by one; then all to what was asked for, mixtures last."""
OPTIONS: Final = {
    "chunks": "--gguf-chunks",
    "prompts": "--gguf-prompts",
    "head_windows": "--gguf-head-windows",
    "head_limit": "--gguf-head-limit",
    "sensitivity": "--gguf-sensitivity",
}


def chain(full: Choice, given: Collection[str]) -> list[Choice]:
    """Choices from the least to all, none of which has less of anything than the one before it.

    Args:
        full: what was asked for.
        given: names of options that a person gave, which keep their values.
    """
    fixed = {name for name, option in OPTIONS.items() if option in given}
    if fixed & {"head_limit", "head_windows"}:
        fixed.add("ablations")

    def least(name: str) -> int | None:
        value = getattr(full, name)
        return value if name in fixed else _at_most(_LEAST[name], value)

    choices = [Choice(**{field.name: least(field.name) for field in fields(Choice)})]  # type: ignore[arg-type]
    last: list[tuple[str, Any]] = [(field.name, getattr(full, field.name)) for field in fields(Choice)]
    for name, value in (*_STEPS, *last):
        wanted = value if value is None else _at_most(value, getattr(full, name))
        now = getattr(choices[-1], name)
        if name in fixed or now is None or now == wanted:
            continue
        for more in (None,) if wanted is None else range(now + 1, wanted + 1):
            choices.append(replace(choices[-1], **{name: more}))  # type: ignore[arg-type]
    return choices


def _at_most(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)


def choose(
    choices: Sequence[Choice],
    seconds: Callable[[Choice], float],
    budget: float,
    spent: float = 0.0,
    used: Collection[str] = tuple(OPTIONS),
) -> Choice:
    """The largest choice that fits.

    Args:
        choices: from the least to all.
        seconds: that a choice takes, no less than those before it.
        budget: seconds that the session may take.
        spent: seconds that it took so far.
        used: names of what any test uses, for the message.

    Raises:
        OptionError: even the least takes longer; the message says what it is, and how long it takes.
    """
    fitting = bisect.bisect_right(choices, AIM * budget - spent, key=seconds)
    if fitting:
        return choices[fitting - 1]
    least = choices[0]
    if spent + (takes := seconds(least)) <= budget:
        return least
    raise OptionError(
        f"--gguf-budget={format_duration(budget)} is too short: the least that is worth measuring,"
        f" {_described(least, used)}, takes about {format_duration(takes)}.",
        f"Give --gguf-budget={_rounded_up((spent + takes) / AIM)}, fewer suites, a smaller model, or fewer of the"
        " options that ask for more.",
    )


def _described(choice: Choice, used: Collection[str]) -> str:
    candidates = f"{choice.candidates} candidate{'s' if choice.candidates != 1 else ''}"
    parts = {
        "variants": f"{choice.variants} variant{'s' if choice.variants != 1 else ''} of files",
        "chunks": "all windows" if choice.chunks is None else f"{choice.chunks} windows",
        "prompts": f"{choice.prompts} prompts",
    }
    if choice.ablations:
        parts["head_limit"] = "all heads" if choice.head_limit is None else f"{choice.head_limit} heads"
        parts["head_windows"] = f"{choice.head_windows} windows for heads"
    return ", ".join([candidates, *(words for name, words in parts.items() if name in used)])


def _rounded_up(seconds: float) -> str:
    return f"{int(seconds // 60) + 1}m" if seconds >= 60 else f"{int(seconds // 10 + 1) * 10}s"


def options_of(options: Options, choice: Choice) -> Options:
    """The options of a choice."""
    return replace(
        options,
        chunks=choice.chunks,
        head_windows=choice.head_windows,
        head_limit=choice.head_limit,
        sensitivity=choice.sensitivity,
    )


def fewer_prompts(prompts: PromptSet, count: int) -> PromptSet:
    """Some prompts of a set, in its order: drawn by the hash of their ids, so that more of them contain these."""
    if count >= len(prompts.prompts):
        return prompts
    drawn = sorted(prompts.prompts, key=lambda prompt: hashlib.sha256(prompt.id.encode()).digest())[:count]
    return PromptSet(prompts.name, tuple(prompt for prompt in prompts.prompts if prompt in drawn))


@dataclass(frozen=True, slots=True)
class Reduced:
    """Of what a budget measures less.

    Attributes:
        what: "windows of the text".
        option: that would set it.
        kept: how many.
        of: how many were asked for; None for all.
    """

    what: str
    option: str
    kept: int
    of: int | None

    def __str__(self) -> str:
        return f"{self.kept} of {'all' if self.of is None else self.of} {self.what} ({self.option})"

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return {"what": self.what, "option": self.option, "kept": self.kept, "of": self.of}


CHANGING: Final = frozenset(test for test, needs in NEEDS["heads"].items() if any(" heads/" in need for need in needs))
"""Tests that change heads."""

_WORDS: Final = {
    "chunks": "windows of the text",
    "prompts": "prompts",
    "head_windows": "windows for heads",
    "head_limit": "heads, one by one",
    "sensitivity": "candidates by groups of tensors",
}


def reduced(choice: Choice, full: Choice, used: Collection[str]) -> list[Reduced]:
    """Of what a choice measures less than was asked for, without candidates.

    Args:
        choice: that was made.
        full: what was asked for.
        used: names of what any test uses.
    """
    if choice.ablations < full.ablations and "head_limit" in used:
        used = {*used} - {"head_limit", "head_windows"}
        without = [Reduced("tests that change heads", OPTIONS["head_limit"], 0, len(CHANGING))]
    else:
        without = []
    return [
        Reduced(words, OPTIONS[name], kept, getattr(full, name))
        for name, words in _WORDS.items()
        if name in used and (kept := getattr(choice, name)) is not None and kept != getattr(full, name)
    ] + without
