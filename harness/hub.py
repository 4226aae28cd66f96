"""The Hugging Face hub: names of files, and files. Whatever goes wrong there is one short message."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Literal, TypeVar

from harness.errors import HubError

__all__ = ["download", "list_files"]

T = TypeVar("T")

_PATIENCE_S: Final = 30.0
"""For an answer to a question; huggingface_hub repeats it for more than a minute where packets get lost."""
_LONGEST: Final = 300


def list_files(repository: str, revision: str | None = None) -> list[str]:
    """Names of the files of a repository of models.

    Raises:
        HubError: no network, no such repository or revision, no permission.
    """
    from huggingface_hub import HfApi

    return _ask(lambda: HfApi().list_repo_files(repository, revision=revision), repository, _PATIENCE_S)


def download(
    repository: str, name: str, *, kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> Path:
    """A file of a repository, from huggingface_hub's cache if it is there.

    Raises:
        HubError: no network, no such repository, revision or file, no permission, no space.
    """
    from huggingface_hub import hf_hub_download

    def get() -> Path:
        return Path(hf_hub_download(repo_id=repository, filename=name, repo_type=kind, revision=revision))

    return _ask(get, repository, None, name)


def _ask(question: Callable[[], T], repository: str, patience_s: float | None, name: str = "") -> T:
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)  # it warns of every attempt
    try:
        return question() if patience_s is None else _in_time(question, patience_s)
    # Besides its own errors it raises those of its HTTP library, which is another one in each of its major versions.
    except Exception as error:
        raise HubError(*_explain(error, repository, name)) from None
    finally:
        set_verbosity(verbosity)


def _in_time(question: Callable[[], T], patience_s: float) -> T:
    """The answer to a question, if it comes in time; otherwise the thread is left alone, and ends with the process."""
    answers: SimpleQueue[tuple[list[T], Exception | None]] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put(([question()], None))
        except Exception as error:  # raised where it was asked
            answers.put(([], error))

    threading.Thread(target=answer, daemon=True, name="hub").start()
    try:
        values, error = answers.get(timeout=patience_s)
    except Empty:
        raise TimeoutError(f"no answer within {patience_s:g} s") from None
    if error is not None:
        raise error
    return values[0]


def _explain(error: Exception, repository: str, name: str) -> tuple[str, str]:
    """What happened, and what to do, a line each: what huggingface_hub says is a page, or just a number."""
    from huggingface_hub import errors

    elsewhere = "Check the name, the network and the proxies (HTTPS_PROXY), or give a local path."
    known = {
        errors.GatedRepoError: (
            f"{repository} is gated: its owner decides who may have it",
            "Ask for access on its page, then set HF_TOKEN to a token of yours.",
        ),
        errors.RepositoryNotFoundError: (
            f"there is no repository {repository} that you may see",
            "Check the name; for a private repository set HF_TOKEN.",
        ),
        errors.RevisionNotFoundError: (f"{repository} has no such revision", "Check what stands behind the @."),
        errors.OfflineModeIsEnabled: ("HF_HUB_OFFLINE is set", "Unset it, or give a local path."),
        errors.LocalEntryNotFoundError: (f"the hub cannot be reached, and {name} is not in the cache", elsewhere),
        errors.EntryNotFoundError: (f"{repository} has no file {name}", "Its page lists its files."),
    }
    for kind, explanation in known.items():
        if isinstance(error, kind):
            return explanation
    lines = str(error).strip().splitlines()
    first = f": {lines[0][:_LONGEST].rstrip('.')}" if lines else ""
    return f"{type(error).__name__}{first}", elsewhere
