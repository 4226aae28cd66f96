"""Serves the explorer on this machine until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import OptionError
from gguf_harness.explore.explorer_session import Explorer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["serve_explorer"]

_HOST: Final = "127.0.0.1"


def serve_explorer(explorer: Explorer, port: int, *, browser: bool, say: Callable[[str], None]) -> None:
    """Serve, and say where; returns when it is stopped.

    Args:
        explorer: answers.
        port: to listen on; 0 for a free one.
        browser: whether to open the page in a browser.
        say: prints a line.

    Raises:
        OptionError: the port is taken.
    """
    import uvicorn

    from gguf_harness.explore.app import make_app

    token = secrets.token_urlsafe(24)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((_HOST, port))
            # From now on a browser's request waits, even if it comes before the server is ready.
            listening.listen()
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"--port={port} cannot be listened on: {getattr(error, 'strerror', None) or error}.",
                "Choose another, or leave it out: a free one is taken.",
            ) from None
        port = listening.getsockname()[1]
        address = f"http://{_HOST}:{port}/?token={token}"
        say(f"Open {address}")
        say("It answers only on this machine, and only with this token. Ctrl-C ends it.")
        if browser:
            webbrowser.open(address)
        app = make_app(explorer, token, port, ending=lambda: server.should_exit)
        # Its access log would have the token in it.
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
        server = uvicorn.Server(config)
        try:
            server.run(sockets=[listening])
        finally:
            explorer.free()
