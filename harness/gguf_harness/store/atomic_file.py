"""Files that are there whole or not at all: written to a temporary name beside them, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends; where it raises, nothing changes.

    Args:
        path: where it will be.
        lasting: also after a power failure. What outlives the process, and need not outlive the system, is written
            without waiting for the disk.

    Raises:
        OSError: no folder, no space, or no permission.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        # mkstemp makes private files; results and caches are for everyone who may read the folder.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
