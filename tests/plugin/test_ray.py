"""`--gguf-ray`: on the nodes of a Ray cluster, which share nothing with the session, numbers are what they are here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.plugin.conftest import INI, SUITES, ReadRun, RunSuite
from tests.plugin.test_crashes import _aborting_copy
from tests.ray_cluster import Nodes, ray_nodes, wait_until
from tests.without_libraries import hide_modules

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("ray")]

ONE_THREAD = "--gguf-threads=1"
UNTIMED = ("-k", "not speed and not served")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with ray_nodes(tmp_path_factory.mktemp("ray"), left=2, right=2) as nodes:
        yield nodes


def _rows(run: dict[str, Any]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """By place, everything that was measured; each once."""
    names = ("model", "metric", "prompt", "layer", "head", "part")
    rows = [(tuple(row[name] for name in names), row) for row in run["estimates"]]
    assert len(dict(rows)) == len(rows)
    return {place: tuple(row[name] for name in ("value", "se", "n", "unit")) for place, row in rows}


def _entries(cache: Path) -> dict[str, set[str]]:
    """The files of each entry of a cache, by their place."""
    found: dict[str, set[str]] = {}
    for meta in cache.glob("*/*/meta.json"):
        names = {file.name for file in meta.parent.rglob("*") if file.is_file() and not file.name.startswith(".")}
        found[str(meta.parent.relative_to(cache))] = names
    return found


@pytest.mark.parametrize("suite", ["quant", "attention"])
def test_numbers_are_those_of_this_machine_to_the_bit(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, nodes: Nodes, suite: str
) -> None:
    models = ["--models=tiny", "--gguf-quants=Q8_0,Q4_K_M", ONE_THREAD, *UNTIMED]
    results: dict[str, dict[str, Any]] = {}
    for where, more in {"here": (), "there": (f"--gguf-ray={nodes.address}", "-n", "2")}.items():
        cache = pytester.path / where
        result = run_suite(*models, *more, f"--gguf-cache={cache}", suite=suite)
        assert result.ret in {0, 1}, str(result.stdout)
        results[where] = read_run()
    here, there = results["here"], results["there"]
    assert len(_rows(here)) > 30
    assert _rows(there) == _rows(here)
    assert [gate["verdict"] for gate in there["gates"]] == [gate["verdict"] for gate in here["gates"]]
    assert there["cache"] == here["cache"], "each measurement was made once"
    entries = {where: _entries(pytester.path / where) for where in results}
    assert {place for place in entries["here"] if not place.startswith("engine")} == set(entries["there"])
    assert all(files == entries["here"][place] for place, files in entries["there"].items())
    assert here["nodes"] == []
    assert {node["calls"] > 0 for node in there["nodes"]} == {True}
    assert (here["settings"]["ray"], there["settings"]["ray"]) == (False, True)
    assert not there["warnings"] or there["warnings"] == here["warnings"]
    assert not list((pytester.path / "there").glob(".seen-by-*"))


LONG = ("--gguf-ctx=256", "--gguf-chunks=12", ONE_THREAD, "-k", "not speed and not text and not served")


def _session(pytester: pytest.Pytester, nodes: Nodes, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", str(SUITES / "quant"), "-c", str(INI), "--rootdir", str(pytester.path)]
    command += ["-p", "no:cacheprovider", "-W", "error", *LONG, f"--gguf-ray={nodes.address}", *arguments]
    return subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _actor_of(worker: psutil.Process) -> psutil.Process:
    actor = worker.parent()
    assert actor is not None
    assert "ray::" in " ".join(actor.cmdline())
    return actor


def _disturbed(
    pytester: pytest.Pytester, nodes: Nodes, models: tuple[str, ...], disturb: Callable[[str, psutil.Process], None]
) -> str:
    """What a session says that was disturbed once while it measured tiny's reference."""

    def working() -> tuple[str, psutil.Process] | None:
        found = [(name, process) for name in nodes.folders if (process := nodes.measuring(name, "tiny-F16"))]
        return found[0] if found else None

    with _session(pytester, nodes, *models) as session:
        try:
            name, worker = wait_until(working, "a worker of tiny-F16")
            disturb(name, worker)
            output, _ = session.communicate(timeout=120)
        finally:
            session.kill()
    return output


def _assert_whole(run: dict[str, Any], output: str) -> None:
    assert "Traceback" not in output
    outcomes = {test["outcome"] for test in run["tests"]}
    assert not {"error"} & outcomes, output
    assert "lost" not in output
    rows = _rows(run)
    assert {model for model, metric, *_ in rows if metric == "kld_mean"} == {"tiny-Q8_0", "tiny-Q4_0"}
    assert not any("could not be measured" in test["message"] for test in run["tests"])


TWO = ("--models=tiny", "--gguf-quants=Q8_0,Q4_0")


def test_an_actor_that_is_killed_costs_nothing_but_time(
    pytester: pytest.Pytester, read_run: ReadRun, nodes: Nodes
) -> None:
    output = _disturbed(pytester, nodes, TWO, lambda _, worker: _actor_of(worker).kill())
    _assert_whole(read_run(), output)


def test_a_lost_node_costs_nothing_but_time(pytester: pytest.Pytester, read_run: ReadRun, nodes: Nodes) -> None:
    def lose(name: str, _: psutil.Process) -> None:
        nodes.remove(name)
        nodes.add(f"{name}-again")

    output = _disturbed(pytester, nodes, (*TWO, "-n", "2"), lose)
    _assert_whole(read_run(), output)


