"""Throughput and latency of a served model, as its clients see them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from gguf_harness.errors import EngineError
from gguf_harness.measure.speed.client import Answers, Client
from gguf_harness.measure.speed.machine_use import Watch
from gguf_harness.measure.speed.side_by_side import now, repeat_undisturbed, timing_from_json
from gguf_harness.metrics.timings import Repetition, Timing

if TYPE_CHECKING:
    from gguf_harness.engine.server import Server
    from gguf_harness.engine.settings import ServedRequest
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.metrics.timings import Use

__all__ = ["ServedResult", "ask_all", "measure_served", "warm_up", "watch_server"]

_GRACE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ServedResult:
    """Throughput and latencies.

    Attributes:
        throughput: tokens per second of all clients together.
        single: tokens per second from the first token to the last, for a single client.
        ttft_s: one value per request of the clients together.
        itl_s: one value per token but the first of each of these requests.
        measured: when, in UTC to the second.
    """

    throughput: Timing
    single: Timing
    ttft_s: list[float]
    itl_s: list[float]
    measured: str

    @property
    def is_disturbed(self) -> bool:
        """Whether measuring again might fill in missing results."""
        return any(use.is_disturbed for use in (*self.throughput.uses, *self.single.uses))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        timings = {name: timing_from_json(value[name]) for name in ("throughput", "single")}
        return cls(**{**value, **timings})


def measure_served(server: Server, request: ServedRequest, progress: ProgressCallback | None) -> ServedResult:
    """Send all requests `repetitions` times, and single requests as often.

    Raises:
        EngineCrashed: the server died.
        EngineError: a request failed; the message has the server's reason.
    """
    client = Client(server.url, server.api_key, timeout_s=request.timeout_s)
    warm_up(server, client, request)
    rounds = _rounds(server, client, request, progress)
    completions = [completion for answers, _ in rounds for completion in answers.completions]
    return ServedResult(
        throughput=Timing(request.repetitions, tuple(Repetition(answers.tokens_per_s, use) for answers, use in rounds)),
        single=Timing(request.repetitions, tuple(_single_streams(server, client, request))),
        ttft_s=[completion.ttft_s for completion in completions if completion.ttft_s is not None],
        itl_s=[seconds for completion in completions for seconds in completion.itl_s],
        measured=now(),
    )


def _rounds(
    server: Server, client: Client, request: ServedRequest, progress: ProgressCallback | None
) -> list[tuple[Answers, Use]]:
    """All repetitions, without the disturbed ones if enough are left."""
    total = request.repetitions * request.requests
    rounds: list[tuple[Answers, Use]] = []

    def take(repetition: int) -> bool:
        before = repetition * request.requests

        def show(done: int, _: int) -> None:
            if progress is not None:
                progress(min(before + done, total), total)

        watch = watch_server(server)
        answers = ask_all(server, client, request, repetition + 1, show)
        rounds.append((answers, watch.stop()))
        return not rounds[-1][1].is_disturbed

    enough = repeat_undisturbed(request.repetitions, take)
    return [(answers, use) for answers, use in rounds if not (enough and use.is_disturbed)]


def watch_server(server: Server) -> Watch:
    """Watch other use of the machine besides a server and its clients."""
    return Watch(server.settings.threads, [server.pid], worker=None, on_gpu=server.settings.n_gpu_layers != 0)


def _single_streams(server: Server, client: Client, request: ServedRequest) -> list[Repetition]:
    """Single-client speeds, one request at a time; empty if answers have a single token."""
    streams: list[Repetition] = []

    def take(repetition: int) -> bool:
        watch = watch_server(server)
        # At most as many repetitions as with all clients.
        prompt = request.prompts(2 * request.repetitions + 1 + repetition)[0]
        answers = client.complete_many([prompt], 1, max_tokens=request.max_tokens, ignore_eos=True)
        use = watch.stop()
        _require_answers(server, answers)
        (completion,) = answers.completions
        if completion.tokens > 1 and (seconds := sum(completion.itl_s)) > 0:
            streams.append(Repetition((completion.tokens - 1) / seconds, use))
        return not use.is_disturbed

    enough = repeat_undisturbed(request.repetitions, take)
    return [stream for stream in streams if not (enough and stream.use.is_disturbed)]


def warm_up(server: Server, client: Client, request: ServedRequest) -> None:
    """Send one request for one token, with a prompt that no repetition uses.

    Raises:
        EngineCrashed: the server died.
        EngineError: the request failed.
    """
    _require_answers(server, client.complete_many(request.prompts(0)[:1], 1, max_tokens=1))


def ask_all(
    server: Server,
    client: Client,
    request: ServedRequest,
    repetition: int,
    progress: ProgressCallback | None = None,
) -> Answers:
    """Send all requests once; `repetition` counts from 1.

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
