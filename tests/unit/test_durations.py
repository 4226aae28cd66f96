"""What units of tests are expected to take, and the schedule that follows from a ladder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from gguf_harness.engine.machine import identify_machine
from gguf_harness.engine.settings import KVTypes
from gguf_harness.inputs.ladder import Ladder, PlannedModel, PlannedSubject, plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.prompts import load_prompts
from gguf_harness.measure.forecast.expected import Expecting, durations_on
from gguf_harness.measure.forecast.needs import NEEDS, Asked
from gguf_harness.pytest_plugin.distribution import schedule_of
from gguf_harness.pytest_plugin.durations import expected_seconds, history_of, read_history, seconds_of_others
from gguf_harness.pytest_plugin.schedule import Schedule
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama
from tests.stored_runs import STORED

if TYPE_CHECKING:
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.pytest_plugin.state import State


def _state(*arguments: str) -> State:
    """What a session with these options knows of itself."""
    options = read_options(parse_command_line(*arguments))
    values = {"options": options, "ladder": plan_ladder(options), "prompts": load_prompts(), "gates": {}}
    return cast("State", SimpleNamespace(**values))


def _units(state: State, *suites: str) -> dict[str, list[Asked]]:
    """All tests of suites, for each model."""
    return {
        f"{subject.name}/{suite}": [Asked(suite, test, subject) for test in NEEDS[suite]]
        for suite in suites
        for subject in state.ladder.models
    }


@pytest.fixture
def family(tmp_path: Path) -> tuple[str, ...]:
    """Options for files of 1, 2 and 4 layers, the second of which is the reference, and a type of this one."""
    for name, layers in (("small", 1), ("reference", 2), ("large", 4)):
        write_random_llama(tmp_path / f"{name}.gguf", n_layer=layers)
    cache = f"--gguf-cache={tmp_path / 'cache'}"
    return f"--models={tmp_path}", f"--reference={tmp_path}/reference.gguf", "--gguf-quants=Q8_0", cache


def test_larger_models_take_longer(family: tuple[str, ...]) -> None:
    state = _state(*family)
    seconds = expected_seconds(_units(state, "heads", "quant"), state)
    for suite in ("heads", "quant"):
        assert 0 < seconds[f"small/{suite}"] < seconds[f"large/{suite}"]


def test_what_is_left_out_of_a_grid_and_what_is_timed_takes_nothing(family: tuple[str, ...]) -> None:
    state = _state(*family)
    tests = ("test_layers_of_the_cache", "test_speed_at_depth_with_this_cache")
    units = {each.name: [Asked("kv", test, each) for test in tests] for each in state.ladder.cached}
    chosen = {name for name, seconds in expected_seconds(units, state).items() if seconds > 0}
    assert chosen == {"reference [kv=q8_0/q8_0]", "reference [kv=q4_0/q4_0]"}
    timed = {"timed": [Asked("kv", "test_speed_at_depth_with_this_cache", state.ladder.cached[0])]}
    assert expected_seconds(timed, state)["timed"] < 1.0


def test_tests_that_nothing_is_known_of_take_a_little_by_parameters(family: tuple[str, ...]) -> None:
    state = _state(*family)
    small, large = (next(each for each in state.ladder.models if each.name == name) for name in ("small", "large"))
    units = {each.name: [Asked("mine", f"test_{number}", each) for number in range(9)] for each in (small, large)}
    seconds = expected_seconds(units | {"plain": []}, state)
    # However many there are.
    assert 1.0 < seconds["small"] < seconds["large"] < 2.0
    assert seconds["plain"] == 0.0


def _info(parameters: int, size: int) -> ModelInfo:
    return cast("ModelInfo", SimpleNamespace(parameters=parameters, bytes=size))


def _run(*tests: tuple[str, str, float]) -> dict[str, Any]:
    """A run of `small` (10^6 parameters), `large` (10^8) and `packed` (10^8, fewer bytes)."""
    sizes = {"small": (10**6, 10**6), "large": (10**8, 2 * 10**8), "packed": (10**8, 5 * 10**7)}
    return {
        "models": [{"name": name, "parameters": known, "bytes": size} for name, (known, size) in sizes.items()],
        "tests": [
            {"model": model, "suite": suite, "duration_s": seconds, "outcome": "passed"}
            for model, suite, seconds in tests
        ],
    }


def test_tests_of_a_suite_add_up_and_the_longest_run_counts() -> None:
    first = _run(("large", "quant", 30.0), ("large", "quant", 12.0), ("packed", "quant", 20.0))
    cached = _run(("large", "quant", 0.2), ("small", "heads", 3.0))
    history = history_of([cached, first])
    assert history == {
        "quant": {(10**8, 2 * 10**8): 42.0, (10**8, 5 * 10**7): 20.0},
        "heads": {(10**6, 10**6): 3.0},
    }
    assert seconds_of_others(_info(10**8, 2 * 10**8), "quant", history) == 42.0
    assert seconds_of_others(_info(10**8, 6 * 10**7), "quant", history) == 20.0
    # The nearest in parameters, in proportion.
    assert seconds_of_others(_info(2 * 10**8, 4 * 10**8), "quant", history) == pytest.approx(84.0)
    assert seconds_of_others(_info(10**7, 10**7), "heads", history) == pytest.approx(30.0)


def test_what_failed_or_has_no_time_says_nothing() -> None:
    run = _run(("large", "quant", 30.0), ("packed", "quant", 1.0))
    run["tests"][0]["outcome"] = "failed"
    run["tests"][1]["duration_s"] = None
    assert history_of([run]) == {}


def test_a_model_of_unknown_size_says_nothing_about_another() -> None:
    history = {"mine": {(10**9, 10**9): 5.0}}
    assert seconds_of_others(None, "mine", history) == seconds_of_others(None, "mine", {})
    assert seconds_of_others(_info(10**9, 10**9), "mine", history) == 5.0


def test_runs_are_read_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
    (tmp_path / "runs" / "2-broken").mkdir(parents=True)
    (tmp_path / "runs" / "2-broken" / "run.json").write_text("{")
    (tmp_path / "runs" / "1-stored").symlink_to(STORED)
    history = read_history(tmp_path)
    assert set(history) == {"quant"}
    assert all(seconds > 0 for seconds in history["quant"].values())


def test_what_was_learned_counts(family: tuple[str, ...]) -> None:
    state = _state(*family)
    units = _units(state, "heads")
    before = expected_seconds(units, state)
    durations = durations_on(state.options, identify_machine())
    expecting = Expecting(state.options.threads, lambda: 0, state.ladder.infos)
    large = next(each for each in state.ladder.candidates if each.name == "large")
    for name in ("heads/sweep", "heads/interchange"):
        file = expecting.file(large.model)
        for _ in range(3):
            durations.add(name, file, 1.0, 40.0)
    after = expected_seconds(units, state)
    assert after["large/heads"] > 5 * before["large/heads"]
    # Of files that were never measured, other files tell.
    assert after["small/heads"] > before["small/heads"]


def test_no_model_is_opened_for_it() -> None:
    """Xdist's controller imports neither llama.cpp nor what measures."""
    code = "import gguf_harness.pytest_plugin.durations, sys; print([*sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    heavy = ("llama_cpp", "gguf_harness.measure.core", "gguf_harness.engine.model", "scipy", "pandas")
    assert "gguf_harness.measure.forecast.expected" in loaded
    assert not [name for name in heavy if f"'{name}'" in loaded]


