"""JSON files that may have been edited: every value is checked, and messages say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import StoreError
from gguf_harness.store.text_files import read_json

__all__ = ["JsonFile", "is_usual", "shown"]

_LARGEST: Final = 1e300


class JsonFile:
    """The content of a file, and lookups that say what is wrong with a value.

    Args:
        path: the file.
        what: what it should be, for messages: "Baseline".
        hint: the next step, appended to every message.
        most_bytes: a larger file is refused unread.

    Raises:
        StoreError: unreadable, too large, not JSON, numbers that are not finite, or a duplicate name in a table.
    """

    def __init__(self, path: Path, what: str, hint: str, most_bytes: int) -> None:
        self.path = path
        self._hint = hint
        try:
            size = path.stat().st_size
        except OSError as error:
            raise self.invalid(f"cannot be read: {error.strerror or error}") from None
        if size > most_bytes:
            raise self.invalid(f"has {size} bytes, expected at most {most_bytes}")
        self.content: Any = read_json(path, what, StoreError, hint)
        try:
            # A lone surrogate, which JSON escapes can contain, cannot be written anywhere.
            json.dumps(self.content, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise self.invalid(f"cannot be read: {error}") from None

    def invalid(self, problem: str) -> StoreError:
        """The error to raise."""
        return StoreError(f"{self.path} {problem}.", self._hint)

    def get(self, table: Any, key: str, *kinds: type) -> Any:
        """A value of a table, of one of these types; numbers are finite, and booleans do not count as numbers.

        Raises:
            StoreError: it is missing, or of another type.
        """
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise self.invalid(f"has {key} = {shown(value)}, expected {expected}")
        if isinstance(value, float | int) and not is_usual(value):
            raise self.invalid(f"has {key} = {shown(value)}, expected a finite number of usual size")
        return value


def is_usual(value: Any) -> bool:
    """Whether a value is a finite number that is safe for arithmetic."""
    return type(value) in {int, float} and abs(value) < _LARGEST


def shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    return repr(str(value)[:60])
