"""What tests are expected to take, and the schedule that follows from a ladder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_harness.engine.settings import KVTypes
from gguf_harness.inputs.ladder import Ladder, PlannedModel, PlannedSubject, plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.pytest_plugin.distribution import schedule_of
from gguf_harness.pytest_plugin.durations import SUITES, expected_seconds, history_of, read_history
from gguf_harness.pytest_plugin.schedule import Schedule
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama
from tests.stored_runs import STORED


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
    assert expected_seconds(10**8, 2 * 10**8, "quant", history) == 42.0
    assert expected_seconds(10**8, 6 * 10**7, "quant", history) == 20.0
    # The nearest in parameters, in proportion.
    assert expected_seconds(2 * 10**8, 4 * 10**8, "quant", history) == pytest.approx(84.0)
    assert expected_seconds(10**7, 10**7, "heads", history) == pytest.approx(30.0)


def test_what_failed_or_has_no_time_says_nothing() -> None:
    run = _run(("large", "quant", 30.0), ("packed", "quant", 1.0))
    run["tests"][0]["outcome"] = "failed"
    run["tests"][1]["duration_s"] = None
    assert history_of([run]) == {}


@pytest.mark.parametrize("suite", [*SUITES, "unknown"])
def test_without_history_larger_models_take_longer(suite: str) -> None:
    known = [expected_seconds(parameters, 0, suite, {}) for parameters in (0, 10**6, 10**9)]
    assert known == sorted(known)
    assert 0 < known[0] < known[-1]
    # A model of unknown size says nothing about another.
    assert expected_seconds(0, 0, suite, {suite: {(10**9, 10**9): 5.0}}) == known[0]


def test_runs_are_read_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
    (tmp_path / "runs" / "2-broken").mkdir(parents=True)
    (tmp_path / "runs" / "2-broken" / "run.json").write_text("{")
    (tmp_path / "runs" / "1-stored").symlink_to(STORED)
    history = read_history(tmp_path)
    assert set(history) == {"quant"}
    assert all(seconds > 0 for seconds in history["quant"].values())


def _order(schedule: Schedule) -> list[str]:
    """The units that a single process gets, without the suite."""
    schedule.join("gw0")
    names = []
    while (piece := schedule.next("gw0", 0.0)) is not None:
        names.append(piece.name)
    return names


def test_the_schedule_of_a_ladder(tmp_path: Path) -> None:
    for name, layers in (("reference", 2), ("small", 1), ("large", 4)):
        write_random_llama(tmp_path / f"{name}.gguf", n_layer=layers)
    arguments = (f"--models={tmp_path}", f"--reference={tmp_path}/reference.gguf", "--gguf-quants=Q8_0")
    ladder = plan_ladder(read_options(parse_command_line(*arguments)))
    names = [subject.name for subject in ladder.models]
    assert "reference-Q8_0" in names
    units = {f"{name}/quant": (name, "quant") for name in names} | {"plain": ("", "")}
    order = _order(schedule_of(units, ladder, {}))
    assert order == ["reference/quant", "large/quant", "reference-Q8_0/quant", "small/quant", "plain"]


def test_subjects_of_a_file_stay_together_and_wait_for_the_reference_of_their_suite() -> None:
    reference, other = PlannedModel("reference"), PlannedModel("other")
    kept = [PlannedSubject(model, kv=KVTypes("q8_0", "q8_0")) for model in (other, reference)]
    ladder = Ladder(PlannedSubject(reference), (PlannedSubject(other),), "", cached=tuple(kept))
    units = {f"{each.name}/{suite}": (each.name, suite) for suite in ("kv", "quant") for each in ladder.subjects}
    order = _order(schedule_of(units, ladder, {}))
    files = ["reference" if name.startswith("reference") else "other" for name in order]
    assert files == sorted(files, reverse=True)
    schedule = schedule_of(units, ladder, {})
    assert schedule._pieces["other/quant"].after == "reference/quant"
    assert schedule._pieces["reference/quant"].after is None


def test_until_decided_candidates_come_in_their_order_and_the_reference_last() -> None:
    models = [PlannedModel(name) for name in ("reference", "b", "a")]
    reference, *candidates = (PlannedSubject(model) for model in models)
    ladder = Ladder(reference, tuple(candidates), "")
    units = {f"{name}/quant": (name, "quant") for name in ("b", "a", "reference")}
    assert _order(schedule_of(units, ladder, {}, until_decided=True)) == ["b/quant", "a/quant", "reference/quant"]
