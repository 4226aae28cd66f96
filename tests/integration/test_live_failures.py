"""A loaded model that is killed, shared, closed, or asked for what it does not have."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from gguf_harness.errors import CorpusError, EngineCrashed, EngineError, HarnessError, NoData, OptionError, PromptError
from gguf_harness.inputs.prompts import Message, Prompt
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.requests import Ablation, Sampling
from tests.integration.live_oracle import SETTINGS, file, live, open_live
from tests.integration.small_bert import write_small_bert
from tests.integration.small_models import write_small_model
from tests.rewritten import rewrite_gguf

__all__ = ["file", "live"]

pytestmark = pytest.mark.model

TEXT = [7, 100, 30, 41, 5, 99, 12]
NOTHING = Ablation()


def _logits(live: LiveModel, ablation: Ablation = NOTHING) -> NDArray[np.float32]:
    logits = live.read(TEXT, ablation).logits
    assert logits is not None
    return logits


def _process(live: LiveModel) -> psutil.Process:
    assert live.worker.pid is not None
    return psutil.Process(live.worker.pid)


# -- killed -----------------------------------------------------------------------------------------------------------


def test_killed_between_requests_and_between_steps(live: LiveModel) -> None:
    before, steps = _logits(live), list(live.steps(TEXT, 4, attention=True))
    for ask in (lambda: live.read(TEXT), lambda: live.pieces(TEXT), lambda: live.unembed(before[:, :256])):
        _process(live).kill()
        with pytest.raises(EngineCrashed, match="live: the worker process died of SIGKILL"):
            ask()
        assert (_logits(live) == before).all()
    going = live.steps(TEXT, 4, attention=True)
    assert next(going).token == steps[0].token
    _process(live).kill()
    with pytest.raises(EngineCrashed):
        next(going)
    again = list(live.steps(TEXT, 4, attention=True))
    assert [step.logprob for step in again] == [step.logprob for step in steps]


def test_killed_while_it_decodes(live: LiveModel) -> None:
    before = _logits(live)
    process = _process(live)
    # Stopped, it has the request for sure when it is killed.
    process.suspend()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.read, TEXT)
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.2)
        process.kill()
        with pytest.raises(EngineCrashed):
            answer.result(timeout=30)
    assert (_logits(live) == before).all()


# -- shared -----------------------------------------------------------------------------------------------------------


def test_threads_get_the_answers_that_one_thread_gets(live: LiveModel) -> None:
    off = Ablation(((1, 2),), (2,))

    def read(seed: int) -> list[NDArray[Any]]:
        text = np.random.default_rng(seed).integers(0, 256, 20).tolist()
        reading = live.read(text, off if seed % 2 else NOTHING)
        assert reading.logits is not None
        return [reading.logits, reading.states["resid_post"], *reading.pattern.values(), live.lens(reading)]

    def write(seed: int) -> list[NDArray[Any]]:
        text = np.random.default_rng(seed).integers(0, 256, 20).tolist()
        steps = list(live.steps(text, 6, off if seed % 2 else NOTHING, Sampling(1.0, seed=seed), attention=True))
        attention = [step.attention for step in steps if step.attention is not None]
        logprobs = np.concatenate([step.logprobs for step in steps])
        return [np.array([step.token for step in steps]), logprobs, *attention]

    def name(seed: int) -> list[NDArray[Any]]:
        tokens, pieces = live.tokenize(f"text number {seed}")
        return [tokens, np.array([*pieces, *live.pieces([seed, seed + 1])])]

    jobs = [functools.partial(task, seed) for seed in range(8) for task in (read, write, name)]
    alone = [job() for job in jobs]
    start = threading.Barrier(8)

    def together(first: int) -> dict[int, list[NDArray[Any]]]:
        start.wait()
        return {at: jobs[at]() for at in range(first, len(jobs), 8)}

    with ThreadPoolExecutor(8) as pool:
        found = {at: arrays for part in pool.map(together, range(8)) for at, arrays in part.items()}
    assert sorted(found) == list(range(len(jobs)))
    for at, expected in enumerate(alone):
        assert len(found[at]) == len(expected)
        # Steps of several texts in turn begin them again, which may round in another way.
        for given, wanted in zip(found[at], expected, strict=True):
            if wanted.dtype.kind == "f":
                assert np.abs(given - wanted).max() < 1e-4, at
            else:
                assert (given == wanted).all(), at


# -- asked for what is not there --------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Callable[[LiveModel], object], type[HarnessError], str]] = {
    "no text": (lambda m: m.read(""), PromptError, "live: it has no tokens.*\n.*not empty"),
    "no tokens": (lambda m: m.read([]), PromptError, r"cannot read 0 tokens\.\n.*at least one"),
    "half a character": (lambda m: m.read("a\udcffb"), PromptError, r"'a\\udcffb' is not valid text\.\n.*UTF-8"),
    "half a character to tokenize": (lambda m: m.tokenize("\ud83d"), PromptError, "is not valid text"),
    "half a character in a chat": (
        lambda m: m.read(Prompt("chat", messages=(Message("user", "a\ud83db"),))), PromptError, "is not valid text",
    ),
    "a long text": (lambda m: m.read("x" * 513), PromptError, "513 tokens do not fit .* context of 512"),
    "too many tokens": (lambda m: m.read([1] * 513), PromptError, "513 tokens do not fit .* context of 512"),
    "an unknown token": (lambda m: m.read([1, 258]), PromptError, "from 1 to 258.*\n.*from 0 to 257"),
    "a negative token": (lambda m: m.read([-1, 3]), PromptError, "from -1 to 3.*\n.*from 0 to 257"),
    "a huge token": (lambda m: m.read([2**70]), PromptError, f"from {2**70} to {2**70}.*\n.*from 0 to 257"),
    "half a token": (lambda m: m.read(cast("Any", [1.5])), OptionError, r"whole numbers, not \[1"),
    "no prompt": (lambda m: m.read(cast("Any", None)), OptionError, "sequence of token ids, .* not None"),
    "the text of an unknown token": (lambda m: m.pieces([258]), PromptError, "from 0 to 257"),
    "the text of nothing": (lambda m: m.pieces([]), PromptError, "at least one token"),
    "a head": (lambda m: m.read(TEXT, Ablation(((1, 4),))), OptionError, r"no head 1\.4.*\n.*1 are 0 to 3\."),
    "a head of a layer": (lambda m: m.read(TEXT, Ablation(((3, 0),))), OptionError, r"no head 3\.0.*\n.*: 0, 1, 2\."),
    "a head from the end": (lambda m: m.read(TEXT, Ablation(((0, -1),))), OptionError, r"no head 0\.-1"),
    "a layer": (lambda m: m.read(TEXT, Ablation(layers=(3,))), OptionError, "no layer 3 .*\n.*0 to 2"),
    "a layer from the end": (lambda m: m.read(TEXT, Ablation(layers=(-1,))), OptionError, "no layer -1"),
    "steps from nothing": (lambda m: next(m.steps([], 1)), PromptError, "at least one token, each from 0 to 257"),
    "steps from an unknown token": (lambda m: next(m.steps([300], 1)), PromptError, "each from 0 to 257"),
    "steps from a long text": (lambda m: next(m.steps([1] * 513, 1)), PromptError, "513 tokens do not fit"),
    "steps without a head": (lambda m: next(m.steps(TEXT, 1, Ablation(((1, 4),)))), OptionError, r"no head 1\.4"),
    "the lens without a stream": (lambda m: m.lens(m.read(TEXT, states=False)), NoData, "no stream to look at"),
    "predictions without logits": (lambda m: m.read(TEXT, logits=False).nll(), NoData, "no logits of this prompt"),
    "a head in words": (
        lambda m: m.read(TEXT, Ablation(cast("Any", (("1", 0),)))), OptionError, r"no head 1\.0.*\n.*: 0, 1, 2\.",
    ),
    "a layer in words": (lambda m: m.read(TEXT, Ablation(layers=cast("Any", ("1",)))), OptionError, "no layer 1 to"),
    "half a seed": (lambda _: Sampling(1.0, seed=cast("Any", 0.5)), OptionError, r"seed is 0\.5, expected a whole"),
    "half a token to choose from": (
        lambda _: Sampling(1.0, top_k=cast("Any", 2.5)), OptionError, r"top_k is 2\.5, expected a whole number",
    ),
    "a temperature in words": (
        lambda _: Sampling(cast("Any", "hot")), OptionError, "temperature is 'hot', expected 0 to 10",
    ),
    "a temperature": (lambda _: Sampling(float("nan")), OptionError, "temperature is nan, expected 0 to 10"),
    "a share": (lambda _: Sampling(1.0, top_p=1.5), OptionError, r"top_p is 1\.5, expected 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_costs_nothing_else(live: LiveModel, mistake: str) -> None:
    ask, error, message = MISTAKES[mistake]
    live.read(TEXT)
    process = live.worker.pid
    with pytest.raises(error, match=f"(?s){message}"):
        ask(live)
    assert len(next(live.steps(TEXT, 1)).tokens) == 64
    assert live.worker.pid == process


def test_more_than_may_be_kept(file: Path) -> None:
    with open_live(file, limit_bytes=200_000) as live:
        with pytest.raises(CorpusError, match=r"live: what is read of 300 tokens would take 0\.0 GB"):
            live.read([1] * 300)
        assert live.read([1] * 3).logits is not None


@pytest.mark.parametrize("tensor", ["blk.1.attn_v.weight", "output_norm.weight"])
def test_a_model_that_computes_nan(file: Path, tmp_path: Path, tensor: str) -> None:
    broken = rewrite_gguf(file, tmp_path / "nan.gguf", lambda name, v: v * np.float32(np.nan if name == tensor else 1))
    with open_live(broken) as live:
        for ask in (lambda: live.read(TEXT), lambda: next(live.steps(TEXT, 1))):
            with pytest.raises(EngineError, match=r"nan computes NaN or infinity.*\n.*broken"):
                ask()
        if tensor.startswith("blk.1."):
            # Without the broken layer it is a model again, in which nothing broken is left.
            off = Ablation(layers=(1,))
            reading = live.read(TEXT, off)
            assert all(np.isfinite(values).all() for values in reading.states.values())
            assert np.abs(next(live.steps(TEXT, 1, off)).logprob - reading.next_logprobs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["t5", "t5encoder", "bert"])
def test_a_model_that_predicts_nothing_says_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.gguf"
    file = write_small_bert(path) if kind == "bert" else write_small_model(path, kind, 2)
    # Batches shorter than the text: who reads in both directions needs it at once.
    with open_live(file, replace(SETTINGS, n_ubatch=2)) as live:
        facts = live.facts
        assert not facts.predicts
        assert facts.states == ()
        assert facts.missing[0].startswith(kind)
        reading = live.read([5, 6, 7])
        assert reading.tokens.tolist() == [5, 6, 7]
        assert len(reading.pieces) == 3
        assert reading.logits is None
        assert (set(reading.pattern) == {0, 1}) == bool(facts.attention) == (kind == "bert")
        asked: list[tuple[Callable[[], object], type[HarnessError]]] = [
            (reading.next_logprobs, NoData),
            (reading.nll, NoData),
            (lambda: live.lens(reading), NoData),
            (lambda: next(live.steps([5], 1)), NoData),
            (lambda: live.read([5], Ablation(layers=(0,))), OptionError),
        ]
        for ask, error in asked:
            with pytest.raises(error, match=kind):
                ask()
        if kind == "bert":
            assert not facts.causal
            off = live.read([5, 6, 7], Ablation(((0, 1),)))
            assert (off.pattern[0] == reading.pattern[0]).all()
            assert np.abs(off.pattern[1] - reading.pattern[1]).max() > 1e-4


# -- closed -----------------------------------------------------------------------------------------------------------


def test_closed_twice_and_used_again(file: Path) -> None:
    with open_live(file) as live:
        _logits(live)
        process = _process(live)
        folder = live.worker.log.parent
    live.close()
    assert not process.is_running()
    assert not folder.exists()
    for _ in range(2):
        with pytest.raises(EngineError, match="live was closed"):
            _logits(live)
    assert live.worker.pid is None
    assert not folder.exists()
