"""Greedy continuations of prompts, and what the reference makes of a candidate's. Runs in a worker.

Prompts stand alone, each in an empty context: what one is continued with does not depend on the others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import EngineError, PromptError
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.inputs import prompt_inputs
from gguf_harness.measure.passes import open_lanes
from gguf_harness.metrics.kernels.log_softmax import log_softmax

if TYPE_CHECKING:
    from gguf_harness.engine.session import Session, Tokens
    from gguf_harness.engine.worker import WorkerContext

__all__ = [
    "Continuation",
    "GenerateRequest",
    "Generation",
    "Generations",
    "ScoreRequest",
    "TextScore",
    "continuations",
    "first_difference",
    "generate_texts",
    "generations_from_json",
    "generations_to_json",
    "score_texts",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What to continue.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how to run it; the context is made as long as the prompts need.
        prompts: with distinct ids.
        limit: most tokens to generate for each.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    prompts: tuple[Prompt, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class Generation:
    """How a model continues a prompt.

    Attributes:
        prompt_tokens: the prompt, as the model was given it.
        tokens: what it chose, up to the end of its text or the limit.
        logprobs: log-probability of each, in nats.
        text: the tokens as text; a character that was cut off at the end is shown as U+FFFD.
        end: the end-of-generation token that it chose last; None where the limit ended the text.
        templated: whether a chat went through the model's own template; None for a prompt that is no chat.
    """

    prompt_tokens: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str
    end: int | None
    templated: bool | None

    @property
    def chosen(self) -> list[int]:
        """All tokens that the model chose, the end included."""
        return self.tokens if self.end is None else [*self.tokens, self.end]


Generations = dict[str, Generation | PromptError]
"""By prompt: how a model continues it, or why it cannot."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """Two continuations of a prompt: the tokens that reference and candidate chose, ends included.

    Attributes:
        prompt: the prompt's tokens.
        text: how many of the candidate's tokens are text: its end is none.
    """

    prompt: tuple[int, ...]
    reference: tuple[int, ...]
    candidate: tuple[int, ...]
    text: int


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Texts of a candidate, by prompt, for the reference to score."""

    files: tuple[Path, ...]
    settings: SessionSettings
    texts: dict[str, Continuation]


@dataclass(frozen=True, slots=True)
class TextScore:
    """What the reference says of a candidate's text.

    Attributes:
        nll: negative log-likelihood of each of its tokens, in nats, given the prompt and the tokens before it.
        gap: where the continuations part, the probability of the reference's token less that of the candidate's. Below
            0 by rounding at most: tokens are chosen one by one and scored in batches. None where they do not part.
    """

    nll: list[float]
    gap: float | None


def generate_texts(context: WorkerContext, request: GenerateRequest) -> Generations:
    """Continue all prompts greedily.

    Raises:
        EngineError: the model cannot generate at all.
    """
    session, lanes = open_lanes(context, request.files, request.settings)
    inputs, problems = prompt_inputs(session, request.model, request.prompts, request.limit, request.settings)
    longest = max((len(tokens) for tokens, _ in inputs.values()), default=0) + request.limit

    def generate(lane: Session, prompt: str) -> Generation:
        tokens, templated = inputs[prompt]
        return _generate(lane, tokens, request.limit, templated)

    done = _side_by_side(context, session, lanes, _fitting(request.settings, longest), list(inputs), generate)
    found: Generations = {**problems, **done}
    return {prompt.id: found[prompt.id] for prompt in request.prompts}


def score_texts(context: WorkerContext, request: ScoreRequest) -> dict[str, TextScore]:
    """Decode each prompt with the candidate's text behind it, and look the candidate's tokens up."""
    session, lanes = open_lanes(context, request.files, request.settings)
    longest = max((len(text.prompt) + text.text for text in request.texts.values()), default=0)

    def score(lane: Session, prompt: str) -> TextScore:
        return _score(lane, request.texts[prompt])

    settings = _fitting(request.settings, longest)
    return _side_by_side(context, session, lanes, settings, list(request.texts), score)


def continuations(reference: Generations, candidate: Generations) -> dict[str, Continuation]:
    """What there is to score: all prompts that both continued, and that came to the same tokens for both."""
    found = {}
    for prompt, own in reference.items():
        other = candidate[prompt]
        if isinstance(own, PromptError) or isinstance(other, PromptError) or own.prompt_tokens != other.prompt_tokens:
            continue
        text = len(other.tokens)
        found[prompt] = Continuation(tuple(own.prompt_tokens), tuple(own.chosen), tuple(other.chosen), text)
    return found


