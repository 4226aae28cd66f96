"""Files whose metadata has a wrong type, beside a sound one: each costs its own tests, with one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.inputs.models import HELD_OUT_TOPICS
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama
from tests.raw_gguf import array, read_raw, scalar, string

BROKEN = {
    "layers": ("llama.block_count", string("2"), "llama.block_count is '2' (string)"),
    "heads": ("llama.attention.head_count", array(8, ["4"]), "llama.attention.head_count is 1 elements"),
    "many": ("llama.block_count", scalar(4, 10**9), "llama.block_count is 1000000000 (uint32)"),
    "topics": (HELD_OUT_TOPICS, array(4, [1]), f"{HELD_OUT_TOPICS} is (1,) (array of uint32)"),
    "tokens": ("tokenizer.ggml.tokens", scalar(4, 1), "tokenizer.ggml.tokens is 1 (uint32)"),
    "scores": ("tokenizer.ggml.scores", array(0, [1] * 300), "tokenizer.ggml.scores is (1, 1"),
    "template": ("tokenizer.chat_template", array(8, ["{{ x }}"]), "tokenizer.chat_template is 1 elements"),
}


@pytest.mark.shared_cache
@pytest.mark.model
def test_broken_files_cost_their_own_tests(run_suite: RunSuite, read_run: ReadRun, tmp_path: Path) -> None:
    """They come first, and would be the reference: all are of the highest precision."""
    raw = read_raw(write_random_llama(tmp_path / "sound-F32.gguf"))
    write_random_llama(tmp_path / "sound-too.gguf", noise=1e-5)
    # Topics that there are not must not empty the corpus of all.
    raw.write(tmp_path / "a-foreign.gguf", {HELD_OUT_TOPICS: string("no such topic,nor this")})
    for name, (key, value, _) in BROKEN.items():
        raw.write(tmp_path / f"a-{name}.gguf", {key: value})
    result = run_suite(f"--models={tmp_path}", "-k", "divergence or file or perplexity")
    output = str(result.stdout)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "Traceback" not in output
    run = read_run()
    by_model = {model: {test["outcome"] for test in run["tests"] if test["model"] == model} for model in _models(run)}
    broken = {f"a-{name}" for name in BROKEN}
    assert {model for model, outcomes in by_model.items() if outcomes & {"failed", "error"}} == broken
    assert all(outcomes <= {"failed", "error"} for model, outcomes in by_model.items() if model in broken)
    assert run["corpus"]["name"] == "pydoc"
    assert "a-foreign (F32) is the reference" in output
    for name, (key, _, message) in BROKEN.items():
        messages = {test["message"] for test in run["tests"] if test["model"] == f"a-{name}"}
        (only,) = messages
        assert only.startswith(f"a-{name}.gguf is not a valid GGUF model: {key} is ")
        assert message in only


def _models(run: dict[str, list[dict[str, str]]]) -> set[str]:
    return {test["model"] for test in run["tests"] if test["model"]}
