"""Models that predict no tokens, as embedding models are: what cannot be measured of them is refused, and said why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.small_bert import write_small_bert
from tests.plugin.conftest import ReadRun, RunSuite

pytestmark = [pytest.mark.model, pytest.mark.shared_cache]


@pytest.fixture
def berts(tmp_path: Path) -> list[str]:
    """Options for two BERTs with weights that have nothing in common."""
    one, two = (write_small_bert(tmp_path / f"{name}.gguf", seed=seed) for seed, name in enumerate(("one", "two")))
    return [f"--models={one},{two}", f"--reference={one}", "--gguf-batch=512"]


def test_logits_that_nobody_computed_are_not_compared(run_suite: RunSuite, read_run: ReadRun, berts: list[str]) -> None:
    result = run_suite(*berts, "-k", "divergence or perplexity or test_text_of or file")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    output = str(result.stdout)
    assert "one.gguf has no language head: it predicts no tokens" in output
    assert "pytest suites/embeddings --models=..." in output
    assert "Traceback" not in output
    run = read_run()
    assert {row["metric"] for row in run["estimates"]} == {"file_bytes", "bits_per_weight"}
    assert not run["gates"]


def test_behaviours_of_heads_are_for_models_that_look_back(run_suite: RunSuite, berts: list[str]) -> None:
    result = run_suite(*berts, tests="test_behaviour.py::test_behaviour", suite="heads")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*Tokens of this model attend to later ones, as in an encoder*"])


def test_embeddings_are_measured(run_suite: RunSuite, berts: list[str]) -> None:
    result = run_suite(*berts, "-k", "test_contexts_stay or test_space_stays", suite="embeddings")
    result.assert_outcomes(passed=2)
