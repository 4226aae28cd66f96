"""The embeddings suite end to end: rows, cache, gates, words of a person, two vocabularies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.store.arrays import load_arrays
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

SUITE = "../embeddings"
WORDS = """
[groups]
animals = ["dog", "cat", "horse", "cow", "sheep", "wolf", "tiger"]
colours = ["red", "green", "blue", "black", "white", "pink", "gray"]
hostile = ["</script><b>", "[bold]|`*", "a{b}c"]

[analogies]
plural = [["dog", "dogs"], ["cat", "cats"], ["cow", "cows"]]
"""
PER_MODEL = {
    "embedding_anisotropy", "embedding_variance_pc1", "embedding_variance_pc10", "embedding_intrinsic_dimension",
    "word_silhouette", "word_purity", "analogy_accuracy", "analogy_mrr",
}  # fmt: skip
OF_TOKENS = {"neighbour_recall", "similarity_rank_correlation", "procrustes_error", "embedding_cka"}
OF_CONTEXTS = {"contextual_cosine", "last_token_cosine"}
OF_WORDS = {"word_neighbour_recall", "word_rank_correlation", "word_procrustes_error", "word_cka"}


@pytest.fixture
def words(pytester: pytest.Pytester) -> str:
    file = pytester.path / "words.toml"
    file.write_text(WORDS, encoding="utf-8")
    return f"--gguf-words={file}"


def test_a_ladder(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path, words: str, pytester: pytest.Pytester
) -> None:
    twin = shutil.copy(llama_file, tmp_path / "twin.gguf")
    noisy = write_random_llama(tmp_path / "noisy.gguf", text=True, noise=0.3)
    arguments = [f"--models={llama_file},{twin},{noisy}", f"--reference={llama_file}", words]
    result = run_suite(*arguments, tests=SUITE)
    result.assert_outcomes(passed=3 * 3 + 2 * 4)
    run = read_run()
    rows = {(row["model"], row["metric"]): row for row in run["estimates"]}
    for name in ("random-F32", "twin", "noisy"):
        compared = OF_TOKENS | OF_CONTEXTS | OF_WORDS if name != "random-F32" else set()
        assert {metric for model, metric in rows if model == name} == PER_MODEL | compared
    assert {row["reference"] for (_, metric), row in rows.items() if metric in PER_MODEL} == {None}
    assert {row["reference"] for (_, metric), row in rows.items() if metric in OF_WORDS} == {"random-F32"}
    for metric in ("neighbour_recall", "similarity_rank_correlation", "word_neighbour_recall", "contextual_cosine"):
        assert rows["twin", metric]["value"] == 1
        assert rows["noisy", metric]["value"] < 1
    for metric in ("procrustes_error", "word_procrustes_error"):
        assert rows["twin", metric]["value"] < 1e-7
        assert rows["noisy", metric]["value"] > 0.01
    assert rows["twin", "embedding_cka"]["value"] == pytest.approx(1, abs=1e-12)
    assert rows["noisy", "neighbour_recall"]["se"] > 0
    assert "20 words, 20 of them as the mean of several tokens" in rows["noisy", "word_silhouette"]["detail"]
    assert {entry["name"] for entry in run["arrays"]} == {
        "embedding_map", "embedding_map_aligned", "word_cosines", "analogies",
    }  # fmt: skip
    # Of three files one is there twice: two spaces, two contexts, and two that are laid over the reference.
    assert run["cache"]["misses"] == 6
    (report,) = pytester.path.glob("results/runs/*/report.html")
    page = report.read_text(encoding="utf-8")
    assert 'data-picture="embedding-map"' in page
    answers = {entry["model"]: load_arrays(report.parent / entry["file"]) for entry in run["arrays"]
               if entry["name"] == "analogies"}  # fmt: skip
    for name, stored in answers.items():
        assert rows[name, "analogy_accuracy"]["value"] == (stored["ranks"] == 1).mean()
        assert set(stored["questions"].ravel().tolist()) == {"dog", "dogs", "cat", "cats", "cow", "cows"}
    assert "</script><b>" not in page
    second = run_suite(*arguments, tests=SUITE)
    second.stdout.fnmatch_lines(["cache: all 6 measurements came from the cache, nothing was decoded*"])
    assert read_run()["estimates"] == run["estimates"]


@pytest.mark.shared_cache
def test_gates_of_embeddings(run_suite: RunSuite, tmp_path: Path, words: str, llama_file: Path) -> None:
    noisy = write_random_llama(tmp_path / "noisy.gguf", text=True, noise=0.3)
    limits = tmp_path / "gates.toml"
    limits.write_text(
        "[neighbour_recall]\nlimit = 0.99\n[procrustes_error]\nlimit = 0.9\n[word_purity]\nlimit_relative = 0.9\n"
    )
    result = run_suite(
        f"--models={llama_file},{noisy}", f"--reference={llama_file}", words, f"--gguf-gates={limits}", tests=SUITE
    )
    result.assert_outcomes(passed=3 * 2 + 3, failed=1)
    result.stdout.fnmatch_lines(["*noisy: neighbours is * %; the limit is at least 99 %.*"])


@pytest.mark.shared_cache
def test_models_of_two_vocabularies(run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path) -> None:
    other = write_random_llama(tmp_path / "other.gguf", extra_tokens=7, width=512, seed=4)
    result = run_suite(f"--models={llama_file},{other}", f"--reference={llama_file}", "-rs", tests=SUITE)
    result.assert_outcomes(passed=3 * 2 + 1, skipped=3)
    result.stdout.fnmatch_lines(["*have different vocabularies*Their words are compared.*"])
    run = read_run()
    rows = {row["metric"]: row for row in run["estimates"] if row["model"] == "other"}
    assert set(rows) == PER_MODEL | OF_WORDS
    assert 0 < rows["word_neighbour_recall"]["value"] < 1
    assert "by chance" in rows["word_cka"]["detail"]
    assert {entry["name"] for entry in run["arrays"]} == {"embedding_map", "word_cosines", "analogies"}


@pytest.mark.parametrize(
    ("text", "message"), [("[groups]\na = 1", "*group 'a' is 1, expected a list*"), ("[", "*is not TOML*")]
)
def test_mistakes_in_words_end_the_session(
    run_suite: RunSuite, llama_file: Path, pytester: pytest.Pytester, text: str, message: str
) -> None:
    file = pytester.path / "words.toml"
    file.write_text(text, encoding="utf-8")
    result = run_suite(f"--models={llama_file}", f"--gguf-words={file}", tests=SUITE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


@pytest.mark.shared_cache
def test_words_that_no_model_has_are_said(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, tmp_path: Path
) -> None:
    from tests.integration.small_bert import write_small_bert

    file = pytester.path / "words.toml"
    file.write_text('[groups]\na = ["0", "1"]\nb = ["2", "3"]', encoding="utf-8")
    bert = write_small_bert(tmp_path / "bert.gguf")
    result = run_suite(f"--models={bert}", f"--gguf-words={file}", "-rs", tests=f"{SUITE}/test_space.py")
    result.assert_outcomes(passed=1, skipped=2)
    assert {row["metric"] for row in read_run()["estimates"]} == {m for m in PER_MODEL if m.startswith("embedding_")}


@pytest.mark.shared_cache
@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_other_maps_lay_out_the_reference_once(
    run_suite: RunSuite,
    read_run: ReadRun,
    llama_file: Path,
    tmp_path: Path,
    words: str,
    pytester: pytest.Pytester,
    method: str,
) -> None:
    noisy = write_random_llama(tmp_path / "noisy.gguf", text=True, noise=0.3)
    twin = shutil.copy(llama_file, tmp_path / "twin.gguf")
    models = f"--models={llama_file},{twin},{noisy}"
    arguments = [models, f"--reference={llama_file}", words, f"--gguf-map={method}"]
    result = run_suite(*arguments, tests=f"{SUITE}/test_reference.py", quick=True)
    result.assert_outcomes(passed=2 * 4)
    (folder,) = pytester.path.glob("results/runs/*/")
    maps: dict[tuple[str, str], dict[str, Any]] = {
        (entry["model"], entry["name"]): load_arrays(folder / entry["file"]) for entry in read_run()["arrays"]
    }
    base = maps["random-F32", "embedding_map"]
    for name in ("twin", "noisy"):
        arrays = maps[name, "embedding_map_aligned"]
        assert arrays["method"].item() == method
        # The reference is laid out once: all candidates are in that layout.
        assert np.array_equal(arrays["from_xyz"], base["xyz"])
        assert arrays["texts"].tolist() == base["texts"].tolist()
        assert np.isfinite(arrays["xyz"]).all()
    reach = np.abs(base["xyz"]).max()
    assert np.abs(maps["twin", "embedding_map_aligned"]["xyz"] - base["xyz"]).max() < 1e-3 * reach
    assert np.abs(maps["noisy", "embedding_map_aligned"]["xyz"] - base["xyz"]).max() > 1e-3 * reach
