"""Texts continued token by token: against llama.cpp's own generation, and against the whole text read again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from gguf_harness.engine.settings import Adapter, SessionSettings
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import NoData
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.live.continuing import Step
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.requests import Ablation, Sampling
from gguf_harness.measure.texts.next_tokens import KEPT
from gguf_harness.measure.texts.tasks import GenerateRequest, Generation, generate_texts
from tests.integration.live_oracle import SETTINGS, file, forward, live, log_softmax, open_live
from tests.integration.small_jamba import write_small_jamba
from tests.integration.small_models import WINDOW, write_small_model
from tests.loaded import open_context
from tests.random_llama import write_random_llama
from tests.random_lora import merge_lora, write_random_lora

__all__ = ["file", "live"]

pytestmark = pytest.mark.model

NOTHING = Ablation()
CLOSE = 1e-4
"""In nats, and of attention: what one token at a time and all at once may differ by in F32."""
VISIBLE = 0.05
"""In nats: what another text changes, at least."""


def _text(n: int, seed: int = 0, vocabulary: int = 60) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocabulary, n)]


@pytest.fixture(scope="module")
def tiny() -> Iterator[LiveModel]:
    with open_live("tiny", SessionSettings(threads=1)) as live:
        yield live


def _step(live: LiveModel, text: Sequence[int], off: Ablation = NOTHING) -> Step:
    return next(live.steps(text, 1, off, attention=True))


def _difference(live: LiveModel, text: Sequence[int], off: Ablation = NOTHING) -> float:
    """Largest difference of probabilities and attention between a step and the whole text read at once."""
    step, reading = _step(live, text, off), live.read(text, off)
    return _from_reading(step, live, reading.pattern, reading.next_logprobs(), len(text))


def _from_reading(step: Step, live: LiveModel, pattern: object, logprobs: NDArray[np.float64], length: int) -> float:
    assert isinstance(pattern, dict)
    assert step.token == step.tokens[0] == int(logprobs.argmax())
    assert len(step.tokens) == min(KEPT, live.facts.n_vocab)
    assert step.logprob == step.logprobs[0]
    assert step.attention is not None
    rows = np.concatenate([pattern[layer][:, length - 1, :length] for layer in live.facts.attention_layers])
    assert step.attention.shape == rows.shape == (len(live.facts.all_heads), length)
    return max(float(np.abs(step.logprobs - logprobs[step.tokens]).max()), float(np.abs(step.attention - rows).max()))


# -- greedily ---------------------------------------------------------------------------------------------------------


def test_greedy_steps_are_llama_cpps_generation(live: LiveModel, file: Path, worker: WorkerContext) -> None:
    """Of contexts and of the suite quant, which ends where the steps end."""
    prompt, limit = "The quick brown fox", 48
    tokens = live.tokenize(prompt)[0].tolist()
    steps = list(live.steps(tokens, limit))
    settings = replace(SETTINGS, n_ctx=128, n_batch=128)
    request = GenerateRequest("m", (file,), settings, (Prompt("fox", prompt),), limit)
    (generated,) = generate_texts(worker, request).generations.values()
    assert isinstance(generated, Generation)
    assert [step.token for step in steps if not step.ends] == generated.tokens
    assert [step.logprob for step in steps if not step.ends] == pytest.approx(generated.logprobs, abs=CLOSE)
    assert b"".join(step.piece for step in steps if not step.ends).decode("utf-8", "replace") == generated.text
    with open_context([file], settings) as context:
        assert list(context.generate(np.array(tokens, dtype=np.int32), limit)) == generated.tokens


def test_greedy_steps_of_a_trained_model_are_its_generation(tiny: LiveModel) -> None:
    tokens = tiny.tokenize("def read(self, size):\n    ")[0].tolist()
    steps = list(tiny.steps(tokens, 40))
    with open_context(tiny.info.files, SessionSettings(n_ctx=256, n_batch=256, threads=1)) as context:
        expected = list(context.generate(np.array(tokens, dtype=np.int32), 40))
    assert [step.token for step in steps if not step.ends] == expected
    assert len(expected) > 5


def test_a_text_ends_with_its_last_token(tmp_path: Path, live: LiveModel) -> None:
    """The same weights, in a file that calls the token that is chosen after the first the end of a text."""
    first, second = (step.token for step in live.steps(_text(9), 2))
    assert first != second
    file = write_random_llama(tmp_path / "ends.gguf", n_layer=3, untied=True, eos=second)
    with open_live(file) as ending:
        steps = list(ending.steps(_text(9), 10))
    assert [(step.token, step.ends) for step in steps] == [(first, False), (second, True)]


def test_each_step_is_that_of_the_exact_model(live: LiveModel, file: Path) -> None:
    off = Ablation(((1, 0), (2, 3)), (0,))
    text = _text(12)
    for step in live.steps(text, 12, off, attention=True):
        exact = forward(file, text, off.heads, off.layers)
        assert np.abs(step.logprobs - log_softmax(exact.logits[-1])[step.tokens]).max() < CLOSE
        assert step.attention is not None
        rows = np.concatenate([attention.pattern[:, -1] for attention in exact.attention])
        assert np.abs(step.attention - rows).max() < CLOSE
        text.append(step.token)


@pytest.mark.parametrize("start", [250, 500])
def test_steps_across_the_sizes_of_contexts(live: LiveModel, start: int) -> None:
    """256 and 512 tokens; the model was trained on 512, after which one more token is chosen, and none is read."""
    text = _text(start, seed=3, vocabulary=256)
    steps = list(live.steps(text, 20, attention=True))
    assert not any(step.ends for step in steps)
    assert len(steps) == min(20, 512 + 1 - start)
    whole = [*text, *(step.token for step in steps[:-1])]
    reading = live.read(whole)
    for at, step in enumerate(steps):
        length = start + at
        assert _from_reading(step, live, reading.pattern, reading.next_logprobs(length - 1), length) < CLOSE


def test_beyond_the_trained_context_if_that_was_asked_for(file: Path) -> None:
    settings = replace(SETTINGS, n_ctx=600, n_batch=600, beyond_context=True)
    with open_live(file, settings) as live:
        text = _text(511, vocabulary=256)
        assert len(list(live.steps(text, 8))) == 8
        assert len(list(live.steps(_text(598), 8))) == 3
        assert _difference(live, _text(560)) < CLOSE


# -- what was decoded already -----------------------------------------------------------------------------------------

MODELS = ("llama", "gemma3", "gpt2", "jamba", "deci")
"""All keys; keys in a window; a table of positions, all of which are used; a state that cannot be cut; few heads."""
LAST = {"llama": 2, "gemma3": 5, "gpt2": 2, "jamba": 3, "deci": 1}


@pytest.fixture(scope="module", params=MODELS)
def any_live(
    request: pytest.FixtureRequest, file: Path, hybrid_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveModel, Ablation, Ablation]]:
    """A model, and two things to switch off."""
    kind = request.param
    path = tmp_path_factory.mktemp("any") / f"{kind}.gguf"
    if kind == "jamba":
        model = write_small_jamba(path)
    elif kind in {"gemma3", "gpt2"}:
        model = write_small_model(path, kind, LAST[kind] + 1)
    else:
        model = {"llama": file, "deci": hybrid_file}[kind]
    # Batches shorter than the texts, and than the window.
    with open_live(model, replace(SETTINGS, n_ubatch=48)) as live:
        heads = live.facts.all_heads
        yield live, Ablation((heads[0], heads[-1])), Ablation((heads[1],), (LAST[kind],))


def test_nothing_is_left_of_earlier_texts(any_live: tuple[LiveModel, Ablation, Ablation]) -> None:
    """Longer, shorter, from another first token on, the same again, with and without things off.

    Of texts of up to 128 tokens, those behind the window of 64 are gone when 20 of them are left and go on.
    """
    live, some, more = any_live
    text = _text(128)
    assert len(text) > live.facts.window + 48
    early = [*text[:2], (text[2] + 1) % 60, *text[3:]]
    late = [*text[:-1], (text[-1] + 1) % 60]
    way: list[tuple[list[int], Ablation]] = [
        (text[:30], NOTHING), (text[:31], NOTHING), (text[:31], NOTHING), (text, NOTHING), (late, NOTHING),
        (text[:90], NOTHING), (early, NOTHING), (early[:20], NOTHING), (text[:20], NOTHING),
        (text[:21], some), (text[:22], some), (text[:22], more), (text, more), (early, more), (early[:40], more),
        (early[:40], NOTHING), (text, some), (text[:1], some), (text, NOTHING), (text[:70], NOTHING),
    ]  # fmt: skip
    noise = 2e-3 if live.facts.architecture in {"gemma3", "gpt2"} else CLOSE  # their GELU is a table in F16
    for at, (tokens, off) in enumerate(way):
        assert _difference(live, tokens, off) < noise, (at, len(tokens), off)


def test_what_is_left_of_earlier_texts_would_show(any_live: tuple[LiveModel, Ablation, Ablation]) -> None:
    """Else the test above would say nothing."""
    live, some, more = any_live
    text = _text(128)
    early = [*text[:2], (text[2] + 1) % 60, *text[3:]]
    assert np.abs(live.read(text).next_logprobs(30) - live.read(early).next_logprobs(30)).max() > VISIBLE
    readings = [live.read(text, off).next_logprobs() for off in (NOTHING, some, more)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(readings[first] - readings[second]).max() > VISIBLE


def test_only_new_tokens_are_decoded(live: LiveModel) -> None:
    """500 tokens are read once: each step after that takes a small part of the first's time."""
    from time import perf_counter

    steps, seconds = live.steps(_text(480, seed=5), 9), []
    for _ in range(9):
        start = perf_counter()
        next(steps)
        seconds.append(perf_counter() - start)
    assert min(seconds[1:]) < seconds[0] / 4


