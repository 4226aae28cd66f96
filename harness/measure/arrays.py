"""Arrays in .npz files, written atomically and checked when read."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import StoreError

__all__ = ["load_arrays", "save_arrays"]


def save_arrays(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Write all arrays into one .npz file: whole or not at all.

    Raises:
        StoreError: no space, or no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            # Temporary files are private; results are for everyone who may read the folder.
            temporary.chmod(0o644)
            try:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}.",
            "Check permissions and free space, or choose another folder with --gguf-results or --gguf-cache.",
        ) from error


def load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read all arrays of an .npz file. The zip format's checksums are verified on the way.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} cannot be read: {error}.", "Delete it; what it held will be measured again."
        ) from error
