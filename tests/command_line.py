"""pytest's configuration for a command line, without a session."""

from __future__ import annotations

import pytest

__all__ = ["parse_command_line"]


def parse_command_line(*arguments: str) -> pytest.Config:
    """What a session with these arguments would be configured with.

    Nothing is captured: pytest opens files for that, which it closes at the end of a session, and there is none.
    """
    return pytest.Config.fromdictargs({}, ["-s", "-p", "no:cacheprovider", *arguments])