def test_other_requests_may_come_between_steps(live: LiveModel) -> None:
    """Readings, the lens, and steps of another text."""
    alone = [step.token for step in live.steps(_text(20), 8)]
    other = [step.token for step in live.steps(_text(20, seed=1), 8, Ablation(layers=(1,)))]
    first, second = live.steps(_text(20), 8), live.steps(_text(20, seed=1), 8, Ablation(layers=(1,)))
    mixed: tuple[list[int], list[int]] = ([], [])
    for one, two in zip(first, second, strict=True):
        live.lens(live.read(_text(5)))
        mixed[0].append(one.token)
        mixed[1].append(two.token)
    assert mixed == (alone, other)


def test_keys_behind_the_window_are_kept(tmp_path: Path) -> None:
    """llama.cpp can use their memory again: then a text that is cut there would go on without them.

    It would keep 256 keys at least, as many as the window and a batch have when rounded up.
    """
    file, n = write_small_model(tmp_path / "gemma3.gguf", "gemma3", 6), 400
    settings = replace(SETTINGS, n_ctx=512, n_batch=512, n_ubatch=48, beyond_context=True)
    with open_live(file, settings) as live:
        assert live.facts.window == WINDOW
        attention = _step(live, _text(n)).attention
        for length in (n, 390, 120, 121, n, 300):
            assert _difference(live, _text(length)) < 2e-3, length
    assert attention is not None
    layers = attention.reshape(6, -1, n)
    assert not layers[:5, :, : n - WINDOW].any()
    assert (layers[:5, :, n - WINDOW :] > 0).all()
    assert (layers[5] > 0).all()


