"""Adapters on disk: what is wrong with one is said in a message before llama.cpp sees it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.errors import HarnessError, InvalidGGUF, ModelError
from gguf_harness.gguf.lora_files import read_lora
from gguf_harness.inputs.adapters import adapted_tensors, check_fits, load_adapter
from gguf_harness.inputs.models import ModelInfo, load_info
from gguf_harness.inputs.sources import ModelSource
from tests.random_llama import write_random_llama
from tests.random_lora import EVERY_MATRIX, write_lora, write_random_lora
from tests.raw_gguf import array, read_raw, scalar, string

Array = NDArray[Any]
Q = "blk.0.attn_q.weight"


def _of(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, Array]:
    return {f"{name}.lora_a": np.ones(a, dtype=np.float32), f"{name}.lora_b": np.ones(b, dtype=np.float32)}


SOUND = _of(Q, (4, 256), (256, 4))


@pytest.fixture
def model(llama_file: Path) -> ModelInfo:
    return load_info(ModelSource("model", (llama_file,), "model"))


def test_a_sound_adapter_fits(llama_file: Path, model: ModelInfo, tmp_path: Path) -> None:
    file = write_random_lora(tmp_path / "lora.gguf", llama_file, rank=4, alpha=6)
    adapter = load_adapter(file, tmp_path, scale=0.5)
    check_fits(adapter, model)
    assert str(adapter) == "lora:0.5"
    lora = read_lora(file)
    assert (lora.architecture, lora.alpha, lora.rank, lora.ignored) == ("llama", 6, 4, ())
    assert (
        adapted_tensors(adapter) == set(lora.pairs) == {f"blk.{i}.{m}.weight" for i in range(2) for m in EVERY_MATRIX}
    )
    assert {lora.factor(pair) for pair in lora.pairs.values()} == {1.5}
    gate = lora.pairs["blk.1.ffn_gate.weight"]
    assert (gate.shape, gate.rank) == ((256, 512), 4)


def test_without_alpha_the_scale_stands_alone(tmp_path: Path) -> None:
    lora = read_lora(write_lora(tmp_path / "lora.gguf", SOUND, alpha=None))
    assert lora.alpha == 0
    assert lora.factor(lora.pairs[Q]) == 1


def test_ranks_may_differ_between_matrices_and_norms_are_left_out(model: ModelInfo, tmp_path: Path) -> None:
    norm = {"blk.0.attn_norm.weight": np.ones(256, dtype=np.float32)}
    file = write_lora(tmp_path / "lora.gguf", SOUND | _of("blk.1.attn_q.weight", (9, 256), (256, 9)) | norm)
    lora = read_lora(file)
    assert {name: pair.rank for name, pair in lora.pairs.items()} == {Q: 4, "blk.1.attn_q.weight": 9}
    assert (lora.rank, lora.ignored) == (9, ("blk.0.attn_norm.weight",))
    check_fits(load_adapter(file, tmp_path), model)


NOT_FINITE = {**SOUND, f"{Q}.lora_b": np.where(np.arange(1024).reshape(256, 4) < 3, np.nan, 1).astype(np.float32)}


@pytest.mark.parametrize(
    ("tensors", "change", "problem"),
    [
        (SOUND, {"kind": "model"}, r"bad.gguf is no LoRA adapter: its general\.type is 'model' and its adapter\.type"),
        (SOUND, {"adapter": "ia3"}, r"its adapter\.type is 'ia3', expected 'adapter' and 'lora'"),
        (SOUND, {"alpha": float("nan")}, r"adapter\.lora\.alpha is nan \(float32\), expected a finite number"),
        (SOUND, {"activated": True}, r"bad\.gguf is an activated LoRA \(adapter\.alora\.invocation_tokens\)"),
        (SOUND, {"architecture": ""}, r"general\.architecture is missing, expected the architecture of its model"),
        ({}, {}, r"it has no tensor that ends in \.lora_a or \.lora_b: it would change nothing"),
        (
            {f"{Q}.lora_a": SOUND[f"{Q}.lora_a"]}, {},
            r"blk\.0\.attn_q\.weight\.lora_b is missing, expected a pair of \.lora_a and \.lora_b for each matrix",
        ),
        ({f"{Q}.lora_b": SOUND[f"{Q}.lora_b"]}, {}, r"blk\.0\.attn_q\.weight\.lora_a is missing"),
        (SOUND | {"blk.0.attn_q.lora": np.ones((4, 4), np.float32)}, {}, r"it has a tensor 'blk\.0\.attn_q\.lora'"),
        (
            _of(Q, (4, 256), (256, 5)), {},
            r"the rank of blk\.0\.attn_q\.weight is 4 in blk\.0\.attn_q\.weight\.lora_a \[256, 4\] and 5 in"
            r" blk\.0\.attn_q\.weight\.lora_b \[5, 256\], expected the same",
        ),
        (_of("token_embd.weight", (258, 4), (256, 5)), {}, r"the rank of token_embd\.weight is 4 in .* and 5 in"),
        (_of(Q, (256,), (256, 4)), {}, r"lora_a has shape \[256\], expected a matrix, or one for each expert"),
        (_of(Q, (1, 2, 4, 256), (256, 4)), {}, r"lora_a has shape \[256, 4, 2, 1\], expected a matrix"),
        (_of("blk.0.ffn_up_exps.weight", (2, 4, 8), (3, 8, 4)), {}, r"lora_a is for \[2\] experts and .*_b for \[3\]"),
        (
            {f"{Q}.lora_a": np.ones((4, 256), np.int32), f"{Q}.lora_b": SOUND[f"{Q}.lora_b"]}, {},
            r"lora_a has type I32, expected one of F32, F16, BF16, Q8_0",
        ),
        (NOT_FINITE, {}, r"3 of 1024 weights of blk\.0\.attn_q\.weight\.lora_b are not finite"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_says_why(
    tmp_path: Path, tensors: dict[str, Array], change: dict[str, Any], problem: str
) -> None:
    file = write_lora(tmp_path / "bad.gguf", tensors, **change)
    with pytest.raises(ModelError, match=problem) as caught:
        load_adapter(file, tmp_path)
    assert "bad.gguf" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        # llama.cpp's readers of these keys end the process where the type is another.
        ("adapter.lora.alpha", scalar(4, 8), r"adapter\.lora\.alpha is 8 \(uint32\), expected a float32"),
        ("adapter.lora.alpha", string("8"), r"adapter\.lora\.alpha is '8' \(string\), expected a finite number"),
        ("general.type", scalar(4, 1), r"its general\.type is 1 and"),
        (
            "adapter.type",
            array(8, ["lora"]),
            r"is no LoRA adapter: its general\.type is 'adapter' and its adapter\.type",
        ),
        ("general.architecture", scalar(4, 1), r"general\.architecture is 1 \(uint32\), expected a text"),
        ("adapter.alora.invocation_tokens", scalar(4, 1), r"is 1 \(uint32\), expected an array of uint32"),
        ("adapter.alora.invocation_tokens", array(5, [1]), r"\(array of int32\), expected an array of uint32"),
    ],
)
def test_metadata_of_another_type_is_refused(tmp_path: Path, key: str, value: bytes, problem: str) -> None:
    raw = read_raw(write_lora(tmp_path / "sound.gguf", SOUND))
    with pytest.raises(ModelError, match=problem):
        load_adapter(raw.write(tmp_path / "bad.gguf", {key: value}), tmp_path)


def test_a_truncated_adapter_is_refused(tmp_path: Path) -> None:
    whole = write_lora(tmp_path / "whole.gguf", SOUND).read_bytes()
    file = tmp_path / "short.gguf"
    for size in (0, 3, 20, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InvalidGGUF, match=r"short\.gguf is (not a valid GGUF file: it|empty)"):
            load_adapter(file, tmp_path)


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidGGUF, match=r"missing\.gguf is not a file"):
        load_adapter(tmp_path / "missing.gguf", tmp_path)


@pytest.mark.parametrize(
    ("tensors", "architecture", "problem"),
    [
        (SOUND, "qwen2", "The adapter bad was made for the architecture 'qwen2', model is of 'llama'."),
        (
            _of(Q, (4, 264), (256, 4)), "llama",
            "The adapter bad changes a matrix blk.0.attn_q.weight of [264, 256], that of model is [256, 256].",
        ),
        (_of(Q, (4, 256), (128, 4)), "llama", "of [256, 128], that of model is [256, 256]."),
        (_of(Q, (2, 4, 256), (2, 256, 4)), "llama", "of [256, 256, 2], that of model is [256, 256]."),
        (
            _of("blk.7.attn_q.weight", (4, 256), (256, 4)), "llama",
            "The adapter bad changes 'blk.7.attn_q.weight', which model does not have; the closest name is 'blk.",
        ),
        (_of("blk.0.attn_norm.weight", (4, 256), (1, 4)), "llama", "of [256, 1], that of model is [256]."),
        (
            _of("token_embd.weight", (258, 4), (256, 4)), "llama",
            "The adapter bad changes token_embd.weight, which is model's output matrix too: llama.cpp aborts",
        ),
    ],
)  # fmt: skip
def test_an_adapter_of_another_model_is_refused(
    model: ModelInfo, tmp_path: Path, tensors: dict[str, Array], architecture: str, problem: str
) -> None:
    adapter = load_adapter(write_lora(tmp_path / "bad.gguf", tensors, architecture=architecture), tmp_path)
    with pytest.raises(ModelError, match=re.escape(problem)):
        check_fits(adapter, model)


def test_an_adapter_of_embeddings_fits_where_the_output_is_another_matrix(tmp_path: Path) -> None:
    info = load_info(ModelSource("m", (write_random_llama(tmp_path / "untied.gguf", untied=True),), "m"))
    file = write_lora(tmp_path / "lora.gguf", _of("token_embd.weight", (258, 4), (256, 4)))
    (pair,) = read_lora(file).pairs.values()
    assert (pair.shape, pair.rank, pair.of_embeddings) == ((256, 258), 4, True)
    check_fits(load_adapter(file, tmp_path), info)


def test_any_damage_is_a_message(tmp_path: Path) -> None:
    """A byte changed anywhere in the header: an adapter that is read, or an error of ours."""
    whole = bytearray(write_lora(tmp_path / "whole.gguf", SOUND).read_bytes())
    file, random = tmp_path / "damaged.gguf", np.random.default_rng(0)
    for _ in range(300):
        damaged = whole.copy()
        damaged[int(random.integers(400))] = int(random.integers(256))
        file.write_bytes(damaged)
        with contextlib.suppress(HarnessError):
            assert load_adapter(file, tmp_path).sha256
