"""--gguf-kv: each file run with several types of the KV cache, each a candidate of its own in all that follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite

pytestmark = pytest.mark.model

PAIRS = "--gguf-kv=f16/f16,q8_0/q8_0,q8_0/q4_0"


def test_each_pair_is_a_candidate_of_each_file(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    models = [f"--models={llama_file}", "--gguf-quants=Q8_0"]
    result = run_suite(*models, PAIRS, "--gguf-save-baseline=kv", tests="test_divergence.py")
    run = read_run()
    subjects = {model["name"]: model for model in run["models"]}
    assert list(subjects) == [
        "random-F32",
        "random-F32 [kv=q8_0/q8_0]",
        "random-F32 [kv=q8_0/q4_0]",
        "random-Q8_0",
        "random-Q8_0 [kv=q8_0/q8_0]",
        "random-Q8_0 [kv=q8_0/q4_0]",
    ]
    assert run["reference"] == "random-F32"
    for name, subject in subjects.items():
        assert subject["file"] == name.partition(" ")[0]
        assert subject["variant"] == (name.partition("[")[2].rstrip("]") or None)
        kv = subject["context"]["cache_type_k"], subject["context"]["cache_type_v"]
        assert "/".join(kv) == (subject["variant"] or "kv=f16/f16").removeprefix("kv=")
    kld = {row["model"]: row["value"] for row in run["estimates"] if row["metric"] == "kld_mean"}
    assert set(kld) == set(subjects) - {"random-F32"}
    # Of the reference's own file, all that differs is the cache.
    assert 0 < kld["random-F32 [kv=q8_0/q8_0]"] < kld["random-F32 [kv=q8_0/q4_0]"]
    assert len(set(kld.values())) == len(kld)
    gates = {gate["model"] for gate in run["gates"] if gate["metric"] == "kld_mean"}
    assert gates == set(kld)
    assert {entry["model"] for entry in run["planned"]} == set(kld)
    assert "random-Q8_0 [kv=q8_0/q4_0]" in result.stdout.str()

    # A second run decodes nothing, and compares each candidate with itself.
    run_suite(*models, PAIRS, "--gguf-baseline=kv", "-k", "baseline or distribution")
    again = read_run()
    assert {row["model"]: row["value"] for row in again["estimates"] if row["metric"] == "kld_mean"} == kld
    comparisons = again["baseline"]["comparisons"]
    assert {each["model"] for each in comparisons if each["metric"] == "kld_mean"} == set(kld)
    assert all(each["model"] == each["earlier"] for each in comparisons if each.get("earlier"))


def test_memory_is_that_of_the_cache(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    arguments = [f"--models={llama_file}", "--gguf-kv=q8_0/q8_0", "--gguf-repetitions=1"]
    run_suite(*arguments, "-k", "memory", tests="test_speed.py")
    caches = {row["model"]: row["value"] for row in read_run()["estimates"] if row["metric"] == "kv_cache_bytes"}
    assert caches["random-F32 [kv=q8_0/q8_0]"] == pytest.approx(caches["random-F32"] * 34 / 64, rel=0.05)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("q8_0", "'q8_0' is not a pair of types, expected K/V of f32, f16"),
        ("q8_0/q9_9", "'q9_9' is not a KV-cache type"),
        ("", "'' is not a pair of types"),
    ],
)
def test_mistakes_end_the_session_before_work_starts(run_suite: RunSuite, pairs: str, message: str) -> None:
    result = run_suite(f"--gguf-kv={pairs}", tests="test_file.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()


def test_quantized_values_without_flash_attention_are_refused(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(
        f"--models={llama_file}", "--gguf-kv=f16/q8_0", "--gguf-flash-attn=off", tests="test_perplexity.py"
    )
    assert "flash attention" in result.stdout.str() + result.stderr.str()
    assert result.ret != 0