# -- other caches, and adapters ---------------------------------------------------------------------------------------


def test_a_quantized_cache_of_keys(file: Path, live: LiveModel) -> None:
    exact = live.read(_text(100)).next_logprobs()
    with open_live(file, replace(SETTINGS, cache_type_k="q8_0")) as quantized:
        for length in (100, 60, 61, 100):
            assert _difference(quantized, _text(length)) < 1e-2
        assert 1e-4 < np.abs(quantized.read(_text(100)).next_logprobs() - exact).max() < 0.3


def test_a_quantized_cache_of_values_takes_attention_away_alone(file: Path, live: LiveModel) -> None:
    with open_live(file, replace(SETTINGS, cache_type_k="q8_0", cache_type_v="q8_0")) as quantized:
        assert quantized.facts.attention == ()
        assert "V cache of type q8_0" in " ".join(quantized.facts.missing)
        reading = quantized.read(_text(40))
        assert (reading.pattern, reading.q) == ({}, {})
        step = _step(quantized, _text(40))
        assert step.attention is None
        assert np.abs(step.logprobs - reading.next_logprobs()[step.tokens]).max() < 1e-2
        exact = live.read(_text(40)).next_logprobs()
        assert 1e-4 < np.abs(reading.next_logprobs() - exact).max() < 0.3
        assert np.abs(quantized.lens(reading)[-1] - reading.next_logprobs()).max() < CLOSE