def _order(schedule: Schedule) -> list[str]:
    """The units that a single process gets, without the suite."""
    schedule.join("gw0")
    names = []
    while (piece := schedule.next("gw0", 0.0)) is not None:
        names.append(piece.name)
    return names


def test_the_schedule_of_a_ladder(family: tuple[str, ...]) -> None:
    state = _state(*family)
    names = [subject.name for subject in state.ladder.models]
    assert "reference-Q8_0" in names
    units = {f"{name}/quant": (name, "quant") for name in names} | {"plain": ("", "")}
    seconds = expected_seconds(_units(state, "quant"), state)
    order = _order(schedule_of(units, state.ladder, seconds))
    assert order == ["reference/quant", "large/quant", "reference-Q8_0/quant", "small/quant", "plain"]


def test_subjects_of_a_file_stay_together_and_wait_for_the_reference_of_their_suite() -> None:
    reference, other = PlannedModel("reference"), PlannedModel("other")
    kept = [PlannedSubject(model, kv=KVTypes("q8_0", "q8_0")) for model in (other, reference)]
    ladder = Ladder(PlannedSubject(reference), (PlannedSubject(other),), "", cached=tuple(kept))
    units = {f"{each.name}/{suite}": (each.name, suite) for suite in ("kv", "quant") for each in ladder.subjects}
    seconds = dict.fromkeys(units, 5.0)
    order = _order(schedule_of(units, ladder, seconds))
    files = ["reference" if name.startswith("reference") else "other" for name in order]
    assert files == sorted(files, reverse=True)
    schedule = schedule_of(units, ladder, seconds)
    assert schedule._pieces["other/quant"].after == "reference/quant"
    assert schedule._pieces["reference/quant"].after is None


def test_until_decided_candidates_come_in_their_order_and_the_reference_last() -> None:
    models = [PlannedModel(name) for name in ("reference", "b", "a")]
    reference, *candidates = (PlannedSubject(model) for model in models)
    ladder = Ladder(reference, tuple(candidates), "")
    units = {f"{name}/quant": (name, "quant") for name in ("b", "a", "reference")}
    assert _order(schedule_of(units, ladder, dict.fromkeys(units, 1.0), until_decided=True)) == [
        "b/quant",
        "a/quant",
        "reference/quant",
    ]
