"""What becomes of a hub that does not answer, or says no: asked for real, over HTTP on this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gguf_harness.errors import HubError
from gguf_harness.inputs import hub

ASK = """
import sys
from gguf_harness.cli import main
sys.exit(main(["inspect", sys.argv[1]]))
"""


class _No(BaseHTTPRequestHandler):
    """Answers as the hub does, with what the repository's name asks for."""

    def do_GET(self) -> None:
        answers = {"/gated/": (403, "GatedRepo"), "/none/": (404, "RepoNotFound"), "/resolve/": (404, "EntryNotFound")}
        status, code = next((answer for part, answer in answers.items() if part in self.path), (400, ""))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - its name in the standard library

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
        """Say nothing."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _No)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("spec", "environment", "message"),
    [
        ("hf:org/gated:Q4_K_M", {}, "org/gated is gated: its owner decides who may download it"),
        ("hf:org/none:Q4_K_M", {}, "there is no repository org/none that you have access to"),
        ("hf:org/name:x.gguf", {}, "org/name has no file x.gguf"),
        ("hf:org/odd:Q4_K_M", {}, "could not be downloaded"),
        ("hf:org/name..:Q4_K_M", {}, "could not be downloaded"),
        ("hf:org/name:Q4_K_M", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("hf:org/name:x.gguf", {"HF_HUB_OFFLINE": "1"}, "x.gguf is not in the cache"),
    ],
)
def test_a_no_is_one_message(
    spec: str,
    environment: dict[str, str],
    message: str,
    endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ({"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)} | environment).items():
        monkeypatch.setenv(name, value)
    # A process of its own, for huggingface_hub reads its environment when it is imported.
    done = subprocess.run([sys.executable, "-c", ASK, spec], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 3


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked three times; only the waiting is left out here."""
    from huggingface_hub.utils import _http

    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    _http.close_session()
    with pytest.raises(HubError, match="refused"):
        hub.list_files("org/name")
    with pytest.raises(HubError, match=r"the hub cannot be reached, and x\.gguf is not in the cache"):
        hub.download("org/name", "x.gguf")
    _http.close_session()


def test_no_network_is_said_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nobody listens to: huggingface_hub alone asks for 23 seconds."""
    for name, value in {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    asking = [
        subprocess.Popen([sys.executable, "-c", ASK, spec], stderr=subprocess.PIPE, text=True)
        for spec in ("hf:org/name:Q4_K_M", "hf:org/name:x.gguf")
    ]
    for process in asking:
        _, said = process.communicate(timeout=30)
        assert process.returncode == 2, said
        assert "could not be downloaded" in said
    assert time.monotonic() - started < 15


def test_patience_ends() -> None:
    asleep = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        hub._in_time(lambda: asleep.wait(60), 0.05)
    asleep.set()
    assert hub._in_time(time.monotonic, 1) > 0
    with pytest.raises(ZeroDivisionError):
        hub._in_time(lambda: 1 // 0, 1)
