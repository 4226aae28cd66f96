"""The console script: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_harness
from gguf_harness.cli import main
from gguf_harness.cli.run_command import OPTIONS_OF_SUITES
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.command_line import TYPED, option_attributes
from tests.companions import COMPANIONS
from tests.plugin.conftest import SUITES
from tests.terminal import on_terminal

STORED = Path(__file__).parent.parent / "data" / "run-smollm2"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A stored run in a folder that may be written."""
    return Path(shutil.copytree(STORED, tmp_path / "runs" / "20261124-120000-abcd")) / "run.json"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"gguf-harness {gguf_harness.__version__}\n"


def test_inspect_says_what_a_file_holds(llama_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(llama_file)]) == 0
    output = capsys.readouterr().out
    for words in ("llama: 2 layers, 4 heads, width 256", "bits per weight 32.00", "F32", "258 tokens (gpt2)"):
        assert words in output
    assert main(["inspect", "--json", str(llama_file)]) == 0
    (info,) = json.loads(capsys.readouterr().out)
    assert info["architecture"] == "llama"
    assert info["path"] == llama_file.name


def test_inspect_names_what_it_leaves_out(llama_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(llama_file, tmp_path / "a.gguf")
    COMPANIONS["projector"].write(tmp_path / "b.gguf")
    assert main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().err.startswith("b.gguf is left out: it is a projector")
    assert main(["inspect", str(tmp_path / "b.gguf")]) == 2
    assert "b.gguf is a projector of images or sound" in capsys.readouterr().err


@pytest.mark.model
def test_heads_are_listed_and_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tiny` has an induction head, 1.1."""
    monkeypatch.setenv("COLUMNS", "120")
    prompts = tmp_path / "prompts.toml"
    prompts.write_text('[[prompt]]\nid = "a"\ntext = "one, two; one, two; three"\n', encoding="utf-8")
    given = ["--prompts", str(prompts), "--threads", "1"]
    assert main(["heads", "tiny", *given]) == 0
    title, columns, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("tiny: 40 heads on ")
    assert columns.split()[:5] == ["head", "kind", "previous", "current", "first"]
    by_head = {row.split()[0]: row.split()[1:] for row in rows}
    assert list(by_head) == [f"{layer}.{head}" for layer in range(5) for head in range(8)]
    assert by_head["1.1"][0] == "induction"
    assert float(by_head["1.1"][-2]) > 0.3

    assert main(["heads", "tiny", "tiny", *given]) == 0
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.strip() == "40 pairs of heads"
    pairs = [row.split() for row in rows]
    assert all((first, kind, distance) == (second, other, "0.000") for first, kind, second, other, distance in pairs)

    assert main(["heads", "tiny", "tiny", "tiny", *given]) == 2
    assert "3 models were given." in capsys.readouterr().err


def test_a_model_is_not_quantized_over_itself(
    llama_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(llama_file, tmp_path / "m-F16.gguf"))
    (tmp_path / "link").symlink_to(tmp_path)
    assert main(["quantize", str(file), "F16", "--out", str(tmp_path / "link")]) == 2
    assert "m-F16.gguf is the model to quantize" in capsys.readouterr().err
    assert file.read_bytes() == llama_file.read_bytes()


@pytest.mark.parametrize(
    "words", [["report", "{run}"], ["compare", "{run}", "{run}"], ["metrics"], ["metrics", "kld_mean"], ["run", "-h"]]
)
def test_a_small_terminal_without_colors_or_characters_shows_all(
    run_file: Path, tmp_path: Path, words: list[str]
) -> None:
    command = [sys.executable, "-m", "gguf_harness.cli", *(word.format(run=run_file) for word in words)]
    environment = {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    shown = on_terminal(command, tmp_path, columns=60, environment=environment)
    assert shown.code == 0, shown.lines
    assert b"\x1b" not in shown.written
    assert b"\\" not in shown.written  # nothing is escaped
    written = shown.written.decode("ascii").split("\r\n")
    # Paths are for copying: they are not broken.
    assert all(len(line) <= 60 for line in written if str(tmp_path) not in line)
    if words[0] == "report":
        assert "0.0575 +/- 0.0022" in shown.written.decode()


def test_report_is_rebuilt(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spec in (str(run_file), str(run_file.parent), "last", "20261124"):
        (run_file.parent / "report.html").unlink(missing_ok=True)
        assert main(["report", spec, "--results", str(tmp_path)]) == 0
        assert "smollm2-135m-Q4_K_M: pass" in capsys.readouterr().out
        assert (run_file.parent / "report.html").stat().st_size > 100_000
    assert main(["report", str(run_file), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("## Smallest candidate that passes every gate")


def test_compare_prints_a_table_or_json(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run_file), str(run_file)]) == 0
    assert "KL mean" in capsys.readouterr().out
    assert main(["compare", "--json", str(run_file), str(run_file)]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == []


def test_runs_that_share_nothing_are_no_success(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = json.loads(run_file.read_text(encoding="utf-8"))
    (tmp_path / "other.json").write_text(json.dumps(run | {"id": "other", "models": [], "estimates": []}))
    for options in ([], ["--json"]):
        assert main(["compare", *options, str(run_file), str(tmp_path / "other.json")]) == 2
        told = capsys.readouterr()
        assert told.err.startswith(
            "gguf-harness: Nothing was compared: the runs have no model, or no metric of a model"
        )
        assert "Models of the new run: none." in told.err
    assert json.loads(told.out)["differences"] == []


@pytest.mark.model
def test_quantize_writes_files(llama_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(llama_file), "Q8_0,Q4_K_M", "--out", str(tmp_path)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["random-Q4_K_M.gguf", "random-Q8_0.gguf"]
    assert read_header(tmp_path / "random-Q8_0.gguf").metadata["general.file_type"] == 7
    assert "random-Q8_0.gguf" in capsys.readouterr().out


def test_graph_writes_tables_and_a_page(
    llama_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["graph", str(llama_file), "--kind=structure", "-o", str(tmp_path)]) == 0
    written = {f"random-F32.structure.{end}" for end in ("nodes.parquet", "edges.parquet", "html")}
    assert {file.name for file in tmp_path.iterdir()} == written
    printed = capsys.readouterr().out
    assert all(name in printed for name in written)
    assert "uploaded" not in printed
    for name in ("GRAPHISTRY_USERNAME", "GRAPHISTRY_PERSONAL_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    # Told before anything is measured or written.
    elsewhere = tmp_path / "elsewhere"
    assert main(["graph", str(llama_file), "-o", str(elsewhere), "--upload"]) == 2
    told = capsys.readouterr()
    assert "Not uploaded: there are no credentials for Graphistry" in told.err
    assert told.out == ""
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graph", "missing.gguf"], "There is no model 'missing.gguf'"),
        (["graph", "{model}", "-o", "{text}/folder"], "could not be written"),
        (["inspect", "missing.gguf"], "There is no model 'missing.gguf'"),
        (["inspect", "{text}"], "expected b'GGUF'"),
        (["report", "nothing"], "There is no run 'nothing'"),
        (["compare", "nothing", "last"], "There is no run 'nothing'"),
        (["quantize", "missing.gguf", "Q8_0"], "There is no model"),
        (["quantize", "{model}", "Q9"], "Unknown quantization type 'Q9'"),
        (["quantize", "{model}", "Q8_0", "--imatrix", "missing"], "no such file"),
        (["quantize", "{model}", "IQ1_S", "--out", "{folder}"], "IQ1_S needs an importance matrix"),
        (["quantize", "{model}", "Q8_0", "--out", "{text}/folder"], "cannot be written"),
    ],
)
def test_mistakes_are_one_message(
    llama_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    given = [argument.format(model=llama_file, text=text, folder=tmp_path) for argument in arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error(run_file: Path) -> None:
    command = f"{sys.executable} -m gguf_harness.cli report {run_file} --markdown | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Which suite? Suites: attention, embeddings, heads, kv, layers, lora, quant; `all` runs every one."),
        (["nothing"], "There is no suite 'nothing'.\n  Suites: attention"),
        (["qaunt", "--models=missing.gguf"], "There is no suite 'qaunt'.\n  Did you mean 'quant'? Suites: attention"),
        (["attention", "al", "-x"], "There is no suite 'al'.\n  Did you mean 'all'?"),
        (["quant", "--gguf-quats=Q8_0"], "There is no option --gguf-quats.\n  Did you mean --gguf-quants?"),
        (["all", "--model", "tiny"], "There is no option --model.\n  Did you mean --models?"),
        (["quant", "--gguf-xyz"], "There is no option --gguf-xyz."),
        (["qaunt", "--help"], "There is no suite 'qaunt'."),
    ],
)
def test_mistakes_of_run_are_told_before_any_work(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["run", *words]) == pytest.ExitCode.USAGE_ERROR
    told = capsys.readouterr()
    assert told.err.startswith(f"gguf-harness: {message}")
    assert told.out == ""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of pytest, which would take the place of this process."""
    kept: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, arguments: kept.extend(arguments))
    monkeypatch.setenv(TYPED, "")  # so that it is reset
    return kept


@pytest.mark.parametrize(
    ("words", "suites", "options"),
    [
        (["quant", "attention", "-k", "heads or x"], ["quant", "attention"], ["-k", "heads or x"]),
        (["all", "-x"], ["attention", "embeddings", "heads", "kv", "layers", "lora", "quant"], ["-x"]),
        (["-v", "quant"], ["quant"], ["-v"]),
        (["quant", "--models=tiny", "heads", "quant"], ["quant", "heads"], ["--models=tiny"]),
        (["quant", "--", "--gguf-no"], ["quant"], ["--", "--gguf-no"]),
        (["quant", "--benchmark-only", "--reruns=2"], ["quant"], ["--benchmark-only", "--reruns=2"]),
    ],
)
def test_run_takes_suites_and_the_options_of_pytest(
    executed: list[str], words: list[str], suites: list[str], options: list[str]
) -> None:
    main(["run", *words])
    paths = [Path(word) for word in executed if Path(word).parent.name == "suites"]
    assert [path.name for path in paths] == suites
    assert all((path / "__init__.py").is_file() for path in paths)
    assert executed[-len(options) :] == options
    assert shlex.split(os.environ[TYPED]) == ["gguf-harness", "run", *words]


def test_run_explains_the_options_of_its_suites(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["run", "quant", "--help"]) == 0
    of_quant = capsys.readouterr().out
    for words in (
        "What does quantization cost",
        "--models SPEC",
        "--gguf-quants TYPE",
        "--gguf-pp TOKENS",
        "--collect-only",
    ):
        assert words in of_quant
    of_others = ("--gguf-head-limit", "--gguf-words", "--gguf-haystacks", "--gguf-depths", "--gguf-lora", "--basetemp")
    assert not any(other in of_quant for other in of_others)
    for suite, own in (("kv", ("--gguf-haystacks", "--gguf-depths", "--gguf-pp")), ("lora", ("--gguf-lora-corpus",))):
        assert main(["run", suite, "-h"]) == 0
        assert set(own) <= set(capsys.readouterr().out.split()), suite
    assert main(["run", "heads", "embeddings", "-h"]) == 0
    assert {"--gguf-head-limit", "--gguf-words"} <= set(capsys.readouterr().out.split())
    assert main(["run", "--help"]) == 0
    of_all = capsys.readouterr().out
    assert all(name in of_all for name in option_attributes())
    suites = [path.name for path in SUITES.iterdir() if (path / "__init__.py").is_file()]
    assert all(re.search(rf"^  {suite} +\S+.*\?$", of_all, re.MULTILINE) for suite in suites)
    assert set(OPTIONS_OF_SUITES) <= set(option_attributes())
    assert {suite for of in OPTIONS_OF_SUITES.values() for suite in of} <= set(suites)


def test_the_script_lists_suites() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gguf_harness.cli", "run", "list"], capture_output=True, text=True, check=True
    )
    assert "quant" in done.stdout.split()
