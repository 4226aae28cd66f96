"""What is certain to fail is named before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.errors import HarnessError
from gguf_harness.pytest_plugin.checks import check_options
from gguf_harness.pytest_plugin.state import State
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama


def _check(*arguments: str, **values: object) -> None:
    config = parse_command_line(*arguments)
    vars(config.option).update(values)
    check_options(State(config, "run"), measures=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checks")
    write_random_llama(folder / "small-F32.gguf")
    folder.joinpath("empty.txt").write_text("")
    folder.joinpath("latin.txt").write_bytes(b"caf\xe9 " * 100)
    return folder


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gguf-corpus={folder}/missing.txt", "is neither a known name nor a file"),
        ("--gguf-corpus={folder}/empty.txt", "is empty"),
        ("--gguf-corpus={folder}/latin.txt", "is not UTF-8 text: byte 0xe9 at offset 3"),
        ("--gguf-corpus={folder}", "cannot be read: Is a directory"),
        ("--gguf-imatrix={folder}/latin.txt", "expected b'GGUF'"),
        ("--gguf-imatrix={folder}/small-F32.gguf", "contains no importance matrix"),
        ("--gguf-quants=Q8_0,IQ1_S", "IQ1_S needs an importance matrix"),
        ("--gguf-layers=0,2", "--gguf-layers names layer 2, and no model has more than 2 layers"),
        ("--gguf-heads=4", "--gguf-heads names head 4, and no model has more than 4 heads"),
        ("--reference=", "--reference is empty"),
        ("--gguf-baseline=missing", "missing"),
        ("--gguf-baseline=", "--gguf-baseline is empty"),
        ("--gguf-gates=/dev/null", "--gguf-gates=/dev/null: a folder, a pipe or a device."),
    ],
)
def test_mistakes_are_named(folder: Path, argument: str, message: str) -> None:
    with pytest.raises(HarnessError) as caught:
        _check(f"--models={folder}/small-F32.gguf", argument.format(folder=folder))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gguf-ctx=4294967808", "is too large, expected at most 16777216"),
        ("--gguf-threads=513", "is too large, expected at most 512"),
        ("--gguf-chunks=99999999999", "is too large"),
        ("--gguf-gpu=99999999999", "is too large"),
        ("--gguf-timeout=inf", "seconds are too many"),
        ("--gguf-timeout=1e9", "seconds are too many"),
        ("--gguf-timeout=nan", "expected more than 0 seconds"),
        ("--gguf-logprobs-limit=nan", "is not a size in bytes"),
        ("--gguf-logprobs-limit=infG", "is not a size in bytes"),
        ("--gguf-cache-limit=0.5", "is not a size in bytes"),
        ("--gguf-ctx=" + "9" * 5000, "is not a whole number, expected at least 8"),
        ("--gguf-chunks=ALL", "'ALL' is not a whole number, expected at least 2, or `all`"),
    ],
)
def test_values_that_nothing_can_have(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((pytest.UsageError, SystemExit)) as caught:
        _check(argument)
    assert message in f"{caught.value}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gguf_ctx", "0", "--gguf-ctx: 0 is too small, expected at least 8."),
        ("gguf_ctx", 4.5, "--gguf-ctx: '4.5' is not a whole number"),
        ("gguf_windows", "last", "--gguf-windows is 'last', expected one of sampled, first."),
        ("gguf_holm", "yes", "--gguf-holm is 'yes', expected True or False."),
        ("gguf_corpus", 7, "--gguf-corpus is 7, expected a text."),
        ("models", 7, "--models is 7, expected a text or a list of texts."),
    ],
)
def test_values_of_a_conftest_are_checked(folder: Path, name: str, value: object, message: str) -> None:
    with pytest.raises(HarnessError) as caught:
        _check(f"--models={folder}/small-F32.gguf", **{name: value})
    assert message in str(caught.value)


def test_a_conftest_may_write_what_people_write(folder: Path) -> None:
    values = {"models": f"{folder}/small-F32.gguf", "gguf_results": str(folder / "res"), "gguf_ctx": "64"}
    _check(**values, gguf_chunks=4, gguf_layers="0-1")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[kld_meen]\nlimit = 0.1", "gates.toml: Unknown metric 'kld_meen'.\n  Did you mean 'kld_mean'?"),
        ("[same_top]\nlimit = 80", "Shares are fractions: 80 % is 0.8."),
        ("[delta_p_rms]\nlimit = 10", "Shares are fractions: 10 % is 0.1."),
        ("[same_top]\nlimit = -0.5", "same_top lies between 0 and 1"),
        ("[kld_mean]\nlimit = -1", "kld_mean lies between 0 and inf"),
        ("[ppl]\nlimit = 0.5", "ppl lies between 1 and inf"),
        ("[bleu]\nlimit = 101", "bleu lies between 0 and 100"),
        ("[attn_cosine]\nlimit = 99", "attn_cosine lies between -1 and 1"),
        ("[kld_mean]\nlimit = 0.1\nconfidence = 95", "expected between 0.5 and 1"),
        ('[kld_mean]\nlimit = "0.1"', "expected a finite number"),
        ("[kld_mean]\nlimit = nan", "expected a finite number"),
        ("[head_entropy]\nlimit = 1", "head_entropy cannot be gated: neither direction is better"),
        ("[kld_mean\nlimit = 1", "is not TOML"),
    ],
)
def test_gates_that_cannot_decide(folder: Path, table: str, message: str) -> None:
    file = folder / "gates.toml"
    file.write_text(table)
    with pytest.raises(HarnessError) as caught:
        _check(f"--models={folder}/small-F32.gguf", f"--gguf-gates={file}")
    assert message in str(caught.value)


def test_places_that_some_model_has_are_no_mistake(folder: Path, tmp_path: Path) -> None:
    deep = write_random_llama(tmp_path / "deep-F32.gguf", n_layer=3)
    _check(f"--models={folder}/small-F32.gguf,{deep}", "--gguf-layers=2", "--gguf-heads=0-3")
