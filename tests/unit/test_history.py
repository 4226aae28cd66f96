"""What belongs together in a history: families, roles, segments, by content and conditions and never by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_harness.errors import OptionError, StoreError
from gguf_harness.judge.history import History, Series, build_history, read_history
from gguf_harness.judge.history.families import StoredContent
from gguf_harness.store.migrations import migrate
from tests.history_runs import REFERENCE, Measured, content, row, write_run_of
from tests.stored_runs import STORED, stored_content

FLAT = (0.03, 0.031, 0.029, 0.032) * 4


def build(*contents: dict[str, Any], **asked: Any) -> History:
    return build_history([StoredContent(Path(f"{one['id']}/run.json"), one) for one in contents], **asked)


def the(history: History, role: str = "Q4_K_M", metric: str = "kld_mean") -> Series:
    (found,) = [one for family in history for one in family.series if (one.role, one.metric.name) == (role, metric)]
    return found


def days(series: Series) -> list[list[int]]:
    return [[point.at for point in segment.points] for segment in series.segments]


def test_a_family_is_the_content_of_its_reference() -> None:
    renamed = content(1, [Measured(FLAT, sha256="2" * 64)])
    text = json.dumps(renamed).replace("toy-F16", "renamed")
    other = content(2, [Measured(FLAT)], reference="e" * 64)
    history = build(content(0, [Measured(FLAT)]), json.loads(text), other)
    assert [(family.key, family.name, len(family.moments)) for family in history] == [
        (REFERENCE, "renamed", 2),
        ("e" * 64, "toy-F16", 1),
    ]


def test_without_a_reference_each_file_is_a_family_by_its_content() -> None:
    def alone(number: int, hashes: tuple[str, ...]) -> dict[str, Any]:
        run = content(number, [Measured(FLAT, sha256=one * 64, name=f"n{number}{one}") for one in hashes])
        for model in run["models"]:
            model["reference"] = False
        run["models"], run["estimates"] = run["models"][1:], run["estimates"][1:]
        return run

    history = build(alone(0, ("1", "2")), alone(1, ("2",)))
    assert {family.key[0]: len(family.moments) for family in history} == {"1": 1, "2": 2}
    assert [family.name for family in history if family.key[0] == "2"] == ["n12"]


def test_a_role_is_the_type_and_how_it_is_run_whatever_the_name() -> None:
    first = [Measured(FLAT), Measured(FLAT, variant="kv=q8_0/q8_0"), Measured(FLAT, quantization=None, name="mine")]
    second = [Measured(FLAT, sha256="2" * 64, name="v2-Q4_K_M")]
    history = build(content(0, first), content(1, second))
    (family,) = history
    assert set(family.roles) == {"reference", "Q4_K_M", "Q4_K_M [kv=q8_0/q8_0]", "mine"}
    assert family.roles[0] == "reference"
    assert [point.model for point in the(history).points] == ["toy-Q4_K_M", "v2-Q4_K_M"]


def test_two_files_of_a_type_are_told_apart_by_name_in_every_run() -> None:
    two = [Measured(FLAT, name="plain", sha256="1" * 64), Measured(FLAT, name="imat", sha256="2" * 64)]
    history = build(content(0, two), content(1, two[:1]))
    assert the(history, "Q4_K_M (plain)").points[-1].at == 1
    assert len(the(history, "Q4_K_M (imat)").points) == 1
    assert not [one for family in history for one in family.series if one.role == "Q4_K_M"]


@settings(max_examples=20)
@given(st.permutations(range(6)))
def test_order_is_that_of_time_however_runs_are_given(order: list[int]) -> None:
    runs = [content(number, [Measured(FLAT, sha256=str(number) * 64)]) for number in range(6)]
    runs[3]["started"] = "2026-11-04T22:30:00+10:00"  # 12:30 UTC, half an hour after noon of its day
    shuffled = [runs[place] for place in order]
    (family,) = build(*shuffled)
    assert [moment.run for moment in family.moments] == [run["id"] for run in runs]
    assert build(*shuffled) == build(*runs)


def test_a_run_without_a_time_is_the_oldest() -> None:
    late = content(5, [Measured(FLAT)])
    del late["started"]
    (family,) = build(content(0, [Measured(FLAT)]), late)
    assert [moment.day for moment in family.moments] == ["", "2026-11-01"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"corpus": {"sha256": "d" * 64}}, "text (pydoc cccccccccccc -> pydoc dddddddddddd)"),
        ({"corpus": {"n_ctx": 1024}}, "context (512 tokens -> 1024 tokens)"),
        ({"corpus": {"windows": 32}}, "windows (16 drawn from 237 -> 32 drawn from 237)"),
        ({"corpus": {"order": "first"}}, "windows (16 drawn from 237 -> 16 from the start)"),
        ({"corpus": {"available": 300}}, "windows (16 drawn from 237 -> 16 drawn from 300)"),
        ({"settings": {"side_by_side": "always"}}, "side_by_side (auto -> always)"),
        ({"early": [{"model": "toy-Q4_K_M", "windows": 8}]}, "windows (16 drawn from 237 -> 8 drawn from 237)"),
    ],
)
def test_other_conditions_begin_a_segment_and_it_is_said_why(changed: dict[str, Any], reason: str) -> None:
    runs = [content(number, [Measured(FLAT, sha256=str(number) * 64)]) for number in range(3)]
    for key, value in changed.items():
        runs[1][key] = runs[1][key] | value if isinstance(value, dict) else value
    series = the(build(*runs))
    assert days(series) == [[0, 2], [1]]
    assert [segment.reason for segment in series.segments] == ["", reason]
    assert series.segments[1].points[0].previous is None
    assert series.points[2].previous is not None
    assert series.points[2].previous.since == 0


def test_the_cache_of_a_subject_is_a_condition_even_if_no_name_says_so() -> None:
    runs = [content(number, [Measured(FLAT)]) for number in range(2)]
    runs[1]["models"][1]["context"] = {"cache_type_k": "q8_0", "cache_type_v": "f16", "rotate_kv": True}
    assert [one.reason for one in the(build(*runs)).segments] == ["", "cache_type_k (f16 -> q8_0)"]


def test_engine_machine_and_threads_are_told_and_begin_nothing() -> None:
    runs = [content(number, [Measured(FLAT, sha256=str(number) * 64)]) for number in range(2)]
    runs[1]["engine"] = {"llama_cpp": "abc1234", "system_info": "CPU : AVX512 = 1 | " + "X = 1 | " * 20}
    runs[1]["machine"] = runs[1]["machine"] | {"cpu": "Xeon"}
    runs[1]["settings"] = runs[1]["settings"] | {"threads": 8}
    runs[1]["harness"] = "0.2.0"
    (_, point) = the(build(*runs)).points
    assert point.previous is not None
    assert point.previous.circumstances == (
        "llama.cpp (0c1e570 -> abc1234)",
        "instruction sets",
        "machine (EPYC -> Xeon)",
        "threads (2 -> 8)",
        "gguf-harness (0.1.0 -> 0.2.0)",
    )


def test_timings_of_another_machine_or_of_more_threads_are_not_joined() -> None:
    timed = [("tg_speed_ratio", 1.5, 0.01)]
    runs = [content(number, [Measured(FLAT, more=timed, sha256=str(number) * 64)]) for number in range(3)]
    runs[1]["machine"] = runs[1]["machine"] | {"cpu": "Xeon"}
    runs[2]["settings"] = runs[2]["settings"] | {"threads": 8}
    history = build(*runs)
    assert days(the(history, metric="tg_speed_ratio")) == [[0], [1], [2]]
    assert days(the(history)) == [[0, 1, 2]]


def test_what_an_old_run_did_not_record_is_not_known_to_differ() -> None:
    runs = [content(number, [Measured(FLAT, sha256=str(number) * 64)]) for number in range(3)]
    del runs[0]["settings"], runs[0]["models"][1]["context"]
    runs[0]["models"][1]["context"] = None
    runs[2]["settings"] = runs[2]["settings"] | {"side_by_side": "always"}
    # The first run is in the segment of the second, which says what the first does not.
    assert days(the(build(*runs))) == [[0, 1], [2]]


def test_only_values_of_whole_models_are_series() -> None:
    run = content(0, [Measured(FLAT)])
    run["estimates"] += [row("toy-Q4_K_M", "kld_mean", 9.0, None) | {"part": "attn_q"}]
    run["estimates"] += [row("nobody", "kld_mean", 9.0, None), row("toy-Q4_K_M", "kld_mean", 7.0, None)]
    assert [point.value for point in the(build(run)).points] == [pytest.approx(0.0305)]


def test_a_run_whose_files_have_no_hash_is_left_out() -> None:
    run = content(0, [Measured(FLAT)])
    for model in run["models"]:
        del model["sha256"]
    history = build(run)
    assert history.families == ()
    assert history.left_out == (f"{run['id']}: the content of its reference, or of its files, is not known",)


def test_a_run_that_ended_before_its_reference_was_read_belongs_nowhere() -> None:
    run = content(1, [Measured(FLAT)]) | {"reference": "toy-F16"}
    run["models"] = run["models"][1:]
    history = build(content(0, [Measured(FLAT)]), run)
    assert [len(family.moments) for family in history] == [1]
    assert history.left_out == (f"{run['id']}: the content of its reference, or of its files, is not known",)


def test_limits_are_those_of_gates_on_whole_models_that_agree() -> None:
    run = content(0, [Measured(FLAT)])
    gate = {"model": "toy-Q4_K_M", "verdict": "pass", "detail": "d", "prompt": None, "layer": None, "head": None}
    run["gates"] = [
        gate | {"part": None, "metric": "kld_mean", "limit": 0.1},
        gate | {"part": "attn_q", "metric": "kld_mean", "limit": 0.5},
        gate | {"part": None, "metric": "ppl", "limit": 10.0},
        gate | {"part": None, "metric": "ppl", "limit": 11.0},
        gate | {"part": None, "metric": "same_top", "limit": None},
    ]
    (family,) = build(run)
    assert family.moments[0].limits == {"kld_mean": 0.1}


def test_a_run_of_the_first_schema_takes_part(tmp_path: Path) -> None:
    """The stored run beside one of today of the same reference."""
    later = migrate(copy.deepcopy(stored_content()))
    later |= {
        "id": "20261128-000000-aaaa",
        "started": "2026-11-28T00:00:00+00:00",
        "git": {"commit": "a" * 40, "dirty": True},
    }
    later["models"][3] |= {"sha256": "9" * 64}
    folder = tmp_path / "runs" / later["id"]
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(later), encoding="utf-8")
    history = read_history(tmp_path, [str(STORED), later["id"]])
    (family,) = history
    assert [moment.label for moment in family.moments] == ["2026-11-24 12:30", "aaaaaaa+"]
    assert family.roles == ("reference", "Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "IQ3_XS")
    changed = the(history).points[1].previous
    assert changed is not None
    assert (changed.how, changed.difference, changed.outcome) == ("independent", 0, "no change")
    same = the(history, "Q8_0").points[1].previous
    assert same is not None
    assert same.outcome == "same"


def test_all_runs_are_read_and_those_that_cannot_be_are_named(tmp_path: Path) -> None:
    for number in range(2):
        write_run_of(tmp_path, number, [Measured(FLAT)])
    for name, text in (("broken", "{"), ("newer", '{"schema_version": 99}'), ("other", "[]")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "run.json").write_text(text, encoding="utf-8")
    history = read_history(tmp_path)
    assert len(history.families[0].moments) == 2
    assert len(history.left_out) == 3
    for name, line in zip(("broken", "newer", "other"), history.left_out, strict=True):
        assert line.startswith(f"{name}: ")
        assert "\n" not in line
    with pytest.raises(StoreError, match="schema version 99"):
        read_history(tmp_path, ["newer"])
    assert len(read_history(tmp_path, ["20260001", "20260001-12"]).families[0].moments) == 1


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There are no runs in"):
        read_history(tmp_path)
    run = content(0, [Measured(FLAT)]) | {"estimates": []}
    folder = tmp_path / "runs" / "empty"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    with pytest.raises(StoreError, match="Nothing was measured in 1 runs"):
        read_history(tmp_path)


def test_what_is_asked_for_is_shown(tmp_path: Path) -> None:
    more = [("file_bytes", 500.0, None), ("same_top", 0.9, 0.01), ("ppl", 13.0, 0.4)]
    write_run_of(tmp_path, 0, [Measured(FLAT, more=more), Measured(FLAT, quantization="Q8_0", sha256="2" * 64)])

    def shown(**asked: Any) -> set[tuple[str, str]]:
        (family,) = read_history(tmp_path, **asked)
        return {(one.role, one.metric.name) for one in family.series}

    assert shown() == {("Q4_K_M", "kld_mean"), ("Q4_K_M", "same_top"), ("Q8_0", "kld_mean")}
    assert shown(metrics=["ppl", "file_bytes"]) == {("reference", "ppl"), ("Q4_K_M", "ppl"), ("Q4_K_M", "file_bytes")}
    assert shown(models=["q8*"]) == {("Q8_0", "kld_mean")}
    assert shown(models=["toy-Q4_K_M"], metrics=["kld_mean"]) == {("Q4_K_M", "kld_mean")}
    assert len(shown(metrics=["all"])) == 6
    with pytest.raises(OptionError, match="unknown metric") as raised:
        read_history(tmp_path, metrics=["kld_men"])
    assert "kld_mean" in str(raised.value)
    with pytest.raises(OptionError, match="no run has it for a whole model"):
        read_history(tmp_path, metrics=["kld_max"])
    with pytest.raises(OptionError, match="no run has a model of that name or type") as raised:
        read_history(tmp_path, models=["Q2_K"])
    assert "Q4_K_M" in str(raised.value)


def test_where_no_main_metric_was_measured_all_are_shown(tmp_path: Path) -> None:
    write_run_of(tmp_path, 0, [Measured(None, more=[("file_bytes", 500.0, None), ("kld_max", 3.0, None)])])
    (family,) = read_history(tmp_path)
    assert [metric.name for metric in family.metrics] == ["ppl"]
    (family,) = read_history(tmp_path, models=["Q4_K_M"], metrics=["all"])
    assert [metric.name for metric in family.metrics] == ["file_bytes", "kld_max"]
