"""The explorer's server: who may ask, what it answers, and what happens when a worker dies or the page goes."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil
import pytest
import uvicorn

from gguf_harness.cli import main
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.explore.app import make_app
from gguf_harness.explore.explorer_session import Explorer
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.layers.tasks import kld_rows
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.requests import Ablation
from tests.integration.explorer_process import Explored, explored
from tests.integration.small_models import write_small_model
from tests.model_store import written_once

pytestmark = pytest.mark.model

# A sentence that comes again after another one: how it goes on is known by looking back.
INDUCTION = "The two strings are concatenated first. A list is sorted in place. The two strings are conc"
OFF = {"heads": [[1, 1]], "layers": []}


@written_once
def write_q2(path: Path) -> Path:
    assert main(["quantize", "tiny", "Q2_K", f"--out={path.parent}", "--threads=2"]) == 0
    return path


@pytest.fixture(scope="module")
def q2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_q2(tmp_path_factory.mktemp("q2") / "tiny-Q2_K.gguf")


@pytest.fixture(scope="module")
def pair(q2: Path) -> Iterator[Explored]:
    with explored(str(q2), "--reference=tiny") as explorer:
        yield explorer


@pytest.fixture(scope="module")
def alone() -> Iterator[Explored]:
    with explored("tiny") as explorer:
        yield explorer


@pytest.fixture(scope="module")
def tiny() -> Iterator[LiveModel]:
    with LiveModel(load_info(expand("tiny")[0]), SessionSettings(threads=2), gpu=-1) as model:
        yield model


@pytest.mark.parametrize("path", ["/", "/api/models", "/api/alive", "/api/read", "/nothing"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic {token}"}, 401),
        ({"Authorization": "Bearer x"}, 401),
        ({"Authorization": "Bearer {token}", "Host": "evil.example"}, 403),
        ({"Authorization": "Bearer {token}", "Host": "evil.example:{port}"}, 403),
        ({"Authorization": "Bearer {token}", "Origin": "http://evil.example"}, 403),
        ({"Authorization": "Bearer {token}", "Origin": "null"}, 403),
        ({"Authorization": "Bearer {token}", "Origin": "https://127.0.0.1:{port}"}, 403),
    ],
)
def test_only_the_page_itself_may_ask(alone: Explored, path: str, headers: dict[str, str], status: int) -> None:
    port = alone.base.rpartition(":")[2]
    given = {name: value.format(token=alone.token, port=port) for name, value in headers.items()}
    for method in ("GET", "POST"):
        reply = httpx.request(method, f"{alone.base}{path}", headers=given)
        assert reply.status_code == status
        assert alone.token not in reply.text
        assert set(reply.json()) == {"message", "hint"}


def test_the_page_allows_no_script_but_its_own(alone: Explored) -> None:
    first, second = (httpx.get(alone.address, headers={"Origin": alone.base}) for _ in range(2))
    policies = [reply.headers["content-security-policy"] for reply in (first, second)]
    for policy in policies:
        assert policy.startswith("default-src 'none'; script-src 'nonce-")
        assert "frame-ancestors 'none'" in policy
    assert policies[0] != policies[1]
    assert first.headers["cache-control"] == "no-store"
    assert first.headers["referrer-policy"] == "no-referrer"
    assert alone.token not in first.text


def test_numbers_are_those_of_the_arrays(pair: Explored, tiny: LiveModel, q2: Path) -> None:
    answer = pair.ask("/api/read", prompt=INDUCTION)
    with LiveModel(load_info(expand(str(q2))[0]), SessionSettings(threads=2), gpu=-1) as candidate:
        readings = [model.read(INDUCTION) for model in (tiny, candidate)]
    assert [entry["role"] for entry in answer["readings"]] == ["reference", "candidate"]
    assert [token["id"] for token in answer["tokens"]] == readings[0].tokens.tolist()
    for at, reading in enumerate(readings):
        nll = [token["nll"][at] for token in answer["tokens"]]
        np.testing.assert_allclose(np.array(nll[1:], dtype=float), reading.nll()[1:], atol=1e-5)
        drawn = answer["views"]["attention"]["models"][at]
        rows, columns = np.tril_indices(drawn["side"])
        weights = np.concatenate(list(reading.pattern.values()))[:, rows, columns]
        codes = np.frombuffer(base64.b64decode(drawn["weights"]), dtype=np.uint8).reshape(weights.shape)
        np.testing.assert_allclose((codes / 255) ** 2, weights, atol=1 / 255)
        assert drawn["heads"] == [list(head) for head in reading.facts.all_heads]
    assert readings[0].logits is not None
    assert readings[1].logits is not None
    kld = [token["kld"][1] for token in answer["tokens"]]
    np.testing.assert_allclose(kld, kld_rows(readings[0].logits, readings[1].logits), rtol=1e-9)
    assert answer["kld"] == [0.0, kld[-1]]
    assert kld[-1] > 0.01
    switched = pair.ask("/api/read", prompt=INDUCTION, off=OFF)
    assert (answer["moved"], switched["readings"][2]["off"]) == (None, "head 1.1 off")
    assert switched["moved"] != switched["kld"][2]
    (pairs,) = answer["views"]["next_tokens"]["pairs"]
    best = [reading.next_logprobs() for reading in readings]
    for row, logprobs in zip(pairs["logprobs"], best, strict=True):
        assert max(row) == pytest.approx(logprobs.max(), abs=1e-5)


def test_without_the_induction_head_the_prediction_falls(alone: Explored, tiny: LiveModel) -> None:
    answer = alone.ask("/api/read", prompt=INDUCTION, off=OFF)
    told = answer["prediction"]
    expected = [tiny.read(INDUCTION, off).next_logprobs()[told["id"]] for off in (Ablation(), Ablation(((1, 1),)))]
    np.testing.assert_allclose(told["p"], np.exp(expected), rtol=1e-6)
    before, after = told["p"]
    assert told["text"] == "ate"
    assert before > 0.3
    assert after < before / 3
    assert answer["readings"][1]["off"] == "head 1.1 off"
    clean, off = (tiny.read(INDUCTION, each).logits for each in (Ablation(), Ablation(((1, 1),))))
    assert clean is not None
    assert off is not None
    assert answer["moved"] == answer["kld"][1] == pytest.approx(kld_rows(clean[-1:], off[-1:])[0], rel=1e-6)
    assert answer["moved"] > 0.3


def test_steps_stream_and_lens_are_of_the_same_reading(alone: Explored, tiny: LiveModel) -> None:
    answer = alone.ask("/api/read", prompt=INDUCTION, off=OFF)
    reading = tiny.read(INDUCTION)
    steps = alone.ask("/api/steps", id=answer["id"], layer=2, head=5)["heads"][0]["models"][0]
    np.testing.assert_allclose(steps["weights"][7], reading.pattern[2][5, 7, :8], atol=1e-5)
    products = reading.q[2][7, 5] @ reading.k[2][:8, 2].T
    np.testing.assert_allclose(steps["products"][7], products, rtol=1e-4, atol=1e-4)
    assert steps["explained"]
    lines = alone.ask("/api/stream", id=answer["id"], place=4)["lines"]
    norms = np.linalg.norm(reading.states["resid_post"][:, 4], axis=1)
    np.testing.assert_allclose([point[1] for point in lines[0]["points"]], norms, rtol=1e-4)
    lens = alone.ask("/api/lens", id=answer["id"], place=4)["models"]
    assert len(lens) == 2
    logprobs = tiny.lens(reading, 4)
    np.testing.assert_allclose([row[0] for row in lens[0]["data"]["values"]], np.exp(logprobs.max(axis=1)), atol=1e-5)


def test_the_files_are_shown_on_one_scale(pair: Explored, q2: Path) -> None:
    shown = [pair.ask("/api/structure", model=model) for model in (0, 1)]
    header = read_header(q2)
    assert [(row["name"], row["bytes"]) for row in shown[1]["tensors"]] == [(t.name, t.bytes) for t in header.tensors]
    assert shown[0]["scales"] == shown[1]["scales"]
    assert {row["type"] for row in shown[0]["tensors"]} == {"F16", "F32"}
    assert pair.reply("/api/structure", model=2).json()["message"] == "There is no model 2."


def test_text_is_written_token_by_token(alone: Explored, tiny: LiveModel) -> None:
    events = list(alone.events("/api/generate", prompt="Once upon", limit=6, sampling={"temperature": 1, "seed": 5}))
    assert [event for event, _ in events] == ["token"] * 6 + ["end"]
    assert events[-1][1] == {"reason": "limit"}
    again = list(alone.events("/api/generate", prompt="Once upon", limit=6, sampling={"temperature": 1, "seed": 5}))
    assert [data.get("id") for _, data in again] == [data.get("id") for _, data in events]
    tokens, _ = tiny.tokenize("Once upon")
    text = [*tokens.tolist(), *(data["id"] for event, data in events if event == "token")]
    reading = tiny.read(text)
    for place, (_, data) in enumerate(events[:-1], start=len(tokens) - 1):
        assert data["p"] == pytest.approx(np.exp(reading.next_logprobs(place)[data["id"]]), rel=0.02)
        codes = np.frombuffer(base64.b64decode(data["attention"]), dtype=np.uint8).reshape(-1, data["keys"])
        rows = np.concatenate([pattern[:, place, : place + 1] for pattern in reading.pattern.values()])
        np.testing.assert_allclose((codes / 255) ** 2, rows, atol=0.01)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/read", {"prompt": 3}, 400, "prompt is 3, expected a text"),
        ("/api/read", {"prompt": "a\ud800"}, 400, "not valid text"),
        ("/api/read", {"prompt": "word " * 600}, 400, "^tiny-F16: .* do not fit into the model's context of 512"),
        ("/api/read", {"prompt": "a", "off": {"heads": [[9, 9]]}}, 400, r"has no head 9\.9"),
        ("/api/read", {"prompt": "a", "off": {"heads": 3}}, 400, "expected heads as pairs"),
        ("/api/read", {"prompt": "a", "off": {"layers": [7]}}, 400, "no layer 7"),
        ("/api/steps", {"id": "gone", "layer": 1, "head": 1}, 410, "too long ago"),
        ("/api/next", {"id": "gone", "place": True}, 400, "place is True, expected a whole number"),
    ],
)
def test_bad_questions_are_messages(
    alone: Explored, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    import json
    import re

    headers = {"Authorization": f"Bearer {alone.token}"}
    reply = httpx.post(f"{alone.base}{path}", headers=headers, content=json.dumps(body).encode(), timeout=60)
    assert reply.status_code == status
    assert re.search(message, reply.json()["message"])
    assert "--gguf" not in reply.text


def test_bad_requests_to_write_are_events(alone: Explored) -> None:
    for body, message in (
        ({"prompt": "a", "limit": 0}, "limit is 0, expected 1 to 512"),
        ({"prompt": "a", "limit": 2, "sampling": {"temperature": -1}}, "temperature is -1"),
        ({"prompt": "a", "limit": 2, "sampling": {"heat": 1}}, "expected numbers for temperature"),
        ({"prompt": "a", "limit": 2, "off": {"layers": [9]}}, "no layer 9"),
    ):
        ((event, data),) = alone.events("/api/generate", **body)
        assert event == "problem"
        assert message in data["message"]


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"prompt": "' + b"a" * 1_000_001 + b'"}'])
def test_what_is_no_question_is_refused(alone: Explored, content: bytes) -> None:
    headers = {"Authorization": f"Bearer {alone.token}"}
    reply = httpx.post(f"{alone.base}/api/read", headers=headers, content=content)
    assert reply.status_code == 400


def test_a_worker_that_dies_is_a_message_and_then_it_works_again(alone: Explored) -> None:
    before = alone.ask("/api/read", prompt="Once upon a time")
    # Its likeliest text goes round in circles, and does not end by itself.
    stream = alone.events("/api/generate", prompt="Once upon a time", limit=450)
    next(stream)
    for worker in alone.workers:
        worker.kill()
    event, data = list(stream)[-1]
    assert event == "problem"
    assert "the worker process died of SIGKILL" in data["message"]
    assert data["hint"] == "Ask again: that starts a new one."
    for worker in alone.workers:
        worker.kill()
        worker.wait()
    reply = alone.reply("/api/read", prompt="never read before")
    assert reply.status_code == 200 or "worker" in reply.json()["message"]
    after = alone.ask("/api/read", prompt="Once upon a time")
    assert after["prediction"] == before["prediction"]


def test_models_are_freed_when_no_page_is_open() -> None:
    explorer = Explorer([load_info(expand("tiny")[0])], SessionSettings(threads=2), gpu=-1)
    given = {"Authorization": "Bearer secret"}
    with served(explorer, grace_s=0.3) as address, httpx.Client(base_url=address, headers=given, timeout=60) as client:
        first = client.post("/api/read", json={"prompt": "Once"}).json()
        with client.stream("GET", "/api/alive") as reply:
            lines = reply.iter_lines()
            assert next(lines) == ": a page is open"
            with client.stream("GET", "/api/alive?token=secret") as other:
                assert next(other.iter_lines()) == ": a page is open"
            time.sleep(1.5)
            (pid,) = _pids(explorer)
        deadline = time.monotonic() + 20
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (_pids(explorer), psutil.pid_exists(pid)) == ([], False)
        assert client.post("/api/steps", json={"id": first["id"], "layer": 1, "head": 1}).status_code == 410
        assert client.post("/api/read", json={"prompt": "Once"}).json()["prediction"] == first["prediction"]


def test_a_page_that_asks_before_it_says_that_it_is_open_keeps_the_models() -> None:
    explorer = Explorer([load_info(expand("tiny")[0])], SessionSettings(threads=2), gpu=-1)
    given = {"Authorization": "Bearer secret"}
    with served(explorer, grace_s=0.4) as address, httpx.Client(base_url=address, headers=given, timeout=60) as client:
        with client.stream("GET", "/api/alive") as reply:
            next(reply.iter_lines())
        ended = time.monotonic() + 3
        first = client.post("/api/read", json={"prompt": "Once"}).json()
        (pid,) = _pids(explorer)
        while time.monotonic() < ended:
            reply = client.post("/api/steps", json={"id": first["id"], "layer": 1, "head": 1})
            assert reply.status_code == 200, reply.text
            time.sleep(0.05)
        assert _pids(explorer) == [pid]
        time.sleep(1.5)
        assert _pids(explorer) == []


def _pids(explorer: Explorer) -> list[int]:
    """Processes of the models that are loaded."""
    return [model.worker.pid for model in explorer._models if model.worker.pid is not None]


@contextlib.contextmanager
def served(explorer: Explorer, grace_s: float) -> Iterator[str]:
    """The application in this process, with the token `secret`; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = make_app(explorer, "secret", port, grace_s=grace_s)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
            explorer.free()


