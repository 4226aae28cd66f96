"""The text suite end to end: one test per candidate and prompt, rows, cache, and hostile prompts in the report."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from gguf_harness.inputs.prompts import load_prompts
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

HOSTILE = r"""
[[prompt]]
id = "</script><b>&"
text = "</script><script>alert(1)</script>"

[[prompt]]
id = "control [x]::"
text = "a\u0000b\u001b[2J\u0007\r\n\u202ec"

[[prompt]]
id = "special"
messages = [{role = "user", content = "<|bos|> in a message"}]

[[prompt]]
id = "empty"
text = ""

[[prompt]]
id = "long"
text = "%s"
""" % ("many words " * 9100)


@pytest.fixture
def other_file(tmp_path: Path) -> Path:
    """A candidate that has nothing in common with the model `llama_file` but its vocabulary."""
    return write_random_llama(tmp_path / "other.gguf", seed=7)


def test_prompts_are_tests_and_rows(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, other_file: Path, pytester: pytest.Pytester
) -> None:
    twin = shutil.copy(llama_file, other_file.parent / "twin.gguf")
    arguments = [f"--models={llama_file},{other_file},{twin}", f"--reference={llama_file}"]
    result = run_suite(*arguments, tests="test_text.py")
    result.assert_outcomes(passed=6)
    run = read_run()
    assert run["prompts"]["prompts"] == 2
    assert run["prompts"]["tokens"] == 8
    assert {row["prompt"] for row in run["estimates"]} == {"fox", "chat", None}
    assert {row["reference"] for row in run["estimates"]} == {"random-F32"}
    pooled = {row["metric"]: row for row in run["estimates"] if row["model"] == "twin" and row["prompt"] is None}
    assert [pooled[metric]["value"] for metric in ("edit_similarity", "exact_prefix_tokens")] == [1, 8]
    assert "divergence_probability_gap" not in pooled
    perplexity = pooled["text_ppl_under_reference"]
    own = float(perplexity["detail"].rpartition("; the reference's own: ")[2])
    assert perplexity["value"] == pytest.approx(own, rel=2e-3)
    assert pooled["edit_similarity"]["detail"] == "2 prompts, 8 tokens at most, 2 texts the same"
    (similarity,) = (
        row["value"]
        for row in run["estimates"]
        if (row["model"], row["prompt"], row["metric"]) == ("other", None, "edit_similarity")
    )
    assert 0 <= similarity < 1
    chats = [row for row in run["estimates"] if row["prompt"] == "chat"]
    assert {row["detail"] for row in chats} == {"no chat template in the file: messages joined plainly"}
    assert len(run["texts"]) == 6
    assert [(entry["model"], entry["name"]) for entry in run["arrays"]] == [
        ("other", "next_tokens"), ("twin", "next_tokens")
    ]  # fmt: skip
    (report,) = pytester.path.glob("results/runs/*/report.html")
    assert 'id="next-tokens"' in report.read_text(encoding="utf-8")
    # Two files that differ, and two comparisons, by the reference and by metrics: prompts share them.
    assert run["cache"] == {"hits": 0, "misses": 6}

    second = run_suite(*arguments, tests="test_text.py")
    second.stdout.fnmatch_lines(["cache: all 6 measurements came from the cache, nothing was decoded*"])
    assert read_run()["estimates"] == run["estimates"]
    assert read_run()["texts"] == run["texts"]
    run_suite(*arguments, "--gguf-gen-tokens=9", tests="test_text.py")
    assert read_run()["cache"]["hits"] == 0


@pytest.mark.shared_cache
def test_hostile_prompts_cost_their_own_tests_and_are_text(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, other_file: Path, pytester: pytest.Pytester
) -> None:
    file = pytester.path / "hostile.toml"
    file.write_text(HOSTILE, encoding="utf-8")
    result = run_suite(
        f"--models={llama_file},{other_file}", f"--reference={llama_file}", f"--gguf-prompts={file}",
        "-rs", tests="test_text.py",
    )  # fmt: skip
    # A prompt that a model cannot have costs that prompt.
    assert result.ret == 0
    result.assert_outcomes(passed=4, skipped=2)
    words = " ".join(str(result.stdout).split())
    assert "note: 2 of 5 prompts could not be given to random-F32: prompt 'empty': it has no tokens" in words
    assert "prompt 'long': 100100 tokens and 8 more do not" in words
    assert "Traceback" not in str(result.stdout)
    assert "\x1b[2J" not in str(result.stdout)
    run = read_run()
    assert {row["prompt"] for row in run["estimates"]} == {"</script><b>&", "control [x]::", "special", None}
    (pooled,) = (row for row in run["estimates"] if (row["prompt"], row["metric"]) == (None, "edit_similarity"))
    assert pooled["n"] == 3
    assert pooled["detail"].endswith("; 2 more could not be compared")
    (report,) = pytester.path.glob("results/runs/*/report.html")
    page = report.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    (data,) = re.findall(r'id="texts".*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    given = {prompt["name"]: prompt["given"] for prompt in json.loads(data)["panels"][0]["data"]["prompts"]}
    assert given["</script><b>&"] == "</script><script>alert(1)</script>"
    assert given["control [x]::"] == "a\\x00b\\x1b[2J\\x07\\x0d\n\\x202ec"
    assert "<|bos|> in a message" in given["special"]
    assert given["long"].endswith("(100100 characters)")
    # Without scripts there is a table.
    assert html.escape("</script><script>alert(1)</script>") in page
    assert "could not be generated: random-F32, prompt &#39;empty&#39;" in page


@pytest.mark.shared_cache
def test_another_chat_template_is_no_comparison(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    chatty = write_random_llama(tmp_path / "chatty.gguf", chat_template=template)
    result = run_suite(f"--models={llama_file},{chatty}", f"--reference={llama_file}", tests="test_text.py")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["Prompt 'chat': the chat templates of chatty and random-F32 make different prompts*"])
    assert "the chat templates" in next(t["message"] for t in read_run()["tests"] if t["outcome"] == "failed")


@pytest.mark.shared_cache
def test_a_model_that_cannot_generate_costs_its_own_tests(
    run_suite: RunSuite, llama_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.gguf").write_text("this is no model")
    result = run_suite(
        f"--models={llama_file},{tmp_path / 'text.gguf'}", f"--reference={llama_file}", tests="test_text.py"
    )
    result.assert_outcomes(errors=3)
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.shared_cache
def test_a_text_that_ends_at_once_is_skipped(run_suite: RunSuite, tmp_path: Path) -> None:
    """This model repeats the last token of "The quick brown fox", and here that token is the end of a text."""
    mute = write_random_llama(tmp_path / "mute.gguf", eos=ord("x"))
    result = run_suite(f"--models={mute}", "--gguf-quants=Q8_0", "-rs", tests="test_text.py")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*The reference's text is empty: there is nothing to compare with*"])


@pytest.mark.shared_cache
def test_without_candidates_one_test_is_skipped_and_not_one_per_prompt(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(f"--models={llama_file}", "-rs", tests="test_text.py")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*no candidates: give several --models, or --gguf-quants=default*"])


def test_a_persons_own_test_takes_model_and_prompt(pytester: pytest.Pytester, llama_file: Path) -> None:
    pytester.makepyfile(
        test_mine="""
        def test_mine(model, prompt, generation):
            assert generation(model, prompt).tokens
        """
    )
    result = pytester.runpytest_subprocess(
        f"--models={llama_file}", "--gguf-gen-tokens=2", "-v", "-p", "no:cacheprovider", "-W", "error"
    )
    # The long one is too long for this model, whose tokens are bytes.
    result.assert_outcomes(passed=len(load_prompts().prompts) - 1, skipped=1)
    result.stdout.fnmatch_lines(["test_mine.py::test_mine?random-F32-story? PASSED*"])