def test_adapters_are_applied_everywhere(tmp_path: Path, file: Path, live: LiveModel) -> None:
    lora = write_random_lora(tmp_path / "lora.gguf", file, size=0.02)
    merged = merge_lora(tmp_path / "merged.gguf", file, (lora, 0.5))
    adapter = Adapter("lora", lora, hashlib.sha256(lora.read_bytes()).hexdigest(), 0.5)
    off = Ablation(((1, 2),), (2,))
    with open_live(file, replace(SETTINGS, adapters=(adapter,))) as adapted, open_live(merged) as expected:
        ours, theirs = adapted.read(_text(30), off), expected.read(_text(30), off)
        assert np.abs(ours.next_logprobs() - theirs.next_logprobs()).max() < CLOSE
        assert np.abs(ours.next_logprobs() - live.read(_text(30), off).next_logprobs()).max() > VISIBLE
        assert np.abs(adapted.lens(ours) - expected.lens(theirs)).max() < 1e-3
        assert _difference(adapted, _text(30), off) < CLOSE


# -- sampling ---------------------------------------------------------------------------------------------------------


def _drawn(live: LiveModel, text: Sequence[int], seeds: range, **sampling: float) -> NDArray[np.int64]:
    """[seed] the token that each seed draws."""
    chosen = [next(live.steps(text, 1, sampling=Sampling(**sampling, seed=seed))).token for seed in seeds]  # type: ignore[arg-type]
    return np.array(chosen)


def test_sampled_tokens_are_distributed_as_the_softmax(tiny: LiveModel) -> None:
    text = tiny.tokenize("The value of the")[0].tolist()
    likeliest = _step(tiny, text)
    for temperature in (0.7, 1.5):
        weights = np.exp(likeliest.logprobs[:3] / temperature)
        drawn = _drawn(tiny, text, range(500), temperature=temperature, top_k=3)
        counts = [int((drawn == token).sum()) for token in likeliest.tokens[:3]]
        assert sum(counts) == len(drawn)
        assert min(counts) > 5
        assert chisquare(counts, len(drawn) * weights / weights.sum()).pvalue > 1e-3


