"""--gguf-side-by-side: the suite without stored log-probabilities, by itself where they would be too large."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite

pytestmark = pytest.mark.model

GATES = {"kld_mean": 100.0, "ppl_ratio": 1e9, "delta_p_rms": 1.0, "same_top": 0.1}


def _gates(folder: Path) -> str:
    (folder / "gates.toml").write_text("".join(f"[{name}]\nlimit = {limit}\n" for name, limit in GATES.items()))
    return f"--gguf-gates={folder / 'gates.toml'}"


def _rows(read_run: ReadRun) -> dict[tuple[str, str], tuple[float, int]]:
    return {(row["model"], row["metric"]): (row["value"], row["n"]) for row in read_run()["estimates"]}


def test_where_log_probabilities_do_not_fit_passes_are_made_side_by_side_and_the_run_says_so(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", _gates(pytester.path)]
    arguments += ["--gguf-ctx=64", "--gguf-batch=128", "-k", "divergence or perplexity"]
    assert run_suite(*arguments).ret == 0
    stored = _rows(read_run)
    result = run_suite(*arguments, "--gguf-logprobs-limit=1K", "--gguf-cache=side")
    assert result.ret == 0
    run, side = read_run(), _rows(read_run)
    (said,) = [warning for warning in run["warnings"] if "side by side" in warning]
    assert said.startswith("The reference's log-probabilities would take")
    assert "--gguf-logprobs-limit is 0.001 MB. So nothing of it is stored: each candidate was decoded side" in said
    assert not list(pytester.path.glob("side/passes/*/*.u16"))
    assert side.keys() == stored.keys()
    for key, (value, n) in stored.items():
        # The codec's error of the mean KL is some 1e-6 nats; extremes of single tokens are off by more.
        near = pytest.approx(value, rel=1e-3, abs=1e-5) if key[1] != "floor_kld_max" else pytest.approx(value, abs=1e-2)
        assert (side[key][0] == near, side[key][1]) == (True, n), key
    assert run["gates"]
    assert {gate["verdict"] for gate in run["gates"]} == {"pass"}
    assert [array for array in run["arrays"] if array["name"] == "token_strip"]

    run_suite(*arguments, "--gguf-logprobs-limit=1K", "--gguf-cache=side")
    assert read_run()["cache"]["misses"] == 0
    assert _rows(read_run) == side
    # Asked for, it is the same, and needs no reason.
    run_suite(*arguments, "--gguf-side-by-side=always", "--gguf-cache=side")
    assert read_run()["cache"]["misses"] == 0
    assert not [warning for warning in read_run()["warnings"] if "side by side" in warning]
    result = run_suite(*arguments, "--gguf-logprobs-limit=1K", "--gguf-side-by-side=never", "--gguf-cache=side")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*--gguf-logprobs-limit is 0.001 MB*"])


def test_it_stops_early_too(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", _gates(pytester.path), "--gguf-chunks=30"]
    arguments += ["--gguf-until-decided", "--gguf-side-by-side=always", "-k", "divergence or perplexity"]
    result = run_suite(*arguments)
    assert result.ret == 0
    run = read_run()
    early = {part["model"]: part["windows"] for part in run["early"]}
    assert 6 <= early["random-Q8_0"] == early["random-F32"] <= 20
    rows = {(row["model"], row["metric"]): row for row in run["estimates"]}
    for row in (("random-Q8_0", "kld_mean"), ("random-Q8_0", "ppl_ratio"), ("random-F32", "ppl")):
        assert rows[row]["clusters"] == early["random-F32"], row
    assert run["corpus"]["windows"] == 30
    run_suite(*arguments)
    assert read_run()["cache"]["misses"] == 0
    assert read_run()["gates"] == run["gates"]


def test_mixtures_are_compared_side_by_side_too(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    found = []
    for asked in ("never", "always"):
        arguments = [f"--models={llama_file}", "--gguf-quants=Q2_K", "--gguf-sensitivity=1", f"--gguf-cache={asked}"]
        arguments.append(f"--gguf-side-by-side={asked}")
        assert run_suite(*arguments, suite="layers", tests="test_sensitivity.py").ret == 0
        found.append(_of_groups(read_run))
        assert bool(list(pytester.path.glob(f"{asked}/passes/*/*.u16"))) == (asked == "never")
    stored, side = found
    assert stored.keys() == side.keys()
    assert len(stored) > 2
    for key, value in stored.items():
        assert side[key] == pytest.approx(value, rel=1e-2, abs=1e-4), key


def _of_groups(read_run: ReadRun) -> dict[tuple[str, str], float]:
    rows = read_run()["estimates"]
    return {(row["metric"], str(row.get("part"))): row["value"] for row in rows if row["value"] is not None}