def test_a_full_disk_of_a_node_costs_nothing_but_time(
    pytester: pytest.Pytester, read_run: ReadRun, nodes: Nodes
) -> None:
    """The node with most processors can write no file of more than 50 kB; the others do its work."""
    nodes.add("full", 16, largest_file=50_000)
    try:
        with _session(pytester, nodes, *TWO, "-n", "2") as session:
            output, _ = session.communicate(timeout=120)
    finally:
        nodes.remove("full")
    run = read_run()
    _assert_whole(run, output)


def test_a_model_that_makes_llama_cpp_abort_costs_its_own_tests(
    run_suite: RunSuite, read_run: ReadRun, nodes: Nodes, llama_file: Path, tmp_path: Path
) -> None:
    good = Path(shutil.copy(llama_file, tmp_path / "good.gguf"))
    bad = _aborting_copy(llama_file, tmp_path / "bad.gguf")
    models = [f"--models={llama_file},{bad},{good}", f"--reference={llama_file}"]
    result = run_suite(*models, f"--gguf-ray={nodes.address}", ONE_THREAD, "-k", "perplexity or kld")
    output = str(result.stdout)
    assert "bad: the worker process died of SIGABRT (llama.cpp aborted)." in output
    assert "GGML_ASSERT" in output
    assert "Traceback" not in output
    outcomes = {(test["model"], test["outcome"]) for test in read_run()["tests"]}
    assert ("good", "passed") in outcomes
    assert ("bad", "passed") not in outcomes


def test_until_decided_decodes_in_turns_on_one_node(
    run_suite: RunSuite, read_run: ReadRun, nodes: Nodes, pytester: pytest.Pytester
) -> None:
    models = ["--models=tiny", "--gguf-quants=Q8_0,Q2_K", ONE_THREAD, "--gguf-until-decided", "-k", "kld or perplexity"]
    rows = []
    for where, more in {"here": (), "there": (f"--gguf-ray={nodes.address}",)}.items():
        result = run_suite(*models, *more, f"--gguf-cache={pytester.path / where}")
        assert result.ret in {0, 1}, str(result.stdout)
        rows.append((_rows(read_run()), read_run()["early"]))
    assert rows[0] == rows[1]


def test_a_cluster_is_started_where_there_is_none_and_ends_with_the_session(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timings are taken here too, since the node is this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = {process.pid for process in _of_ray()}
    result = run_suite(f"--models={llama_file}", "--gguf-ray=local", ONE_THREAD, "-k", "perplexity or test_speed")
    assert result.ret in {0, 1}, str(result.stdout)
    run = read_run()
    assert {row["metric"] for row in run["estimates"]} >= {"ppl", "tg_speed"}
    (node,) = run["nodes"]
    assert node["cpu"] == run["machine"]["cpu"]
    assert "ray" not in str(result.stdout).lower().replace("gguf-ray", "").replace("array", "")
    wait_until(lambda: {process.pid for process in _of_ray()} <= before, "Ray's end", 20)


def _of_ray() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if re.search(r"raylet|gcs_server|ray::", " ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "ERROR: --gguf-ray=127.0.0.1:1: no Ray cluster answers there."),
        ("nonsense", "ERROR: --gguf-ray=nonsense is not an address of a Ray cluster."),
        ("ray://127.0.0.1:10001", "ERROR: --gguf-ray=ray://127.0.0.1:10001: Ray's client protocol is not supported."),
    ],
)
def test_a_wrong_address_ends_the_session_before_work_starts(
    run_suite: RunSuite, llama_file: Path, address: str, told: str
) -> None:
    started = time.monotonic()
    result = run_suite(f"--models={llama_file}", f"--gguf-ray={address}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([told])
    assert "Traceback" not in str(result.stderr)
    assert time.monotonic() - started < 30


def test_what_answers_but_is_no_cluster_is_told_too(run_suite: RunSuite, llama_file: Path, nodes: Nodes) -> None:
    """And more processors than a node has, and what cannot be done on a cluster."""
    result = run_suite(f"--models={llama_file}", f"--gguf-ray={nodes.address}", "--gguf-threads=99")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: No node of the Ray cluster has 99 CPUs: the largest has *"])
    result = run_suite(f"--models={llama_file}", f"--gguf-ray={nodes.address}", "--gguf-side-by-side=always")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gguf-side-by-side=always cannot be used with --gguf-ray*"])


def test_the_address_of_the_environment_is_used(
    run_suite: RunSuite, llama_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result = run_suite(f"--models={llama_file}", "--gguf-ray")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there."])


def test_without_ray_the_extra_is_named(
    run_suite: RunSuite, llama_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide_modules(monkeypatch, tmp_path / "hidden", ["ray"])
    result = run_suite(f"--models={llama_file}", "--gguf-ray")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --gguf-ray needs the package ray, which is not installed.", "*pip install 'gguf-harness?ray?'"]
    )


def test_ray_is_imported_only_with_the_option(run_suite: RunSuite, llama_file: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        look="""
        import sys

        def pytest_unconfigure(config):
            known = [name for name in sys.modules if name == "ray" or name.startswith("gguf_harness.cluster.")]
            print(f"loaded: {sorted(known)}")
        """
    )
    pytester.syspathinsert()
    result = run_suite(f"--models={llama_file}", "-p", "look", tests="test_file.py")
    result.stdout.fnmatch_lines(["loaded: ['gguf_harness.cluster.address']"])
