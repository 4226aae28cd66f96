"""Client of an OpenAI-compatible server: text, time to the first token, time between tokens, throughput.

Requests stream, and decode greedily. Times are taken in this process, when a chunk of the answer arrives: they include
queueing in the server and the transfer, as for its users.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguf_harness.errors import NoData, OptionError

if TYPE_CHECKING:
    import httpx2

    from gguf_harness.engine.worker import ProgressCallback

__all__ = ["Answers", "Client", "Completion", "Percentiles"]


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of one request.

    Attributes:
        text: the whole text; of a failed request, what had arrived.
        tokens: the server's count if it sends one, else chunks. llama_cpp.server sends one chunk per token, except for
            characters of several tokens.
        ttft_s: seconds from sending the request to the first token; None if none came.
        itl_s: seconds between successive chunks.
        total_s: seconds from sending the request to the end of the answer.
        finish_reason: "stop" or "length"; None for a failed request.
        error: what went wrong; None for an answered request.
    """

    text: str
    tokens: int
    ttft_s: float | None
    itl_s: tuple[float, ...]
    total_s: float
    finish_reason: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of a latency in seconds, linearly interpolated, over `n` samples."""

    p50: float
    p90: float
    p99: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """From samples.

        Raises:
            NoData: no samples.
        """
        import numpy as np

        if not values:
            raise NoData("No tokens arrived, so there are no latencies.")
        p50, p90, p99 = (float(value) for value in np.quantile(values, (0.5, 0.9, 0.99)))
        return cls(p50, p90, p99, len(values))


@dataclass(frozen=True, slots=True)
class Answers:
    """Results of many requests, in the order of their prompts.

    Attributes:
        completions: one per prompt, failed ones included.
        wall_s: seconds from the first request to the end of the last answer.
    """

    completions: list[Completion]
    wall_s: float

    @property
    def failed(self) -> list[Completion]:
        """The requests that were not answered."""
        return [completion for completion in self.completions if completion.error is not None]

    @property
    def tokens_per_s(self) -> float:
        """Throughput of all clients together.

        Raises:
            NoData: a request failed: the others do not give the throughput of all.
        """
        if self.failed or not self.completions:
            raise NoData(
                f"{len(self.failed)} of {len(self.completions)} requests failed, so there is no throughput.",
                next((completion.error or "" for completion in self.failed), ""),
            )
        return sum(completion.tokens for completion in self.completions) / self.wall_s


class Client:
    """Asks a server for completions.

    Args:
        url: base of the API, without `/v1`.
        api_key: key that the server requires; empty for none.
        timeout_s: longest time for one request, waiting in the server's queue included.
    """

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 600.0) -> None:
        self._url = url
        self._authorization = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s

    def complete(
        self, prompt: str, *, max_tokens: int = 64, seed: int = 0, chat: bool = False, ignore_eos: bool = False
    ) -> Completion:
        """One request; see `complete_many`."""
        answers = self.complete_many([prompt], 1, max_tokens=max_tokens, seed=seed, chat=chat, ignore_eos=ignore_eos)
        return answers.completions[0]

    def complete_many(
        self,
        prompts: Sequence[str],
        concurrency: int,
        *,
        max_tokens: int = 64,
        seed: int = 0,
        chat: bool = False,
        ignore_eos: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Answers:
        """Request a completion of each prompt. A failed request has an error in its result; the others continue.

        Args:
            prompts: at least one; with `chat`, each is a user message.
            concurrency: number of parallel clients, each with one request at a time.
            max_tokens: longest completion, in tokens. llama_cpp.server goes beyond while the bytes so far end in an
                incomplete character; a broken model may do so until the context is full, and then the request fails.
            seed: sent along; greedy decoding does not depend on it.
            chat: ask for chat completions, which use the model's template.
            ignore_eos: always continue to `max_tokens`, so that all answers have the same length.
            progress: called with requests (done, total).

        Raises:
            NoData: no prompts.
            OptionError: no clients.
            RuntimeError: called from inside a running event loop.
        """
        import asyncio  # with ssl, a twentieth of the time in which a session without servers starts

        if concurrency < 1:
            raise OptionError(f"concurrency is {concurrency}, expected at least 1.")
        if not prompts:
            raise NoData("No prompts were given, so there is nothing to request.")
        greedy = {"temperature": 0.0, "repeat_penalty": 1.0, "seed": seed, "max_tokens": max_tokens}
        options: dict[str, Any] = {
            **greedy,
            # llama-server: process the whole prompt each time, so that times do not depend on earlier requests.
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ignore_eos:
            # The first is llama-server's name for it, the second llama_cpp.server's.
            options |= {"ignore_eos": True, "min_tokens": max_tokens}
        asked = _Asked(chat, options, progress)
        return asyncio.run(self._ask_all(prompts, concurrency, asked))

    async def _ask_all(self, prompts: Sequence[str], concurrency: int, asked: _Asked) -> Answers:
        import asyncio

        import httpx2

        done: dict[int, Completion] = {}
        # Clients take prompts one by one: after an answer, a client takes the next.
        waiting = iter(enumerate(prompts))

        async def client_loop(client: httpx2.AsyncClient) -> None:
            for index, prompt in waiting:
                done[index] = await self._ask(client, asked.path, asked.body(prompt))
                if asked.progress is not None:
                    asked.progress(len(done), len(prompts))

        async with httpx2.AsyncClient(
            base_url=self._url,
            headers={"Content-Type": "application/json", **self._authorization},
            timeout=None,  # there is one for the whole request
            # One connection per request: a server closes a connection after an incomplete answer, and the next request
            # would fail.
            limits=httpx2.Limits(max_keepalive_connections=0),
            # Loading the system's certificates takes longer than a request.
            verify=self._url.startswith("https:"),
            # An internet proxy cannot reach this machine's local address.
            trust_env=False,
        ) as client:
            start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(prompts))):
                    group.create_task(client_loop(client))
            wall_s = time.perf_counter() - start
        return Answers([done[index] for index in range(len(prompts))], wall_s)

    async def _ask(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> Completion:
        import asyncio

        import httpx2

        answer = _Answer()
        try:
            async with asyncio.timeout(self._timeout_s):
                error = await answer.read(client, path, body)
                if error is None and answer.finish_reason is None:
                    error = await _reason(client, path, body)
        except TimeoutError:
            error = f"no complete answer within {self._timeout_s:g} s"
        except httpx2.HTTPError as problem:
            error = f"the connection to {self._url} failed ({type(problem).__name__}: {problem})"
        return answer.completion(error)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Settings shared by all requests of a call."""

    chat: bool
    options: dict[str, Any]
    progress: ProgressCallback | None

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, prompt: str) -> dict[str, Any]:
        if self.chat:
            return {"messages": [{"role": "user", "content": prompt}], **self.options}
        return {"prompt": prompt, **self.options}


