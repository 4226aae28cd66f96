"""Greedy continuations of prompts, and their scores under the reference. Runs in a worker.

Each prompt has an empty context: its continuation does not depend on the other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import NOT_FINITE_HINT, EngineError, PromptError
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.prompt_inputs import prompt_inputs
from gguf_harness.measure.texts.next_tokens import distributions
from gguf_harness.metrics.kernels.log_softmax import log_softmax

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = [
    "Continuation",
    "GenerateRequest",
    "Generation",
    "Generations",
    "ScoreRequest",
    "TextScore",
    "Written",
    "continuations",
    "first_difference",
    "generate_texts",
    "generations_from_json",
    "generations_to_json",
    "score_texts",
    "side_by_side",
    "teacher_forced",
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
        shown: of how many prompts, evenly apart in the set, the distribution of the next token is kept.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    prompts: tuple[Prompt, ...]
    limit: int
    shown: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """How a model continues a prompt.

    Attributes:
        prompt_tokens: the tokens of the prompt as given to the model.
        tokens: the chosen tokens, up to the end of its text or the limit.
        logprobs: log-probability of each, in nats.
        text: the tokens as text; an incomplete character at the end is shown as U+FFFD.
        end: the end-of-generation token that it chose last; None if the limit ended the text.
        templated: whether a chat went through the model's own template; None for a prompt that is not a chat.
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
class Written:
    """What a model wrote.

    Attributes:
        generations: by prompt.
        next_tokens: distributions of the token after some prompts, as `next_tokens.distributions` returns
            them.
    """

    generations: Generations
    next_tokens: Arrays


