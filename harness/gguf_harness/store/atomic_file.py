"""Atomic file writes: to a temporary name in the same folder, then renamed."""

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
    """Open a file that replaces `path` when the block ends; if the block raises, nothing changes.

    Args:
        path: the final path.
        lasting: whether the file must survive a power failure. A file that only has to survive the process is written
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
        # mkstemp makes private files; results and caches are readable for everyone who may read the folder.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
