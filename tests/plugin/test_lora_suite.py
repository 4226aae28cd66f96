"""suites/lora end to end, on a small real model with random adapters, and on `tiny` with its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.inputs.adapters import VOYAGE_FILE
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_lora import write_lora, write_random_lora

pytestmark = pytest.mark.model

PICTURES = ("effect", "retained", "merged", "scale", "layers", "heads", "matrices", "tokens", "texts")


@pytest.fixture
def lora(llama_file: Path, tmp_path: Path) -> Path:
    return write_random_lora(tmp_path / "style.gguf", llama_file, size=0.02)


@pytest.fixture
def own_text(tmp_path: Path) -> Path:
    file = tmp_path / "own.txt"
    file.write_text("The wind drew ahead, and we tacked to the west. " * 8, encoding="utf-8")
    return file


def _whole(run: dict[str, Any], model: str) -> dict[str, dict[str, Any]]:
    places = ("layer", "head", "part", "prompt")
    rows = [
        row for row in run["estimates"] if row["model"] == model and not any(row[place] is not None for place in places)
    ]
    return {row["metric"]: row for row in rows}


def test_an_adapter_on_a_reference_and_a_quantized_base(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, lora: Path, own_text: Path, pytester: pytest.Pytester
) -> None:
    given = [f"--gguf-lora={lora}:0.5", f"--gguf-lora-corpus={own_text}"]
    arguments = [f"--models={llama_file}", "--gguf-quants=Q4_0", *given, "-rs"]
    result = run_suite(*arguments, suite="lora")
    result.assert_outcomes(passed=12, skipped=1)
    result.stdout.fnmatch_lines(["*one adapter alone: join several with a plus*"])
    run = read_run()
    reference, base = (f"random-{kind} [lora=style:0.5]" for kind in ("F32", "Q4_0"))
    own, kept = _whole(run, reference), _whole(run, base)
    assert own["lora_rank"]["value"] == 4
    assert own["lora_kld"]["value"] > 0
    assert own["lora_loss_change"]["reference"] == "random-F32"
    assert kept["lora_effect_retained"]["reference"] == "random-Q4_0"
    assert 0.8 < kept["lora_effect_retained"]["value"] < 1.2
    assert kept["lora_effect_correlation"]["value"] > 0.9
    assert kept["lora_effect_kld"]["value"] < kept["lora_kld"]["value"]
    gain = kept["lora_applied_kld"]["value"] - kept["lora_merged_kld"]["value"]
    assert kept["lora_merging_gain"]["value"] == pytest.approx(gain)
    sweep = {row["part"]: row for row in run["estimates"] if row["metric"] == "lora_scale_loss_change"}
    assert list(sweep) == [f"scale {scale}" for scale in ("0", "0.25", "0.5", "1", "1.5", "2")]
    assert (sweep["scale 0"]["value"], sweep["scale 0"]["se"]) == (0, 0)
    assert sweep["scale 1"]["value"] == pytest.approx(own["lora_loss_change"]["value"], abs=1e-9)
    heads = [row for row in run["estimates"] if row["metric"] == "lora_attention_moved" and row["head"] is not None]
    assert len(heads) == 8
    (report,) = pytester.path.glob("results/runs/*/report.html")
    page = report.read_text(encoding="utf-8")
    assert [name for name in PICTURES if f'data-picture="lora-{name}"' not in page] == []
    assert list(pytester.path.glob("results/cache/scratch/*")) == []
    run_suite(*arguments, suite="lora").assert_outcomes(passed=12, skipped=1)
    assert read_run()["cache"]["misses"] == 0
    assert read_run()["estimates"] == run["estimates"]


def test_a_baseline_that_has_adapters_can_be_kept(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, lora: Path, own_text: Path
) -> None:
    """Each subject of the suite is compared with itself, or the session would fail for what it did not compare."""
    given = [f"--gguf-lora={lora}", f"--gguf-lora-corpus={own_text}", f"--models={llama_file}", "--gguf-quants=Q4_0"]
    for option in ("--gguf-save-baseline=before", "--gguf-baseline=before"):
        result = run_suite(*given, option, "-k", "effect_on_its_own or survives", suite="lora")
        result.assert_outcomes(passed=3, deselected=10)
        assert result.ret == 0
    made = {(one["model"], one["metric"]): one["outcome"] for one in read_run()["baseline"]["comparisons"]}
    reference, base = (f"random-{kind} [lora=style]" for kind in ("F32", "Q4_0"))
    assert {(reference, "lora_loss_change"), (base, "lora_effect_retained"), (base, "lora_loss_change")} <= made.keys()
    assert set(made.values()) == {"same"}


def test_two_adapters_together(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, lora: Path, own_text: Path, tmp_path: Path
) -> None:
    other = write_random_lora(tmp_path / "other.gguf", llama_file, seed=1, size=0.02)
    result = run_suite(
        f"--models={llama_file}", f"--gguf-lora={lora}+{other}:2", f"--gguf-lora-corpus={own_text}",
        "-k", "together or own_text", suite="lora",
    )  # fmt: skip
    result.assert_outcomes(passed=2)
    found = _whole(read_run(), "random-F32 [lora=style+other:2]")
    assert found["lora_interference"]["clusters"] == 4
    assert abs(found["lora_interference"]["value"]) < abs(found["lora_loss_change"]["value"]) + 1


@pytest.mark.shared_cache
def test_tiny_comes_with_an_adapter(run_suite: RunSuite, read_run: ReadRun) -> None:
    result = run_suite("--models=tiny", "--gguf-ctx=128", "-k", "own_text or elsewhere", suite="lora")
    result.assert_outcomes(passed=2)
    found = _whole(read_run(), f"tiny-F16 [lora={VOYAGE_FILE.stem}]")
    assert found["lora_loss_change"]["value"] < -0.5
    assert found["lora_loss_change"]["detail"].startswith("on voyage-held-out")
    assert found["lora_corpus_kld"]["value"] < 0.1 * found["lora_kld"]["value"]


@pytest.mark.shared_cache
def test_without_an_adapter_or_its_text_tests_say_what_to_give(
    run_suite: RunSuite, llama_file: Path, lora: Path
) -> None:
    result = run_suite(f"--models={llama_file}", "-rs", suite="lora")
    assert set(result.parseoutcomes()) == {"skipped"}
    result.stdout.fnmatch_lines(["*no LoRA adapter that fits: give --gguf-lora=FILE*"])
    result = run_suite(
        f"--models={llama_file}", f"--gguf-lora={lora}", "-rs", "-k", "own_text or tensors", suite="lora"
    )
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*There is no text that the adapter is for. Give one with --gguf-lora-corpus=FILE*"])


def test_an_adapter_that_does_not_fit_ends_the_session_at_once(
    run_suite: RunSuite, llama_file: Path, lora: Path, tmp_path: Path
) -> None:
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(lora.read_bytes()[:-4000])
    name = "blk.0.attn_q.weight"
    factors = {f"{name}.lora_a": np.ones((4, 256), np.float32), f"{name}.lora_b": np.ones((256, 5), np.float32)}
    cases = {
        write_random_lora(tmp_path / "qwen.gguf", llama_file, architecture="qwen2"): (
            "*The adapter qwen was made for the architecture 'qwen2', random-F32 is of 'llama'.*"
        ),
        truncated: "*truncated.gguf is not a valid GGUF file: it is truncated*",
        write_lora(
            tmp_path / "rank.gguf", factors
        ): f"*the rank of {name} is 4 in {name}.lora_a * and 5 in {name}.lora_b*",
        tmp_path / "nowhere.gguf": "*There is no LoRA adapter '*nowhere.gguf': no such file.*",
        Path("default"): "*No LoRA adapter comes along with these models, only with tiny*",
    }
    for file, message in cases.items():
        result = run_suite(f"--models={llama_file}", f"--gguf-lora={file}", suite="lora")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([message])
        assert "Traceback" not in result.stderr.str()