def test_the_limits_of_sampling_are_llama_cpps(tiny: LiveModel) -> None:
    text = tiny.tokenize("The value of the")[0].tolist()
    step = _step(tiny, text)
    p = np.exp(step.logprobs)
    few = int(np.searchsorted(np.cumsum(p), 0.3)) + 1
    assert 1 < few < 20
    assert set(_drawn(tiny, text, range(150), temperature=2.0, top_p=0.3).tolist()) == set(step.tokens[:few].tolist())
    likely = int((p >= 0.3 * p[0]).sum())
    assert 1 < likely < 20
    drawn = _drawn(tiny, text, range(150), temperature=2.0, min_p=0.3)
    assert set(drawn.tolist()) == set(step.tokens[:likely].tolist())


def test_no_choice_is_the_likeliest_token(tiny: LiveModel) -> None:
    text = tiny.tokenize("The value of the")[0].tolist()
    likeliest = _step(tiny, text).token
    for sampling in ({"temperature": 0.0}, {"temperature": 3.0, "top_k": 1}, {"temperature": 3.0, "top_p": 0.0}):
        assert (_drawn(tiny, text, range(5), **sampling) == likeliest).all()


def test_a_seed_gives_the_same_text_again(tiny: LiveModel) -> None:
    text = tiny.tokenize("The value of the")[0].tolist()

    def sampled(seed: int) -> list[int]:
        return [step.token for step in tiny.steps(text, 12, sampling=Sampling(1.2, seed=seed))]

    first = sampled(7)
    assert sampled(8) != first
    assert sampled(7) == first
    # As it goes on from the middle, so it went.
    rest = tiny.steps([*text, *first[:5]], 7, sampling=Sampling(1.2, seed=7))
    assert [step.token for step in rest] == first[5:]


def test_numbers_of_numpy_are_numbers(tiny: LiveModel) -> None:
    text = tiny.tokenize("The value of the")[0]
    sampling = Sampling(np.float32(1.5), np.int64(3), np.float32(0.9), np.float32(0.01), np.int64(4))  # type: ignore[arg-type]
    plain = Sampling(1.5, 3, float(np.float32(0.9)), float(np.float32(0.01)), 4)
    assert next(tiny.steps(text, 1, sampling=sampling)).token == next(tiny.steps(text, 1, sampling=plain)).token  # type: ignore[arg-type]


def test_a_seed_draws_anew_at_each_place(tiny: LiveModel) -> None:
    """At temperature 10 the second of two tokens is chosen nearly as often as the first, here with one seed."""
    text = tiny.tokenize("The value of the")[0].tolist()
    drawn, expected = [], []
    for step in tiny.steps(text, 100, sampling=Sampling(10.0, top_k=2, seed=1)):
        first, second = np.exp(step.logprobs[:2] / 10)
        drawn.append(step.token == step.tokens[0])
        expected.append(first / (first + second))
    assert len(drawn) > 50
    assert abs(np.sum(drawn) - np.sum(expected)) < 4 * 0.5 * len(drawn) ** 0.5


def test_logprobs_are_those_before_sampling(tiny: LiveModel) -> None:
    text = tiny.tokenize("The value of the")[0].tolist()
    logprobs = tiny.read(text).next_logprobs()
    for seed in range(5):
        step = next(tiny.steps(text, 1, sampling=Sampling(2.0, seed=seed)))
        assert step.logprob == pytest.approx(logprobs[step.token], abs=0.02)  # F16 weights and keys


def test_every_seed_is_one(tiny: LiveModel) -> None:
    """llama.cpp takes the largest seed for a wish for chance."""
    text = tiny.tokenize("The value of the")[0].tolist()
    seed = (0xFFFFFFFF - len(text)) * pow(1_000_003, -1, 2**32) % 2**32
    drawn = {next(tiny.steps(text, 1, sampling=Sampling(3.0, seed=seed))).token for _ in range(6)}
    assert len(drawn) == 1


def test_a_model_that_predicts_nothing_writes_nothing(tmp_path: Path) -> None:
    with (
        open_live(write_small_model(tmp_path / "t5.gguf", "t5", 2)) as live,
        pytest.raises(NoData, match="t5 does not write"),
    ):
        next(live.steps([1, 2], 1))
