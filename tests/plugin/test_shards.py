"""`--gguf-shard` and `gguf-harness merge`: real sessions in three parts, merged, against one session of the whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts import build_charts
from gguf_harness.report.data import RunView
from gguf_harness.store.arrays import load_arrays
from gguf_harness.store.run_content import content_problem
from gguf_harness.store.runs import load_run
from tests.plugin.conftest import INI, PROMPTS, QUICK, SUITES, RunSuite

QUANTS = ("Q8_0", "Q4_K_M", "Q2_K")
MODELS = ("--models=tiny", f"--gguf-quants={','.join(QUANTS)}", "--gguf-threads=1")
# Without timings, which no two sessions share.
TESTS = "not speed and not served and not memory and not generation and not prompt_processing and not load_time"

MAY_DIFFER = frozenset({"id", "command", "started", "duration_s", "cache", "merged"})
"""Of run.json. Besides these: `duration_s` of tests, `file` of arrays, and settings that name folders."""
FOLDERS = frozenset({"results", "cache"})

Session = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "prompts.toml").write_text(PROMPTS, encoding="utf-8")
    return folder


def _run(place: Path, words: list[str], seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB")}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=place,
        env=environment | {"PYTHONHASHSEED": seed, "COLUMNS": "140", "CI_COMMIT_SHA": "a" * 40},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def _session(place: Path, *options: str, seed: str = "0", tests: str = TESTS) -> subprocess.CompletedProcess[str]:
    plain = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:anyio", "-W", "error"]
    root = ["-c", str(INI), "--rootdir", str(place), *plain, f"--gguf-prompts={place / 'prompts.toml'}"]
    files = ("quant", "layers/test_reference.py", "kv/test_bytes.py", "lora/test_tensors.py")
    suites = [str(SUITES / file) for file in files]
    return _run(place, ["pytest", *suites, *root, *QUICK, *MODELS, "-k", tests, *options], seed)


def _merge(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return _run(place, ["gguf_harness.cli", "merge", *words])


def _only_run(results: Path) -> Path:
    (path,) = results.glob("runs/*/run.json")
    return path


def _newest(results: Path) -> Path:
    return max(results.glob("runs/*/run.json"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The run of one session."""
    done = _session(place, "--gguf-results=whole", "--gguf-save-baseline=saved")
    assert done.returncode == 1, done.stdout  # Q2_K fails its gates
    return _only_run(place / "whole")


@pytest.fixture(scope="module")
def parts(place: Path) -> list[Path]:
    """The runs of three sessions that share nothing, as on three machines."""
    found = []
    for index in (1, 2, 3):
        done = _session(place, f"--gguf-results=part-{index}", f"--gguf-shard={index}/3", seed=str(index))
        assert done.returncode in {0, 1}, done.stdout
        assert f"shard {index} of 3:" in done.stdout
        found.append(_only_run(place / f"part-{index}"))
    return found


def _known(run: dict[str, Any]) -> dict[str, Any]:
    """What must be equal."""
    kept = {name: value for name, value in run.items() if name not in MAY_DIFFER}
    kept["tests"] = [{**test, "duration_s": None} for test in run["tests"]]
    kept["arrays"] = sorted(({**one, "file": None} for one in run["arrays"]), key=json.dumps)
    kept["settings"] = {name: value for name, value in run["settings"].items() if name not in FOLDERS}
    return kept