def generations_to_json(generations: Generations) -> dict[str, Any]:
    """A dictionary of JSON types only."""
    return {
        prompt: {"problem": [found.message, found.hint]} if isinstance(found, PromptError) else asdict(found)
        for prompt, found in generations.items()
    }


def generations_from_json(value: Mapping[str, Any]) -> Generations:
    """What `generations_to_json` made."""
    return {
        prompt: PromptError(*found["problem"]) if "problem" in found else Generation(**found)
        for prompt, found in value.items()
    }


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Where two sequences part; None where they do not, or one only ends before the other."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)


# -- decoding ---------------------------------------------------------------------------------------------------------


def _fitting(settings: SessionSettings, length: int) -> SessionSettings:
    """One sequence, just long enough."""
    length = max(length, 1)
    return replace(settings, n_ctx=length, n_batch=min(settings.n_batch, length))


def _side_by_side(
    context: WorkerContext,
    session: Session,
    lanes: int,
    settings: SessionSettings,
    prompts: list[str],
    work: Callable[[Session, str], T],
) -> dict[str, T]:
    """Results by prompt, from contexts of the loaded model that share the threads."""
    from gguf_harness.engine.session import Session

    settings = replace(settings, threads=settings.threads // lanes)
    idle: SimpleQueue[Session] = SimpleQueue()

    def run(prompt: str) -> T:
        lane = idle.get()
        try:
            return work(lane, prompt)
        finally:
            idle.put(lane)

    results: dict[str, T] = {}
    context.progress(0, len(prompts))
    with contextlib.ExitStack() as stack:
        for _ in range(min(lanes, len(prompts))):
            idle.put(stack.enter_context(Session(session.files, settings, model_of=session)))
        pool = stack.enter_context(ThreadPoolExecutor(lanes))
        # In case of an error: what has not begun never does.
        stack.callback(pool.shutdown, cancel_futures=True)
        for prompt, result in zip(prompts, pool.map(run, prompts), strict=True):
            results[prompt] = result
            context.progress(len(results), len(prompts))
    return results


def _generate(session: Session, prompt: Tokens, limit: int, templated: bool | None) -> Generation:
    tokens: list[int] = []
    logprobs: list[float] = []
    for token in session.generate(prompt, limit):
        tokens.append(token)
        # Still the logits that this token was chosen from: the next decode comes when the next token is asked for.
        logprobs.append(float(_log_softmax(session.output_logits(1)[0])[token]))
    end = int(_log_softmax(session.output_logits(1)[0]).argmax()) if len(tokens) < limit else None
    text = session.detokenize(tokens).decode("utf-8", "replace")
    return Generation(prompt.tolist(), tokens, logprobs, text, end, templated)


def _score(session: Session, text: Continuation) -> TextScore:
    parted = first_difference(text.reference, text.candidate)
    nll: list[float] = []
    gap = None
    for position, logprobs in enumerate(_teacher_forced(session, text.prompt, text.candidate[: text.text])):
        if position < text.text:
            nll.append(-float(logprobs[text.candidate[position]]))
        if position == parted:
            own, other = (math.exp(logprobs[tokens[position]]) for tokens in (text.reference, text.candidate))
            gap = own - other
    return TextScore(nll, gap)


def _teacher_forced(session: Session, prompt: Sequence[int], text: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """[vocabulary] log-probabilities of the first token of a text, and so on, to those of the one after its last."""
    session.clear()
    tokens = np.array([*prompt, *text], dtype=np.int32)
    for start in range(0, len(tokens), session.settings.n_batch):
        part = tokens[start : start + session.settings.n_batch]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        outputs = positions >= len(prompt) - 1
        session.decode(part, positions, np.zeros_like(positions), outputs)
        if outputs.any():
            yield from map(_log_softmax, session.output_logits(int(outputs.sum())))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[vocabulary] log-probabilities in float64.

    Raises:
        EngineError: logits that are NaN or infinite.
    """
    logprobs = log_softmax(logits)
    if np.isnan(logprobs).any():
        raise EngineError(
            "The model computes NaN or infinity while it generates.",
            "Such a file is broken for use as well; quantize it again, or try another KV-cache type.",
        )
    return logprobs
