"""`--gguf-ray`: on the nodes of a Ray cluster, which share nothing with the session, numbers are what they are here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.plugin.conftest import INI, QUICK, SUITES, ReadRun, RunSuite
from tests.plugin.test_crashes import _aborting_copy
from tests.ray_cluster import Nodes, ray_nodes, wait_until
from tests.without_libraries import hide_modules

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("ray")]

ONE_THREAD = "--gguf-threads=1"
_WORDS_OF_RAY = r"raylet|pid=|Ray |/tmp/ray"


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


WHAT = ("--models=tiny", "--gguf-quants=Q8_0,Q4_0", "--gguf-threads=1", "-k", "not speed and not served")
ALSO = str(SUITES / "attention")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """What a session on this machine measures, and the entries of its cache."""
    folder = tmp_path_factory.mktemp("here")
    with _session(folder) as session:
        output, _ = session.communicate(timeout=300)
    (file,) = folder.glob("results/runs/*/run.json")
    run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert len(_rows(run)) > 100, output
    assert run["nodes"] == []
    return run, _entries(folder / "results" / "cache")


def _session(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", str(SUITES / "quant"), ALSO, "-c", str(INI), "--rootdir", str(folder)]
    command += ["-p", "no:cacheprovider", "-W", "error", *WHAT, *QUICK, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _assert_same(
    there: dict[str, Any], output: str, here: tuple[dict[str, Any], dict[str, set[str]]], cache: Path
) -> None:
    """Numbers, verdicts and entries are those of this machine, and nothing was measured twice into them."""
    run, entries = here
    assert "Traceback" not in output
    assert {test["outcome"] for test in there["tests"]} == {test["outcome"] for test in run["tests"]}, output
    assert _rows(there) == _rows(run)
    verdicts = [
        sorted((gate["model"], gate["metric"], gate["verdict"]) for gate in each["gates"]) for each in (there, run)
    ]
    assert verdicts[0] == verdicts[1]
    assert there["cache"]["misses"] == run["cache"]["misses"]
    of_tasks = {place: files for place, files in entries.items() if not place.startswith("engine")}
    assert _entries(cache) == of_tasks
    assert not list(cache.glob(".seen-by-*"))
    assert there["settings"]["ray"]
    # Of Ray's own words, none: they would be about workers that died, and about its folders.
    assert not re.search(_WORDS_OF_RAY, output), output


def test_numbers_are_those_of_this_machine_to_the_bit(
    pytester: pytest.Pytester, read_run: ReadRun, nodes: Nodes, here: tuple[dict[str, Any], dict[str, set[str]]]
) -> None:
    with _session(pytester.path, f"--gguf-ray={nodes.address}", "-n", "2") as session:
        output, _ = session.communicate(timeout=300)
    run = read_run()
    _assert_same(run, output, here, pytester.path / "results" / "cache")
    assert sum(node["calls"] for node in run["nodes"]) > run["cache"]["misses"] // 2  # texts are compared here
    assert all(node["cpu"] == run["machine"]["cpu"] for node in run["nodes"])


def test_actors_nodes_and_disks_that_fail_cost_nothing_but_time(
    pytester: pytest.Pytester, read_run: ReadRun, nodes: Nodes, here: tuple[dict[str, Any], dict[str, set[str]]]
) -> None:
    """One node can write no file of more than 50 kB; then an actor is killed; then a node is switched off."""
    nodes.add("full", 4, largest_file=50_000)
    with _session(pytester.path, f"--gguf-ray={nodes.address}", "-n", "2") as session:
        try:
            _, worker = _measuring(nodes, "tiny-F16")
            actor = worker.parent()
            assert actor is not None
            assert "ray::" in " ".join(actor.cmdline())
            actor.kill()
            name, _ = _measuring(nodes, "tiny-Q8_0")
            nodes.remove(name)
            output, _ = session.communicate(timeout=300)
        finally:
            session.kill()
    nodes.remove("full")
    nodes.add(name)
    _assert_same(read_run(), output, here, pytester.path / "results" / "cache")


def _measuring(nodes: Nodes, model: str) -> tuple[str, psutil.Process]:
    """The node that measures a model, and the worker there; not the one whose disk is full."""

    def look() -> tuple[str, psutil.Process] | None:
        found = [(name, worker) for name in ("left", "right") if (worker := nodes.measuring(name, model)) is not None]
        return found[0] if found else None

    place: tuple[str, psutil.Process] = wait_until(look, f"a worker of {model}", 120)
    return place


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
    models = ["--models=tiny", "--gguf-quants=Q2_K", ONE_THREAD, "--gguf-until-decided"]
    rows = []
    for where, more in {"here": (), "there": (f"--gguf-ray={nodes.address}",)}.items():
        cache = f"--gguf-cache={pytester.path / where}"
        result = run_suite(*models, *more, cache, "-k", "kl_divergence or distribution", tests="test_divergence.py")
        assert result.ret in {0, 1}, str(result.stdout)
        rows.append((_rows(read_run()), read_run()["early"]))
    assert rows[0] == rows[1]
    assert rows[0][1]


def test_a_cluster_is_started_where_there_is_none_and_ends_with_the_session(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timings are taken here too, since the node is this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = {process.pid for process in _of_ray()}
    result = run_suite(f"--models={llama_file}", "--gguf-ray=local", ONE_THREAD, "-k", "perplexity or test_speed")
    assert result.ret in {0, 1}, str(result.stdout)
    run = read_run()
    assert {row["metric"] for row in run["estimates"]} >= {"ppl", "tg_tokens_per_s"}
    (node,) = run["nodes"]
    assert node["cpu"] == run["machine"]["cpu"]
    assert not re.search(_WORDS_OF_RAY, f"{result.stdout}{result.stderr}")
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
