"""Models of the tests, each written once in a test session, whichever process asks for it."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, Final, ParamSpec

__all__ = ["STORE", "written_once"]

STORE: Final = "GGUF_HARNESS_TEST_MODELS"
"""Environment variable: the folder of this test session that keeps the models. Without it each is written anew."""

P = ParamSpec("P")
Write = Callable[Concatenate[Path, P], Path]


def written_once(write: Write[P]) -> Write[P]:
    """Decorate a function `write(path, ...)` whose file depends on its arguments and on the name of the file alone.

    What it wrote before is copied, so that tests may change their file.
    """

    @functools.wraps(write)
    def copied(path: Path, /, *args: P.args, **kwargs: P.kwargs) -> Path:
        store = os.environ.get(STORE)
        if store is None:
            return write(path, *args, **kwargs)
        # The name is in the file: `general.name`.
        key = repr((write.__qualname__, os.fsencode(path.stem), args, sorted(kwargs.items())))
        kept = Path(store) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.gguf"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            draft = kept.with_name(f"{secrets.token_hex(8)}.tmp")
            write(path, *args, **kwargs)
            shutil.copyfile(path, draft)
            # Two processes may write the same model: the last one stays, and both are whole.
            draft.rename(kept)
        else:
            shutil.copyfile(kept, path)
        return path

    return copied
