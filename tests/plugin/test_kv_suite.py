"""suites/kv: what types of the KV cache cost, each file in pairs with itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

GRID = "--gguf-kv=f16/f16,q8_0/q8_0,q4_0/q8_0,q8_0/q4_0,q4_0/q4_0"


def test_weights_cache_and_both_stand_side_by_side(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    result = run_suite(f"--models={llama_file}", "--gguf-quants=Q4_0", GRID, suite="kv", tests="test_divergence.py")
    run = read_run()
    values = {(row["model"], row["metric"]): row for row in run["estimates"]}
    full, plain = "random-F32", "random-Q4_0"

    def value(file: str, kv: str, metric: str = "kv_kld") -> float:
        return float(values[f"{file} [kv={kv}]", metric]["value"])

    for file in (full, plain):
        assert 0 < value(file, "q8_0/q8_0") < min(value(file, "q8_0/q4_0"), value(file, "q4_0/q8_0"))
        assert value(file, "q8_0/q8_0") < value(file, "q4_0/q4_0")
        # Each is compared with its own file.
        assert values[f"{file} [kv=q4_0/q4_0]", "kv_kld"]["reference"] == file
    # The reference's own weights cost nothing.
    assert value(full, "q4_0/q4_0", "kv_total_kld") == value(full, "q4_0/q4_0")
    both, weights = (value(plain, "q4_0/q4_0", f"kv_{part}_kld") for part in ("total", "weights"))
    interaction = value(plain, "q4_0/q4_0", "kv_interaction_kld")
    assert interaction == pytest.approx(both - weights - value(full, "q4_0/q4_0"), abs=1e-6)
    assert "t test over 4 windows" in values[f"{plain} [kv=q4_0/q4_0]", "kv_interaction_loss"]["detail"]
    assert {gate["metric"] for gate in run["gates"]} == {"kv_kld"}
    assert {gate["model"] for gate in run["gates"]} == {name for name, _ in values}
    # A verdict on caches alone recommends no file.
    assert re.search(r"(Smallest|No) KV cache that passes on", result.stdout.str())
    assert "Smallest candidate" not in result.stdout.str()


def test_a_cache_of_f32_changes_nothing(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    """f16 with f32 as what others are compared with: flash attention reads both in half precision."""
    models = (f"--models={llama_file}", "--gguf-kv=f16/f16", "--gguf-kv-reference=f32/f32")
    run_suite(*models, suite="kv", tests="test_divergence.py").assert_outcomes(passed=2)
    run = read_run()
    found = {row["metric"]: row["value"] for row in run["estimates"]}
    # What is stored of the reference's distributions is rounded to 16 bits per entry.
    assert max(abs(found.pop(name)) for name in ("kv_kld", "kv_kld_p99", "kv_total_kld")) < 1e-6
    assert found == {"kv_same_top": 1, "kv_delta_p_rms": 0, "kv_ppl_ratio": 1}
    assert {model["name"] for model in run["models"]} == {"random-F32", "random-F32 [kv=f32/f32]"}


def test_nothing_to_compare_is_said(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(f"--models={llama_file}", "--gguf-kv=f16/f16", "-rs", suite="kv", tests="test_divergence.py")
    result.assert_outcomes(skipped=2)
    assert "no types of the KV cache to compare: give --gguf-kv=default" in result.stdout.str()


def test_what_llama_cpp_cannot_run_is_skipped_with_its_reason(run_suite: RunSuite, tmp_path: Path) -> None:
    """Heads of 16 values hold no block of 32: nothing is decoded, and no gate is left open."""
    small = write_random_llama(tmp_path / "small.gguf", heads=16, text=True)
    models = (f"--models={small}", "--gguf-kv=q8_0/f16,f16/f16,bf16/bf16")
    result = run_suite(*models, "-rs", suite="kv", tests="test_divergence.py")
    result.assert_outcomes(passed=2, skipped=2)
    assert result.ret == 0
    told = " ".join(result.stdout.str().split())
    assert "A K cache of type q8_0 has blocks of 32 values, which do not divide the 16 of a head." in told


def test_side_by_side_the_same_cache_is_exactly_zero(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    """Nothing is stored, so nothing is rounded: flash attention reads f32 in half precision, as it reads f16."""
    models = (f"--models={llama_file}", "--gguf-kv=f16/f16", "--gguf-kv-reference=f32/f32")
    result = run_suite(*models, "--gguf-side-by-side=always", suite="kv", tests="test_divergence.py")
    result.assert_outcomes(passed=2)
    assert {row["metric"]: row["value"] for row in read_run()["estimates"]} == {
        "kv_kld": 0, "kv_kld_p99": 0, "kv_same_top": 1, "kv_delta_p_rms": 0, "kv_ppl_ratio": 1, "kv_total_kld": 0,
    }  # fmt: skip
