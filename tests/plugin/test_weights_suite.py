"""The suites of weights end to end, on a small real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

WEIGHTS, SENSITIVITY = "../layers/test_weights.py", "../layers/test_sensitivity.py"


def test_errors_of_weights(run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0,Q4_K_M"]
    result = run_suite(*arguments, tests=WEIGHTS)
    result.assert_outcomes(passed=2)
    run = read_run()
    rows = [row for row in run["estimates"] if row["metric"] == "weight_relative_rmse"]
    whole = {row["model"]: row["value"] for row in rows if row["layer"] is None and "tensors" in row["detail"]}
    assert 0.003 < whole["random-Q8_0"] < 0.007
    assert 0.03 < whole["random-Q4_K_M"] < 0.09
    own = [row for row in rows if row["model"] == "random-Q4_K_M"]
    assert [row["layer"] for row in own if row["layer"] is not None] == [0, 1]
    roles = {row["detail"].split(":")[0]: row["value"] for row in own if row["layer"] is None}
    # Norms are exact, and have no row.
    assert set(roles) - {own[0]["detail"].split(":")[0]} == {
        "token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    }  # fmt: skip
    assert {entry["name"] for entry in run["arrays"]} == {"weight_errors"}
    (report,) = pytester.path.glob("results/runs/*/report.html")
    assert 'data-picture="weights"' in report.read_text(encoding="utf-8")
    run_suite(*arguments, tests=WEIGHTS)
    assert read_run()["cache"] == {"hits": 2, "misses": 0}
    assert read_run()["estimates"] == run["estimates"]


def test_groups_of_tensors(run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0,Q4_K_M,Q2_K"]
    result = run_suite(*arguments, tests=SENSITIVITY)
    result.assert_outcomes(passed=2, skipped=1)
    run = read_run()
    assert {row["model"] for row in run["estimates"]} == {"random-Q4_K_M", "random-Q2_K"}
    rows = [row for row in run["estimates"] if row["model"] == "random-Q2_K"]
    by = {
        metric: [row for row in rows if row["metric"] == metric]
        for metric in ("tensor_group_kld", "tensor_group_share", "tensor_additivity", "tensor_restored_gain")
    }
    assert len(by["tensor_group_share"]) == len(by["tensor_restored_gain"]) == 8
    assert sum(row["value"] for row in by["tensor_group_share"]) == pytest.approx(1)
    assert [row["layer"] for row in by["tensor_group_kld"]] == [None] * 9 + [0, 1]
    whole, *roles = (row["value"] for row in by["tensor_group_kld"][:9])
    assert by["tensor_additivity"][0]["value"] == pytest.approx(sum(roles) / whole)
    assert all(row["clusters"] == 4 and row["se"] > 0 for row in by["tensor_group_kld"])
    assert run["corpus"]["windows"] == 4
    (report,) = pytester.path.glob("results/runs/*/report.html")
    assert 'data-picture="sensitivity"' in report.read_text(encoding="utf-8")
    # Mixtures are as large as the model: none stays.
    assert list(pytester.path.glob("results/cache/scratch/*")) == []
    run_suite(*arguments, tests=SENSITIVITY)
    assert read_run()["cache"]["misses"] == 0
    assert read_run()["estimates"] == run["estimates"]
    run_suite(*arguments, "--gguf-sensitivity=0", tests=SENSITIVITY).assert_outcomes(skipped=3)


@pytest.mark.shared_cache
def test_a_twin_has_no_groups(run_suite: RunSuite, read_run: ReadRun, tmp_path: Path) -> None:
    one, two = (write_random_llama(tmp_path / f"{name}.gguf") for name in ("one", "two"))
    result = run_suite(f"--models={one},{two}", f"--reference={one}", "-rs", tests=SENSITIVITY)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*No tensor of two differs from one's*"])
    run_suite(f"--models={one},{two}", f"--reference={one}", tests=WEIGHTS).assert_outcomes(passed=1)
    values = {row["metric"]: row["value"] for row in read_run()["estimates"]}
    assert (values["weight_relative_rmse"], values["weight_max_error"], values["weight_cosine"]) == (0, 0, 1)
    assert "weight_snr_db" not in values


@pytest.mark.shared_cache
def test_weights_of_another_model_are_refused(run_suite: RunSuite, tmp_path: Path) -> None:
    one = write_random_llama(tmp_path / "one.gguf")
    narrow = write_random_llama(tmp_path / "narrow.gguf", width=128)
    result = run_suite(f"--models={one},{narrow}", f"--reference={one}", tests=WEIGHTS)
    result.stdout.fnmatch_lines(["Tensor 'token_embd.weight' has shape *258, 128*, in the reference *258, 256*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.shared_cache
def test_a_gate_on_weights(run_suite: RunSuite, llama_file: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text("[weight_relative_rmse]\nlimit = 0.02\n", encoding="utf-8")
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0,Q4_K_M", f"--gguf-gates={gates}"]
    result = run_suite(*arguments, tests=WEIGHTS)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["random-Q4_K_M: weight error is *; the limit is at most 0.02*"])
