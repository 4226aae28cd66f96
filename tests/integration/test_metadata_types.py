"""llama.cpp itself with metadata of wrong types: it refuses, or it dies, and both are one message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import HarnessError, InvalidGGUF
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import ModelSource
from tests.integration.small_bert import write_small_bert
from tests.integration.small_models import ARCHITECTURES, write_small_model
from tests.random_llama import write_random_llama
from tests.raw_gguf import array, read_raw, scalar, string
from tests.unit.test_gguf_metadata import KEYS

pytestmark = pytest.mark.model

VALUES = {"bool": scalar(7, True), "float": scalar(6, 2.5), "text": string("2"), "large": scalar(4, 2**32 - 1)}
SETTINGS = SessionSettings(n_ctx=16, n_batch=16, n_ubatch=16, threads=1, n_gpu_layers=0)


def decode(worker: WorkerContext, files: Sequence[Path]) -> int:
    """Load a model, and use it."""
    context = worker.context(files, SETTINGS)
    context.prefill(context.model.tokenize("some words"))
    return context.model.vocabulary.n_tokens


def test_what_llama_cpp_makes_of_wrong_types_is_an_error_or_an_answer(tmp_path: Path) -> None:
    """What is refused by us is not tried; of the rest, one key after the other with one value after the other."""
    raw = read_raw(write_random_llama(tmp_path / "sound.gguf", width=32, n_layer=1, chat_template="{{ x }}"))
    tried, refused = 0, 0
    with Worker("fuzz", tmp_path / "log", timeout_s=60) as worker:
        for number, key in enumerate(KEYS):
            for kind, value in list(VALUES.items())[number % 2 :: 2]:
                file = raw.write(tmp_path / f"{kind}.gguf", {key: value})
                try:
                    load_info(ModelSource(kind, (file,), kind))
                except InvalidGGUF:
                    refused += 1
                    continue
                tried += 1
                try:
                    assert worker.call(decode, None, [file]) > 0
                except HarnessError as error:
                    assert str(error).replace("\n", "").isprintable()  # noqa: PT017 - either is right
        assert worker.call(decode, None, [raw.write(tmp_path / "m.gguf", {})]) == 258
    assert (refused > 20, tried > 10) == (True, True)


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "t5", "t5encoder", "bert"])
def test_what_llama_cpp_takes_is_not_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"{kind}.gguf"
    write_small_bert(file) if kind == "bert" else write_small_model(file, kind, 2)
    info = load_info(ModelSource(kind, (file,), kind))
    assert info.n_layer == 2


def test_scores_are_refused_before_they_are_read_beyond_their_end(tmp_path: Path) -> None:
    """llama.cpp takes the array's numbers for floats, whatever they are."""
    raw = read_raw(write_random_llama(tmp_path / "sound.gguf", width=32, n_layer=1))
    file = raw.write(tmp_path / "scores.gguf", {"tokenizer.ggml.scores": array(0, [1])})
    with pytest.raises(InvalidGGUF, match=r"tokenizer\.ggml\.scores is \(1,\) \(array of uint8\)"):
        load_info(ModelSource("scores", (file,), "scores"))
