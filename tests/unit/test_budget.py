"""What of a session fits into a time: never less with more time, and never what a person asked for."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.engine.settings import KVTypes
from gguf_harness.errors import OptionError
from gguf_harness.inputs.ladder import PlannedModel, PlannedSubject
from gguf_harness.inputs.prompts import Prompt, PromptSet, load_prompts
from gguf_harness.measure.forecast.budget import (
    AIM,
    CHANGING,
    LEFT_OUT,
    OPTIONS,
    Choice,
    chain,
    choose,
    fewer_prompts,
    reduced,
)
from gguf_harness.pytest_plugin.foresight import _in_turns

FULL = Choice(
    candidates=6, variants=8, chunks=16, prompts=24, ablations=1, head_windows=4, head_limit=64, sensitivity=2
)
NAMES = [field.name for field in fields(Choice)]

_limit = st.none() | st.integers(2, 200)
_choices = st.builds(
    Choice,
    candidates=st.integers(0, 40),
    variants=st.integers(0, 40),
    chunks=_limit,
    prompts=st.integers(1, 60),
    ablations=st.just(1),
    head_windows=st.integers(2, 9),
    head_limit=_limit,
    sensitivity=st.none() | st.integers(0, 5),
)
_given = st.sets(st.sampled_from(sorted(OPTIONS.values())))


def _size(choice: Choice, name: str) -> float:
    """How much there is of something; all is more than any number."""
    value = getattr(choice, name)
    return float("inf") if value is None else value


@given(_choices, _given)
def test_each_choice_has_at_least_what_the_one_before_has_and_the_last_has_all(full: Choice, given: set[str]) -> None:
    choices = chain(full, given)
    assert choices[-1] == full
    for before, after in itertools.pairwise(choices):
        assert before != after
        assert all(_size(before, name) <= _size(after, name) for name in NAMES)


@given(_choices, _given)
def test_what_a_person_gave_stays(full: Choice, given: set[str]) -> None:
    for choice in chain(full, given):
        assert all(getattr(choice, name) == getattr(full, name) for name, option in OPTIONS.items() if option in given)


@given(_choices, _given, st.lists(st.floats(1, 1e4), min_size=1, max_size=80), st.data())
def test_more_time_never_measures_less(full: Choice, given: set[str], times: list[float], data: st.DataObject) -> None:
    """Even where what takes longer has less: a cache may hold all of a full run, and nothing of a smaller one."""
    choices = chain(full, given)
    taken = {choice: times[index % len(times)] for index, choice in enumerate(choices)}
    short, long = sorted(data.draw(st.tuples(st.floats(1, 2e4), st.floats(1, 2e4))))

    def chosen(budget: float) -> Choice | None:
        try:
            return choose(choices, taken.__getitem__, budget)
        except OptionError:
            return None

    less, more = chosen(short), chosen(long)
    assert less is None or (more is not None and choices.index(less) <= choices.index(more))
    for budget, choice in ((short, less), (long, more)):
        assert choice is None or taken[choice] <= (budget if choice == choices[0] else AIM * budget)


def test_with_time_for_all_nothing_is_left_out() -> None:
    assert choose(chain(FULL, ()), lambda _: 10.0, 600.0) == FULL
    assert reduced(FULL, FULL, NAMES) == []


def test_too_little_time_for_the_least_says_what_that_is_and_what_would_do() -> None:
    with pytest.raises(OptionError, match=r"1 candidate, 4 windows, 6 prompts, takes about 50 s"):
        choose(chain(FULL, ()), lambda _: 50.0, 30.0)
    with pytest.raises(OptionError) as raised:
        choose(chain(FULL, ()), lambda _: 50.0, 30.0)
    assert "--gguf-budget=60s" in raised.value.hint
    assert choose(chain(FULL, ()), lambda _: 50.0, 60.0) == FULL


def test_time_that_is_spent_already_counts() -> None:
    seconds = {choice: 10.0 * (index + 1) for index, choice in enumerate(chain(FULL, ()))}
    all_at_once = choose([*seconds], seconds.__getitem__, 100.0)
    later = choose([*seconds], seconds.__getitem__, 100.0, spent=40.0)
    assert seconds[all_at_once] == 90.0
    assert seconds[later] == 50.0


def test_what_is_reduced_is_said_with_its_option() -> None:
    choice = replace(FULL, chunks=8, sensitivity=0)
    told = [str(each) for each in reduced(choice, FULL, ("chunks", "sensitivity", "prompts"))]
    assert told == [
        "8 of 16 windows of the text (--gguf-chunks)",
        "0 of 2 candidates by groups of tensors (--gguf-sensitivity)",
    ]
    assert reduced(choice, FULL, ()) == []
    assert str(reduced(replace(FULL, head_limit=8), replace(FULL, head_limit=None), ["head_limit"])[0]) == (
        "8 of all heads, one by one (--gguf-head-limit)"
    )
    assert LEFT_OUT == "left out for the budget"


def test_heads_are_changed_when_all_else_fits() -> None:
    choices = chain(FULL, ())
    without = [choice for choice in choices if choice.ablations == 0]
    assert (without[-1].chunks, without[-1].prompts, without[-1].candidates, without[-1].variants) == (16, 24, 6, 8)
    told = [str(each) for each in reduced(without[-1], FULL, [*OPTIONS])]
    assert told == [
        "0 of 2 candidates by groups of tensors (--gguf-sensitivity)",
        f"0 of {len(CHANGING)} tests that change heads (--gguf-head-limit)",
    ]
    assert "test_importance_of_heads" in CHANGING
    assert "test_behaviour" not in CHANGING
    # Whoever says how many wants them to be changed.
    assert all(choice.ablations for choice in chain(FULL, {"--gguf-head-limit"}))


@given(st.integers(1, 24), st.integers(1, 24))
def test_more_prompts_contain_fewer_and_keep_their_order(few: int, many: int) -> None:
    prompts = load_prompts()
    few, many = sorted((few, many))
    smaller, larger = (fewer_prompts(prompts, count).prompts for count in (few, many))
    assert len(smaller) == few
    assert set(smaller) <= set(larger)
    assert [prompt for prompt in prompts.prompts if prompt in smaller] == [*smaller]


def test_a_set_of_no_more_prompts_stays_the_same() -> None:
    prompts = PromptSet("two", (Prompt("a", "x"), Prompt("b", "y")))
    assert fewer_prompts(prompts, 2) is prompts
    assert fewer_prompts(prompts, 1).sha256 != prompts.sha256


def test_each_file_has_a_variant_before_any_has_two() -> None:
    reference, first, second = (PlannedModel(name) for name in ("reference", "first", "second"))
    mixed, even = KVTypes("q8_0", "f16"), KVTypes("q4_0", "q4_0")
    subjects = [PlannedSubject(model, pair) for model in (second, reference, first) for pair in (mixed, even)]
    order = _in_turns(subjects, PlannedSubject(reference), [PlannedSubject(first), PlannedSubject(second)])
    assert [(each.model.name, each.kv) for each in order] == [
        *((name, even) for name in ("reference", "first", "second")),
        *((name, mixed) for name in ("reference", "first", "second")),
    ]
    # Of the reference's file there may be candidates as well.
    alike = _in_turns(subjects, PlannedSubject(reference), [PlannedSubject(first), PlannedSubject(reference, even)])
    assert [each.model.name for each in alike[:3]] == ["reference", "first", "second"]
