"""Attention of prompts that cannot be, disks that are full and workers that are killed; which patterns are kept."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import gguf_harness
from gguf_harness.engine.worker import ProgressCallback, Worker
from gguf_harness.errors import EngineCrashed, HarnessError, OptionError, PromptError, StoreError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.prompts import Prompt, PromptSet
from gguf_harness.measure.attention.activations import ActivationReader
from gguf_harness.measure.attention.calls import Attention
from gguf_harness.measure.attention.pattern_results import HeadBehaviour
from gguf_harness.measure.attention.tasks import observe_attention
from tests.integration.attention_setup import make_request, make_runner, read_attention
from tests.integration.small_models import write_small_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker("tests", tmp_path_factory.mktemp("worker") / "worker.log") as worker:
        yield worker


GOOD = (Prompt("good", "The quick brown fox jumps over the lazy dog."), Prompt("also", "Two words, or three."))
BAD = (Prompt("empty", ""), Prompt("long", "word " * 20_000))
ODD = (
    Prompt("special", "<|bos|><|im_end|><s0></s>"),
    Prompt("script", "</script><img src=x onerror=alert(1)>"),
    Prompt("control", "\0\x1b[2J\r\n\x07\x85\u202e \0"),
    Prompt("emoji", "👩‍👩‍👧 é ﷽"),
)


def test_a_bad_prompt_costs_itself_alone(worker: Worker, llama_file: Path, tmp_path: Path) -> None:
    """The model has no BOS, and a context of 512."""
    alone = worker.call(observe_attention, None, make_request(llama_file, tmp_path / "a", GOOD))
    among = worker.call(observe_attention, None, make_request(llama_file, tmp_path / "b", (*BAD, *GOOD, *ODD)))
    assert among["prompts"].tolist() == [prompt.id for prompt in (*GOOD, *ODD)]
    first, second = among["problems"].tolist()
    assert "prompt 'empty': it has no tokens" in first
    assert "prompt 'long': 100000 tokens do not fit into the model's context of 512" in second
    np.testing.assert_array_equal(among["sums"][:2], alone["sums"])
    behaviour = HeadBehaviour.of(among)
    assert all(np.isfinite(estimate.value) for estimate in behaviour.estimates())
    with pytest.raises(PromptError, match="No prompt can be decoded"):
        worker.call(observe_attention, None, make_request(llama_file, tmp_path / "c", BAD))
    with pytest.raises(PromptError, match="it has no tokens"):
        read_attention(worker, llama_file, BAD[0])
    with pytest.raises(PromptError, match="100000 tokens do not fit into the model's context of 512"):
        read_attention(worker, llama_file, BAD[1])


@pytest.mark.parametrize("prompt", ODD, ids=lambda prompt: prompt.id)
def test_odd_texts_are_texts(worker: Worker, llama_file: Path, prompt: Prompt) -> None:
    reply = read_attention(worker, llama_file, prompt)
    # Every byte is there, the zeros at the ends of pieces too, and no text became a special token.
    assert b"".join(reply["pieces"].tolist()) == prompt.plain().encode()


def test_a_set_that_takes_too_much_leaves_nothing(worker: Worker, llama_file: Path, tmp_path: Path) -> None:
    whole = worker.call(observe_attention, None, make_request(llama_file, tmp_path / "whole", GOOD))
    size = (tmp_path / "whole" / "activations.bin").stat().st_size
    for limit, fits in ((100, False), (size - 1, False), (size, True)):
        request = replace(make_request(llama_file, tmp_path / "part", GOOD), limit_bytes=limit)
        with contextlib.nullcontext() if fits else pytest.raises(StoreError, match="would take more than"):
            assert worker.call(observe_attention, None, request)["prompts"].tolist() == whole["prompts"].tolist()
        assert ActivationReader.is_there(tmp_path / "part") is fits
        assert any((tmp_path / "part").iterdir()) is fits


class _Killer:
    """Progress that kills the worker of its core when it is about to decode the second prompt."""

    def __init__(self) -> None:
        self.kills = 1
        self._others = {child.pid for child in psutil.Process().children()}

    @contextlib.contextmanager
    def task(self, label: str, unit: str) -> Iterator[ProgressCallback]:
        yield lambda done, _: self._see(done) if label.startswith("attention") and unit == "prompts" else None

    def _see(self, done: int) -> None:
        if done == 1 and self.kills:
            self.kills -= 1
            for child in psutil.Process().children():
                if child.pid not in self._others and "worker_context" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)


def test_what_a_killed_worker_left_does_not_count(llama_file: Path, tmp_path: Path) -> None:
    # Enough of them, so that it is not done before the signal comes.
    many = tuple(Prompt(f"p{i}", f"{i} {GOOD[0].plain()}") for i in range(300))
    prompts, corpus = PromptSet("p", many), load_corpus("pydoc")
    arguments = f"--models={llama_file}"
    core, (model,) = make_runner(tmp_path, arguments, progress=_Killer())
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        Attention(core, prompts, corpus).observe(model)
    # It is not tried again in this session.
    with pytest.raises(EngineCrashed, match="SIGKILL"):
        Attention(core, prompts, corpus).observe(model)
    assert (core.hits, core.misses) == (0, 1)
    core.close()
    (folder,) = (path for path in (tmp_path / "attention").iterdir() if path.is_dir())
    assert not ActivationReader.is_there(folder)

    for misses in (1, 0):
        core, (model,) = make_runner(tmp_path, arguments)
        behaviour = Attention(core, prompts, corpus).observe(model)
        assert (core.hits, core.misses) == (1 - misses, misses)
        core.close()
        assert len(behaviour["prompts"]) == 300
    # Numbers without activations are not enough for candidates.
    ActivationReader.discard(folder)
    core, (model,) = make_runner(tmp_path, arguments)
    Attention(core, prompts, corpus).observe(model)
    assert (core.hits, core.misses) == (0, 1)
    assert ActivationReader.is_there(folder)
    core.close()


def test_chosen_layers_and_heads_are_kept(llama_file: Path, tmp_path: Path) -> None:
    prompts, corpus = PromptSet("p", GOOD), load_corpus("pydoc")
    everything, some = (), ("--gguf-layers=1", "--gguf-heads=0,2-3")
    kept = {}
    for arguments in (everything, some):
        core, (model,) = make_runner(tmp_path, f"--models={llama_file}", *arguments)
        kept[arguments] = Attention(core, prompts, corpus).observe(model)
        # Another choice is another measurement.
        assert core.misses == 1
        core.close()
    whole, part = kept[everything], kept[some]
    assert whole["kept"].tolist() == [[layer, head] for layer in range(2) for head in range(4)]
    assert part["kept"].tolist() == [[1, 0], [1, 2], [1, 3]]
    for index in range(2):
        np.testing.assert_array_equal(part[f"pattern_{index}"], whole[f"pattern_{index}"][[4, 6, 7]])
    # What heads do is told of all of them.
    np.testing.assert_array_equal(part["sums"], whole["sums"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gguf-layers=0,2", "--gguf-layers names layer 2, random-F32 has 2 layers.*\n.*from 0 to 1"),
        ("--gguf-heads=3-5", "--gguf-heads names head 4, random-F32 has 4 heads.*\n.*from 0 to 3"),
    ],
)
def test_layers_and_heads_that_are_not_there_are_named(
    llama_file: Path, tmp_path: Path, argument: str, message: str
) -> None:
    core, (model,) = make_runner(tmp_path, f"--models={llama_file}", argument)
    with pytest.raises(OptionError, match=message):
        Attention(core, PromptSet("p", GOOD), load_corpus("pydoc")).observe(model)
    core.close()


def test_a_long_prompt_keeps_its_first_tokens(worker: Worker, llama_file: Path, tmp_path: Path) -> None:
    prompts = (Prompt("p", "word " * 80),)
    reply = worker.call(observe_attention, None, make_request(llama_file, tmp_path, prompts))
    assert reply["lengths"].tolist() == [400]
    assert reply["pattern_0"].shape == (8, 256, 256)
    assert len(reply["pieces_0"]) == 400
    whole = ActivationReader(tmp_path).array("p/1/pattern", 1)
    np.testing.assert_array_equal(reply["pattern_0"][5], whole[1, :256, :256])


def test_a_model_without_a_decoder_is_one_message(tmp_path: Path) -> None:
    file = write_small_model(tmp_path / "encoder.gguf", "t5encoder", 2)
    with pytest.raises(HarnessError):
        gguf_harness.attention(file, "words")
