"""Runs on disk, and writing of their files.

    <results>/runs/<id>/run.json      one pytest invocation; arrays/*.npz and the report are next to it
    <results>/cache/                  measurements by content; see `gguf_harness.store.cache`

Every file is written to a temporary name and renamed, so that it is never incomplete.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import StoreError, write_error
from gguf_harness.store.atomic_file import replacing
from gguf_harness.store.migrations import migrate
from gguf_harness.store.paths import option_path
from gguf_harness.store.run_content import content_problem
from gguf_harness.store.text_files import read_json

__all__ = [
    "BASELINE_COPY",
    "find_run",
    "load_run",
    "prepare_folder",
    "run_file",
    "to_json",
    "write_bytes",
    "write_json",
    "write_text",
]

BASELINE_COPY: Final = "baseline.json"
"""In the folder of a part of a run (--gguf-shard): the baseline that its models were compared with."""


def write_json(path: Path, content: dict[str, Any], *, lasting: bool = True) -> None:
    """Write JSON atomically.

    Args:
        path: the file.
        content: the content.
        lasting: indent for readers, and survive a power failure. Files that will soon be rewritten are one line, which
            takes a fifth of the time, and are not synced.

    Raises:
        StoreError: NaN or infinity in the content, no space, or no permission.
    """
    text = to_json(content, path.name, indent=1 if lasting else None)
    # File names that are not UTF-8 become JSON escapes here.
    write_bytes(path, text.encode("utf-8", "backslashreplace"), lasting=lasting)


def to_json(content: dict[str, Any], name: str, *, indent: int | None = 1) -> str:
    """JSON for a file of that name.

    Raises:
        StoreError: NaN or infinity in the content.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise StoreError(f"{name} would contain a number that JSON cannot represent: {error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        StoreError: no space, or no permission.
    """
    # Lone surrogates from file names are written as escapes, which JSON reads back unchanged.
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
    """Create a folder and check that it is writable.

    Raises:
        StoreError: it is not.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StoreError(
            f"{option}={path}: the folder is not writable ({error.strerror}).", f"Choose another {option} folder."
        ) from error
    return path


def find_run(spec: str, results: Path) -> Path:
    """Find a run.json from what a user gives: a file, a run's folder, its id or the start of it, or `last`.

    Raises:
        StoreError: no run matches, or several do.
    """
    path = option_path(spec)
    if path.is_file():
        return path
    if (path / "run.json").is_file():
        return path / "run.json"
    runs = sorted((results / "runs").glob("*/run.json"))
    matches = runs[-1:] if spec == "last" else [run for run in runs if run.parent.name.startswith(spec)]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(run.parent.name for run in runs[-5:]) or "none"
    problem = f"{len(matches)} runs start with" if matches else "There is no run"
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
        raise StoreError(f"{path} is not a run: {problem}.", "Give a run.json in the form in which a run wrote it.")
    return run


def run_file(folder: Path, name: object) -> Path:
    """Path of a file that a run.json names, checked: a run from elsewhere may name any path.

    Args:
        folder: the run's.
        name: relative to it.

    Raises:
        StoreError: the name is invalid or leads out of the folder: an absolute path, `..`, a symbolic link.
    """
    if isinstance(name, str) and name and "\0" not in name:
        path = folder / name
        if not Path(name).is_absolute() and path.resolve().is_relative_to(folder.resolve()):
            return path
    raise StoreError(
        f"{folder / 'run.json'} names the file {name!r}, expected one in the folder of the run.",
        "Files outside that folder are not read. Measure again, or remove the entry from `arrays`.",
    )
