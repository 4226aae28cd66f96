"""How long the session will take, told before it starts; and --gguf-budget, which fits it into a time.

Works between collection and the first test, in the process that runs the tests. Nothing is foreseen under `pytest -n`,
where processes share the machine and what they take depends on each other, and with --gguf-ray.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from gguf_harness.errors import HarnessError
from gguf_harness.inputs.command_line import given_options
from gguf_harness.inputs.corpora import Corpus, load_corpus
from gguf_harness.inputs.models import load_info
from gguf_harness.judge.plan import suite_of
from gguf_harness.measure.forecast.budget import (
    CHANGING,
    LEFT_OUT,
    OPTIONS,
    Choice,
    Reduced,
    chain,
    choose,
    fewer_prompts,
    options_of,
    reduced,
)
from gguf_harness.measure.forecast.forecast import Forecast, Forecaster
from gguf_harness.measure.forecast.needs import USES, Asked, pieces_of
from gguf_harness.measure.forecast.stored import Inputs
from gguf_harness.metrics.number_format import format_duration
from gguf_harness.pytest_plugin.default_grid import LONG_ON_FILES, why_skipped
from gguf_harness.pytest_plugin.order import order_of_models
from gguf_harness.pytest_plugin.progress import TerminalProgress

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder, PlannedSubject
    from gguf_harness.measure.measurement import Job
    from gguf_harness.pytest_plugin.state import State

__all__ = ["Foresight", "foresee"]

_WORTH_S: Final = 20.0
"""Sessions that are shorter, by the number of parameters, are not foreseen: timing a file takes a second."""
_OF_VARIANTS: Final = {"kv", "lora"}
"""Suites about files that are run with other caches, or with adapters."""
_LATE: Final = 1.05
"""Times the budget: what would end later than this is not begun."""


@dataclass
class Foresight:
    """The forecast of a session, and what was left out for its budget.

    Attributes:
        forecast: of what is measured.
        asked: what each test asks for, by its id.
        budget_s: of the session; None without one.
        started: of the session, by `time.monotonic`.
        reduced: what is measured less of.
        left_out: (suite, test, model) that the budget has no time for.
    """

    forecast: Forecast
    asked: dict[str, Asked]
    budget_s: float | None
    started: float
    reduced: list[Reduced] = field(default_factory=list)
    left_out: dict[tuple[str, str, str], None] = field(default_factory=dict)
    late: dict[tuple[str, str, str], None] = field(default_factory=dict)
    _measured_s: float = 0.0

    # -- while it runs ------------------------------------------------------------------------------------------------

    def measured(self, job: Job[Any], seconds: float) -> None:
        """Take what a measurement took."""
        if self.forecast.measured(job, seconds):
            self._measured_s += seconds

    def reported(self, report: pytest.TestReport) -> None:
        """Take what a phase of a test took besides measurements."""
        asked, measured, self._measured_s = self.asked.get(report.nodeid), self._measured_s, 0.0
        if asked is not None and (model := getattr(report, "gguf_model", None)) is not None:
            self.forecast.tested(asked.suite, model, max(0.0, report.duration - measured))

    def too_late_for(self, test: str, model: str | None) -> str | None:
        """Why a test is not begun; None for one that is."""
        asked = self.asked.get(test)
        if self.budget_s is None or asked is None or (left := self.forecast.left(asked)) <= 0:
            return None
        passed = time.monotonic() - self.started
        if passed + left <= _LATE * self.budget_s:
            return None
        self.late[asked.suite, asked.test, model or ""] = None
        # Without the seconds: tests with the same reason are told together.
        return f"{LEFT_OUT} of {format_duration(self.budget_s)}, which is over before what it needs is measured"

    # -- words --------------------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """What is told before the first test."""
        lines = [f"forecast: {self.forecast.sentence()}"] if self.forecast.is_long or self.budget_s else []
        return [*lines, f"budget: {told}"] if (told := self.told()) else lines

    def told(self) -> str:
        """What a budget leaves out, as a sentence; "" without one."""
        if self.budget_s is None:
            return ""
        models = self.models_left_out
        parts = [*map(str, self.reduced), *([f"without {', '.join(models)}"] if models else [])]
        return f"{format_duration(self.budget_s)}: {'; '.join(parts) or 'there is time for all'}"

    @property
    def models_left_out(self) -> list[str]:
        """Subjects of which nothing is measured, or nothing of what a suite asks of them as variants."""
        kept = {(asked.suite, asked.subject.name) for asked in self.asked.values() if asked.subject is not None}
        names = {model for _, model in kept}
        told = {
            model if model not in names else f"{model} in suites/{suite}": None
            for suite, _, model in self.left_out
            if model not in names or (suite in _OF_VARIANTS and (suite, model) not in kept)
        }
        return list(told)

    def warnings(self) -> list[str]:
        """What the run says of the budget after it."""
        if self.budget_s is None:
            return []
        told = [f"--gguf-budget={self.told()}."] if self.reduced or self.left_out else []
        if self.late:
            tests = dict.fromkeys(test for _, test, _ in self.late)
            told.append(f"--gguf-budget: time was over before {', '.join(tests)}: it took longer than forecast.")
        return told

    def to_json(self) -> dict[str, Any] | None:
        """The budget, as JSON types; None without one."""
        if self.budget_s is None:
            return None
        return {
            "seconds": self.budget_s,
            "reduced": [each.to_json() for each in self.reduced],
            "left_out": [
                {"suite": suite, "test": test, "model": model} for suite, test, model in {**self.left_out, **self.late}
            ],
        }


def foresee(state: State, tests: Sequence[tuple[pytest.Function, str | None]]) -> list[pytest.Item]:
    """Make the forecast of a session, and choose what fits into its budget.

    Args:
        state: of the session; with a budget its options, ladder and prompts change.
        tests: those of ours, each with the name of its subject.

    Returns:
        Tests that are left out.

    Raises:
        OptionError: nothing fits into the budget.
    """
    asked = _asked(state, tests)
    budget = state.options.budget_s
    if not asked or state.options.ray is not None:
        return []
    planning = _Planning(state, asked)
    forecaster = planning.forecaster
    try:
        if budget is None and forecaster.rough() < _WORTH_S:
            return []
        forecaster.time_files()
        if budget is not None:
            return planning.fit(budget, [item for item, _ in tests])
        state.foresight = Foresight(forecaster.forecast(), planning.by_id, None, state.started)
        return []
    finally:
        forecaster.close()


def _asked(state: State, tests: Sequence[tuple[pytest.Function, str | None]]) -> dict[pytest.Function, Asked]:
    """What each test of the bundled suites asks for; without those that only say that there is nothing to do."""
    subjects = {subject.name: subject for subject in state.ladder.subjects}
    found = {}
    for item, model in tests:
        suite = suite_of(item.path)
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if suite is None or any(value is None for value in values) or item.get_closest_marker("skip") is not None:
            continue
        found[item] = Asked(suite, item.originalname, subjects.get(model or ""))
    return found


class _Planning:
    """Chooses what a budget has time for.

    Args:
        state: of the session.
        asked: what its tests ask for.
    """

    def __init__(self, state: State, asked: dict[pytest.Function, Asked]) -> None:
        self._state = state
        self._asked = {item: each for item, each in asked.items() if why_skipped(each, state, state.ladder) is None}
        self._skipped = {item: each for item, each in asked.items() if item not in self._asked}
        self.by_id = {item.nodeid: each for item, each in self._asked.items()}
        progress = TerminalProgress(state.config)
        self._corpus = functools.cache(lambda: _load_text(state))
        self._inputs = self._with(state.ladder)
        self.forecaster = Forecaster(
            state.options, self._inputs, list(dict.fromkeys(self._asked.values())), progress, state.run_id
        )
        order = order_of_models(state.ladder, until_decided=True)
        self._candidates = sorted(state.ladder.candidates, key=lambda each: order[each.name])
        self._cached, self._adapted = (
            _in_turns(variants, state.ladder.reference, self._candidates)
            for variants in (state.ladder.cached, state.ladder.adapted)
        )
        # Without their tests there is nothing to choose.
        of_suites = {"kv": self._cached, "lora": self._adapted}
        asked_for = {each.suite for each in self._asked.values()}
        options = state.options
        self._full = Choice(
            candidates=len(self._candidates),
            variants=max(len(found) if suite in asked_for else 0 for suite, found in of_suites.items()),
            chunks=options.chunks,
            prompts=len(state.prompts.prompts),
            ablations=1,
            head_windows=options.head_windows,
            head_limit=options.head_limit,
            sensitivity=options.sensitivity,
        )

    def fit(self, budget: float, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        """Change the session so that it fits; see `foresee`."""
        state = self._state
        used = self._used()
        kept_as_given = {*given_options(state.config), *self._unused(used)}
        spent = time.monotonic() - state.started
        choice = choose(chain(self._full, kept_as_given), self._seconds, budget, spent, used)
        kept = self._kept(choice)
        foresight = Foresight(self._forecast(choice), {}, budget, state.started)
        foresight.reduced = reduced(choice, self._full, used)
        state.whole_ladder, state.ladder = state.ladder, kept.ladder
        state.options, state.prompts = options_of(state.options, choice), kept.prompts
        state.foresight = foresight
        # Those that skip themselves have no subject either, where it is left out.
        removed: list[pytest.Item] = [
            item for item, each in self._skipped.items() if each.subject not in _subjects(each, kept.ladder)
        ]
        for item in items:
            each = self._asked.get(item)  # type: ignore[call-overload]
            if each is None:
                continue
            if self._is_kept(each, choice, kept.ladder) and not _of_other_prompt(item, kept):
                foresight.asked[item.nodeid] = each
            else:
                removed.append(item)
                if not self._is_kept(each, choice, kept.ladder) and each.subject is not None:
                    foresight.left_out[each.suite, each.test, each.subject.name] = None
        return removed

    def _seconds(self, choice: Choice) -> float:
        return self._forecast(choice).seconds

    def _forecast(self, choice: Choice) -> Forecast:
        kept = self._kept(choice)
        asked = [each for each in dict.fromkeys(self._asked.values()) if self._is_kept(each, choice, kept.ladder)]
        return self.forecaster.forecast(options_of(self._state.options, choice), kept, asked)

    def _kept(self, choice: Choice) -> Inputs:
        """Models and prompts of a choice."""
        ladder = self._state.ladder
        names = {each.name for each in self._candidates[: choice.candidates]}
        chosen = tuple(each for each in ladder.candidates if each.name in names)
        files = {each.model for each in chosen} | ({ladder.reference.model} if ladder.reference else set())

        def of_these(subjects: Sequence[PlannedSubject], first: Sequence[PlannedSubject]) -> tuple[PlannedSubject, ...]:
            return tuple(each for each in subjects if each.model in files and each in first[: choice.variants])

        fewer = replace(
            ladder,
            candidates=chosen,
            cached=of_these(ladder.cached, self._cached),
            adapted=of_these(ladder.adapted, self._adapted),
        )
        return self._with(fewer, choice.prompts)

    def _with(self, ladder: Ladder, prompts: int | None = None) -> Inputs:
        state = self._state
        chosen = state.prompts if prompts is None else fewer_prompts(state.prompts, prompts)
        return Inputs(ladder, self._corpus, chosen, lambda: state.words, state.early_limits)

    def _is_kept(self, asked: Asked, choice: Choice, ladder: Ladder) -> bool:
        if choice.sensitivity == 0 != self._full.sensitivity and asked.test == "test_groups_of_tensors":
            return False
        if choice.ablations == 0 and asked.test in CHANGING:
            return False
        return asked.subject is None or (
            asked.subject in _subjects(asked, ladder) and why_skipped(asked, self._state, ladder) is None
        )

    def _used(self) -> set[str]:
        """What any test uses of that which can be reduced."""
        ladder = self._inputs.ladder
        pieces = pieces_of(self._asked.values(), ladder, ladder.candidates)
        names = {piece.name for each in pieces.values() for piece in each}
        used = {use for start, uses in USES.items() for use in uses if any(name.startswith(start) for name in names)}
        return used | ({"variants"} if self._full.variants else set())

    @staticmethod
    def _unused(used: set[str]) -> set[str]:
        """Options that change nothing here: they are not reduced either."""
        return {option for name, option in OPTIONS.items() if name not in used}


def _in_turns(
    subjects: Sequence[PlannedSubject], reference: PlannedSubject | None, candidates: Sequence[PlannedSubject]
) -> list[PlannedSubject]:
    """Variants of files, the first of each file before the second of any; of the reference's before those of others.

    Caches with one type for keys and values come first: most is measured of these.

    Args:
        subjects: the variants.
        reference: of the session.
        candidates: in their order.
    """
    files = dict.fromkeys(each.model for each in (*((reference,) if reference else ()), *candidates))
    order = {model: place for place, model in enumerate(files)}
    ranked = []
    for model in dict.fromkeys(each.model for each in subjects):
        of_file = [each for each in subjects if each.model == model]
        of_file.sort(key=lambda each: each.kv is not None and each.kv.k != each.kv.v)
        ranked += [(rank, order.get(model, len(order)), each) for rank, each in enumerate(of_file)]
    return [each for _, _, each in sorted(ranked, key=lambda found: found[:2])]


def _subjects(asked: Asked, ladder: Ladder) -> Sequence[PlannedSubject]:
    """What the tests of a kind are about."""
    if asked.suite == "lora":
        return ladder.adapted
    return ladder.cached if asked.suite == "kv" and asked.test not in LONG_ON_FILES else ladder.models


def _load_text(state: State) -> Corpus:
    """The text as the fixture `corpus` reads it: without what the reference was trained on."""
    held_out: tuple[str, ...] = ()
    planned = None if state.ladder.reference is None else state.ladder.reference.model
    while planned is not None and planned.source is None:
        planned = planned.base
    if planned is not None and planned.source is not None:
        # Without a sound reference its own tests fail, and others are measured on the whole text.
        with contextlib.suppress(HarnessError):
            held_out = load_info(planned.source).held_out_topics
    return load_corpus(state.options.corpus, held_out_topics=held_out)


def _of_other_prompt(item: pytest.Item, kept: Inputs) -> bool:
    """Whether a test is about a prompt that is left out."""
    callspec = getattr(item, "callspec", None)
    prompt = None if callspec is None else callspec.params.get("prompt")
    return prompt is not None and prompt not in kept.prompts.prompts
