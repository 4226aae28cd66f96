"""Runs on disk, and how files are written.

    <results>/runs/<id>/run.json      one pytest invocation; arrays/*.npz beside it, and the report
    <results>/cache/                  measurements by content; see `gguf_harness.store.cache`

Every file is written to a temporary name and renamed: it is there whole, or not at all.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from gguf_harness.errors import StoreError, write_error
from gguf_harness.store.atomic_file import replacing
from gguf_harness.store.migrations import migrate
from gguf_harness.store.paths import option_path
from gguf_harness.store.run_content import content_problem
from gguf_harness.store.text_files import read_json

__all__ = ["find_run", "load_run", "prepare_folder", "run_file", "to_json", "write_bytes", "write_json", "write_text"]


def write_json(path: Path, content: dict[str, Any], *, lasting: bool = True) -> None:
    """Write JSON atomically.

    Args:
        path: the file.
        content: what it is to hold.
        lasting: for people, and after a power failure. What is soon written again stands in one line, which takes a
            fifth of the time, and is not waited for.

    Raises:
        StoreError: NaN or infinity in the content, no space, or no permission.
    """
    text = to_json(content, path.name, indent=1 if lasting else None)
    # Of a file name that is not UTF-8, this leaves JSON's own escapes.
    write_bytes(path, text.encode("utf-8", "backslashreplace"), lasting=lasting)


def to_json(content: dict[str, Any], name: str, *, indent: int | None = 1) -> str:
    """JSON for a file of that name.

    Raises:
        StoreError: NaN or infinity in the content.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise StoreError(f"{name} would hold a number that JSON does not know: {error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        StoreError: no space, or no permission.
    """
    # Halves of characters, as names of files may have, are written as escapes: in JSON they are read as they were.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write a file atomically, see `gguf_harness.store.atomic_file.replacing`.

    Raises:
        StoreError: no space, or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, lasting=lasting) as file:
            file.write(content)
    except OSError as error:
        raise write_error(path, error) from error


def prepare_folder(path: Path, option: str) -> Path:
    """Create a folder and make sure that it can be written.

    Raises:
        StoreError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StoreError(
            f"{option}={path}: the folder cannot be written ({error.strerror}).", f"Choose another {option} folder."
        ) from error
    return path


def find_run(spec: str, results: Path) -> Path:
    """The run.json that a person means: a file, a run's folder, its id or the start of it, or `last`.

    Raises:
        StoreError: none, or several, fit.
    """
    path = option_path(spec)
    if path.is_file():
        return path
    if (path / "run.json").is_file():
        return path / "run.json"
    runs = sorted((results / "runs").glob("*/run.json"))
    found = runs[-1:] if spec == "last" else [run for run in runs if run.parent.name.startswith(spec)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(run.parent.name for run in runs[-5:]) or "none"
    problem = f"{len(found)} runs start with" if found else "There is no run"
    raise StoreError(
        f"{problem} {spec!r} in {results / 'runs'}.",
        f"Give a run.json, a run's folder, its id, or `last`. Latest runs: {known}.",
    )


def load_run(path: Path) -> dict[str, Any]:
    """Read a run.json of any version so far, as one of the current version.

    Raises:
        StoreError: unreadable, not a run, damaged, or written by a newer version.
    """
    content = read_json(path, "Run", StoreError, "Give a run.json that a finished run wrote.")
    run = migrate(content if isinstance(content, dict) else {}, str(path))
    problem = content_problem(run)
    if problem is not None:
        raise StoreError(f"{path} is not a run: {problem}.", "Give a run.json as a run wrote it.")
    return run


def run_file(folder: Path, name: object) -> Path:
    """A file of a run, by the name that its run.json gives: a run that comes from elsewhere may name anything.

    Args:
        folder: the run's.
        name: relative to it.

    Raises:
        StoreError: it is none, or leads out of the folder: an absolute path, `..`, a symbolic link.
    """
    if isinstance(name, str) and name and "\0" not in name:
        path = folder / name
        if not Path(name).is_absolute() and path.resolve().is_relative_to(folder.resolve()):
            return path
    raise StoreError(
        f"{folder / 'run.json'} names the file {name!r}, expected one in the folder of the run.",
        "Nothing outside of that folder is read. Measure again, or remove the entry from `arrays`.",
    )
