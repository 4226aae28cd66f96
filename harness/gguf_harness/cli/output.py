"""What the output of commands is written to."""

from __future__ import annotations

import os
import shutil
import sys

__all__ = ["can_overwrite", "terminal_width", "wants_color"]


def wants_color() -> bool:
    """Whether output may have colours: on a terminal that knows them, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def can_overwrite() -> bool:
    """Whether messages go to a terminal whose last line can be written again."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}


def terminal_width() -> int:
    """Columns of the terminal; 100 without one."""
    return shutil.get_terminal_size((100, 24)).columns
