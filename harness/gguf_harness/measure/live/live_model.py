"""A model that stays loaded in a worker of its own, and is asked prompt by prompt."""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
import signal
import tempfile
import weakref
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import EngineError, OptionError, PromptError, is_utf8
from gguf_harness.inputs.models import ModelInfo
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.live.continuing import Step, next_step
from gguf_harness.measure.live.facts import describe_model
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import (
    NOTHING_OFF,
    Ablation,
    ModelFacts,
    ReadRequest,
    Sampling,
    StepRequest,
)
from gguf_harness.measure.live.tasks import pieces_of, read_prompt, tokens_of, unembed
from gguf_harness.measure.prompt_inputs import check_room, longest_text
from gguf_harness.metrics.kernels.log_softmax import log_softmax

__all__ = ["ATTENTION", "LiveModel"]

ATTENTION: Final = ("pattern", "q", "k", "v")
"""Attention tensors that are read unless others are asked for."""


class LiveModel:
    """A loaded model; a context manager, which ends its worker. Threads may share it: requests wait for each other.

    Args:
        info: the model.
        settings: how to run it; contexts are made as long as the texts.
        gpu: NVIDIA GPU, -1 for none; None leaves the environment as it is.
        timeout_s: longest time without an answer.
        limit_bytes: most bytes of what is read of a prompt.

    Attributes:
        info: as given.
        settings: as given.
        worker: the process; if it dies, the next request starts another.
    """

    def __init__(
        self,
        info: ModelInfo,
        settings: SessionSettings,
        *,
        gpu: int | None = None,
        timeout_s: float = 1800.0,
        limit_bytes: int = 8_000_000_000,
    ) -> None:
        self.info = info
        self.settings = settings
        self._limit_bytes = limit_bytes
        self._folder = Path(tempfile.mkdtemp(prefix="gguf-harness-"))
        # Also where nobody closes it.
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.worker = Worker(info.name, self._folder / "worker.log", gpu=gpu, timeout_s=timeout_s)
        # A worker ends with the thread that started it: here one that lasts as long as the model.
        self._asking = ThreadPoolExecutor(1, thread_name_prefix=f"{info.name} asks")
        self._facts: ModelFacts | None = None

    @property
    def facts(self) -> ModelFacts:
        """What can be read of the model; loads it.

        Raises:
            HarnessError: it cannot be loaded.
        """
        if self._facts is None:
            self._facts = self.call(describe_model, self.info.name, self.info.files, self.settings)
        return self._facts

    def read(
        self,
        prompt: str | Prompt | Sequence[int],
        ablation: Ablation = NOTHING_OFF,
        *,
        attention: Collection[str] = ATTENTION,
        states: bool = True,
        logits: bool = True,
    ) -> Reading:
        """Decode a prompt once, and read what can be read of it.

        Args:
            prompt: a text, which is continued as it is; a prompt, which may be a chat; or token ids.
            ablation: what is switched off.
            attention: kinds of attention tensors: of `pattern`, `scores`, `q`, `k`, `v`. Those that the model does not
                offer are left out.
            states: whether to read the residual stream.
            logits: whether to keep the logits.

        Raises:
            PromptError: the model cannot take the prompt.
            OptionError: what is to be switched off is not there.
            HarnessError: the decode failed.
        """
        facts = self.facts
        request = ReadRequest(
            model=self.info.name,
            files=self.info.files,
            settings=self.settings,
            prompt=_prompt(prompt),
            ablation=ablation,
            attention=tuple(kind for kind in facts.attention if kind in attention),
            states=facts.states if states else (),
            logits=logits,
            limit_bytes=self._limit_bytes,
        )
        facts.check(ablation)
        return Reading.of(self.call(read_prompt, request, facts), facts, ablation)

    def tokenize(self, prompt: str | Prompt | Sequence[int]) -> tuple[NDArray[np.int32], list[bytes]]:
        """(token ids, [pos]; their text, [pos]).

        Raises:
            PromptError: the model cannot take the prompt.
        """
        request = ReadRequest(self.info.name, self.info.files, self.settings, _prompt(prompt))
        tokens, pieces = self.call(tokens_of, request)
        return tokens, pieces

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The text of each token: it may be part of a character.

        Raises:
            PromptError: there is no token, or one is unknown.
        """
        pieces: list[bytes] = self.call(
            pieces_of, ReadRequest(self.info.name, self.info.files, self.settings, _prompt(tokens))
        )
        return pieces

    def steps(
        self,
        tokens: Sequence[int],
        limit: int,
        ablation: Ablation = NOTHING_OFF,
        sampling: Sampling | None = None,
        *,
        attention: bool = False,
    ) -> Iterator[Step]:
        """Continue a text token by token, until one that ends it, the limit, or the end of the context.

        Each step is a request of its own: others may come between them. What is wrong with an argument is told at
        once, not when the first step is asked for.

        Args:
            tokens: the text so far.
            limit: most tokens.
            ablation: what is switched off.
            sampling: how tokens are chosen; greedily if not given.
            attention: whether each step says what the last token attends to.

        Raises:
            NoData: the model predicts no tokens.
            PromptError: the text is empty or too long, or has unknown tokens.
            OptionError: what is to be switched off is not there.
        """
        facts, text = self.facts, list(tokens)
        if not facts.predicts:
            raise facts.no_data(f"{facts.name} does not write.")
        facts.check(ablation)
        check_room(facts, facts.name, len(text), self.settings, "text")
        return self._steps(text, limit, ablation, sampling or Sampling(), attention=attention)

    def _steps(
        self, text: list[int], limit: int, ablation: Ablation, sampling: Sampling, *, attention: bool
    ) -> Iterator[Step]:
        facts, room = self.facts, longest_text(self.facts, self.settings)
        for _ in range(limit):
            if len(text) > room:
                return
            step = self.call(
                next_step,
                StepRequest(
                    self.info.name,
                    self.info.files,
                    self.settings,
                    tuple(text),
                    ablation,
                    sampling,
                    attention=attention and "pattern" in facts.attention,
                ),
                facts,
            )
            yield step
            if step.ends:
                return
            text.append(step.token)

    def lens(self, reading: Reading, place: int = -1) -> NDArray[np.float64]:
        """The logit lens at one place of a prompt: what each layer would predict.

        Returns:
            [layer, vocabulary] ln of the probability of each next token, from the stream after each layer. The last row
            is the model's own prediction.

        Raises:
            NoData: the stream was not read.
        """
        if "resid_post" not in reading.states or not reading.facts.predicts:
            raise self.facts.no_data(f"{self.info.name}: there is no stream to look at.")
        return log_softmax(self.unembed(reading.states["resid_post"][:, place]))

    def unembed(self, stream: NDArray[np.float32]) -> NDArray[np.float32]:
        """[rows, vocabulary] logits of residual streams, [rows, d_model], by llama.cpp's final norm and unembedding."""
        logits: NDArray[np.float32] = self.call(unembed, self.info.files, self.settings, self.facts, stream)
        return logits

    def close(self) -> None:
        """End the worker, which frees the model. May be called twice."""
        self._asking.shutdown(cancel_futures=True)
        self.worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.info.name}, {self.info.architecture}, {self.info.bits_per_weight:.2f} bits per weight>"

    def call(self, task: Any, *arguments: Any) -> Any:
        """Run a task of another measurement where the model is loaded: `task(worker, *arguments)`."""
        try:
            asked = self._asking.submit(self.worker.call, task, None, *arguments)
        except RuntimeError:
            raise EngineError(f"{self.info.name} was closed.", "Open it again.") from None
        try:
            return asked.result()
        except CancelledError:
            raise EngineError(f"{self.info.name} was closed.", "Open it again.") from None
        except BaseException:
            if not asked.done() and not asked.cancel() and self.worker.pid is not None:
                # The wait was interrupted, and nobody wants the answer any more.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.worker.pid, signal.SIGKILL)
            raise


def _prompt(prompt: str | Prompt | Sequence[int]) -> Prompt | tuple[int, ...]:
    if isinstance(prompt, str):
        prompt = Prompt("prompt", prompt)
    if isinstance(prompt, Prompt):
        # A command line that is not UTF-8 contains lone surrogates, and JSON may.
        if not is_utf8(prompt.plain()):
            raise PromptError(f"The prompt {prompt.plain()!r} is not valid text.", "Give it in UTF-8.")
        return prompt
    try:
        return tuple(operator.index(token) for token in prompt)
    except TypeError:
        raise OptionError(
            f"A prompt is a text, a Prompt or a sequence of token ids, which are whole numbers, not {prompt!r:.80}."
        ) from None
