"""`pytest -n`: the tests of a model run in one process, whatever its name, and ids stay as they are without -n."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

# Loaded with -p: writes down which worker ran which test, from the reports that the controller gets.
WATCH = """
from pathlib import Path

def pytest_runtest_logreport(report):
    worker = getattr(report, "worker_id", None)
    if worker is not None and report.when == "setup":
        with Path("workers.txt").open("a") as file:
            file.write(f"{worker} {getattr(report, 'gguf_model', None)} {report.nodeid}\\n")

def pytest_runtest_logstart(nodeid):
    with Path("started.txt").open("a") as file:
        file.write(f"{nodeid}\\n")
"""


@pytest.fixture
def workers_of(pytester: pytest.Pytester) -> dict[str, set[str]]:
    """Filled by `_read`: the workers that ran tests of each model."""
    pytester.makepyfile(watch=WATCH)
    pytester.syspathinsert()
    return {}


RunOwn = Callable[..., pytest.RunResult]


@pytest.fixture
def run_own(pytester: pytest.Pytester, workers_of: dict[str, set[str]]) -> RunOwn:
    """`run_own("test_own.py", "-n", "2", files=3)`: tests of a project, for candidates `a`, `b` and so on."""

    def run(*arguments: str, files: int) -> pytest.RunResult:
        folder = pytester.path / "models"
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(["reference", *"abcdefgh"[:files]]):
            # Of different sizes: what a test took is known by that.
            write_random_llama(folder / f"{name}.gguf", n_layer=number + 1)
        models = [f"--models={folder}", f"--reference={folder}/reference.gguf"]
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, *models, timeout=60)

    return run


def _model_of(test: str) -> str:
    return test.partition("[")[2].removesuffix("]")


def _read(pytester: pytest.Pytester, workers_of: dict[str, set[str]]) -> None:
    for line in set(pytester.path.joinpath("workers.txt").read_text().splitlines()):
        worker, model, _ = line.split(" ", 2)
        if worker.startswith("gw"):
            workers_of.setdefault(model, set()).add(worker)


@pytest.mark.model
def test_many_processes_share_the_work(
    run_suite: RunSuite,
    read_run: ReadRun,
    llama_file: Path,
    pytester: pytest.Pytester,
    workers_of: dict[str, set[str]],
) -> None:
    result = run_suite(f"--models={llama_file}", "--gguf-quants=Q8_0,Q4_K_M", "-n", "2", "-p", "watch")
    assert result.ret in {0, 1}
    run = read_run()
    assert len(run["models"]) == 3
    rows = {(row["model"], row["metric"]) for row in run["estimates"]}
    assert {("random-Q8_0", "kld_mean"), ("random-Q4_K_M", "kld_mean"), ("random-F32", "ppl")} <= rows
    skipped = [test for test in run["tests"] if test["outcome"] == "skipped"]
    assert len(skipped) == 20
    assert all("not measured under pytest -n" in test["message"] for test in skipped)
    assert not any("@" in test["id"] for test in run["tests"])
    # Each model was decoded once: a pass of the reference, of two candidates, and the floor; texts of all three, and
    # those of the candidates under the reference, and their scores.
    assert run["cache"]["misses"] == 4 + 3 + 2 + 2
    _read(pytester, workers_of)
    assert {model: len(workers) for model, workers in workers_of.items()} == {
        "random-F32": 1,
        "random-Q8_0": 1,
        "random-Q4_K_M": 1,
    }
    assert set.union(*workers_of.values()) == {"gw0", "gw1"}


@pytest.mark.model
def test_no_name_of_a_model_is_split(
    run_suite: RunSuite,
    read_run: ReadRun,
    tmp_path: Path,
    pytester: pytest.Pytester,
    workers_of: dict[str, set[str]],
) -> None:
    """Names that other names begin with, and what xdist would take for a group."""
    names = ["a-F32", "a-F32-b", "c@gguf-x", "d]@e"]
    for name in names:
        write_random_llama(tmp_path / f"{name}.gguf")
    models = [f"--models={tmp_path}", f"--reference={tmp_path}/a-F32.gguf"]
    result = run_suite(*models, "-n", "2", "-p", "watch", "--junitxml=junit.xml", tests="test_file.py")
    result.assert_outcomes(passed=4)
    _read(pytester, workers_of)
    assert set(workers_of) == set(names)
    run = read_run()
    assert {test["model"] for test in run["tests"]} == set(names)
    ids = {test["id"] for test in run["tests"]}
    assert {id_.partition("[")[2] for id_ in ids} == {f"{name}]" for name in names}
    assert set(pytester.path.joinpath("started.txt").read_text().splitlines()) == ids
    assert pytester.path.joinpath("junit.xml").read_text().count("d]@e]") > 0


def test_a_process_that_dies_costs_the_test_that_it_died_of(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, tmp_path: Path
) -> None:
    """Each worker dies of a test; the tests behind it run, once, in the worker that takes its place."""
    for name in ("ref-F32", "a", "b"):
        write_random_llama(tmp_path / f"{name}.gguf")
    own = pytester.makepyfile(
        test_own="""
        import os, signal
        def test_before(candidate): pass
        def test_killed(candidate): os.kill(os.getpid(), signal.SIGKILL)
        def test_after(candidate): pass
        """
    )
    models = [f"--models={tmp_path}", f"--reference={tmp_path}/ref-F32.gguf"]
    result = run_suite(*models, "-n", "2", str(own), tests="test_file.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=7, failed=2)
    result.stdout.fnmatch_lines(["a: could not be measured. worker 'gw?' crashed while running*"])
    run = read_run()
    assert run["finished"]
    failed = [(test["model"], test["kind"], test["suite"]) for test in run["tests"] if test["outcome"] == "failed"]
    assert sorted(failed) == [(name, "measurement", pytester.path.name) for name in "ab"]


@pytest.mark.parametrize("given", ["environment", "file", "ini"])
def test_options_are_seen_wherever_they_are(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, given: str, llama_file: Path
) -> None:
    """What is given in PYTEST_ADDOPTS, in `@file` or in an ini file is checked at the start, too."""
    pytester.makepyfile("def test_plain(): pass")
    arguments: tuple[str, ...] = ()
    if given == "environment":
        monkeypatch.setenv("PYTEST_ADDOPTS", "--models missing.gguf")
    elif given == "file":
        pytester.path.joinpath("options.txt").write_text("--models\nmissing.gguf\n")
        arguments = ("@options.txt",)
    else:
        pytester.makeini("[pytest]\naddopts = --models=missing.gguf")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: There is no model 'missing.gguf'*"])


def test_a_session_of_another_project_is_distributed_as_ever(pytester: pytest.Pytester) -> None:
    """Without options or suites of ours, xdist's own schedule is used, and no id changes."""
    pytester.makepyfile("import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test_plain(n): pass")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-v", "-n", "2")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["scheduling tests via LoadScheduling"])
    assert not pytester.path.joinpath("results").exists()


