"""Names that a file can have and that something has stumbled over."""

from __future__ import annotations

import os
import random

__all__ = ["NASTIEST", "nasty_names"]

_PIECES = (
    *(b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b"\x1b[2J", b"\x7f", b"\x01", b" ", b"  "),
    *(b'"', b"'", b"`", b"%s", b"%", b"{x}", b"{{ x }}", b"$HOME", b"~", b"\\", b"&amp;", b"<b>", b"]]>", b"--", b"#"),
    *(b"[", b"]", b"[0]", b"::", b"@", b"@gguf-", b"*", b"?", b"|", b";", b":", b"=", b",", b".", b"-", b"_", b"/../"),
    *("\u202e", "\u200f", "\u2028", "\ufeff", "\u00a0", "\U0001f4a9", "模型", "e\u0301", "\u212a", "\u017f", "\u0130"),
    *("tiny", "Q4_K_M", "q4_\u212a_m", "F16", "none", "reference", "last", "hf:", "00001-of-00002", "CON"),
)
_MOST_BYTES = 250  # and `.gguf`

NASTIEST = tuple(
    os.fsdecode(name)
    for name in (
        b"tiny-\xff",
        b"x" * 250,
        "模".encode() * 83,
        b"a::b@gguf-c[0]",
        b"a::b@gguf-d]",
        b"new\nline \x1b[2J",
        b'-lead "quoted" %s {x} \'',
        "\u202ertl \U0001f4a9".encode(),
    )
)
"""Names without suffix, for sessions that are to be short."""


def nasty_names(count: int) -> list[str]:
    """Different names of at most 250 bytes, always the same ones, as Python has them."""
    chosen = random.Random(11)  # noqa: S311 - it chooses tests
    names: dict[str, None] = dict.fromkeys(NASTIEST)
    while len(names) < count:
        parts = [chosen.choice(_PIECES) for _ in range(chosen.choice((1, 2, 3, 4, 8, 200)))]
        raw = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
        raw = raw.replace(b"/", b"").replace(b"\0", b"")[:_MOST_BYTES]
        if raw not in {b"", b".", b".."}:
            names[os.fsdecode(raw)] = None
    return list(names)
