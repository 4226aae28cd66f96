"""Any key of a file's metadata may hold any type: a description that can be stored, or one message."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.errors import HarnessError, InvalidGGUF, ModelError
from gguf_harness.gguf.header import read_header
from gguf_harness.graphs import ModelStructure
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.models import HELD_OUT_TOPICS, load_info
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.sources import ModelSource
from gguf_harness.measure.heads.layout import read_layout
from gguf_harness.measure.layers.unembedding import ModelFile
from gguf_harness.report.inspect import render_info
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama
from tests.raw_gguf import ARRAY, SCALARS, STRING, RawGGUF, array, read_raw, scalar, string

MUTATIONS = 2000
LARGE = (2**15, 2**31, 2**32 - 1, 2**40, 2**63)
NUMBERS = (0, 1, 2, 127, 255, *LARGE, -1, -(2**31), 0.5, 1e30, float("nan"), float("inf"))
TEXTS = ("", "llama", "4", "\x1b[2J", "a\nb", "</script>", "\u202e", "x" * 5000, b"\xff\xfe", "\U0001f4a9", "\x00")
KEYS = (
    *("general.architecture", "general.file_type", "general.alignment", HELD_OUT_TOPICS, "tokenizer.chat_template"),
    *(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "merges", "scores", "token_type")),
    *(f"tokenizer.ggml.{key}" for key in ("bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix")),
    *(f"llama.{key}" for key in ("block_count", "context_length", "embedding_length", "feed_forward_length")),
    *(f"llama.attention.{key}" for key in ("head_count", "head_count_kv", "layer_norm_rms_epsilon")),
    *("llama.attention.layer_norm_epsilon", "llama.logit_scale", "llama.final_logit_softcapping"),
    *("llama.rope.freq_base", "llama.rope.dimension_count", "llama.vocab_size", "split.count", "general.name"),
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawGGUF:
    file = write_random_llama(tmp_path_factory.mktemp("raw") / "m.gguf", width=32, n_layer=1, chat_template="{{ x }}")
    return read_raw(file)


def _number(kind: int, chosen: random.Random) -> float:
    """A number that a type has."""
    value = chosen.choice(NUMBERS)
    if kind == 7:
        return bool(value)
    if SCALARS[kind] in "fd":
        return float(np.float32(value)) if kind == 6 else float(value)
    bits = 8 * np.dtype(SCALARS[kind]).itemsize
    whole = int(value) % 2**bits if np.isfinite(value) else 0
    return whole - 2**bits if SCALARS[kind].islower() and whole >= 2 ** (bits - 1) else whole


def _value(chosen: random.Random) -> bytes:
    """A value of any type, as it stands in a file."""
    kind = chosen.choice([*SCALARS, STRING, ARRAY, ARRAY])
    if kind == STRING:
        return string(chosen.choice(TEXTS))
    if kind != ARRAY:
        return scalar(kind, _number(kind, chosen))
    inner, count = chosen.choice([*SCALARS, STRING]), chosen.choice([0, 1, 2, 300, 5000])
    texts = TEXTS[:-4]
    return array(inner, [chosen.choice(texts) if inner == STRING else _number(inner, chosen) for _ in range(count)])


def _mutations(count: int) -> Iterator[dict[str, bytes | None]]:
    """Each key with several values, then several keys at once."""
    chosen = random.Random(7)  # noqa: S311 - it chooses tests
    for number in range(count):
        keys = [KEYS[number % len(KEYS)]] if number % 4 else chosen.sample(KEYS, 2)
        yield {key: None if chosen.random() < 0.05 else _value(chosen) for key in keys}


def _describe(file: Path) -> None:
    """Everything that reads metadata of a model without llama.cpp."""
    info = load_info(ModelSource("m", (file,), "m"))
    json.dumps(info.to_json(), allow_nan=False)
    assert {type(value) for value in info.to_json().values()} <= {str, int, float, bool, list, dict, type(None)}
    assert render_info(info, color=False).replace("\n", "").isprintable()
    ModelStructure("m", [read_header(file)]).build()


def _read_scale(file: Path) -> None:
    ModelFile([file]).number("logit_scale")


def _problem(read: Callable[[Path], object], file: Path) -> HarnessError | None:
    try:
        read(file)
    except HarnessError as error:
        return error
    return None


def test_any_types_give_a_description_or_a_message(raw: RawGGUF, tmp_path: Path) -> None:
    refused = 0
    for changes in _mutations(MUTATIONS):
        file = raw.write(tmp_path / "m.gguf", changes)
        problems = [_problem(read, file) for read in (_describe, read_layout, _read_scale)]
        refused += problems[0] is not None
        for problem in filter(None, problems):
            assert isinstance(problem, ModelError)
            assert "m.gguf" in problem.message
            assert len(problem.message) < 600
            assert str(problem).replace("\n", "").isprintable()
    # A fuzz that nothing stops, or that reaches nothing, tests nothing.
    assert MUTATIONS // 20 < refused < MUTATIONS - MUTATIONS // 20


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", scalar(4, 7), "general.architecture is 7 (uint32), expected a text"),
        ("general.architecture", string("a\x1bb"), "expected at most 200 printable characters"),
        ("general.file_type", string("Q8_0"), "general.file_type is 'Q8_0' (string), expected a whole number"),
        ("general.file_type", scalar(7, True), "general.file_type is True (bool)"),
        ("general.alignment", string("32"), "general.alignment is '32' (string)"),
        ("llama.block_count", scalar(6, 2.0), "llama.block_count is 2.0 (float32)"),
        ("llama.block_count", scalar(4, 10**9), "expected a whole number of 0 to 10000"),
        ("llama.block_count", scalar(5, -1), "llama.block_count is -1 (int32)"),
        ("llama.context_length", scalar(10, 2**40), "expected a whole number of 0 to 2147483647"),
        ("llama.attention.head_count", array(4, []), "or one for each of 1 layers"),
        (
            "llama.attention.head_count",
            array(STRING, ["4"]),
            "head_count is 1 elements (array of string)",
        ),
        ("llama.attention.head_count_kv", array(5, [-1]), "is (-1,) (array of int32)"),
        ("llama.attention.layer_norm_rms_epsilon", scalar(6, float("nan")), "expected a finite number"),
        ("tokenizer.ggml.tokens", array(4, [1, 2]), "(array of uint32), expected an array of string"),
        ("tokenizer.ggml.token_type", array(0, [1] * 258), "expected an array of int32 or uint32"),
        ("tokenizer.ggml.token_type", array(5, [1] * 9), "expected one for each of 258 tokens"),
        ("tokenizer.ggml.model", array(STRING, ["gpt2"]), "expected a text"),
        ("tokenizer.chat_template", scalar(7, True), "expected a text"),
        ("tokenizer.ggml.add_bos_token", scalar(4, 1), "expected true or false"),
        (HELD_OUT_TOPICS, array(STRING, ["if", "for"]), "expected a text"),
    ],
)
def test_a_wrong_type_is_named(raw: RawGGUF, tmp_path: Path, key: str, value: bytes, message: str) -> None:
    file = raw.write(tmp_path / "bad.gguf", {key: value})
    with pytest.raises(InvalidGGUF) as caught:
        load_info(ModelSource("bad", (file,), "bad"))
    assert f"bad.gguf is not a valid GGUF model: {key} is " in str(caught.value)
    assert message in str(caught.value)


def test_heads_may_be_counted_by_layer(raw: RawGGUF, tmp_path: Path) -> None:
    file = raw.write(tmp_path / "m.gguf", {"llama.attention.head_count": array(5, [4])})
    info = load_info(ModelSource("m", (file,), "m"))
    assert (info.n_layer, info.n_head) == (1, None)
    assert read_layout(file).heads == (4,)
    zero = raw.write(tmp_path / "z.gguf", {"llama.attention.head_count": scalar(4, 0)})
    with pytest.raises(ModelError, match="expected plausible numbers"):
        read_layout(zero)


def test_the_reference_is_chosen_among_sound_files(raw: RawGGUF, tmp_path: Path) -> None:
    """Three broken files of the highest precision, of one vocabulary, beside a sound one."""
    sound = raw.write(tmp_path / "a-sound.gguf", {})
    broken: dict[str, Any] = {
        "b.gguf": {"llama.block_count": string("2")},
        "c.gguf": {HELD_OUT_TOPICS: scalar(4, 1)},
        "d.gguf": {"tokenizer.ggml.tokens": scalar(4, 1)},
    }
    for name, changes in broken.items():
        raw.write(tmp_path / name, changes)
    arguments = ["-p", "no:cacheprovider", f"--models={tmp_path}"]
    ladder = plan_ladder(read_options(parse_command_line(*arguments)))
    assert ladder.reference is not None
    assert ladder.reference.name == "a-sound"
    assert ladder.reference.model.source is not None
    assert ladder.reference.model.source.files == (sound,)
    assert [model.name for model in ladder.candidates] == ["b", "c", "d"]
    assert "precision given" in ladder.reason
