"""The layers suite end to end on random models: rows by layer, cache, selection, and what cannot be compared."""

from __future__ import annotations

import html
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.metrics.registry import METRICS
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

GATES = """
[resid_relative_error]
limit = 1e-9
confidence = 0.95
"""


STATES = ("-k", "not test_weights and not test_sensitivity")
"""The other files of this suite are about weights, and have tests of their own."""


@pytest.fixture
def noisy_file(tmp_path: Path) -> Path:
    """The model `llama_file` with a little noise on all matrices."""
    return write_random_llama(tmp_path / "noisy.gguf", text=True, noise=0.02)


def _rows(run: dict[str, Any], model: str, metric: str) -> dict[tuple[int | None, str | None], dict[str, Any]]:
    return {
        (row["layer"], row["prompt"]): row
        for row in run["estimates"]
        if (row["model"], row["metric"]) == (model, metric)
    }


def test_rows_arrays_charts_and_cache(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, noisy_file: Path, pytester: pytest.Pytester
) -> None:
    arguments = [f"--models={llama_file},{noisy_file}", f"--reference={llama_file}"]
    result = run_suite(*STATES, *arguments, suite="layers")
    # Per model: 4 of the stream, 2 of the lens, importance; per candidate: 3, one for each prompt, interchange.
    result.assert_outcomes(passed=2 * 7 + 3 + 2 + 1)
    run = read_run()
    assert run["cache"] == {"hits": 0, "misses": 5}
    for row in run["estimates"]:
        assert row["suite"] == "layers"
        assert row["unit"] == METRICS[row["metric"]].unit
        assert row["n"] >= 1
        # With two prompts everything over both has an error; a single prompt has one as if tokens were independent.
        assert row["se"] is not None or (row["prompt"] is not None and row["se_iid"] is not None), row
        assert row["se"] is None or math.isfinite(row["se"])
    both = {(0, None), (1, None), (None, None)}
    for metric in ("resid_norm", "attn_share", "effective_rank", "direct_mlp", "massive_activations"):
        assert set(_rows(run, "random-F32", metric)) == both, metric
    errors = _rows(run, "noisy", "resid_relative_error")
    assert set(errors) == both | {(None, "fox"), (None, "chat")}
    assert 0.005 < errors[1, None]["value"] < 1
    assert errors[1, None]["reference"] == "random-F32"
    assert set(_rows(run, "noisy", "layer_kl_left")) == {(0, None), (1, None)}
    assert _rows(run, "noisy", "layer_kl_left")[1, None]["value"] < 1
    assert not _rows(run, "random-F32", "resid_relative_error")
    assert _rows(run, "random-F32", "lens_kl")[1, None]["value"] == 0
    assert {entry["name"] for entry in run["arrays"]} == {"layers"}
    (report,) = pytester.path.glob("results/runs/*/report.html")
    page = report.read_text(encoding="utf-8")
    for chart in ("layer-errors", "layer-patching", "layer-contributions", "layer-states", "logit-lens"):
        assert f'data-picture="{chart}"' in page
    size = sum(file.stat().st_size for file in report.parent.glob("arrays/*"))
    assert size < 100_000

    second = run_suite(*STATES, *arguments, suite="layers")
    second.stdout.fnmatch_lines(["cache: all 5 measurements came from the cache, nothing was decoded*"])
    assert read_run()["estimates"] == run["estimates"]


def test_layers_are_selected(run_suite: RunSuite, read_run: ReadRun, llama_file: Path, noisy_file: Path) -> None:
    arguments = [f"--models={llama_file},{noisy_file}", f"--reference={llama_file}"]
    run_suite(*STATES, *arguments, "--gguf-layers=1", suite="layers").assert_outcomes(passed=20)
    run = read_run()
    assert {row["layer"] for row in run["estimates"]} == {1, None}
    assert run["settings"]["layers"] == [1]
    # Another choice of layers: only what is measured layer by layer is measured anew.
    run_suite(*STATES, *arguments, "--gguf-layers=0-1", suite="layers").assert_outcomes(passed=20)
    assert read_run()["cache"] == {"hits": 2, "misses": 3}
    result = run_suite(*STATES, *arguments, "--gguf-layers=0,2", suite="layers", tests="test_stream.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gguf-layers names layer 2, and no model has more than 2 layers.", "*from 0 to 1."])


@pytest.mark.shared_cache
def test_a_twin_has_no_error_and_nothing_to_explain(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    twin = shutil.copy(llama_file, tmp_path / "twin.gguf")
    result = run_suite(*STATES, f"--models={llama_file},{twin}", f"--reference={llama_file}", "-rs", suite="layers")
    result.assert_outcomes(passed=18, skipped=2)
    result.stdout.fnmatch_lines(["*there is no loss to explain*", "*there is nothing to amplify*"])
    run = read_run()
    for row in run["estimates"]:
        if row["metric"].endswith("relative_error"):
            assert row["value"] == 0
            assert row["se"] in {0, None}


@pytest.mark.shared_cache
def test_models_of_another_shape_are_measured_alone(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    deep = write_random_llama(tmp_path / "deep.gguf", n_layer=3)
    result = run_suite(*STATES, f"--models={llama_file},{deep}", f"--reference={llama_file}", suite="layers")
    result.assert_outcomes(passed=14, failed=6)
    result.stdout.fnmatch_lines(["deep has 3 layers of width 256, its reference random-F32 2 of 256."])
    assert set(_rows(read_run(), "deep", "resid_norm")) == {(0, None), (1, None), (2, None), (None, None)}


@pytest.mark.shared_cache
def test_a_gate_of_a_persons_own(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, noisy_file: Path, pytester: pytest.Pytester
) -> None:
    gates = pytester.path / "gates.toml"
    gates.write_text(GATES, encoding="utf-8")
    result = run_suite(
        *STATES,
        f"--models={llama_file},{noisy_file}", f"--reference={llama_file}", f"--gguf-gates={gates}",
        "--gguf-inconclusive=fail",
        suite="layers", tests="test_reference.py",
    )  # fmt: skip
    result.assert_outcomes(passed=4, failed=1)
    # The mean over layers is what is decided on, once.
    assert Counter(gate["metric"] for gate in read_run()["gates"]) == {"resid_relative_error": 1}


@pytest.mark.shared_cache
def test_hostile_prompts_and_tokens_are_text(
    run_suite: RunSuite, llama_file: Path, noisy_file: Path, pytester: pytest.Pytester
) -> None:
    file = pytester.path / "hostile.toml"
    prompt = r'id = "</script><b>&"' + "\n" + r'text = "<b>&</script><script>alert(1)\u0000\u001b[2J %{x} {y}"'
    file.write_text(f"[[prompt]]\n{prompt}\n[[prompt]]\nid = 'empty'\ntext = ''\n", encoding="utf-8")
    result = run_suite(
        *STATES,
        f"--models={llama_file},{noisy_file}", f"--reference={llama_file}", f"--gguf-prompts={file}", "-rs",
        suite="layers",
    )  # fmt: skip
    result.assert_outcomes(passed=19, skipped=1)
    result.stdout.fnmatch_lines(["*prompt 'empty': it has no tokens*"])
    assert "\x1b[2J" not in str(result.stdout)
    (report,) = pytester.path.glob("results/runs/*/report.html")
    page = report.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert html.escape("1 of 2 prompts could not be given to random-F32: prompt ") in page
    assert "\x00" not in page
