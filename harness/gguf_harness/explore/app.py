"""The explorer's web application: routes, and who may call them.

Whoever can reach the port of this machine could ask: other users, and pages of other sites in a person's browser. So
every request needs the token of the printed address, and has to name this machine as its host and, if it says where it
comes from, as its origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gguf_harness.errors import EngineCrashed, EngineTimeout, HarnessError, OptionError, visible_lines
from gguf_harness.explore.explorer_page import render_page
from gguf_harness.explore.explorer_session import Explorer, Gone
from gguf_harness.measure.live.requests import Ablation, Sampling

__all__ = ["make_app"]

_MOST_BYTES: Final = 1_000_000
_MOST_WRITTEN: Final = 512
_PING_S: Final = 1.0
_LOOK_S: Final = 0.1
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def make_app(
    explorer: Explorer, token: str, port: int, *, grace_s: float = 5.0, ending: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """The application.

    Args:
        explorer: answers.
        token: that every request needs, as the parameter `token` or in the header `Authorization: Bearer`.
        port: that it listens on, which hosts and origins have to name.
        grace_s: seconds without any open page after which the models are freed.
        ending: whether the server ends, which ends the streams of open pages.
    """
    pages = _Pages(explorer, grace_s, ending)
    routes = [
        Route("/", _showing([info.name for info in explorer.infos]), methods=["GET"]),
        Route("/api/models", _asked(pages, lambda _: explorer.describe()), methods=["GET"]),
        Route("/api/alive", pages.alive, methods=["GET"]),
        Route("/api/read", _asked(pages, lambda body: _read(explorer, body)), methods=["POST"]),
        Route("/api/next", _asked(pages, lambda b: explorer.next_tokens(_id(b), _whole(b, "place"))), methods=["POST"]),
        Route(
            "/api/steps",
            _asked(pages, lambda b: explorer.steps(_id(b), _whole(b, "layer"), _whole(b, "head"))),
            methods=["POST"],
        ),
        Route("/api/lens", _asked(pages, lambda b: explorer.lens(_id(b), _whole(b, "place"))), methods=["POST"]),
        Route("/api/stream", _asked(pages, lambda b: explorer.stream(_id(b), _whole(b, "place"))), methods=["POST"]),
        Route("/api/structure", _asked(pages, lambda b: explorer.structure(_whole(b, "model"))), methods=["POST"]),
        Route("/api/generate", _generating(explorer, pages, ending), methods=["POST"]),
    ]
    return _Guard(Starlette(routes=routes), token, port)


class _Guard:
    """Lets through only requests from the printed address."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        request = Request(scope)
        problem = self._problem(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        if problem is None:
            await self._app(scope, receive, send_with_headers)
        else:
            status, told, hint = problem
            await _problem(status, told, hint)(scope, receive, send_with_headers)

    def _problem(self, request: Request) -> tuple[int, str, str] | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if host not in self._hosts:
            return 403, "This host name is not the explorer's.", "Open the address that `gguf-harness explore` printed."
        if origin is not None and origin.removeprefix("http://") not in self._hosts:
            return 403, "Pages of other sites may not ask the explorer.", "Open the address that it printed."
        given = request.query_params.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return 401, "The token is missing or wrong.", "Open the whole address that `gguf-harness explore` printed."
        return None


class _Pages:
    """Counts open pages: each keeps one request open. Without any, and without questions, the models are freed."""

    def __init__(self, explorer: Explorer, grace_s: float, ending: Callable[[], bool]) -> None:
        self._explorer = explorer
        self._grace_s = grace_s
        self._ending = ending
        self._open = 0
        # Text is written in other threads than the server's.
        self._lock = threading.Lock()
        self._asking = 0
        self._last = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    async def alive(self, request: Request) -> Response:
        return StreamingResponse(self._pings(request), media_type="text/event-stream")

    async def _pings(self, request: Request) -> AsyncIterator[str]:
        self._open += 1
        try:
            while not self._ending() and not await request.is_disconnected():
                yield ": a page is open\n\n"
                await asyncio.sleep(_PING_S)
        finally:
            self._open -= 1
            if not self._ending():
                self._wait_for_another()

    def _wait_for_another(self) -> None:
        # Kept here, since the loop keeps no reference to it.
        task = asyncio.get_running_loop().create_task(self._leave())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """While a question is answered: the page that asks may not have said yet that it is open."""
        with self._lock:
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                self._last = time.monotonic()

    async def _leave(self) -> None:
        self._last = time.monotonic()
        while not self._open and not self._ending():
            left = self._last + self._grace_s - time.monotonic()
            if left <= 0 and not self._asking:
                await run_in_threadpool(self._explorer.free)
                return
            await asyncio.sleep(max(left, _LOOK_S))


def _showing(models: Sequence[str]) -> Callable[[Request], Awaitable[Response]]:
    async def page(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data: blob:;"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(render_page(nonce, models), headers={"content-security-policy": policy})

    return page


def _asked(
    pages: _Pages, answer: Callable[[dict[str, Any]], dict[str, Any]]
) -> Callable[[Request], Awaitable[Response]]:
    """A route that answers with JSON, or with the message of an error."""

    async def route(request: Request) -> Response:
        with pages.asking():
            try:
                body = await _body(request)
                return JSONResponse(await run_in_threadpool(answer, body))
            except HarnessError as error:
                return _complaint(error)

    return route


def _generating(
    explorer: Explorer, pages: _Pages, ending: Callable[[], bool]
) -> Callable[[Request], Awaitable[Response]]:
    def events(body: dict[str, Any]) -> Iterator[str]:
        with pages.asking():
            yield from written(body)

    def written(body: dict[str, Any]) -> Iterator[str]:
        try:
            limit = _whole(body, "limit")
            if not 1 <= limit <= _MOST_WRITTEN:
                raise OptionError(f"limit is {limit}, expected 1 to {_MOST_WRITTEN}.")
            stream = explorer.generate(
                _text(body, "prompt"), _ablation(body), _sampling(body), limit, chat=bool(body.get("chat"))
            )
            for event, data in stream:
                if ending():
                    return
                yield _event(event, data)
        except HarnessError as error:
            yield _event("problem", {"message": visible_lines(error.message), "hint": _hint(error)})

    async def route(request: Request) -> Response:
        try:
            body = await _body(request)
        except HarnessError as error:
            return _complaint(error)
        # Starlette ends this when the page goes or stops; each token is a request of its own to the worker.
        return StreamingResponse(iterate_in_threadpool(events(body)), media_type="text/event-stream")

    return route


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"


# -- what a request says ----------------------------------------------------------------------------------------------


async def _body(request: Request) -> dict[str, Any]:
    """The JSON of a request.

    Raises:
        OptionError: too long, or no JSON object.
    """
    if request.method == "GET":
        return {}
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_BYTES:
            raise OptionError(f"The request has more than {_MOST_BYTES} bytes.", "Shorten the prompt.")
        parts.append(part)
    try:
        body = json.loads(b"".join(parts) or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise OptionError("The request is not a JSON object.")
    return body


def _read(explorer: Explorer, body: dict[str, Any]) -> dict[str, Any]:
    return explorer.read(_text(body, "prompt"), _ablation(body), chat=bool(body.get("chat")))


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise OptionError(f"{name} is {value!r}, expected a text.")
    return value


def _id(body: dict[str, Any]) -> str:
    return _text(body, "id")


def _whole(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int:
        raise OptionError(f"{name} is {value!r}, expected a whole number.")
    return value


def _ablation(body: dict[str, Any]) -> Ablation:
    off = body.get("off") or {}
    try:
        heads = tuple(sorted({(int(layer), int(head)) for layer, head in off.get("heads", [])}))
        return Ablation(heads, tuple(sorted({int(layer) for layer in off.get("layers", [])})))
    except (TypeError, ValueError, AttributeError):
        raise OptionError(
            f"off is {off!r}, expected heads as pairs of layer and head, and layers as numbers."
        ) from None


def _sampling(body: dict[str, Any]) -> Sampling:
    given = body.get("sampling") or {}
    kinds = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "seed": int}
    try:
        return Sampling(**{name: kinds[name](value) for name, value in given.items()})
    except (TypeError, ValueError, KeyError, AttributeError):
        raise OptionError(f"sampling is {given!r}, expected numbers for {', '.join(kinds)}.") from None


# -- what an answer says ----------------------------------------------------------------------------------------------


def _complaint(error: HarnessError) -> Response:
    status = 410 if isinstance(error, Gone) else 503 if isinstance(error, EngineCrashed | EngineTimeout) else 400
    return _problem(status, visible_lines(error.message), _hint(error))


def _hint(error: HarnessError) -> str:
    if isinstance(error, EngineCrashed | EngineTimeout):
        # The end of the worker's log means little to a reader of the page.
        return "Ask again: that starts a new one."
    return visible_lines(error.hint or "")


def _problem(status: int, message: str, hint: str) -> Response:
    return JSONResponse({"message": message, "hint": hint}, status_code=status)
