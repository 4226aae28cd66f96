"""Paths that users write, and safe file names for arbitrary names."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from pathlib import Path
from typing import Final

from gguf_harness.errors import OptionError

__all__ = ["file_name", "option_path", "path_argument"]

# Linux and macOS allow 255, suffixes included.
_MOST_BYTES: Final = 200
_HASH_DIGITS: Final = 8
_KEPT_END: Final = 32
_NOT_KEPT: Final = re.compile(r"[^A-Za-z0-9._+() -]+")


def option_path(text: str | os.PathLike[str], start: Path | None = None) -> Path:
    """Turn a path that a user wrote into an absolute one, with `~` and `~user` expanded; it need not exist.

    Args:
        text: as written.
        start: the folder that relative paths start from; None for the current one.

    Raises:
        OptionError: empty, invalid on this system, too long, below a folder without access, or the home folder of an
            unknown user.
    """
    written = os.fspath(text)
    if not written:
        raise OptionError("A path is empty.", "Give one; an unset shell variable expands to nothing.")
    try:
        path = Path(start or Path(), Path(written).expanduser()).absolute()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # it may be created later; the code that reads it reports a missing file
    except OSError as error:
        raise OptionError(f"{written}: {error.strerror or error}.", "Give another path.") from None
    except RuntimeError:
        user = written.split("/", 1)[0]
        raise OptionError(f"{written}: there is no home folder {user}.", "Give the whole path.") from None
    except ValueError:
        raise OptionError(f"{written!r} is not a valid path on this system.", "Give one without NUL bytes.") from None
    return path


def path_argument(text: str) -> Path:
    """`option_path` as the type of an option: argparse shows the reason beside the option's name."""
    try:
        return option_path(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def file_name(name: str) -> str:
    """A safe file name for an arbitrary name, such as a model's: short, plain, neither hidden nor like an option.

    It leaves room for suffixes, and for what temporary files add.

    Args:
        name: kept if possible; otherwise a short hash of it keeps different names apart.
    """
    kept = _NOT_KEPT.sub("_", name).lstrip(".- ")
    if kept == name and 0 < len(kept) <= _MOST_BYTES:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    room = _MOST_BYTES - _HASH_DIGITS - 1
    if len(kept) > room:
        # The end of a model's name gives its quantization.
        kept = f"{kept[: room - _KEPT_END - 1]}_{kept[-_KEPT_END:]}"
    return f"{kept}-{digest}".lstrip("-")