def _arrays(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    run = load_run(path)
    return {(one["model"], one["name"]): load_arrays(path.parent / one["file"]) for one in run["arrays"]}


def _assert_same(merged: Path, whole: Path) -> None:
    ours, theirs = _known(load_run(merged)), _known(load_run(whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
    arrays, of_whole = _arrays(merged), _arrays(whole)
    assert arrays.keys() == of_whole.keys()
    for key, content in arrays.items():
        assert content.keys() == of_whole[key].keys()
        for name, values in content.items():
            np.testing.assert_array_equal(values, of_whole[key][name], err_msg=f"{key} {name}")


@pytest.mark.model
def test_merged_parts_are_the_whole_run(place: Path, whole: Path, parts: list[Path]) -> None:
    done = _merge(place, *map(str, parts), "--gguf-results=merged", "--gguf-save-baseline=saved")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    merged = _newest(place / "merged")
    _assert_same(merged, whole)
    # Holm's correction is over all gates, not over those of a part.
    gates = {(gate["model"], gate["metric"]): gate["p_adjusted"] for gate in load_run(whole)["gates"]}
    assert gates == {(gate["model"], gate["metric"]): gate["p_adjusted"] for gate in load_run(merged)["gates"]}
    assert len(gates) == 12
    # The same pictures, and the same answer.
    views = [RunView(load_run(path)) for path in (merged, whole)]
    assert views[0].headline() == views[1].headline()
    assert "Smallest candidate that passes every gate" in done.stdout
    drawn = [build_charts(view, path.parent) for view, path in zip(views, (merged, whole), strict=True)]
    assert json.dumps(drawn[0]) == json.dumps(drawn[1])
    assert sum(map(len, drawn[0].values())) > 5
    assert (merged.parent / "badge.svg").read_text() == (whole.parent / "badge.svg").read_text()
    assert "shard 3 of 3" in (merged.parent / "report.html").read_text()
    assert not (merged.parent / "parts").exists()
    saved = [json.loads((place / name / "baselines" / "saved.json").read_text()) for name in ("merged", "whole")]
    assert [one.pop("run") for one in saved] == [merged.parent.name, whole.parent.name]
    assert saved[0] == saved[1]
    # Given in another order, and as the folder that holds them.
    shutil.rmtree(place / "merged")
    downloads = place / "downloads"
    for index, path in enumerate(parts):
        shutil.copytree(path.parent, downloads / f"shard-{3 - index}" / path.parent.name)
    assert _merge(place, str(downloads), "--gguf-results=merged", "--gguf-save-baseline=saved").returncode == 1
    _assert_same(_newest(place / "merged"), whole)


@pytest.mark.model
def test_every_part_knows_the_whole_and_answers_for_its_own(whole: Path, parts: list[Path]) -> None:
    runs = [load_run(path) for path in parts]
    assert all(content_problem(run) is None for run in runs)
    assert all(run["planned"] == load_run(whole)["planned"] for run in runs)
    assert len({run["shard"]["plan"]["digest"] for run in runs}) == 1
    assert all(run["shard"]["plan"] == runs[0]["shard"]["plan"] for run in runs)
    tested = [{test["model"] for test in run["tests"]} for run in runs]
    assert not any(one & other for one in tested for other in tested if one is not other)
    assert set.union(*tested) == {test["model"] for test in load_run(whole)["tests"]}
    of_whole = {model.name: model.verdict for model in RunView(load_run(whole)).models}
    for run in runs:
        view = RunView(run)
        assert run["finished"]
        assert view.headline().startswith(f"Shard {run['shard']['index']} of 3: ")
        # Gates of suites/kv, of which one file was collected, are open in the whole run, too.
        verdicts = {model.name: model.verdict for model in view.models if "[" not in model.name}
        assert verdicts == {name: "reference" if name == "tiny-F16" else of_whole[name] for name in verdicts}
        assert all("p_adjusted" not in gate for gate in run["gates"])
    assert sum(len(run["gates"]) for run in runs) == len(load_run(whole)["gates"])


@pytest.mark.model
def test_a_missing_part_is_named_and_never_a_pass(place: Path, whole: Path, parts: list[Path]) -> None:
    run = load_run(parts[1])
    lost = list(dict.fromkeys(one["file"] for one in run["shard"]["plan"]["models"] if one["shard"] == 2))
    done = _merge(place, str(parts[0]), str(parts[2]), "--gguf-results=incomplete")
    assert done.returncode == 1
    told = f"shard 2 of 3 is missing: its models are {', '.join(lost)}"
    assert told in " ".join(done.stdout.split())
    merged = load_run(_newest(place / "incomplete"))
    assert not merged["finished"]
    assert merged["session"]["ran"] < merged["session"]["selected"] == len(load_run(whole)["tests"])
    view = RunView(merged)
    assert view.headline() == f"Incomplete: {told}"
    assert told in (_newest(place / "incomplete").parent / "report.html").read_text()
    assert "incomplete" in (_newest(place / "incomplete").parent / "badge.svg").read_text()
    # What is there passes; still, no baseline is made of it.
    done = _merge(place, str(parts[0]), str(parts[2]), "--gguf-results=incomplete", "--gguf-save-baseline=half")
    assert done.returncode == 1
    assert "The baseline 'half' was not saved: the session ended before all of its tests." in done.stderr
    assert not (place / "incomplete" / "baselines").exists()


@pytest.mark.model
def test_the_same_part_twice_is_taken_once_and_another_is_refused(place: Path, parts: list[Path]) -> None:
    copy = place / "copy" / "runs" / parts[1].parent.name
    shutil.copytree(parts[1].parent, copy)
    done = _merge(place, *map(str, parts), str(copy), "--gguf-results=twice")
    assert "is left out" in done.stdout
    assert done.returncode == 1
    run = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(run | {"duration_s": 1.5}))
    done = _merge(place, *map(str, parts), str(copy), "--gguf-results=other")
    assert done.returncode == 2
    assert "There are two runs of shard 2 of 3" in done.stderr
    assert not list((place / "other").glob("runs/*"))


@pytest.mark.model
def test_files_that_a_part_has_lost_are_an_error(place: Path, parts: list[Path]) -> None:
    alone = place / "alone" / "run.json"
    alone.parent.mkdir()
    shutil.copy(parts[0], alone)
    done = _merge(place, str(alone), str(parts[1]), str(parts[2]), "--gguf-results=lost")
    assert done.returncode == 2
    assert "Give the whole folder of each part" in done.stderr
    assert not list((place / "lost").glob("runs/*"))


@pytest.mark.model
def test_a_baseline_is_compared_with_after_the_merge(place: Path, whole: Path, parts: list[Path]) -> None:
    """As in a session of the whole that compares: the same numbers, judged together; no test is of them."""
    assert whole.is_file()
    baseline = place / "earlier.json"
    content = json.loads((place / "whole" / "baselines" / "saved.json").read_text())
    means = content["models"]["tiny-Q8_0"]["means"]
    means["kld_mean"] = [0.5 * mean for mean in means["kld_mean"]]
    baseline.write_text(json.dumps(content))
    done = _session(place, "--gguf-results=compared", "--gguf-cache=whole/cache", f"--gguf-baseline={baseline}")
    assert done.returncode == 1, done.stdout
    of_session = load_run(_newest(place / "compared"))["baseline"]
    done = _merge(place, *map(str, parts), "--gguf-results=compared", f"--gguf-baseline={baseline}")
    assert done.returncode == 1, done.stdout + done.stderr
    merged = load_run(_newest(place / "compared"))
    ours = merged["baseline"]

    def key(one: dict[str, Any]) -> tuple[str, str, str]:
        return one["model"], one["metric"], str(one["prompt"])

    theirs = [{name: value for name, value in one.items() if name != "test"} for one in of_session["comparisons"]]
    assert len(theirs) > 12
    assert {one["outcome"] for one in theirs} >= {"worse", "same"}
    assert sorted(ours["comparisons"], key=key) == sorted(theirs, key=key)
    assert {**ours, "comparisons": [], "notes": set(ours["notes"])} == {
        **of_session, "comparisons": [], "notes": set(of_session["notes"]),
    }  # fmt: skip
    assert RunView(merged).headline() == RunView(load_run(_newest(place / "compared"))).headline()
    # Another family has no partner in it.
    assert _merge(place, *map(str, parts), "--gguf-baseline=none", "--gguf-results=compared").returncode == 2


@pytest.mark.model
def test_parts_that_compared_are_judged_together(place: Path, whole: Path) -> None:
    """With the baseline that goes along, although the merge does not name it."""
    assert whole.is_file()
    saved = str(place / "whole" / "baselines" / "saved.json")
    options = (f"--gguf-baseline={saved}", "--gguf-cache=whole/cache", "--gguf-holm")
    done = _session(place, "--gguf-results=holm", *options)
    assert done.returncode == 1, done.stdout
    of_whole = _only_run(place / "holm")
    for index in (1, 2):
        done = _session(place, f"--gguf-results=holm-{index}", f"--gguf-shard={index}/2", *options)
        # Nothing is decided by a part.
        assert done.returncode == 0, done.stdout
        assert "each by itself" in done.stdout
    done = _merge(place, *(str(_only_run(place / f"holm-{index}")) for index in (1, 2)), "--gguf-results=held")
    assert done.returncode == 1, done.stdout + done.stderr
    _assert_same(_only_run(place / "held"), of_whole)
    assert len(load_run(of_whole)["baseline"]["comparisons"]) > 12
    other = place / "other.json"
    other.write_text(Path(saved).read_text() + "\n")
    done = _merge(place, *(str(_only_run(place / f"holm-{index}")) for index in (1, 2)), f"--gguf-baseline={other}")
    assert done.returncode == 2
    assert "the sessions compared with another one" in done.stderr


@pytest.mark.model
def test_holm_can_be_asked_for_at_the_merge(place: Path, parts: list[Path]) -> None:
    done = _merge(place, *map(str, parts), "--gguf-results=late-holm", "--gguf-holm")
    assert done.returncode == 1, done.stdout + done.stderr
    run = load_run(_newest(place / "late-holm"))
    assert run["settings"]["holm"] is True
    assert all(gate["verdict"] == gate["verdict_adjusted"] for gate in run["gates"])
    failed = {test["id"] for test in run["tests"] if test["kind"] == "gate"}
    assert failed == {gate["test"] for gate in run["gates"] if gate["verdict"] == "fail"}


# -- small sessions: what a part is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0/3", "4/3", "x"])
def test_a_wrong_shard_ends_the_session_before_it_begins(run_suite: RunSuite, text: str) -> None:
    result = run_suite("--models=tiny", f"--gguf-shard={text}", tests="test_file.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = [line for line in result.stderr.lines if "--gguf-shard" in line and "error" in line]
    assert len(told) == 1
    assert text in told[0]


def test_a_part_saves_no_baseline(run_suite: RunSuite) -> None:
    result = run_suite("--models=tiny", "--gguf-shard=1/2", "--gguf-save-baseline=a", tests="test_file.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gguf-save-baseline cannot be used with --gguf-shard*"])


def _file_sessions(pytester: pytest.Pytester, run_suite: RunSuite, count: int, *options: str) -> list[Path]:
    found = []
    for index in range(1, count + 1):
        result = run_suite(
            "--models=tiny", "--gguf-quants=Q8_0", f"--gguf-shard={index}/{count}", f"--gguf-results=part-{index}",
            f"--gguf-cache={pytester.path}/cache", *options, tests="test_file.py",
        )  # fmt: skip
        assert result.ret == 0, result.stdout.str()
        found.append(_only_run(pytester.path / f"part-{index}"))
    return found


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_more_parts_than_files(run_suite: RunSuite, pytester: pytest.Pytester, processes: tuple[str, ...]) -> None:
    """An empty part is no failure, with and without xdist, and can be merged."""
    parts = _file_sessions(pytester, run_suite, 3, *processes)
    runs = [load_run(path) for path in parts]
    assert [len(run["tests"]) for run in runs] == [1, 1, 0]
    assert runs[2]["finished"]
    assert RunView(runs[2]).headline() == "Shard 3 of 3: nothing to do, since the run has 2 files; merge the others"
    done = _merge(pytester.path, *map(str, parts), "--gguf-results=merged")
    # Of suites/quant only the sizes of files were measured: its gates are open.
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Incomplete: planned gates were not decided" in done.stdout
    merged = load_run(_only_run(pytester.path / "merged"))
    assert [test["model"] for test in merged["tests"]] == ["tiny-F16", "tiny-Q8_0"]
    assert merged["finished"]
    # The empty one is not missed.
    done = _merge(pytester.path, *map(str, parts[:2]), "--gguf-results=again")
    assert load_run(_only_run(pytester.path / "again"))["finished"]
    assert "shard 3 of 3 is not there: it had nothing to do" in done.stdout


def test_parts_of_other_selections_or_settings_are_refused(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    common = ("--models=tiny", "--gguf-quants=Q8_0", f"--gguf-cache={pytester.path}/cache")
    for name, options in {
        "a": ("--gguf-shard=1/2",),
        "b": ("--gguf-shard=2/2", "-k", "Q8_0"),
        "c": ("--gguf-shard=2/2", "--gguf-ctx=64"),
        "d": ("--gguf-shard=2/2", "--gguf-quants=Q4_0"),
        "whole": (),
    }.items():
        assert run_suite(*common, f"--gguf-results={name}", *options, tests="test_file.py").ret == 0
    first = str(_only_run(pytester.path / "a"))
    for name, told in {
        "b": "the selected tests differ (2 and 1 tests)",
        "c": "the settings differ (ctx: 32 and 64)",
        "d": "the models differ (tiny-Q4_0: in one of them only; tiny-Q8_0: in one of them only)",
        "whole": "is a whole run, not a part of one",
    }.items():
        done = _merge(pytester.path, first, str(_only_run(pytester.path / name)), "--gguf-results=none")
        assert done.returncode == 2
        assert told in done.stderr, done.stderr
    assert not (pytester.path / "none").exists()


def test_tests_of_no_model_run_in_the_first_part(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    own = pytester.makepyfile(
        test_own="""
        def test_of_somebody_else(): assert True
        def test_that_fails(): assert False
        def test_of_a_candidate(candidate): assert candidate
        """
    )
    common = ("--models=tiny", "--gguf-quants=Q8_0", f"--gguf-cache={pytester.path}/cache", str(own))
    first = run_suite(*common, "--gguf-shard=1/2", "--gguf-results=first", tests="test_file.py")
    first.assert_outcomes(passed=2, failed=1, deselected=2)
    second = run_suite(*common, "--gguf-shard=2/2", "--gguf-results=second", tests="test_file.py")
    second.assert_outcomes(passed=2, deselected=3)
    assert second.ret == 0
    # A failure that no record of ours tells of is one of the whole.
    done = _merge(pytester.path, "first", "second", "--gguf-results=merged")
    assert done.returncode == 1, done.stdout + done.stderr
    assert load_run(_only_run(pytester.path / "merged"))["session"]["exit_status"] == 1


def test_an_interrupted_part_leaves_the_whole_unfinished(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    own = pytester.makepyfile(test_own="def test_stop(candidate): raise KeyboardInterrupt")
    common = ("--models=tiny", "--gguf-quants=Q8_0", f"--gguf-cache={pytester.path}/cache", str(own))
    for index in (1, 2):
        run_suite(*common, f"--gguf-shard={index}/2", f"--gguf-results=part-{index}", tests="test_file.py")
    done = _merge(pytester.path, "part-1", "part-2", "--gguf-results=merged")
    assert done.returncode == 1
    merged = load_run(_only_run(pytester.path / "merged"))
    assert not merged["finished"]
    assert "did not finish" in RunView(merged).headline()


def test_timings_of_two_machines_name_theirs(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    common = ("--models=tiny", "--gguf-quants=Q8_0", f"--gguf-cache={pytester.path}/cache", "-k", "generation")
    for index in (1, 2):
        run_suite(*common, f"--gguf-shard={index}/2", f"--gguf-results=part-{index}", tests="test_speed.py")
    path = _only_run(pytester.path / "part-2")
    run = json.loads(path.read_text())
    run["machine"]["cpu"] = "Another"
    path.write_text(json.dumps(run))
    _merge(pytester.path, "part-1", "part-2", "--gguf-results=merged")
    merged = load_run(_only_run(pytester.path / "merged"))
    assert merged["machine"] is None
    rows = {row["model"]: row["detail"] for row in merged["estimates"] if row["metric"] == "tg_tokens_per_s"}
    assert "on the machine of shard 2 (Another, " in rows["tiny-Q8_0"]
    assert "on the machine of shard 1 (" in rows["tiny-F16"]
    assert any("measured on different machines" in warning for warning in merged["warnings"])
    report = (_only_run(pytester.path / "merged").parent / "report.html").read_text()
    assert "Another" in report
