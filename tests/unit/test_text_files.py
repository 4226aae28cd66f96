"""Files that people write: every reader takes the same encodings, and says the same of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_harness.errors import HarnessError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.prompts import load_prompts
from gguf_harness.inputs.words import load_words
from gguf_harness.judge.baseline_reader import load_baseline
from gguf_harness.judge.gates import load_gates
from gguf_harness.store.runs import load_run

PROMPTS = '[[prompt]]\r\nid = "a"\r\ntext = "é"\r\n'
WORDS = '[groups]\na = ["é", "c"]\nb = ["d", "e"]\n'
GATES = "[kld_mean]\nlimit = 0.5\n"
RUN = '{"schema_version": 1, "id": "a", "estimates": []}'
BASELINE = '{"baseline_version": 1, "engine": null, "corpus": null, "reference": null, "models": {}}'

READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "prompts": (load_prompts, PROMPTS),
    "words": (load_words, WORDS),
    "gates": (load_gates, GATES),
    "run": (load_run, RUN),
    "baseline": (load_baseline, BASELINE),
    "corpus": (lambda path: load_corpus(str(path)).text, "some text, é"),
}
TOML = ("prompts", "words", "gates")
JSON = ("run", "baseline")


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_changes_nothing(reader: str, tmp_path: Path) -> None:
    read, text = READERS[reader]
    plain, marked = tmp_path / "1" / "x", tmp_path / "2" / "x"
    for file, encoding in ((plain, "utf-8"), (marked, "utf-8-sig")):
        file.parent.mkdir()
        file.write_bytes(text.encode(encoding))
    assert read(plain) == read(marked)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[a]\n".encode("utf-16"), "is UTF-16, expected UTF-8"),
        ("[a]\n".encode("utf-32"), "is UTF-32, expected UTF-8"),
        ("[a]\n".encode("utf-16-le"), "is not UTF-8 text: byte 0x00 at offset 1, as in UTF-16 without a byte order"),
        (b"[a]\nb = '\xe9'\n", "is not UTF-8 text: byte 0xe9 at offset 9, line 2"),
        (b"\xef\xbb\xbf[a]\nb = '\xe9'\n", "byte 0xe9 at offset 12, line 2"),
    ],
)
def test_other_encodings_are_named(reader: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(HarnessError, match=message):
        READERS[reader][0](file)


@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_be_read_is_one_message(reader: str, tmp_path: Path) -> None:
    read = READERS[reader][0]
    with pytest.raises(HarnessError, match="directory"):
        read(tmp_path)
    with pytest.raises(HarnessError, match=r"No such file|neither a known name nor a file"):
        read(tmp_path / "missing\udcff")


@pytest.mark.parametrize("reader", TOML)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a\n", r"is not TOML: .*\(at line 1, column 3\)"),
        ("a = " + "[" * 5000, "is not TOML: maximum recursion"),
        ("a = " + "1" * 5000, "is not TOML: Exceeds the limit"),
        ("a = '\0'\n", "byte 0x00 at offset 5"),
    ],
)
def test_what_is_no_toml_is_one_message(reader: str, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(HarnessError, match=message):
        READERS[reader][0](file)


@pytest.mark.parametrize("reader", JSON)
@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, '{"a": NaN}', '{"a": -1e999}', "1" * 5000])
def test_what_is_no_json_is_one_message(reader: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(HarnessError, match="cannot be read as JSON"):
        READERS[reader][0](file)
