"""A time limit ends a test while a worker computes: what comes next gets its own answer, and so do later runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.conftest import INI, ReadRun

pytestmark = pytest.mark.model

OWN = """
import os
import signal

import pytest

from gguf_harness.metrics.perplexity import perplexity


def test_that_runs_out_of_time(model, corpus_pass, record):
    if "STRIKE" in os.environ:
        def strike(number, frame):
            pytest.fail("time is up")

        signal.signal(signal.SIGALRM, strike)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
    record(perplexity(corpus_pass(model)["nll"]))


def test_that_comes_next(model, corpus_pass, record):
    floor, base = corpus_pass.floor(model)
    assert floor["kld"].mean() < 1e-3
    record(perplexity(floor["nll"]))
"""


def test_a_time_limit_costs_its_own_test_only(
    pytester: pytest.Pytester, read_run: ReadRun, llama_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_own=OWN)
    command = ["-c", str(INI), "--rootdir", str(pytester.path), f"--models={llama_file}", "--gguf-chunks=150", "-q"]
    command += ["test_own.py", "--gguf-ctx=256", "-p", "no:cacheprovider"]
    monkeypatch.setenv("STRIKE", "1")
    result = pytester.runpytest_subprocess(*command, timeout=120)
    result.assert_outcomes(passed=1, failed=1)
    assert "time is up" in str(result.stdout)
    struck = {row["test"]: row["value"] for row in read_run()["estimates"]}
    assert set(struck) == {"test_that_comes_next"}
    monkeypatch.delenv("STRIKE")
    # From the cache, what was stored; and measured again, what is right.
    for fresh in ([], ["--gguf-fresh"]):
        result = pytester.runpytest_subprocess(*command, *fresh, timeout=120)
        result.assert_outcomes(passed=2)
        values = {row["test"]: row["value"] for row in read_run()["estimates"]}
        assert values["test_that_comes_next"] == struck["test_that_comes_next"]
