"""Every option that takes a path refuses what is none, in the same words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_harness.cli import main
from gguf_harness.errors import HarnessError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import Options, read_options
from tests.command_line import parse_command_line

PATHS = ("imatrix", "llama-server", "prompts", "words", "results", "cache", "gates", "baseline", "corpus")
OPTIONS = (*(f"--gguf-{name}" for name in PATHS), "--models", "--reference")
MISTAKES = {"": "is empty", "x" * 300: "File name too long", "~nobody-at-all/x": "no home folder ~nobody-at-all"}


def _options(*arguments: str) -> Options:
    return read_options(parse_command_line(*arguments))


def _prepare(argument: str) -> None:
    """What reads a path, in a session."""
    options = _options(argument)
    plan_ladder(options)
    load_corpus(options.corpus)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", MISTAKES, ids=["empty", "long", "nobody"])
def test_what_is_no_path_is_said_by_every_option(option: str, value: str) -> None:
    with pytest.raises((pytest.UsageError, HarnessError), match=MISTAKES[value]) as caught:
        _prepare(f"{option}={value}")
    assert str(caught.value).replace("\n", "").isprintable()


def test_paths_are_absolute_when_they_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests of other projects may change the folder."""
    monkeypatch.chdir(tmp_path)
    options = _options("--gguf-results=res", "--gguf-prompts=a.toml")
    assert (options.results, options.cache) == (tmp_path / "res", tmp_path / "res" / "cache")
    assert options.prompts == tmp_path / "a.toml"
    assert options.to_json()["prompts"] == "a.toml"


def test_paths_begin_where_pytest_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A conftest may go elsewhere before options are read."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.json").touch()
    monkeypatch.chdir(tmp_path)
    given = ["--models=a.gguf,tiny", "--reference=b.gguf", "--gguf-corpus=c.txt", "--gguf-prompts=d.toml"]
    more = ["--gguf-baseline=base.json", "--gguf-results=res"]
    config = parse_command_line(*given, *more)
    monkeypatch.chdir("sub")
    options = read_options(config)
    assert (options.models, options.reference) == ((str(tmp_path / "a.gguf"), "tiny"), str(tmp_path / "b.gguf"))
    assert (options.corpus, options.prompts) == (str(tmp_path / "c.txt"), tmp_path / "d.toml")
    assert (options.baseline, options.results) == (tmp_path / "base.json", tmp_path / "res")


@pytest.mark.parametrize("option", ["--gguf-corpus", "--gguf-baseline", "--reference"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_said_with_its_option(option: str, value: str) -> None:
    with pytest.raises(HarnessError, match=f"{option} is empty"):
        _options(f"{option}={value}")


def test_what_an_option_names_can_be_stored() -> None:
    options = _options("--models=a\udcff,b", "--gguf-corpus=c\udcff", "--gguf-prompts=d\udcff.toml")
    stored = options.to_json()
    assert (stored["models"], stored["corpus"], stored["prompts"]) == (["a\\xff", "b"], "c\\xff", "d\\xff.toml")


COMMANDS = (
    ["inspect", "{}"],
    ["report", "{}"],
    ["report", "--html={}"],
    ["report", "--results={}"],
    ["badge", "{}"],
    ["badge", "-o", "{}"],
    ["compare", "{}", "last"],
    ["heads", "{}"],
    ["heads", "tiny", "--prompts={}"],
    ["quantize", "{}", "Q8_0"],
    ["quantize", "tiny", "Q8_0", "--out={}"],
    ["quantize", "tiny", "Q8_0", "--imatrix={}"],
    ["graph", "{}"],
    ["graph", "tiny", "--out={}"],
    ["graph", "tiny", "--kind=cosine", "--words={}"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("value", [value for value in MISTAKES if value], ids=["long", "nobody"])
def test_what_is_no_path_is_said_by_every_command(
    command: list[str], value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([part.format(value) for part in command])
    except SystemExit as ended:  # argparse
        status = ended.code  # type: ignore[assignment]
    assert status == 2
    assert MISTAKES[value] in capsys.readouterr().err


def test_a_command_writes_what_its_terminal_can_show(llama_file: Path, tmp_path: Path) -> None:
    os.link(llama_file, tmp_path / "模\udcff.gguf")
    command = [sys.executable, "-m", "gguf_harness.cli", "inspect", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert done.stdout.startswith(b"\\u6a21\\xff\n")
    assert done.stderr == b""