@pytest.mark.parametrize("kind", ["gemma3", "t5"])
def test_what_a_model_has_and_has_not_is_said(kind: str, tmp_path: Path) -> None:
    file = write_small_model(tmp_path / f"{kind}.gguf", kind, 2, text=True)
    with explored(str(file)) as explorer:
        (model,) = explorer.ask("/api/models")["models"]
        text = " ".join(model["facts"])
        answer = explorer.ask("/api/read", prompt="Once upon a time there was a model. " * 3)
        if kind == "gemma3":
            assert "sliding window of 64 tokens" in text
            assert "Grouped-query attention: 4 query heads share 2 heads" in text
            assert model["missing"] == []
            assert answer["views"]["attention"]
            assert "of 64 tokens" in answer["notes"][1]
        else:
            assert "an encoder and a decoder" in model["missing"][0]
            assert answer["views"] == {"attention": None, "next_tokens": None, "stream": None}
            assert answer["prediction"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.gguf"], "missing.gguf"),
        (["tiny", "--port=70000"], "'70000' is not a port"),
        (["tiny", "--reference=missing.gguf"], "missing.gguf"),
    ],
)
def test_mistakes_on_the_command_line_end_at_once(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["explore", *arguments])
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(alone: Explored, capsys: pytest.CaptureFixture[str]) -> None:
    port = alone.base.rpartition(":")[2]
    assert main(["explore", "tiny", f"--port={port}"]) == 2
    assert f"--port={port} cannot be listened on" in capsys.readouterr().err


def test_models_with_other_tokens_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_small_model(tmp_path / "gpt2.gguf", "gpt2", 1)
    assert main(["explore", str(file), "--reference=tiny"]) == 2
    assert "vocabular" in capsys.readouterr().err
