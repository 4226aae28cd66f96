"""What a person calls a baseline: the file that is compared with, the name that is saved under."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from gguf_harness.errors import OptionError
from gguf_harness.store.paths import option_path

__all__ = ["check_name", "find_baseline"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def find_baseline(spec: str, results: Path, start: Path | None = None) -> Path:
    """The file that a person means: a path, or a name in `results`/baselines.

    Args:
        spec: as written.
        results: folder of results.
        start: the folder that a relative path begins in; None for the current one.

    Raises:
        OptionError: there is none.
    """
    folder = results / "baselines"
    for path in (option_path(spec, start), folder / f"{spec}.json"):
        try:
            there = path.is_file()
        except OSError:  # too long for a file's name
            there = False
        if there:
            return path
    known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
    raise OptionError(
        f"--gguf-baseline={spec}: neither a file nor a baseline in {folder}.",
        f"Known baselines: {known}. Save one with --gguf-save-baseline=NAME.",
    )


def check_name(name: str) -> str:
    """A name that a baseline can be saved under.

    Raises:
        OptionError: it would not be a file's name everywhere.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"--gguf-save-baseline={name!r} is no name for a baseline.",
            "Expected letters, digits, dots, dashes and underscores, beginning with a letter or digit.",
        )
    return name
