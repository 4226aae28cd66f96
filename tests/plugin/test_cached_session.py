"""What a session imports when all that it measures is in the cache: most of its time would go into imports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin.conftest import SUITES, ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

SCORERS = {"sacrebleu", "rapidfuzz"}
"""Of texts: what a first session imports, and a second one does not."""

NEVER = {"rouge_score", "nltk"}
"""Of texts: what even a first session does without."""

HEAVY = {
    *SCORERS,
    *NEVER,
    *("gguf", "llama_cpp", "huggingface_hub", "httpx2", "plotly"),
    *("scipy.stats", "scipy.optimize", "scipy.sparse", "sklearn", "umap", "numba", "pyarrow", "pandas"),
    *(
        "gguf_harness.measure.heads.patched",
        "gguf_harness.measure.layers.tasks",
        "gguf_harness.measure.embeddings.tasks",
    ),
}

DUMP = """
import json, sys

def pytest_unconfigure():
    with open("modules.json", "w") as file:
        json.dump(sorted(sys.modules), file)
"""


def test_a_cached_session_imports_nothing_heavy(
    pytester: pytest.Pytester, run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    other = write_random_llama(tmp_path / "other.gguf", seed=7)
    pytester.makepyfile(dump_modules=DUMP)
    pytester.syspathinsert()
    arguments = [f"--models={llama_file},{other}", f"--reference={llama_file}", "-p", "dump_modules"]
    arguments += [str(SUITES / "quant" / name) for name in ("test_divergence.py", "test_perplexity.py", "test_file.py")]

    run_suite(*arguments, tests="test_text.py")
    imported = _imported(pytester)
    assert imported >= SCORERS
    assert imported & NEVER == set()
    first = read_run()
    assert first["cache"]["misses"] > 0

    run_suite(*arguments, tests="test_text.py")
    second = read_run()
    assert second["cache"] == {"hits": sum(first["cache"].values()), "misses": 0}
    assert second["estimates"] == first["estimates"]
    assert _imported(pytester) & HEAVY == set()


def _imported(pytester: pytest.Pytester) -> set[str]:
    names: list[str] = json.loads((pytester.path / "modules.json").read_text())
    return set(names)
