"""The suites of attention and of heads end to end, on two small real models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.plugin.test_crashes import _aborting_copy
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

ATTENTION, HEADS = "../attention", "../heads/test_behaviour.py"
WITHOUT_CLUSTERS = ("-k", "not test_clusters")
PROMPTS = """
[[prompt]]
id = "fox"
text = "The quick brown fox jumps over the lazy dog."

[[prompt]]
id = "list"
text = "one, two; one, two; </script><img src=x onerror=alert(1)>"

[[prompt]]
id = "letter"
text = "a"

[[prompt]]
id = "nothing"
text = ""
"""


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A reference, and a candidate whose weights are disturbed."""
    one = write_random_llama(tmp_path / "one.gguf")
    return one, write_random_llama(tmp_path / "two.gguf", noise=0.1)


@pytest.fixture
def arguments(models: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """The ladder of both, and prompts: two of several tokens, one of one, one of none."""
    (tmp_path / "prompts.toml").write_text(PROMPTS, encoding="utf-8")
    one, two = models
    given = [f"--models={one},{two}", f"--reference={one}", f"--gguf-prompts={tmp_path / 'prompts.toml'}"]
    return [*given, *WITHOUT_CLUSTERS]


def _rows(run: dict[str, Any], metric: str, model: str = "two") -> list[dict[str, Any]]:
    return [row for row in run["estimates"] if row["metric"] == metric and row["model"] == model]


def test_attention(run_suite: RunSuite, read_run: ReadRun, arguments: list[str], pytester: pytest.Pytester) -> None:
    result = run_suite(*arguments, "-rs", tests=ATTENTION)
    result.assert_outcomes(passed=5, skipped=2)
    result.stdout.fnmatch_lines(["*one token, or the model cannot take it*"])
    run = read_run()
    cosines = _rows(run, "attn_cosine")
    whole = [row for row in cosines if (row["prompt"], row["layer"], row["head"]) == (None, None, None)]
    assert len(whole) == 1
    assert 0.5 < whole[0]["value"] < 1
    assert whole[0]["clusters"] == 2
    assert whole[0]["se"] > 0
    assert {row["prompt"] for row in cosines} == {None, "fox", "list"}
    places = [(row["layer"], row["head"]) for row in cosines if row["head"] is not None]
    assert sorted(places) == [(layer, head) for layer in range(2) for head in range(4)]
    by_prompt = [row["value"] for row in cosines if row["prompt"] is not None]
    assert whole[0]["value"] == pytest.approx(sum(by_prompt) / 2)
    by_head = [row["value"] for row in cosines if row["head"] is not None]
    assert whole[0]["value"] == pytest.approx(sum(by_head) / 8)
    worst = next(row for row in _rows(run, "attn_cosine_worst_head") if row["prompt"] is None)
    assert worst["value"] == pytest.approx(min(by_head))
    for kind in ("q_error", "k_error", "v_error", "scores_error", "q_cka", "k_cka", "v_cka"):
        assert [row["layer"] for row in _rows(run, f"attn_{kind}")] == [None, 0, 1]
    assert {(entry["model"], entry["name"]) for entry in run["arrays"]} == {
        (model, name) for model in ("one", "two") for name in ("attention", "attention_steps")
    }
    (report,) = pytester.path.glob("results/runs/*/report.html")
    page = report.read_text(encoding="utf-8")
    for chart in ("attention-patterns", "attention-moved", "attention-layers"):
        assert f'data-picture="{chart}"' in page
    assert "<img" not in page.split("<main", 1)[-1].split("<script", 1)[0]
    assert "onerror=alert(1)>" not in page
    assert 'data-picture="qkv-steps"' in page

    second = run_suite(*arguments, tests=ATTENTION)
    second.stdout.fnmatch_lines(["cache: all * measurements came from the cache, nothing was decoded*"])
    again = read_run()
    assert again["cache"]["misses"] == 0
    assert again["estimates"] == run["estimates"]


@pytest.mark.shared_cache
def test_groups_of_heads(run_suite: RunSuite, read_run: ReadRun, arguments: list[str]) -> None:
    run_suite(*arguments[:-2], "-k", "test_clusters", tests=HEADS).assert_outcomes(passed=2)
    for model in ("one", "two"):
        (silhouette,) = _rows(run := read_run(), "head_cluster_silhouette", model)[:1]
        assert -1 <= silhouette["value"] <= 1
        rows = _rows(run, "head_clusters", model)
        assert {row["detail"].split(",")[0] for row in rows} <= {"kmeans", "hdbscan"}
        # k-means puts every head into one group, which the detail tells.
        (grouped,) = (row["detail"].rpartition(": ")[2] for row in rows if row["detail"].startswith("kmeans"))
        heads = [head for group in grouped.split("; ") for head in group.split(", ")]
        assert sorted(heads) == sorted(f"{row['layer']}.{row['head']}" for row in run["heads"] if row["model"] == model)
    assert run["analytics"]


def test_heads(run_suite: RunSuite, read_run: ReadRun, arguments: list[str], pytester: pytest.Pytester) -> None:
    run_suite(*arguments, tests=HEADS).assert_outcomes(passed=5)
    run = read_run()
    for model in ("one", "two"):
        for metric in ("head_previous_token", "head_induction", "head_entropy", "head_copy_score"):
            rows = _rows(run, metric, model)
            assert [(row["layer"], row["head"]) for row in rows] == [(k, h) for k in range(2) for h in range(4)]
            assert {row["prompt"] for row in rows} == {None}
        heads = [row for row in run["heads"] if row["model"] == model]
        assert [(row["layer"], row["head"]) for row in heads] == [(k, h) for k in range(2) for h in range(4)]
        assert all(row["kind"] and row["reason"] for row in heads)
    (kept,), (matched,) = _rows(run, "head_kind_kept"), _rows(run, "head_matched_to_itself")
    assert kept["n"] == matched["n"] == 8
    assert 0 <= kept["value"] <= 1
    assert _rows(run, "head_kind_kept", "one") == []
    # The prompt without tokens is named, once for each model.
    prompts = run["prompts"]["prompts"]
    assert [warning for warning in run["warnings"] if "'nothing'" in warning] == [
        f"1 of {prompts} prompts could not be given to {model}: prompt 'nothing': it has no tokens, and this vocabulary"
        " adds none at the start: there is nothing to continue"
        for model in ("one", "two")
    ]
    (report,) = pytester.path.glob("results/runs/*/report.html")
    assert 'data-picture="head-profiles"' in report.read_text(encoding="utf-8")
    # Both suites share what was decoded.
    assert run["cache"]["misses"] == 2
    run_suite(*arguments, tests=ATTENTION)
    assert read_run()["cache"]["misses"] == 0


@pytest.mark.shared_cache
@pytest.mark.parametrize(("limit", "verdict"), [(0.5, "pass"), (0.9999, "fail")])
def test_a_gate_decides(
    run_suite: RunSuite, read_run: ReadRun, arguments: list[str], tmp_path: Path, limit: float, verdict: str
) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text(f"[attn_cosine]\nlimit = {limit}\n", encoding="utf-8")
    # An error from few prompts has wide bounds: more of them, with the same words.
    prompts = tmp_path / "many.toml"
    words = ["several", "words", "of", "a", "text,", "and", "others;", "then", "the", "rest", "of", "it"]
    texts = [" ".join(words[i:] + words[:i]) for i in range(len(words))]
    prompts.write_text("".join(f'[[prompt]]\nid = "{i}"\ntext = "{t}"\n' for i, t in enumerate(texts)))
    result = run_suite(*arguments, f"--gguf-prompts={prompts}", f"--gguf-gates={gates}", tests=ATTENTION)
    assert result.ret == (pytest.ExitCode.OK if verdict == "pass" else pytest.ExitCode.TESTS_FAILED)
    run = read_run()
    (gate,) = (gate for gate in run["gates"] if gate["metric"] == "attn_cosine")
    assert (gate["model"], gate["verdict"]) == ("two", verdict)
    failed = [test["id"] for test in run["tests"] if test["outcome"] == "failed"]
    assert len(failed) == (verdict == "fail")
    assert all("test_attention_stays_close_to_reference" in test for test in failed)
    # Whatever the verdict, the rows are kept.
    assert len(_rows(run, "attn_cosine")) == 1 + len(texts) + 8
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize("suite", [ATTENTION, HEADS])
def test_a_crashing_candidate_costs_its_own_tests(
    run_suite: RunSuite,
    read_run: ReadRun,
    arguments: list[str],
    models: tuple[Path, Path],
    llama_file: Path,
    tmp_path: Path,
    suite: str,
) -> None:
    one, two = models
    bad = _aborting_copy(llama_file, tmp_path / "bad.gguf")
    result = run_suite(f"--models={one},{bad},{two}", *arguments[1:], tests=suite)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "Traceback" not in str(result.stdout)
    run = read_run()
    assert {t["outcome"] for t in run["tests"] if t["model"] in {"one", "two"}} <= {"passed", "skipped"}
    broken = [test for test in run["tests"] if test["model"] == "bad"]
    assert broken
    assert all(test["outcome"] in {"failed", "error"} for test in broken)
    assert all("died of SIGABRT" in test["message"] for test in broken)
    assert {row["model"] for row in run["estimates"]} == ({"two"} if suite == ATTENTION else {"one", "two"})


@pytest.mark.shared_cache
def test_another_shape_is_told_by_name(run_suite: RunSuite, read_run: ReadRun, models: tuple[Path, Path]) -> None:
    one, _ = models
    deep = write_random_llama(one.with_name("deep.gguf"), n_layer=3)
    both = [f"--models={one},{deep}", f"--reference={one}", *WITHOUT_CLUSTERS]
    result = run_suite(*both, tests=ATTENTION)
    assert "deep has 12 attention heads in 3 layers, its reference 8 in 2" in str(result.stdout)
    assert "Traceback" not in str(result.stdout)
    # What its heads do can be told all the same.
    run_suite(*both, "-rs", tests=HEADS).assert_outcomes(passed=4, skipped=1)
    assert len(_rows(read_run(), "head_entropy", "deep")) == 12


@pytest.mark.shared_cache
def test_twins_have_not_moved(run_suite: RunSuite, read_run: ReadRun, models: tuple[Path, Path]) -> None:
    one, two = models
    shutil.copy(one, two)
    both = [f"--models={one},{two}", f"--reference={one}"]
    run_suite(*both, tests=ATTENTION).assert_outcomes(passed=5)
    run = read_run()
    for row in run["estimates"]:
        if "cosine" in row["metric"] or "cka" in row["metric"]:
            assert row["value"] == pytest.approx(1, abs=1e-12)
        else:
            assert row["value"] == 0, row["metric"]
    run_suite(*both, tests=HEADS)
    run = read_run()
    assert [_rows(run, metric)[0]["value"] for metric in ("head_kind_kept", "head_matched_to_itself")] == [1, 1]


@pytest.mark.parametrize("suite", [ATTENTION, HEADS])
def test_many_processes_share_the_work(
    run_suite: RunSuite, read_run: ReadRun, arguments: list[str], suite: str
) -> None:
    result = run_suite(*arguments, "-n", "2", tests=suite)
    assert result.ret == pytest.ExitCode.OK
    run = read_run()
    assert len(run["models"]) == 2
    # Each model was decoded once.
    assert run["cache"]["misses"] == 2
    assert len(run["arrays"]) >= 2
    run_suite(*arguments, tests=suite)
    assert read_run()["cache"]["misses"] == 0

    def key(row: dict[str, Any]) -> str:
        return "/".join(str(row[name]) for name in ("test", "model", "prompt", "layer", "head", "metric"))

    assert sorted(read_run()["estimates"], key=key) == sorted(run["estimates"], key=key)


@pytest.mark.shared_cache
def test_layers_and_heads_to_show(run_suite: RunSuite, read_run: ReadRun, arguments: list[str]) -> None:
    result = run_suite(*arguments, "--gguf-layers=1", "--gguf-heads=0,2-3", tests=HEADS)
    result.assert_outcomes(passed=5)
    assert len(_rows(read_run(), "head_entropy")) == 8
    result = run_suite(*arguments, "--gguf-layers=0-2", tests=HEADS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--gguf-layers names layer 2, and no model has more than 2 layers." in str(result.stderr)
