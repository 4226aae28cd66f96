"""What a session stores, as people and programs get it back: DataFrames, exported files, the README's example."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gguf_harness
from gguf_harness.cli import main
from gguf_harness.metrics.records import SCHEMA_VERSION
from gguf_harness.store.run_tables import TABLES, rows_of
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

# pytester forgets what a test has imported, and pyarrow does not take these types twice.
import_module("pandas.core.arrays.arrow.extension_types")

pytestmark = pytest.mark.model

README = Path(__file__).parents[2] / "README.md"


def test_a_session_comes_back_as_tables(
    run_suite: RunSuite,
    read_run: ReadRun,
    pytester: pytest.Pytester,
    llama_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    candidate = write_random_llama(pytester.path / "mine.gguf", noise=0.02)
    arguments = (f"--models={llama_file},{candidate}", f"--reference={llama_file}", "--gguf-chunks=8")
    wanted = "divergence or file or texts or baseline"
    run_suite(*arguments, "--gguf-save-baseline=main", "-k", wanted)
    run_suite(*arguments, "--gguf-baseline=main", "-k", wanted)
    content = read_run()
    assert content["schema_version"] == SCHEMA_VERSION

    # What is written is of the current schema already; what heads do is another suite's.
    run = gguf_harness.load_run()
    assert run.raw == content
    assert [table for table in TABLES if not rows_of(content, table)] == ["heads"]
    assert [model["file"] for model in content["models"]] == run.models["name"].tolist() == ["random-F32", "mine"]
    assert all((model["variant"], model["adapters"]) == (None, []) for model in content["models"])
    assert all(model["context"]["n_ctx"] == 32 for model in content["models"])  # as run_suite asks for
    for row in (*content["estimates"], *content["gates"], *content["baseline"]["comparisons"]):
        assert {"prompt", "layer", "head", "part"} <= row.keys()

    # Numbers are those of the run, and belong together.
    kld = run.estimates.query("metric == 'kld_mean' and model == 'mine'").iloc[0]
    gate = run.gates.query("metric == 'kld_mean'").iloc[0]
    now = run.comparisons.query("metric == 'kld_mean'").iloc[0]
    assert kld["value"] == gate["value"] > 0
    # The mean of the means of windows, and of those in a baseline, which keeps nine digits.
    assert now["new"] == pytest.approx(gate["value"], rel=1e-14)
    assert now["old"] == pytest.approx(now["new"], rel=1e-8)
    assert (kld["clusters"], kld["reference"], now["outcome"], now["windows"]) == (8, "random-F32", "same", 8)
    quantiles = run.arrays["mine", "kld_quantiles"]
    assert np.all(np.diff(quantiles["kld"]) >= 0)
    assert set(run.texts["prompt"]) == {"fox", "chat"}
    assert isinstance(run.started, pd.Timestamp)
    assert run.started.tzinfo is not None
    assert run.tests["duration_s"].sum() > 0

    assert main(["export", "last", "-o", "tables"]) == 0
    assert "tables/estimates.parquet" in capsys.readouterr().out
    read = pd.read_parquet("tables/estimates.parquet")
    pd.testing.assert_frame_equal(read, run.estimates, check_dtype=False, check_exact=True)

    # The README's own example, where the run is.
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "load_run" in block]
    exec(example, {})  # noqa: S102 - ours
    printed = capsys.readouterr().out
    assert str(kld["value"])[:5] in printed
    assert "mine" in printed