@pytest.mark.parametrize(("processes", "policy"), [("0", None), ("1", "PASSIVE")])
def test_threads_do_not_spin_while_other_processes_measure(
    pytester: pytest.Pytester, llama_file: Path, monkeypatch: pytest.MonkeyPatch, processes: str, policy: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    pytester.makepyfile(
        f"import os\n\ndef test_policy():\n    assert os.environ.get('OMP_WAIT_POLICY') == {policy!r}\n"
    )
    pytester.runpytest_subprocess("-n", processes, f"--models={llama_file}").assert_outcomes(passed=1)


def test_what_took_longest_in_an_earlier_run_starts_first(run_own: RunOwn, pytester: pytest.Pytester) -> None:
    """Collected are a, b, c, d."""
    pytester.makepyfile(
        test_own="import time\n\ndef test_own(candidate):\n    time.sleep(0.3 if candidate.name in 'cd' else 0)\n"
    )
    run_own("test_own.py", files=4).assert_outcomes(passed=4)
    run_own("test_own.py", "-n", "2", "-p", "watch", files=4).assert_outcomes(passed=4)
    # Workers and their controller tell of each.
    started = list(dict.fromkeys(map(_model_of, pytester.path.joinpath("started.txt").read_text().splitlines())))
    assert sorted(started) == ["a", "b", "c", "d"]
    assert sorted(started[:2]) == ["c", "d"]


@pytest.mark.parametrize(("seconds", "processes"), [(0.1, 1), (60.0, 2)])
def test_a_model_is_loaded_twice_where_its_suites_take_longer_than_that(
    run_own: RunOwn,
    pytester: pytest.Pytester,
    workers_of: dict[str, set[str]],
    seconds: float,
    processes: int,
) -> None:
    for suite in ("one", "two"):
        pytester.mkdir(suite).joinpath(f"test_{suite}.py").write_text(
            "def test_first(candidate): pass\n\ndef test_second(candidate): pass\n"
        )
    run_own("one", "two", files=1).assert_outcomes(passed=4)
    # As if it had taken so long.
    (path,) = pytester.path.glob("results/runs/*/run.json")
    content = json.loads(path.read_text())
    for test in content["tests"]:
        test["duration_s"] = seconds
    path.write_text(json.dumps(content))
    run_own("one", "two", "-n", "2", "-p", "watch", files=1).assert_outcomes(passed=4)
    _read(pytester, workers_of)
    assert len(workers_of["a"]) == processes


def test_what_the_last_process_leaves_is_done_by_the_one_in_its_place(
    run_own: RunOwn, pytester: pytest.Pytester
) -> None:
    """The other process has gone: two short suites of a single model were not worth another loading."""
    kill = "import os, signal\n\ndef test_killed(candidate): os.kill(os.getpid(), signal.SIGKILL)\n\n"
    for suite, before in (("one", kill), ("two", "")):
        after = "def test_first(candidate): pass\n\ndef test_second(candidate): pass\n"
        pytester.mkdir(suite).joinpath(f"test_{suite}.py").write_text(before + after)
    run_own("one", "two", "-n", "2", files=1).assert_outcomes(passed=4, failed=1)
