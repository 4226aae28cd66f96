"""A text continued token by token. Runs in a worker, which keeps what it has decoded between the steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.errors import NOT_FINITE_HINT, EngineError, PromptError
from gguf_harness.measure.live.requests import Ablation, ModelFacts, Sampling, StepRequest
from gguf_harness.measure.live.tasks import ablating
from gguf_harness.measure.texts.next_tokens import KEPT
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from gguf_harness.metrics.kernels.ranks import largest

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["Step", "next_step"]

F32 = NDArray[np.float32]

_LEAST_CONTEXT: Final = 256


@dataclass(frozen=True, slots=True)
class Step:
    """One more token of a text.

    Attributes:
        token: the chosen one.
        piece: its text, which may be part of a character.
        logprob: ln of its probability before sampling, in nats.
        ends: whether it ends the text.
        tokens: [k] the likeliest next tokens, in order, of which the chosen one may be none.
        pieces: [k] their text.
        logprobs: [k] ln of their probabilities, float64, in nats.
        attention: [head of any layer, key] float32: what the last token of the text attended to, in the order of
            `ModelFacts.all_heads`; None if it was not asked for.
    """

    token: int
    piece: bytes
    logprob: float
    ends: bool
    tokens: NDArray[np.int64]
    pieces: tuple[bytes, ...]
    logprobs: NDArray[np.float64]
    attention: F32 | None = None


def next_step(worker: WorkerContext, request: StepRequest, facts: ModelFacts) -> Step:
    """Choose the token after a text.

    The same tokens as those of the step before, and the one it chose, cost a decode of one token.

    Raises:
        PromptError: there is no room for the text.
        EngineError: the model computes NaN or infinity.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    text = worker.keep((facts.name, request.settings, request.attention), lambda: _Text(model, request, facts))
    logits = text.decode(request.tokens, request.ablation)
    logprobs = log_softmax(logits)
    if np.isnan(logprobs).any():
        raise EngineError(
            f"{request.model} computes NaN or infinity while it generates.",
            NOT_FINITE_HINT,
        )
    token = text.choose(request.sampling, len(request.tokens))
    top = largest(logprobs, KEPT)
    return Step(
        token=token,
        piece=model.detokenize([token], special=True),
        logprob=float(logprobs[token]),
        ends=model.ends_generation(token),
        tokens=top,
        pieces=tuple(model.detokenize([one], special=True) for one in top.tolist()),
        logprobs=logprobs[top],
        attention=text.attention(),
    )


class _Text:
    """A context that holds the tokens of a text, so that only new ones are decoded."""

    def __init__(self, model: Model, request: StepRequest, facts: ModelFacts) -> None:
        self._model, self._facts, self._attention = model, facts, request.attention
        settings = request.settings
        self._settings = settings.with_pattern() if request.attention else settings
        self._room = 0
        self._context: Context | None = None
        self._tokens: list[int] = []
        self._ablation = Ablation()
        self._rows: dict[int, F32] = {}

    def decode(self, tokens: tuple[int, ...], ablation: Ablation) -> F32:
        """[vocabulary] logits after the last token: a view, valid until the next decode.

        Raises:
            PromptError: an empty text, or one with unknown tokens.
        """
        if not tokens or not all(0 <= token < self._facts.n_vocab for token in tokens):
            raise PromptError(
                f"{self._facts.name} cannot continue a text of {len(tokens)} tokens, some of which may be unknown.",
                f"Give at least one token, each from 0 to {self._facts.n_vocab - 1}.",
            )
        context = self._fitting(len(tokens))
        kept = _common(self._tokens, tokens) if ablation == self._ablation else 0
        # The logits of the last token are wanted, so it is always decoded.
        kept = self._forget(context, min(kept, len(tokens) - 1))
        self._ablation = ablation
        self._watch(ablation)
        self._tokens = []  # if the decode fails, nothing is sure
        for start in range(kept, len(tokens), context.settings.n_batch):
            part = np.array(tokens[start : start + context.settings.n_batch], dtype=np.int32)
            positions = np.arange(start, start + len(part), dtype=np.int32)
            outputs = np.arange(len(part)) == len(part) - 1
            context.decode(part, positions, np.zeros_like(positions), outputs)
        self._tokens = list(tokens)
        return np.asarray(context.output_logits(1)[0])

    def choose(self, sampling: Sampling, place: int) -> int:
        """The next token, by llama.cpp's own samplers."""
        if self._context is None:
            raise EngineError("Nothing was decoded, so there is nothing to choose from.")
        with _sampler(sampling, place) as sampler:
            return int(llama_cpp.llama_sampler_sample(sampler, self._context.pointer, -1))

    def attention(self) -> F32 | None:
        """[head of any layer, key] of the last token; None if it was not asked for."""
        if not self._attention:
            return None
        n = len(self._tokens)
        return np.concatenate([self._rows[layer][:, :n] for layer in self._facts.attention_layers])

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def _fitting(self, length: int) -> Context:
        from gguf_harness.engine.context import Context
        from gguf_harness.engine.taps import Taps

        if self._context is None or length > self._room:
            self.close()
            self._tokens = []
            self._room = max(_LEAST_CONTEXT, 2 ** math.ceil(math.log2(length)))
            batch = min(self._room, self._settings.n_ubatch)
            settings = replace(self._settings, n_ctx=self._room, n_batch=batch, n_ubatch=batch)
            taps = Taps(self._facts.architecture, self._facts.n_layer, changing=True)
            self._context = Context(self._model, settings, taps)
        return self._context

    def _forget(self, context: Context, kept: int) -> int:
        """Keep the first tokens only; returns how many could be kept: models with a state keep all or none."""
        memory = llama_cpp.llama_get_memory(context.pointer)
        if kept and llama_cpp.llama_memory_seq_rm(memory, 0, kept, -1):
            return kept
        context.clear()
        return 0

    def _watch(self, ablation: Ablation) -> None:
        read, patch = ablating(ablation, self._facts)
        if self._attention:
            read |= {f"blocks.{layer}.attn.pattern": self._keep for layer in self._facts.attention_layers}
        if self._context is not None and self._context.taps is not None:
            self._context.taps.watch(read=read, patch=patch)

    def _keep(self, tap: str, values: F32) -> None:
        self._rows[int(tap.split(".")[1])] = values[:, -1].copy()


@contextmanager
def _sampler(sampling: Sampling, place: int) -> Iterator[Any]:
    """llama.cpp's chain of samplers; the seed depends on the place in the text."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    try:
        if sampling.top_k:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_k(int(sampling.top_k)))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.temperature > 0:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
            # llama.cpp takes the largest one for a wish for chance.
            seed = (int(sampling.seed) * 1_000_003 + place) % llama_cpp.LLAMA_DEFAULT_SEED
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(seed))
        else:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
        yield chain
    finally:
        llama_cpp.llama_sampler_free(chain)


def _common(first: list[int], second: tuple[int, ...]) -> int:
    """How many tokens two texts begin with alike."""
    return next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
