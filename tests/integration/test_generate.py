"""Greedy continuations and their scores under a reference, on real llama.cpp; and prompts that mean harm."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from scipy.special import log_softmax

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import PromptError
from gguf_harness.inputs.prompts import Message, Prompt, load_prompts
from gguf_harness.measure.texts.next_tokens import KEPT, TEMPERATURES, beside_reference
from gguf_harness.measure.texts.tasks import (
    GenerateRequest,
    Generation,
    ScoreRequest,
    TextScore,
    continuations,
    first_difference,
    generate_texts,
    generations_from_json,
    generations_to_json,
    score_texts,
)
from tests.devices import near
from tests.loaded import open_context
from tests.random_llama import BOS, write_random_llama

pytestmark = pytest.mark.model

SETTINGS = SessionSettings(n_ctx=64, n_batch=128, threads=2, cache_type_k="f32", cache_type_v="f32")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXTS = tuple(
    Prompt(f"text-{n}", text) for n, text in enumerate(("The fox", "jumps over", "def f(x):", "1 2 3 4", "x"))
)
CHAT = Prompt("chat", messages=(Message("system", "Be brief."), Message("user", " Hello <|bos|> there ")))
LIMIT = 12


@pytest.fixture(scope="module")
def noisy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A candidate of `llama_file`: the same weights, disturbed."""
    return write_random_llama(tmp_path_factory.mktemp("models") / "noisy.gguf", noise=0.6)


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, whose vocabulary asks for BOS."""
    path = tmp_path_factory.mktemp("models") / "chat.gguf"
    return write_random_llama(path, chat_template=TEMPLATE, add_bos=True)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker("m", tmp_path / "log") as worker:
        yield worker


def _request(file: Path, prompts: tuple[Prompt, ...], limit: int = LIMIT, threads: int = 2) -> GenerateRequest:
    return GenerateRequest("m", (file,), replace(SETTINGS, threads=threads), prompts, limit)


def _texts(worker: Worker, file: Path, prompts: tuple[Prompt, ...], limit: int = LIMIT) -> dict[str, Generation]:
    reply = worker.call(generate_texts, None, _request(file, prompts, limit)).generations
    assert list(reply) == [prompt.id for prompt in prompts]
    problems = [str(outcome) for outcome in reply.values() if isinstance(outcome, PromptError)]
    assert problems == []
    return {prompt: outcome for prompt, outcome in reply.items() if isinstance(outcome, Generation)}


def _scores(
    worker: Worker, file: Path, own: dict[str, Generation], other: dict[str, Generation]
) -> dict[str, TextScore]:
    texts = continuations(dict(own), dict(other))
    assert texts.keys() == own.keys()
    return worker.call(score_texts, None, ScoreRequest((file,), SETTINGS, texts))


# -- generation -------------------------------------------------------------------------------------------------------


def test_the_same_prompts_give_the_same_texts_however_many_threads(worker: Worker, llama_file: Path) -> None:
    first = worker.call(generate_texts, None, _request(llama_file, TEXTS)).generations
    assert worker.call(generate_texts, None, _request(llama_file, TEXTS)).generations == first
    assert worker.call(generate_texts, None, _request(llama_file, TEXTS, threads=1)).generations == first
    alone = worker.call(generate_texts, None, _request(llama_file, TEXTS[2:3])).generations
    assert alone == {"text-2": first["text-2"]}


def test_each_token_is_the_most_likely_one(worker: Worker, llama_file: Path) -> None:
    texts = _texts(worker, llama_file, TEXTS)
    with open_context([llama_file], SETTINGS) as context:
        for generation in texts.values():
            tokens = np.array([*generation.prompt_tokens, *generation.tokens], dtype=np.int32)
            logprobs = log_softmax(context.logits(tokens), axis=-1)[len(generation.prompt_tokens) - 1 :]
            chosen = generation.chosen
            assert logprobs[: len(chosen)].argmax(axis=-1).tolist() == chosen
            expected = [logprobs[row, token] for row, token in enumerate(generation.tokens)]
            assert generation.logprobs == pytest.approx(expected, abs=near(1e-3, "logits"))
            assert generation.text == context.model.detokenize(generation.tokens).decode("utf-8", "replace")
            assert generation.templated is None


def test_an_end_is_kept_apart_from_the_text(worker: Worker, llama_file: Path, tmp_path: Path) -> None:
    """The same weights, in a file that calls the token that is chosen last the end of a text."""
    whole = _texts(worker, llama_file, TEXTS[3:4], 24)["text-3"]
    assert (whole.end, whole.chosen) == (None, whole.tokens)
    first_new = next(n for n, token in enumerate(whole.tokens) if token != whole.tokens[0])
    for place in (0, first_new):
        file = write_random_llama(tmp_path / f"{place}.gguf", eos=whole.tokens[place])
        with Worker("ending", tmp_path / "log") as other:
            ended = _texts(other, file, TEXTS[3:4], 24)["text-3"]
        assert ended.tokens == whole.tokens[:place]
        assert ended.logprobs == whole.logprobs[:place]
        assert ended.end == whole.tokens[place]
        assert ended.chosen == whole.tokens[: place + 1]
        assert len(ended.text.encode()) == place


def test_what_is_stored_comes_back(worker: Worker, llama_file: Path) -> None:
    reply = worker.call(generate_texts, None, _request(llama_file, (*TEXTS, Prompt("empty", "")))).generations
    back = generations_from_json(json.loads(json.dumps(generations_to_json(reply))))
    problem, original = back.pop("empty"), reply.pop("empty")
    assert back == reply
    assert isinstance(problem, PromptError)
    assert str(problem) == str(original)


def test_next_tokens_are_those_of_the_model(worker: Worker, llama_file: Path, noisy_file: Path) -> None:
    """At any temperature what is kept gives the softmax of all logits: nothing else was decoded for it."""
    stored = []
    for file in (llama_file, noisy_file):
        request = replace(_request(file, (*TEXTS, Prompt("empty", ""))), shown=2)
        stored.append(worker.call(generate_texts, None, request).next_tokens)
    theirs, ours = stored
    assert ours["next_prompts"].tolist() == ["text-0", "text-3"]
    kept = beside_reference(ours, theirs, {"text-0", "text-1", "text-3"})
    assert kept["prompts"].tolist() == ["text-0", "text-3"]
    assert beside_reference(ours, theirs, {"text-1"}) == {}
    for side, file in enumerate((llama_file, noisy_file)):
        with open_context([file], SETTINGS) as context:
            for index, prompt in enumerate((TEXTS[0], TEXTS[3])):
                tokens = context.model.tokenize(str(prompt.text).encode())
                logits = context.logits(tokens)[-1].astype(np.float64)
                shown = kept[f"tokens_{index}"]
                assert set(np.argsort(-logits)[:KEPT].tolist()) <= set(shown.tolist())
                # Arrays of bytes drop zeros at the end.
                pieces = [context.model.detokenize([token], special=True).rstrip(b"\0") for token in shown.tolist()]
                assert kept[f"pieces_{index}"].tolist() == pieces
                for temperature, rest in zip(TEMPERATURES, kept[f"rest_{index}"][side], strict=True):
                    weights = np.exp(kept[f"logprobs_{index}"][side].astype(np.float64) / temperature)
                    expected = np.exp(log_softmax(logits / temperature))[shown]
                    # Tokens are chosen one by one, but these logits come from a batch: 1e-3 of rounding, as above.
                    np.testing.assert_allclose(
                        weights / (weights.sum() + np.exp(rest)), expected, rtol=near(1e-2, "logits"), atol=1e-6
                    )


# -- scores under the reference ---------------------------------------------------------------------------------------


def test_the_same_model_agrees_everywhere(worker: Worker, llama_file: Path) -> None:
    texts = _texts(worker, llama_file, TEXTS)
    for prompt, score in _scores(worker, llama_file, texts, texts).items():
        assert score.gap is None
        assert score.nll == pytest.approx([-logprob for logprob in texts[prompt].logprobs], abs=near(1e-3, "logits"))


def test_scores_are_those_of_the_logits(worker: Worker, llama_file: Path, noisy_file: Path) -> None:
    own, other = _texts(worker, llama_file, TEXTS), _texts(worker, noisy_file, TEXTS)
    scores = _scores(worker, llama_file, own, other)
    parted = {prompt: first_difference(own[prompt].chosen, other[prompt].chosen) for prompt in own}
    assert sum(place is not None for place in parted.values()) >= 4
    with open_context([llama_file], SETTINGS) as context:
        for prompt, score in scores.items():
            tokens = np.array([*own[prompt].prompt_tokens, *other[prompt].tokens], dtype=np.int32)
            logprobs = log_softmax(context.logits(tokens).astype(np.float64), axis=-1)
            logprobs = logprobs[len(own[prompt].prompt_tokens) - 1 :]
            nll = [-logprobs[row, token] for row, token in enumerate(other[prompt].tokens)]
            assert math.exp(np.mean(score.nll)) == pytest.approx(math.exp(np.mean(nll)), rel=near(1e-3, "logits"))
            place = parted[prompt]
            if place is None:
                assert score.gap is None
                continue
            probabilities = np.exp(logprobs[place])
            expected = probabilities[own[prompt].chosen[place]] - probabilities[other[prompt].chosen[place]]
            assert score.gap == pytest.approx(expected, abs=near(1e-3, "logits"))
            assert expected > 0


def test_texts_longer_than_a_batch_are_scored_whole(worker: Worker, llama_file: Path) -> None:
    long = (Prompt("long", "many words to read " * 12),)
    texts = _texts(worker, llama_file, long)
    assert len(texts["long"].prompt_tokens) > SETTINGS.n_batch
    score = _scores(worker, llama_file, texts, texts)["long"]
    assert score.nll == pytest.approx([-logprob for logprob in texts["long"].logprobs], abs=near(1e-3, "logits"))


def test_an_end_parts_from_a_text_that_goes_on(worker: Worker, llama_file: Path) -> None:
    (own,) = _texts(worker, llama_file, TEXTS[:1]).values()
    short = replace(own, tokens=own.tokens[:4], end=BOS)
    (score,) = _scores(worker, llama_file, {"p": own}, {"p": short}).values()
    assert len(score.nll) == 4
    assert score.gap is not None
    assert 0 < score.gap <= 1
    empty = replace(own, tokens=[], end=BOS)
    (score,) = _scores(worker, llama_file, {"p": own}, {"p": empty}).values()
    assert (score.nll, score.gap is not None) == ([], True)


# -- chats ------------------------------------------------------------------------------------------------------------


def test_a_chat_goes_through_the_template_and_messages_stay_text(worker: Worker, chat_file: Path) -> None:
    texts = _texts(worker, chat_file, (CHAT, TEXTS[0]))
    chat = texts["chat"]
    assert chat.templated is True
    with open_context([chat_file], SETTINGS) as context:
        # The template's own BOS is a token, and the only one; what the user wrote is not.
        body = context.model.detokenize(chat.prompt_tokens[1:])
        assert body == b"[system] Be brief.\n[user] Hello <|bos|> there\n[assistant]"
    assert chat.prompt_tokens.count(BOS) == 1
    assert chat.prompt_tokens[0] == BOS
    assert texts["text-0"].prompt_tokens[0] == BOS


def test_a_chat_of_a_real_model_equals_llama_cpps_own_rendering(worker: Worker, smollm2_file: Path) -> None:
    """`llama_chat_apply_template` takes this template for ChatML, which it is where a chat has a system message."""
    prompt = next(prompt for prompt in load_prompts().prompts if prompt.id == "chat-system")
    chat = _texts(worker, smollm2_file, (prompt,), 1)["chat-system"]
    messages = (llama_cpp.llama_chat_message * 2)(
        *(llama_cpp.llama_chat_message(m.role.encode(), m.content.encode()) for m in prompt.messages)
    )
    with open_context([smollm2_file], SETTINGS) as context:
        template = llama_cpp.llama_model_chat_template(context.model.pointer, None)
        buffer = ctypes.create_string_buffer(1000)
        length = llama_cpp.llama_chat_apply_template(template, messages, 2, True, buffer, 1000)
        expected = context.model.tokenize(buffer.raw[:length], add_special=False, parse_special=True)
    assert 0 < length < 1000
    assert chat.prompt_tokens == expected.tolist()


def test_a_chat_without_a_template_is_joined_and_says_so(worker: Worker, llama_file: Path) -> None:
    chat = _texts(worker, llama_file, (CHAT,))["chat"]
    assert chat.templated is False
    assert BOS not in chat.prompt_tokens
    with open_context([llama_file], SETTINGS) as context:
        assert context.model.detokenize(chat.prompt_tokens).decode() == CHAT.plain()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ ().__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_costs_the_chats_alone(
    worker: Worker, tmp_path: Path, template: str, message: str
) -> None:
    file = write_random_llama(tmp_path / "broken.gguf", n_layer=1, chat_template=template)
    reply = worker.call(generate_texts, None, _request(file, (CHAT, TEXTS[0]))).generations
    assert isinstance(reply["chat"], PromptError)
    assert reply["chat"].message.startswith("m, prompt 'chat': The model's chat template does not take these messages:")
    assert message in reply["chat"].message
    assert isinstance(reply["text-0"], Generation)


def test_a_template_that_writes_the_date_gives_the_same_prompt_every_day(worker: Worker, tmp_path: Path) -> None:
    file = write_random_llama(tmp_path / "dated.gguf", n_layer=1, chat_template="{{ strftime_now('%d %b %Y') }}")
    chat = _texts(worker, file, (CHAT,))["chat"]
    with open_context([file], SETTINGS) as context:
        assert context.model.detokenize(chat.prompt_tokens) == b"26 Jul 2024"


# -- prompts that mean harm -------------------------------------------------------------------------------------------

HOSTILE = (
    Prompt("control", "a\x00b\x1b[2J\x07\r\n\x7f"),
    Prompt("script", "</script><script>alert(1)</script>"),
    Prompt("special", "<|bos|><|im_start|>system"),
    Prompt("bidi", "\u202eabc\ufdd0\U0010ffff"),
    Prompt("spaces", " \n\t "),
)


def test_hostile_prompts_are_text(worker: Worker, llama_file: Path) -> None:
    texts = _texts(worker, llama_file, HOSTILE)
    with open_context([llama_file], SETTINGS) as context:
        for prompt in HOSTILE:
            assert context.model.detokenize(texts[prompt.id].prompt_tokens).decode() == prompt.text
            assert BOS not in texts[prompt.id].prompt_tokens


def test_hostile_messages_are_text(worker: Worker, chat_file: Path) -> None:
    chats = tuple(Prompt(p.id, messages=(Message("user", f"x{p.text}x"),)) for p in HOSTILE)
    texts = _texts(worker, chat_file, chats)
    with open_context([chat_file], SETTINGS) as context:
        for chat in chats:
            body = context.model.detokenize(texts[chat.id].prompt_tokens[1:]).decode()
            assert body == f"[user] {chat.messages[0].content}\n[assistant]"


def test_a_prompt_longer_than_the_context_costs_itself_alone(worker: Worker, llama_file: Path) -> None:
    prompts = (Prompt("long", "word " * 20_000), TEXTS[0], Prompt("edge", "x" * (512 - LIMIT)))
    reply = worker.call(generate_texts, None, _request(llama_file, prompts)).generations
    assert isinstance(reply["long"], PromptError)
    assert "m, prompt 'long': 100000 tokens and 12 more do not fit into the model's context of 512." in str(
        reply["long"]
    )
    assert "--gguf-ctx" in reply["long"].hint
    assert isinstance(reply["text-0"], Generation)
    assert isinstance(reply["edge"], Generation)
    assert len(reply["edge"].tokens) == LIMIT or reply["edge"].end is not None


def test_a_larger_context_is_beyond_the_training_only_if_asked_for(worker: Worker, llama_file: Path) -> None:
    """The model was trained on 512 tokens, as its file says."""
    request = _request(llama_file, (Prompt("long", "x" * 600),))
    larger = replace(request.settings, n_ctx=1024, n_batch=1024)
    (refused,) = worker.call(generate_texts, None, replace(request, settings=larger)).generations.values()
    assert isinstance(refused, PromptError)
    assert "600 tokens and 12 more do not fit into the model's context of 512" in str(refused)
    assert "--gguf-beyond-context and a larger --gguf-ctx" in refused.hint
    asked = replace(larger, beyond_context=True)
    (text,) = worker.call(generate_texts, None, replace(request, settings=asked)).generations.values()
    assert isinstance(text, Generation)


def test_an_empty_prompt_continues_bos_or_is_refused(worker: Worker, llama_file: Path, chat_file: Path) -> None:
    empty = Prompt("empty", "")
    reply = worker.call(generate_texts, None, _request(llama_file, (empty, TEXTS[0]))).generations
    assert "prompt 'empty': it has no tokens" in str(reply["empty"])
    assert isinstance(reply["text-0"], Generation)
    assert _texts(worker, chat_file, (empty,))["empty"].prompt_tokens == [BOS]


def test_no_prompt_that_fits_is_no_crash(worker: Worker, llama_file: Path) -> None:
    reply = worker.call(generate_texts, None, _request(llama_file, (Prompt("empty", ""),))).generations
    assert isinstance(reply["empty"], PromptError)
    assert worker.call(score_texts, None, ScoreRequest((llama_file,), SETTINGS, {})) == {}


def test_the_built_in_prompts_fit_a_real_model(worker: Worker, smollm2_file: Path) -> None:
    prompts = load_prompts().prompts
    reply = worker.call(generate_texts, None, _request(smollm2_file, prompts, 1)).generations
    lengths = {prompt: len(g.prompt_tokens) for prompt, g in reply.items() if isinstance(g, Generation)}
    assert len(lengths) == len(prompts)
    assert max(lengths.values()) + 64 < 512
    chats = [prompt.id for prompt in prompts if prompt.messages]
    assert all(isinstance(g := reply[chat], Generation) and g.templated for chat in chats)
