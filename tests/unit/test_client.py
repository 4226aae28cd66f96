"""The client against answers as llama-server words them, and against servers that misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gguf_harness.errors import NoData
from gguf_harness.measure.speed.client import Client, Percentiles

Answer = Callable[[dict[str, Any]], tuple[int, str, str]]
"""From the body of a request to (status, content type, content)."""


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Client]]:
    """`serve(answer)`: a client of a server that answers so."""
    running: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> Client:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, kind, content = answer(body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return Client(f"http://127.0.0.1:{server.server_port}", "key", timeout_s=20)

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def _events(*chunks: object) -> tuple[int, str, str]:
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    return 200, "text/event-stream", "".join(f"data: {line}\n\n" for line in lines)


def _chunk(reason: str | None = None, **choice: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": reason, **choice}]}


def test_tokens_are_as_the_server_counts_them(serve: Callable[[Answer], Client]) -> None:
    """With include_usage, the last chunk has no choices. A line separator in a text ends no event."""
    usage = {"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 2, "total_tokens": 7}}
    answer = serve(
        lambda _: _events(_chunk(text="a\u2028"), _chunk(text="😀"), _chunk("length", text=""), usage, "[DONE]")
    ).complete("x")
    assert (answer.text, answer.tokens, answer.finish_reason) == ("a\u2028😀", 5, "length")
    assert len(answer.itl_s) == 1


def test_a_chat_begins_with_its_first_token(serve: Callable[[Answer], Client]) -> None:
    asked: list[dict[str, Any]] = []

    def chat(body: dict[str, Any]) -> tuple[int, str, str]:
        asked.append(body)
        return _events(
            _chunk(delta={"role": "assistant", "content": None}),
            _chunk(delta={"reasoning_content": "hm "}),
            _chunk(delta={"content": "yes"}),
            _chunk("stop", delta={}),
            "[DONE]",
        )

    answer = serve(chat).complete("well?", chat=True, max_tokens=3, seed=7)
    assert (answer.text, answer.tokens, answer.finish_reason) == ("hm yes", 2, "stop")
    (body,) = asked
    assert body["messages"] == [{"role": "user", "content": "well?"}]
    assert (body["temperature"], body["seed"], body["max_tokens"], body["stream"]) == (0, 7, 3, True)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_events({"error": {"code": 500, "message": "no slot"}}), "the server answered 200: no slot"),
        (_events("not json"), "the server sent invalid JSON: 'not json'"),
        (_events("[]"), "the server sent something other than a chunk of a completion: '[]'"),
        (_events(_chunk(text="a")), "the server ended the stream before the answer was complete"),
        ((200, "text/html", "<p>hello"), "Expected response with content type 'text/event-stream'"),
        (
            (503, "application/json", '{"error": {"message": "Loading model"}}'),
            "the server answered 503: Loading model",
        ),
        ((500, "application/json", '{"error": {"message": ""}}'), "the server answered 500: it gave no reason"),
        ((404, "text/plain", "nothing here"), "the server answered 404: nothing here"),
        ((400, "application/json", "[1]"), "the server answered 400: [1]"),
    ],
)
def test_an_answer_that_is_none_is_one_error(
    serve: Callable[[Answer], Client], answer: tuple[int, str, str], message: str
) -> None:
    completion = serve(lambda _: answer).complete("x")
    assert completion.error is not None
    assert message in completion.error
    assert completion.finish_reason is None


def test_a_failed_request_does_not_fail_the_next(serve: Callable[[Answer], Client]) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, str, str]:
        good = _events(_chunk(text="a"), _chunk("stop", text=""), "[DONE]")
        return (500, "text/plain", "bad") if body["prompt"] == "bad" else good

    answers = serve(answer).complete_many(["bad", "good", "bad", "good"], 1)
    assert [c.error is None for c in answers.completions] == [False, True, False, True]
    assert len(answers.failed) == 2


def test_percentiles_are_interpolated_and_need_samples() -> None:
    latency = Percentiles.of([4.0, 1.0, 3.0, 2.0])
    assert (latency.p50, latency.n) == (2.5, 4)
    assert latency.p90 == pytest.approx(3.7)
    assert latency.p99 == pytest.approx(3.97)
    with pytest.raises(NoData):
        Percentiles.of([])
