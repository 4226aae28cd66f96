"""Runs measurements for one session: each once, from the cache where it can, in worker processes otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.runner.core import Core, LoadedModel, Progress
from harness.runner.layers import Layers
from harness.runner.passes import Passes
from harness.runner.texts import Texts
from harness.runner.timed import Timed

if TYPE_CHECKING:
    from harness.options import Options

__all__ = ["LoadedModel", "Progress", "Runner"]


class Runner(Core):
    """Everything that a session measures, a family of measurements each in its module.

    Args:
        options: what was asked for.
        progress: where progress is shown.
    """

    def __init__(self, options: Options, progress: Progress) -> None:
        super().__init__(options, progress)
        self.passes = Passes(self)
        self.texts = Texts(self)
        self.timed = Timed(self)
        self.layers = Layers(self)
