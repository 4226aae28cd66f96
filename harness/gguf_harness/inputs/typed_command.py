"""The command that a person typed, as a run records it: words that a shell would take again, without secrets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Final

from gguf_harness.errors import visible

__all__ = ["typed_command"]

_HIDDEN: Final = "***"
# At the end of a name: --gguf-gen-tokens is a number.
_SECRET: Final = re.compile(
    r"--?(?:[\w-]*[-_])?(?:token|secret|password|passwd|passphrase|api-?key|access-?key)", re.IGNORECASE
)
_IN_ADDRESS: Final = re.compile(r"(?<=://)[^/@\s]+@")


def typed_command(arguments: Iterable[object], typed: str | None, from_variable: str | None) -> list[str]:
    """The words of the command line, of the process that reports.

    Args:
        arguments: of pytest.
        typed: what `gguf-harness run` got, as words of a shell; None without it.
        from_variable: PYTEST_ADDOPTS, which pytest puts before its arguments.
    """
    words = ["pytest", *map(str, arguments)] if typed is None else shlex.split(typed)
    variable = []
    if from_variable:
        try:
            added = shlex.join(_without_secrets(shlex.split(from_variable)))
        except ValueError:  # pytest will say that a quote is missing
            added = from_variable
        variable = ["env", f"PYTEST_ADDOPTS={added}"]
    return [visible(word) for word in (*variable, *_without_secrets(words))]


def _without_secrets(words: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for word in words:
        name, equals, _ = word.partition("=")
        if kept and _SECRET.fullmatch(kept[-1]) and not word.startswith("-"):
            kept.append(_HIDDEN)
        elif equals and _SECRET.fullmatch(name):
            kept.append(f"{name}={_HIDDEN}")
        else:
            kept.append(_IN_ADDRESS.sub(f"{_HIDDEN}@", word))
    return kept
