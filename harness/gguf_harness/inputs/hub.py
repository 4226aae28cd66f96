"""Access to the Hugging Face hub: lists of files, and downloads. Every failure becomes one short message."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Literal, TypeVar

from gguf_harness.errors import HubError, ModelNotFound
from gguf_harness.inputs.hub_names import SPLIT_NAME, pick_files

__all__ = ["download", "fetch", "list_files"]

T = TypeVar("T")

_PATIENCE_S: Final = 30.0
"""Time limit for a list of names; huggingface_hub retries for more than a minute if packets get lost."""
_FIRST_PATIENCE_S: Final = 12.0
"""Time limit for the first answer: without a network, the user should know soon."""
_PAUSES_S: Final = (1.0, 3.0)
"""Pause before the retry; huggingface_hub itself tries six times, in 23 seconds."""
_LONGEST: Final = 300


def fetch(spec: str) -> list[Path]:
    """The files of a model, `hf:org/repo[@revision]:file-or-quant`, downloaded or cached: all splits in order.

    Raises:
        ModelNotFound: the spec is malformed, no file or several match, or the hub cannot give it.
    """
    match = re.fullmatch(r"hf:(?P<repo>[^/:@]+/[^/:@]+)(@(?P<revision>[^:]+))?:(?P<what>.+)", spec)
    if match is None:
        raise ModelNotFound(f"{spec!r} is malformed.", "Expected hf:ORG/REPO:FILE.gguf or hf:ORG/REPO:Q4_K_M.")
    repository, revision, what = match["repo"], match["revision"], match["what"]
    try:
        if what.lower().endswith(".gguf") and not SPLIT_NAME.match(Path(what).name):
            names = [what]
        else:
            listed = list_files(repository, revision)
            names = pick_files([name for name in listed if name.lower().endswith(".gguf")], what, spec)
        return [download(repository, name, revision=revision) for name in names]
    except HubError as error:
        raise ModelNotFound(
            f"{spec!r} could not be downloaded from the Hugging Face hub: {error.message}.", error.hint
        ) from None


def list_files(repository: str, revision: str | None = None) -> list[str]:
    """Names of the files of a repository of models.

    Raises:
        HubError: no network, no such repository or revision, no permission.
    """
    from huggingface_hub import HfApi

    def names() -> list[str]:
        if (problem := _unreachable(repository, "README.md", "model", revision)) is not None:
            raise problem
        return _in_time(lambda: HfApi().list_repo_files(repository, revision=revision), _PATIENCE_S)

    return _ask(names, repository)


def download(
    repository: str, name: str, *, kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> Path:
    """Download a file of a repository, or take it from huggingface_hub's cache.

    Raises:
        HubError: no network, no such repository, revision or file, no permission, no space.
    """
    from huggingface_hub import hf_hub_download

    def get() -> Path:
        cached_only = _unreachable(repository, name, kind, revision) is not None
        path = hf_hub_download(
            repo_id=repository, filename=name, repo_type=kind, revision=revision, local_files_only=cached_only
        )
        return Path(path)

    return _ask(get, repository, name)


def _unreachable(
    repository: str, name: str, kind: Literal["model", "dataset"], revision: str | None
) -> Exception | None:
    """Why the hub cannot be reached; None if it answers, even with an error, which huggingface_hub raises later."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, name, repo_type=kind, revision=revision)

    def ask() -> Exception | None:
        problem: Exception | None = None
        for pause in (0.0, *_PAUSES_S):
            time.sleep(pause)
            try:
                get_hf_file_metadata(url)
            except (errors.HfHubHTTPError, errors.FileMetadataError):
                return None
            except errors.OfflineModeIsEnabled as error:
                return error
            except Exception as error:  # of the HTTP library
                problem = error
            else:
                return None
        return problem

    try:
        return _in_time(ask, _FIRST_PATIENCE_S)
    except TimeoutError as error:
        return error


def _ask(question: Callable[[], T], repository: str, name: str = "") -> T:
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)  # it warns at every attempt
    try:
        return question()
    # Besides its own errors it raises those of its HTTP library, which differs between its major versions.
    except Exception as error:
        raise HubError(*_explain(error, repository, name)) from None
    finally:
        set_verbosity(verbosity)


def _in_time(question: Callable[[], T], patience_s: float) -> T:
    """The result of a call, if it returns in time; otherwise its thread is abandoned and ends with the process."""
    answers: SimpleQueue[tuple[list[T], Exception | None]] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put(([question()], None))
        except Exception as error:  # raised in the calling thread
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
    """The problem and the next step, a line each: messages of huggingface_hub are a page long, or just a number."""
    from huggingface_hub import errors

    elsewhere = "Check the name, the network and the proxies (HTTPS_PROXY), or give a local path."
    known = {
        errors.GatedRepoError: (
            f"{repository} is gated: its owner decides who may download it",
            "Ask for access on its page, then set HF_TOKEN to a token of yours.",
        ),
        errors.RepositoryNotFoundError: (
            f"there is no repository {repository} that you have access to",
            "Check the name; for a private repository set HF_TOKEN.",
        ),
        errors.RevisionNotFoundError: (f"{repository} has no such revision", "Check the revision after the @."),
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
