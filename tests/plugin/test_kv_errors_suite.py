"""suites/kv beyond divergences: bytes, keys, values, attention, layers; skips with a reason where nothing can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

TESTS = "bytes or keys_and_values or attention_with or layers"


def test_what_a_cache_changes_is_stored(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, tmp_path: Path
) -> None:
    """Heads of 64 values, which llama.cpp rotates; all tests run, and their numbers are where they belong."""
    file = write_random_llama(tmp_path / "random-F32.gguf", n_layer=3)
    run_suite(f"--models={file}", "--gguf-kv=q8_0/q8_0,q4_0/f16", "-k", TESTS, suite="kv").assert_outcomes(passed=10)
    run = read_run()
    fine, keys = "random-F32 [kv=q8_0/q8_0]", "random-F32 [kv=q4_0/f16]"
    assert {m["name"]: m.get("rotated") for m in run["models"]} == {
        "random-F32": None, fine: [True, True], keys: [True, False],
    }  # fmt: skip
    whole = {(row["model"], row["metric"]): row for row in run["estimates"] if row["layer"] is None}
    # 3 layers, 2 heads of 64 values: 34 bytes for 32 values in q8_0, 18 in q4_0.
    assert whole[fine, "kv_bytes_per_token"]["value"] == 3 * 2 * 64 * 2 * 34 / 32
    assert whole[keys, "kv_bytes_per_token"]["value"] == 3 * 2 * 64 * (18 / 32 + 2)
    assert whole[keys, "kv_key_error"]["value"] > 5 * whole[fine, "kv_key_error"]["value"] > 0
    assert whole[fine, "kv_patched_gap"]["value"] < 0.01 * whole[fine, "kv_run_kld"]["value"]
    assert {row["layer"] for row in run["estimates"] if row["metric"] == "kv_layer_kld"} == {None, 0, 1, 2}
    assert [warning for warning in run["warnings"] if "rotate" in warning] == [
        "random-F32: llama.cpp rotates quantized K and V (Hadamard) before it stores them."
    ]
    report = next(pytester.path.glob("results/runs/*/report.html")).read_text(encoding="utf-8")
    assert "kv-heads" in report
    assert "kv-layers" in report


def test_what_cannot_run_is_skipped_before_anything_is_decoded(
    run_suite: RunSuite, tmp_path: Path, pytester: pytest.Pytester
) -> None:
    """Heads of 40 values have no whole blocks."""
    file = write_random_llama(tmp_path / "odd-F32.gguf", width=160, n_layer=1)
    result = run_suite(f"--models={file}", "--gguf-kv=q8_0/f16", "-rs", "-k", TESTS, suite="kv")
    result.assert_outcomes(skipped=5)
    result.stdout.fnmatch_lines(
        ["*A K cache of type q8_0 has blocks of 32 values, which do not divide the 40 of a head*"]
    )
    assert not list(pytester.path.glob(".gguf-cache/kv/*"))
