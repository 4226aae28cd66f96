"""Any text as text that can be shown and stored: the lowest module, for messages of errors need it too.

Names of files are bytes. Python carries those that are not UTF-8 as lone surrogates (PEP 383), which no JSON, HTML or
XML in UTF-8 can hold. Names of models, messages of errors and what a run keeps are made visible where they are made;
paths stay as they are.
"""

from __future__ import annotations

from typing import Final

__all__ = ["is_utf8", "visible", "visible_lines"]

_BYTES_IN_NAMES: Final = range(0xDC80, 0xDD00)
_SURROGATE: Final = 0xDC00


def visible(text: str) -> str:
    r"""A text with control characters shown as symbols: it cannot move the cursor or break a line.

    Bytes of a file's name that were not UTF-8 are shown as such, `tiny-\xff`. What comes out can be stored as UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{_code(c):02x}" for c in text)


def visible_lines(text: str) -> str:
    """The same with the lines and tabs of a text kept."""
    return "\n".join(visible(line.expandtabs(4)) for line in text.split("\n"))


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text: no name of a file in other bytes stands in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _code(character: str) -> int:
    code = ord(character)
    return code - _SURROGATE if code in _BYTES_IN_NAMES else code
