"""Throughput and latency of a served model, as its clients see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.errors import EngineError
from harness.measure.client import Answers, Client

if TYPE_CHECKING:
    from harness.engine.server import Server
    from harness.engine.worker import ProgressCallback

__all__ = ["ServedRequest", "ServedResult", "ask_all", "measure_served", "warm_up"]

_GRACE_S: Final = 1.0

_PROMPT: Final = (
    "sailors set out from the harbour before dawn, with bread for nine days and a map of the northern islands."
    " When the wind turned, the oldest of them said:"
)


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """What to measure on a server.

    Attributes:
        requests: per repetition, each with a prompt of its own.
        concurrency: clients at a time.
        max_tokens: length of every completion.
        repetitions: how often all requests are sent, after a warm-up of one request.
        timeout_s: longest time for one request.
    """

    requests: int
    concurrency: int
    max_tokens: int
    repetitions: int
    timeout_s: float = 600.0

    def prompts(self, repetition: int) -> list[str]:
        """Prompts that differ from the first word on: a server keeps what it has read of the last one."""
        first = repetition * self.requests
        return [f"{number} {_PROMPT}" for number in range(first, first + self.requests)]

    def to_json(self) -> dict[str, Any]:
        """What the result depends on, as JSON types."""
        values = asdict(self) | {"prompt": _PROMPT}
        del values["timeout_s"]  # no number depends on it
        return values


@dataclass(frozen=True, slots=True)
class ServedResult:
    """Throughput and latencies.

    Attributes:
        tokens_per_s: one value per repetition.
        ttft_s: one value per request.
        itl_s: one value per token but the first of each request.
    """

    tokens_per_s: list[float]
    ttft_s: list[float]
    itl_s: list[float]

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def measure_served(server: Server, request: ServedRequest, progress: ProgressCallback | None) -> ServedResult:
    """Send all requests `repetitions` times.

    Raises:
        EngineCrashed: the server died.
        EngineError: a request failed; the message has the server's reason.
    """
    client = Client(server.url, server.api_key, timeout_s=request.timeout_s)
    rounds = list(_rounds(server, client, request, progress))
    completions = [completion for answers in rounds for completion in answers.completions]
    return ServedResult(
        tokens_per_s=[answers.tokens_per_s for answers in rounds],
        ttft_s=[completion.ttft_s for completion in completions if completion.ttft_s is not None],
        itl_s=[seconds for completion in completions for seconds in completion.itl_s],
    )


def _rounds(
    server: Server, client: Client, request: ServedRequest, progress: ProgressCallback | None
) -> Iterator[Answers]:
    total = request.repetitions * request.requests
    warm_up(server, client, request)
    for repetition in range(request.repetitions):

        def show(done: int, _: int, before: int = repetition * request.requests) -> None:
            if progress is not None:
                progress(before + done, total)

        yield ask_all(server, client, request, repetition, show)


def warm_up(server: Server, client: Client, request: ServedRequest) -> None:
    """One request for one token, with a prompt that is not used again.

    Raises:
        EngineCrashed: the server died.
        EngineError: the request failed.
    """
    _require_answers(server, client.complete_many(request.prompts(request.repetitions)[:1], 1, max_tokens=1))


def ask_all(
    server: Server,
    client: Client,
    request: ServedRequest,
    repetition: int,
    progress: ProgressCallback | None = None,
) -> Answers:
    """All requests once.

    Raises:
        EngineCrashed: the server died.
        EngineError: a request failed; the message has the server's reason.
    """
    answers = client.complete_many(
        request.prompts(repetition),
        request.concurrency,
        max_tokens=request.max_tokens,
        ignore_eos=True,
        progress=progress,
    )
    _require_answers(server, answers)
    return answers


def _require_answers(server: Server, answers: Answers) -> None:
    if answers.failed:
        server.check(grace_s=_GRACE_S)
        raise EngineError(
            f"{server.label}: {len(answers.failed)} of {len(answers.completions)} requests failed:"
            f" {answers.failed[0].error}.",
            f"Log of the server: {server.log}",
        )
