"""Serving in a session: the fixture, what is measured, and nothing left behind however the session ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.plugin.conftest import ReadRun, RunSuite

pytestmark = pytest.mark.model

TEST = """
import time
from pathlib import Path

from gguf_harness.measure.speed.client import Client

def test_mine(model, server):
    running = server(model)
    assert server(model) is running
    assert Client(running.url, running.api_key).complete("once", max_tokens=2).error is None
    Path("server.txt").write_text(f"{{running.pid}} {{running.port}}")
    {then}
"""


def _is_gone(folder: Path) -> bool:
    """Whether neither process nor listening port of the server is left, within ten seconds."""
    pid, port = (int(word) for word in (folder / "server.txt").read_text().split())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not psutil.pid_exists(pid) and probe.connect_ex(("127.0.0.1", port)) != 0:
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("then", "outcome"), [("pass", "passed"), ("1 / 0", "failed")])
def test_a_server_ends_with_the_session(pytester: pytest.Pytester, llama_file: Path, then: str, outcome: str) -> None:
    pytester.makepyfile(test_mine=TEST.format(then=then))
    result = pytester.runpytest_subprocess(f"--models={llama_file}", "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(**{outcome: 1})
    assert _is_gone(pytester.path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_an_interrupted_session(pytester: pytest.Pytester, llama_file: Path, number: int) -> None:
    pytester.makepyfile(test_mine=TEST.format(then="time.sleep(60)"))
    # A background job inherits an ignored SIGINT: here it shall end the session, as Ctrl-C does.
    code = (
        "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"sys.exit(pytest.main(['--models={llama_file}', '-p', 'no:cacheprovider']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as session:
        deadline = time.monotonic() + 60
        while not (pytester.path / "server.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        session.send_signal(number)
        output, _ = session.communicate(timeout=60)
    assert _is_gone(pytester.path), output
    if number == signal.SIGINT:
        assert session.returncode == pytest.ExitCode.INTERRUPTED


def test_a_second_run_starts_no_server(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-repetitions=3"]
    run_suite(*arguments, tests="test_served.py").assert_outcomes(passed=2)
    rows = {row["metric"]: row for row in read_run()["estimates"]}
    assert sorted(rows) == sorted(
        ["served_tokens_per_s", "served_single_tokens_per_s"]
        + [f"served_{name}_{share}_s" for name in ("ttft", "itl") for share in ("p50", "p99")]
    )
    repetitions = rows["served_tokens_per_s"]["n"]
    assert repetitions >= 3
    assert rows["served_tokens_per_s"]["se"] > 0
    assert rows["served_ttft_p50_s"]["n"] == 8 * repetitions
    assert 0 < rows["served_ttft_p50_s"]["value"] <= rows["served_ttft_p99_s"]["value"]
    (log,) = pytester.path.glob("results/cache/logs/*.server.log")
    log.unlink()
    # What was disturbed is not kept: of serving, and of generation by itself, which is compared with it.
    kept = len(list(pytester.path.glob("results/cache/speed/*/meta.json")))
    doubts = [row["doubt"] for row in rows.values() if row["doubt"] and "only client gets" not in row["doubt"]]
    assert kept < 2 or not doubts
    assert kept == 2 or read_run()["warnings"]
    run_suite(*arguments, tests="test_served.py").assert_outcomes(passed=2)
    assert read_run()["cache"] == {"hits": kept, "misses": 2 - kept}
    if kept == 2:
        assert not log.exists()
        assert {row["metric"]: row for row in read_run()["estimates"]} == rows


def test_a_server_that_does_not_start_is_one_message(
    run_suite: RunSuite, llama_file: Path, pytester: pytest.Pytester
) -> None:
    binary = pytester.path / "llama-server"
    binary.write_text("#!/bin/sh\necho 'no such option: --model'\nexit 2\n")
    binary.chmod(0o755)
    result = run_suite(f"--models={llama_file}", f"--gguf-llama-server={binary}", tests="test_served.py")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["random-F32: the server exited with status 2 before it was ready*", "*no such option*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