@dataclass(frozen=True, slots=True)
class Continuation:
    """Two continuations of a prompt: the tokens that reference and candidate chose, ends included.

    Attributes:
        prompt: the prompt's tokens.
        text: number of the candidate's tokens that are text, without its end token.
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
    """The score of a candidate's text under the reference.

    Attributes:
        nll: negative log-likelihood of each of its tokens, in nats, given the prompt and the tokens before it.
        gap: where the continuations diverge, the probability of the reference's token minus that of the candidate's.
            Negative only by rounding, since tokens are chosen one by one but scored in batches. None if they do not
            diverge.
    """

    nll: list[float]
    gap: float | None


def generate_texts(worker: WorkerContext, request: GenerateRequest) -> Written:
    """Continue all prompts greedily; the same decode gives the distribution of the token after each prompt.

    Raises:
        EngineError: the model cannot generate at all.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    inputs, problems = prompt_inputs(model, request.model, request.prompts, request.limit, request.settings)
    longest = max((len(tokens) for tokens, _ in inputs.values()), default=0) + request.limit

    apart = max(1, len(request.prompts) // max(1, request.shown))
    shown = [prompt.id for prompt in request.prompts[::apart][: request.shown] if prompt.id in inputs]
    first: dict[str, NDArray[np.float64]] = {}

    def generate(context: Context, prompt: str) -> Generation:
        tokens, templated = inputs[prompt]
        generation, logprobs = _generate(context, tokens, request.limit, templated)
        if prompt in shown:
            first[prompt] = logprobs
        return generation

    done = side_by_side(worker, model, request.settings, longest, list(inputs), generate)
    generations: Generations = {**problems, **done}
    in_order = {prompt.id: generations[prompt.id] for prompt in request.prompts}
    return Written(in_order, distributions(model, {prompt: first[prompt] for prompt in shown}))


def score_texts(worker: WorkerContext, request: ScoreRequest) -> dict[str, TextScore]:
    """Decode each prompt followed by the candidate's text, and score the candidate's tokens."""
    model = worker.model(request.files, request.settings.n_gpu_layers)
    longest = max((len(text.prompt) + text.text for text in request.texts.values()), default=0)

    def score(context: Context, prompt: str) -> TextScore:
        return _score(context, request.texts[prompt])

    return side_by_side(worker, model, request.settings, longest, list(request.texts), score)


def continuations(reference: Generations, candidate: Generations) -> dict[str, Continuation]:
    """The texts to score: all prompts that both continued, with the same prompt tokens."""
    pairs = {}
    for prompt, own in reference.items():
        other = candidate[prompt]
        if isinstance(own, PromptError) or isinstance(other, PromptError) or own.prompt_tokens != other.prompt_tokens:
            continue
        text = len(other.tokens)
        pairs[prompt] = Continuation(tuple(own.prompt_tokens), tuple(own.chosen), tuple(other.chosen), text)
    return pairs


def generations_to_json(generations: Generations) -> dict[str, Any]:
    """A dictionary of JSON types only."""
    return {
        prompt: {"problem": [generation.message, generation.hint]}
        if isinstance(generation, PromptError)
        else asdict(generation)
        for prompt, generation in generations.items()
    }


def generations_from_json(value: Mapping[str, Any]) -> Generations:
    """Inverse of `generations_to_json`."""
    return {
        prompt: PromptError(*entry["problem"]) if "problem" in entry else Generation(**entry)
        for prompt, entry in value.items()
    }


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Index at which two sequences diverge; None if they do not, or if one is a prefix of the other."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)


# -- decoding ---------------------------------------------------------------------------------------------------------


def _fitting(settings: SessionSettings, length: int) -> SessionSettings:
    """Settings for one sequence, just long enough."""
    length = max(length, 1)
    return replace(settings, n_ctx=length, n_batch=min(settings.n_batch, length))


def side_by_side(
    worker: WorkerContext,
    model: Model,
    settings: SessionSettings,
    length: int,
    prompts: list[str],
    work: Callable[[Context, str], T],
) -> dict[str, T]:
    """Results by prompt, from contexts of the loaded model that hold one sequence of this length each."""
    from gguf_harness.engine.context import Context

    count = count_lanes(settings)
    settings = replace(_fitting(settings, length), threads=settings.threads // count)
    # At least one, so that a context that cannot be opened is an error even if there is nothing to decode.
    with Lanes(max(1, min(count, len(prompts))), lambda: Context(model, settings)) as lanes:
        return dict(zip(prompts, lanes.map(work, prompts, worker.progress), strict=True))


def _generate(
    context: Context, prompt: Tokens, limit: int, templated: bool | None
) -> tuple[Generation, NDArray[np.float64]]:
    """(continuation of a prompt, [vocabulary] log-probabilities of the first token after it)."""
    tokens: list[int] = []
    logprobs: list[float] = []
    first: NDArray[np.float64] | None = None
    for token in context.generate(prompt, limit):
        tokens.append(token)
        # Still the logits that this token was chosen from: the next decode happens at the next request.
        last = _log_softmax(context.output_logits(1)[0])
        logprobs.append(float(last[token]))
        first = last if first is None else first
    # After an end of generation at once, these are also those of the first token.
    last = _log_softmax(context.output_logits(1)[0])
    end = int(last.argmax()) if len(tokens) < limit else None
    text = context.model.detokenize(tokens).decode("utf-8", "replace")
    return Generation(prompt.tolist(), tokens, logprobs, text, end, templated), last if first is None else first


def _score(context: Context, text: Continuation) -> TextScore:
    parted = first_difference(text.reference, text.candidate)
    nll: list[float] = []
    gap = None
    for position, logprobs in enumerate(teacher_forced(context, text.prompt, text.candidate[: text.text])):
        if position < text.text:
            nll.append(-float(logprobs[text.candidate[position]]))
        if position == parted:
            own, other = (math.exp(logprobs[tokens[position]]) for tokens in (text.reference, text.candidate))
            gap = own - other
    return TextScore(nll, gap)


def teacher_forced(context: Context, prompt: Sequence[int], text: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """[vocabulary] log-probabilities of the first token of a text, and so on, to those of the one after its last."""
    context.clear()
    tokens = np.array([*prompt, *text], dtype=np.int32)
    for start in range(0, len(tokens), context.settings.n_batch):
        part = tokens[start : start + context.settings.n_batch]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        outputs = positions >= len(prompt) - 1
        context.decode(part, positions, np.zeros_like(positions), outputs)
        if outputs.any():
            yield from map(_log_softmax, context.output_logits(int(outputs.sum())))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[vocabulary] log-probabilities in float64.

    Raises:
        EngineError: logits that are NaN or infinite.
    """
    logprobs = log_softmax(logits)
    if np.isnan(logprobs).any():
        raise EngineError(
            "The model computes NaN or infinity while it generates.",
            NOT_FINITE_HINT,
        )
    return logprobs
