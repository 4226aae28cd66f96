"""An OpenAI-compatible server of one model, in a child process: llama_cpp.server, or a llama-server binary.

It listens on 127.0.0.1 only and requires a random key, which is never on a command line. llama_cpp.server decodes one
request at a time: concurrent requests wait in a queue. llama-server decodes `ServerSettings.parallel` at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from gguf_harness.engine.child import (
    child_environment,
    describe_exit,
    die_with_parent,
    log_end,
    log_tail,
    start_child,
    stop_child,
)
from gguf_harness.engine.settings import GGML_TYPES, NO_ROTATION, ServerSettings
from gguf_harness.errors import EngineCrashed, EngineError, EngineTimeout, is_utf8, require_extra

__all__ = ["Server", "ServerPool", "require_binary", "serve"]

_HOST: Final = "127.0.0.1"
_GRACE_S: Final = 5.0
_POLL_S: Final = 0.05
_PORT_ATTEMPTS: Final = 3
_ALL_LAYERS: Final = 999


class Server:
    """A running server; it is ready when the constructor returns, and stopped by `close`.

    On Linux it also ends with the thread that started it, so that nothing outlives a killed session.

    Args:
        label: what is served, for error messages (usually the model's name).
        files: the GGUF file, or its splits.
        log: file that collects the server's output.
        settings: context, threads, layers on the GPU, parallel requests, types of the KV cache.
        binary: llama-server to run; None for llama_cpp.server of this Python.
        port: to listen on; None for a free one.
        gpu: index for CUDA_VISIBLE_DEVICES; -1 hides all GPUs; None leaves the environment as it is.
        timeout_s: longest time until it is ready.

    Raises:
        EngineCrashed: the process was killed by a signal before it was ready.
        EngineTimeout: it was not ready in time; it was stopped.
        EngineError: the binary cannot be run, the port is taken, or llama.cpp refused the model.
        MissingExtra: there is no binary, and the libraries that llama_cpp.server needs are not installed.
    """

    def __init__(
        self,
        label: str,
        files: Sequence[Path],
        log: Path,
        settings: ServerSettings | None = None,
        *,
        binary: Path | None = None,
        port: int | None = None,
        gpu: int | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        if binary is None:
            require_extra("serve", "Serving a model without --gguf-llama-server")
        self.label = label
        self.files = tuple(files)
        self.log = log
        self.settings = settings or ServerSettings()
        self.api_key = secrets.token_urlsafe(32)
        self._binary = require_binary(binary) if binary is not None else None
        self._gpu = gpu
        self._timeout_s = timeout_s
        self._links: tempfile.TemporaryDirectory[str] | None = None
        # Distinguishes our server from another one that took the port first.
        self._alias = f"gguf-harness-{secrets.token_hex(4)}"
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self.port = _choose_port(port)
            try:
                self._start()
                break
            except EngineError:
                # Another process may take a free port before we listen on it.
                if port is not None or attempt == _PORT_ATTEMPTS or _is_free(self.port):
                    raise

    @property
    def url(self) -> str:
        """Base of the API: `{url}/v1/completions`."""
        return f"http://{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self._process.poll() is None

    def check(self, grace_s: float = 0.0) -> None:
        """Check that the server is alive.

        Args:
            grace_s: how long to wait for its end: a process that is being killed stops answering first.

        Raises:
            EngineCrashed: it is not alive; the message has the signal and the last lines of its log.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        if not self.is_running:
            raise EngineCrashed(
                f"{self.label}: the server process {describe_exit(self._process.returncode)}.",
                self._last_lines(),
                self._process.returncode,
            )

    def close(self) -> None:
        """Stop the server; never fails, in any state."""
        stop_child(self._process, _GRACE_S)
        self._finalizer.detach()
        if self._links is not None:
            self._links.cleanup()
            self._links = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        environment = child_environment(self._gpu)
        environment[NO_ROTATION] = "0" if self.settings.rotate_kv else "1"
        self._log_start = log_end(self.log)
        if self._binary is None:
            code = f"import {__name__} as s; s.serve({os.getpid()})"
            command = [sys.executable, "-P", "-X", "faulthandler", "-c", code]
            self._process = start_child(command, self.log, environment, stdin=subprocess.PIPE)
        else:
            # Settings of the user for other servers must not apply here.
            environment = {name: value for name, value in environment.items() if not name.startswith("LLAMA_ARG_")}
            environment["LLAMA_API_KEY"] = self.api_key
            code = f"import sys, gguf_harness.engine.child as c; c.run_bound({os.getpid()}, sys.argv[1:])"
            command = [sys.executable, "-P", "-c", code, str(self._binary), *self._binary_arguments()]
            self._process = start_child(command, self.log, environment)
        self._finalizer = weakref.finalize(self, stop_child, self._process)
        try:
            if self._process.stdin is not None:
                self._send_configuration()
            self._wait_until_ready()
        except BaseException:  # Ctrl-C included
            self.close()
            raise

    def _send_configuration(self) -> None:
        try:
            # Leaving the block closes the pipe: the configuration is complete.
            with self._process.stdin as pipe:  # type: ignore[union-attr]
                pipe.write(json.dumps(self._configuration()).encode())
        except BrokenPipeError:
            pass  # it has already died: waiting for it gives the reason

    def _configuration(self) -> dict[str, Any]:
        """A configuration file of llama_cpp.server."""
        settings = self.settings
        model = {
            "model": self._model_path(),
            "model_alias": self._alias,
            "n_ctx": settings.n_ctx,
            "n_threads": settings.threads,
            "n_threads_batch": settings.threads,
            "n_gpu_layers": max(settings.n_gpu_layers, -1),
            # By default it keeps the logits of a whole context and locks the model in memory.
            "logits_all": False,
            "use_mlock": False,
        }
        if settings.changes_cache:
            model |= {"type_k": GGML_TYPES[settings.cache_type_k], "type_v": GGML_TYPES[settings.cache_type_v]}
        if settings.has_quantized_v:
            # The default is off, with which llama.cpp refuses such a cache; llama-server lets llama.cpp decide.
            model["flash_attn"] = True
        # By default a stream ends as soon as another request arrives.
        server = {"host": _HOST, "port": self.port, "api_key": self.api_key, "interrupt_requests": False}
        return {**server, "models": [model]}

    def _model_path(self) -> str:
        """The (first) file by a UTF-8 path, as llama_cpp.server requires; via links if necessary."""
        path = str(self.files[0])
        if is_utf8(path):
            return path
        if self._links is None:
            self._links = tempfile.TemporaryDirectory(prefix="gguf-harness-")
            for number, file in enumerate(self.files, 1):
                # llama.cpp finds the other splits by the name of the first.
                name = f"model-{number:05d}-of-{len(self.files):05d}.gguf" if len(self.files) > 1 else "model.gguf"
                (Path(self._links.name) / name).symlink_to(file.absolute())
        return str(min(Path(self._links.name).iterdir()))

    def _binary_arguments(self) -> list[str]:
        """Arguments of llama-server, which divides its context among parallel requests."""
        settings = self.settings
        values = {
            "model": self.files[0],
            "alias": self._alias,
            "host": _HOST,
            "port": self.port,
            "ctx-size": settings.n_ctx * settings.parallel,
            "parallel": settings.parallel,
            "threads": settings.threads,
            "n-gpu-layers": settings.n_gpu_layers if settings.n_gpu_layers >= 0 else _ALL_LAYERS,
        }
        if settings.changes_cache:
            values |= {"cache-type-k": settings.cache_type_k, "cache-type-v": settings.cache_type_v}
        return [part for name, value in values.items() for part in (f"--{name}", str(value))]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not self._answers():
            status = self._process.poll()
            if status is not None and status > 0:
                raise EngineError(
                    f"{self.label}: the server {describe_exit(status)} before it was ready; llama.cpp refused the"
                    " model or a setting.",
                    self._last_lines(),
                )
            self.check()
            if time.monotonic() > deadline:
                raise EngineTimeout(
                    f"{self.label}: the server was not ready within {self._timeout_s:g} s; it was stopped.",
                    f"Raise --gguf-timeout if loading takes that long. {self._last_lines()}",
                )
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        import http.client  # with ssl, a twentieth of the time in which a session without servers starts

        connection = http.client.HTTPConnection(_HOST, self.port, timeout=min(5.0, self._timeout_s))
        try:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {self.api_key}"})
            response = connection.getresponse()
            content = response.read()
            return response.status == http.HTTPStatus.OK and json.loads(content)["data"][0]["id"] == self._alias
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False  # not ready yet, or not ours
        finally:
            connection.close()

    def _last_lines(self) -> str:
        return f"Last lines of {self.log}:\n{log_tail(self.log, self._log_start)}"


class ServerPool:
    """Running servers by name; if there are too many, the least recently used is stopped.

    Args:
        limit: how many may run at once.
    """

    def __init__(self, limit: int = 1) -> None:
        self._limit = limit
        self._servers: dict[str, Server] = {}

    def get(self, name: str, start: Callable[[], Server]) -> Server:
        """The running server of that name; started if there is none, or if it has died."""
        server = self._servers.pop(name, None)
        if server is None or not server.is_running:
            while len(self._servers) >= self._limit:
                self._servers.pop(next(iter(self._servers))).close()
            server = start()
        self._servers[name] = server
        return server

    def close(self) -> None:
        """Stop all servers."""
        while self._servers:
            self._servers.popitem()[1].close()


def require_binary(binary: Path) -> Path:
    """The absolute path of a program.

    Raises:
        EngineError: there is no such file, or it cannot be executed.
    """
    hint = "Give the path of llama.cpp's llama-server with --gguf-llama-server, or leave it out for llama_cpp.server."
    if not binary.is_file():
        raise EngineError(f"llama-server {binary}: no such file.", hint)
    if not os.access(binary, os.X_OK):
        raise EngineError(f"llama-server {binary} is not executable.", f"chmod +x {binary}, if it is one. {hint}")
    return binary.absolute()


def serve(parent: int) -> None:
    """Main function of the child process: `python -m llama_cpp.server` with its configuration from stdin.

    Args:
        parent: process id of the parent, with which this process ends.
    """
    die_with_parent(parent)
    from llama_cpp.server.settings import ConfigFileSettings, ModelSettings

    # Ignore environment variables that can set the same settings (HOST, PORT, CACHE, ...).
    ours = {"config_file", *ConfigFileSettings.model_fields, *ModelSettings.model_fields}
    for name in [name for name in os.environ if name.lower() in ours]:
        del os.environ[name]
    sys.argv = ["llama_cpp.server", "--config_file", "/dev/stdin"]
    runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)


def _choose_port(wanted: int | None) -> int:
    if wanted is None:
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            return int(probe.getsockname()[1])
    if not 0 < wanted < 2**16:
        raise EngineError(f"Port {wanted} does not exist.", "Give a port from 1 to 65535, or none for a free one.")
    if not _is_free(wanted):
        raise EngineError(f"Port {wanted} of {_HOST} cannot be listened on.", "Give another port, or none.")
    return wanted


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: closed connections must not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True
