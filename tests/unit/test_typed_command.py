"""What a run records as its command."""

from __future__ import annotations

import shlex

import pytest

from gguf_harness.inputs.typed_command import typed_command


def test_it_is_what_the_person_typed() -> None:
    arguments = ["suites/quant", "-k", "a or b", "--models=\udcff.gguf"]
    assert typed_command(arguments, None, None) == ["pytest", "suites/quant", "-k", "a or b", "--models=\\xff.gguf"]
    # `gguf-harness run` gives pytest more words than it got.
    typed = shlex.join(["gguf-harness", "run", "quant", "-k", "a b"])
    assert typed_command(["/site/suites/quant", "-k", "a b"], typed, None) == shlex.split(typed)


def test_the_variable_that_adds_to_it_stands_before_it() -> None:
    words = typed_command(["-q"], None, "--gguf-ctx=64 -k 'a b'")
    assert words == ["env", "PYTEST_ADDOPTS=--gguf-ctx=64 -k 'a b'", "pytest", "-q"]
    assert shlex.split(shlex.join(words)) == words
    assert typed_command(["-q"], None, "-k 'a") == ["env", "PYTEST_ADDOPTS=-k 'a", "pytest", "-q"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--hf-token=abc"], ["--hf-token=***"]),
        (["--hf-token", "abc", "-x"], ["--hf-token", "***", "-x"]),
        (["--API-KEY=abc"], ["--API-KEY=***"]),
        (["--password", "-x"], ["--password", "-x"]),
        (["--repo=https://me:abc@host/x"], ["--repo=https://***@host/x"]),
        (["--gguf-gen-tokens=8", "--gguf-ctx", "64"], ["--gguf-gen-tokens=8", "--gguf-ctx", "64"]),
    ],
)
def test_secrets_are_not_recorded(given: list[str], kept: list[str]) -> None:
    assert typed_command(given, None, None) == ["pytest", *kept]
    assert typed_command([], None, shlex.join(given)) == ["env", f"PYTEST_ADDOPTS={shlex.join(kept)}", "pytest"]
