"""The explorer as people start it: a process of its own, which prints its address."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import psutil

__all__ = ["Explored", "explored"]


@dataclass(frozen=True, slots=True)
class Explored:
    """A running explorer.

    Attributes:
        address: as it was printed, with the token.
        process: its process.
    """

    address: str
    process: subprocess.Popen[str]

    @property
    def base(self) -> str:
        return self.address.partition("/?")[0]

    @property
    def token(self) -> str:
        return self.address.rpartition("=")[2]

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes of its models."""
        return psutil.Process(self.process.pid).children()

    def ask(self, path: str, **body: Any) -> Any:
        """The JSON that it answers; an answer that is no success is an error."""
        reply = self.reply(path, **body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def reply(self, path: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        if body:
            return httpx.post(f"{self.base}{path}", headers=headers, json=body, timeout=60)
        return httpx.get(f"{self.base}{path}", headers=headers, timeout=60)

    def events(self, path: str, **body: Any) -> Iterator[tuple[str, Any]]:
        """(event, data) of a stream."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.stream("POST", f"{self.base}{path}", headers=headers, json=body, timeout=60) as reply:
            assert reply.status_code == 200
            event = ""
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield event, json.loads(line.removeprefix("data: "))


@contextlib.contextmanager
def explored(*arguments: str) -> Iterator[Explored]:
    """Start `gguf-harness explore` with these arguments, on the CPU, and stop it as Ctrl-C does."""
    command = [sys.executable, "-m", "gguf_harness.cli", "explore", *arguments, "--gpu=-1", "--threads=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        address = next((line.split()[1] for line in lines if line.startswith("Open http://127.0.0.1:")), None)
        assert address is not None, lines
        yield Explored(address, process)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
        assert (process.returncode, rest) == (130, "Interrupted.\n"), rest
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