@dataclass(slots=True)
class _Answer:
    """A stream of server-sent events, as it arrives."""

    start: float = field(default_factory=time.perf_counter)
    parts: list[str] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    end: float | None = None
    finish_reason: str | None = None
    usage: int | None = None

    async def read(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> str | None:
        """Send a request and read its answer; returns an error that the server sends instead."""
        import httpx2

        async with client.stream("POST", path, content=_encoded(body)) as response:
            if response.status_code != httpx2.codes.OK:
                return _message(response.status_code, await response.aread())
            async for event in httpx2.EventSource(response):
                now = time.perf_counter()
                if event.data == "[DONE]":
                    break
                try:
                    chunk = json.loads(event.data)
                except ValueError:
                    return f"the server sent invalid JSON: {event.data[:200]!r}"
                if not isinstance(chunk, dict):
                    return f"the server sent something other than a chunk of a completion: {event.data[:200]!r}"
                if "error" in chunk:
                    return _message(response.status_code, event.data.encode())
                self._take(chunk, now)
        self.end = time.perf_counter()
        return None

    def _take(self, chunk: dict[str, Any], now: float) -> None:
        if usage := chunk.get("usage"):
            self.usage = int(usage["completion_tokens"])
        for choice in chunk.get("choices", ()):
            reason = choice.get("finish_reason")
            text = _text(choice)
            if text or (text is not None and reason is None):
                self.parts.append(text)
                self.arrivals.append(now)
            self.finish_reason = reason or self.finish_reason

    def completion(self, error: str | None) -> Completion:
        end = time.perf_counter() if self.end is None else self.end
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return Completion(
            text="".join(self.parts),
            tokens=len(self.arrivals) if self.usage is None else self.usage,
            ttft_s=self.arrivals[0] - self.start if self.arrivals else None,
            itl_s=tuple(later - earlier for earlier, later in pairs),
            total_s=end - self.start,
            finish_reason=None if error is not None else self.finish_reason,
            error=error,
        )


def _text(choice: dict[str, Any]) -> str | None:
    """Text of a chunk; "" for a token that is not yet a complete character, None without a token."""
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text")
    text: str | None = delta.get("content") or delta.get("reasoning_content")
    # The first chunk of a chat only gives the role.
    return text if text or "role" in delta else delta.get("content")


async def _reason(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> str:
    """Why a stream ended early.

    llama_cpp.server sends status 200 before it checks the prompt; without a stream it reports the problem.
    """
    again = {name: value for name, value in body.items() if name != "stream_options"}
    response = await client.post(path, content=_encoded(again | {"stream": False, "max_tokens": 1, "min_tokens": 0}))
    if response.status_code != 200:
        return _message(response.status_code, response.content)
    return "the server ended the stream before the answer was complete; its log says why"


def _encoded(body: dict[str, Any]) -> bytes:
    """JSON in ASCII: a prompt may contain a lone surrogate, which UTF-8 cannot encode."""
    return json.dumps(body).encode("ascii")


def _message(status: int, content: bytes) -> str:
    """The server's message: {"error": {"message": ...}}, or {"detail": ...} from FastAPI."""
    try:
        answer = json.loads(content)
        words = answer["error"]["message"] if "error" in answer else answer["detail"]
    except (ValueError, LookupError, TypeError):
        words = content.decode("utf-8", "replace")[:200]
    return f"the server answered {status}: {words or 'it gave no reason; its log may'}"
