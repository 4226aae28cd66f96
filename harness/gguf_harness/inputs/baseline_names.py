"""Names of baselines: the file to compare with, and the name to save under."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from gguf_harness.errors import OptionError
from gguf_harness.store.paths import option_path

__all__ = ["check_name", "find_baseline"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def find_baseline(spec: str, results: Path, start: Path | None = None) -> Path:
    """Find the baseline file: a path, or a name in `results`/baselines.

    Args:
        spec: as written.
        results: folder of results.
        start: the folder that relative paths start from; None for the current one.

    Raises:
        OptionError: there is none.
    """
    folder = results / "baselines"
    for path in (option_path(spec, start), folder / f"{spec}.json"):
        try:
            there = path.is_file()
        except OSError:  # too long for a file name
            there = False
        if there:
            return path
    known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
    raise OptionError(
        f"--gguf-baseline={spec}: neither a file nor a baseline in {folder}.",
        f"Known baselines: {known}. Save one with --gguf-save-baseline=NAME.",
    )


def check_name(name: str) -> str:
    """Check a name to save a baseline under.

    Raises:
        OptionError: it is not a valid file name on every system.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"--gguf-save-baseline={name!r} is not a valid name for a baseline.",
            "Expected letters, digits, dots, dashes and underscores, beginning with a letter or digit.",
        )
    return name
