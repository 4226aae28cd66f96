"""The heads suite's changes of heads end to end, on small real models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gguf_harness.store.arrays import load_arrays
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

CHANGES = ("importance", "interchange", "removal")
IMPORTANCE, INTERCHANGE, REMOVAL = (f"../heads/test_{name}.py" for name in CHANGES)
QUICK = ("--gguf-head-windows=2",)


@pytest.mark.shared_cache
def test_every_head_of_every_model_has_its_rows(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0,Q4_K_M", *QUICK]
    run_suite(*arguments, tests=IMPORTANCE).assert_outcomes(passed=6)
    run = read_run()
    rows = {(row["model"], row["metric"], row["layer"], row["head"]): row for row in run["estimates"]}
    metrics = [f"head_importance{more}" for more in ("", "_kl", "_mean", "_mean_kl")]
    for model in ("random-F32", "random-Q8_0", "random-Q4_K_M"):
        for layer, head in ((layer, head) for layer in range(2) for head in range(4)):
            found = [rows[model, metric, layer, head] for metric in metrics]
            assert all((row["n"], row["clusters"], row["unit"]) == (2 * 15, 2, "nats") for row in found)
            assert all(row["se"] > 0 for row in found)
            assert found[1]["value"] > 0
            assert ("random-F32", "head_importance_screen", layer, head) in rows
    close, far = (rows[f"random-{q}", "head_importance_rank_correlation", None, None] for q in ("Q8_0", "Q4_K_M"))
    assert close["value"] >= far["value"] - 2 * (far["se"] or 0)
    assert close["value"] > 0.9
    assert (close["n"], close["clusters"], close["reference"]) == (8, 2, "random-F32")
    assert rows["random-Q8_0", "head_top_overlap", None, None]["value"] == 1
    assert -1 <= rows["random-F32", "head_screen_rank_correlation", None, None]["value"] <= 1
    assert {entry["name"] for entry in run["arrays"]} == {"head_importance"}
    report = max(pytester.path.glob("results/runs/*/report.html"))
    assert 'data-picture="head-importance"' in report.read_text(encoding="utf-8")


@pytest.mark.shared_cache
def test_interchange_and_removal(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q4_K_M", *QUICK]
    run_suite(*arguments, tests=INTERCHANGE).assert_outcomes(passed=1)
    rows = {(row["metric"], row["layer"], row["head"]): row for row in read_run()["estimates"]}
    assert rows.keys() == {("layer_interchange_share", layer, None) for layer in range(2)} | {
        ("head_interchange_share", layer, head) for layer in range(2) for head in range(4)
    }
    assert all(row["value"] <= 1 and row["se"] > 0 for row in rows.values())
    assert len({round(row["value"], 4) for row in rows.values()}) > 5
    result = run_suite(*arguments, tests=REMOVAL)
    result.assert_outcomes(passed=2)
    run = read_run()
    removable = {row["model"]: row for row in run["estimates"]}
    assert removable.keys() == {"random-F32", "random-Q4_K_M"}
    assert all(0 <= row["value"] <= 8 and row["n"] == 30 for row in removable.values())
    assert "in the reference's order" in removable["random-Q4_K_M"]["detail"]
    assert [entry["name"] for entry in run["arrays"]] == ["head_removal"] * 2
    report = max(pytester.path.glob("results/runs/*/report.html"))
    assert "Heads that can be removed" in report.read_text(encoding="utf-8")


@pytest.mark.shared_cache
def test_all_heads_may_go_also_with_a_limit(run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester) -> None:
    """The limit is about heads that are ablated on all windows; the screen knows what every head changes."""
    run_suite("--models=tiny", *QUICK, "--gguf-head-limit=2", tests=REMOVAL)
    (entry,) = read_run()["arrays"]
    arrays = load_arrays(max(pytester.path.glob("results/runs/*")) / entry["file"])
    assert arrays["all"] == 40
    assert len(arrays["heads"]) > 2


def test_a_second_run_decodes_nothing(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "-k", " or ".join(CHANGES)]
    run_suite(*QUICK, *arguments, suite="heads")
    tests = [test["id"] for test in read_run()["tests"]]
    assert all(any(f"test_{name}.py" in test for test in tests) for name in CHANGES)
    result = run_suite(*QUICK, *arguments, suite="heads")
    result.stdout.fnmatch_lines(["cache: all * measurements came from the cache, nothing was decoded*"])
    run_suite("--gguf-head-windows=3", *arguments[:2], tests=IMPORTANCE)
    assert read_run()["cache"]["hits"] == 0


@pytest.mark.shared_cache
def test_of_many_heads_those_that_a_screen_puts_first(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-head-limit=3", *QUICK]
    run_suite(*arguments, tests=IMPORTANCE).assert_outcomes(passed=4)
    run = read_run()
    ablated, screened = (
        {(row["model"], row["layer"], row["head"]): row["value"] for row in run["estimates"] if row["metric"] == metric}
        for metric in ("head_importance", "head_importance_screen")
    )
    best = sorted(screened, key=lambda place: -screened[place])[:3]
    assert ablated.keys() == {(m, layer, head) for _, layer, head in best for m in ("random-F32", "random-Q8_0")}
    assert len(screened) == 8
    # Both windows were screened: what the reference's sweep needs of them is known.
    assert all(ablated[place] == screened[place] for place in ablated if place[0] == "random-F32")
    rows = [row for row in run["estimates"] if row["metric"] == "head_importance_screen"]
    assert all(row["se"] > 0 and row["clusters"] == 2 for row in rows)
    assert sum("3 of 8 heads were ablated" in warning for warning in run["warnings"]) == 2


@pytest.mark.shared_cache
def test_agreement_can_be_gated(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    gates = pytester.path / "gates.toml"
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-head-windows=3", "--gguf-gates", str(gates)]
    gates.write_text("[head_importance_rank_correlation]\nlimit = 0.5\n[head_top_overlap]\nlimit = 0.9\n")
    result = run_suite(*arguments, "-k", "same_heads", tests=IMPORTANCE)
    result.assert_outcomes(passed=1)
    verdicts = {gate["metric"]: gate["verdict"] for gate in read_run()["gates"]}
    assert verdicts == {"head_importance_rank_correlation": "pass", "head_top_overlap": "pass"}
    gates.write_text("[head_importance_rank_correlation]\nlimit = 1\n")
    run_suite(*arguments, "-k", "same_heads", tests=IMPORTANCE)
    (gate,) = read_run()["gates"]
    assert gate["verdict"] in {"fail", "inconclusive"}


@pytest.mark.shared_cache
def test_layers_that_mix_no_values_have_no_heads(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, without_z: Path
) -> None:
    arguments = [f"--models={llama_file},{without_z}", f"--reference={without_z}", *QUICK]
    result = run_suite(*arguments, tests=IMPORTANCE)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*Importance of different heads or windows: (8, 2) against (4, 2).*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    rows = [row for row in read_run()["estimates"] if row["model"] == "puzzle" and row["metric"] == "head_importance"]
    assert {row["layer"] for row in rows} == {0}


@pytest.mark.shared_cache
def test_candidates_that_cannot_be_compared(run_suite: RunSuite, llama_file: Path, tmp_path: Path) -> None:
    twin = shutil.copy(llama_file, tmp_path / "twin.gguf")
    deeper = write_random_llama(tmp_path / "deeper.gguf", n_layer=3, text=True)
    arguments = [f"--models={llama_file},{twin},{deeper}", f"--reference={llama_file}", *QUICK]
    result = run_suite(*arguments, "-rs", tests=INTERCHANGE)
    result.assert_outcomes(skipped=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*deeper has different heads from its reference*", "*the candidate behaves like its reference*"]
    )
    result = run_suite(*arguments, "-k", "same_heads", tests=IMPORTANCE)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Importance of different heads or windows*"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--gguf-head-windows=1", "1 is too small, expected at least 2"),
        ("--gguf-head-limit=0", "0 is too small, expected at least 2"),
        ("--gguf-head-limit=some", "'some' is not a whole number"),
    ],
)
def test_options_are_checked(run_suite: RunSuite, llama_file: Path, option: str, message: str) -> None:
    result = run_suite(f"--models={llama_file}", option, tests=REMOVAL)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in str(result.stderr)
