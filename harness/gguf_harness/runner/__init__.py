"""Runs measurements for one session: each once, from the cache where it can, in worker processes otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_harness.runner.ablation import Ablation
from gguf_harness.runner.analytics import Analytics
from gguf_harness.runner.attention import Attentions
from gguf_harness.runner.core import Core, LoadedModel, Progress
from gguf_harness.runner.embeddings import Embeddings
from gguf_harness.runner.layers import Layers
from gguf_harness.runner.passes import Passes
from gguf_harness.runner.rounds import Round, Rounds
from gguf_harness.runner.tensors import Tensors
from gguf_harness.runner.texts import Texts
from gguf_harness.runner.timed import Timed

if TYPE_CHECKING:
    from gguf_harness.inputs.options import Options

__all__ = ["LoadedModel", "Progress", "Round", "Rounds", "Runner"]


class Runner(Core):
    """Everything that a session measures, a family of measurements each in its module.

    Args:
        options: what was asked for.
        progress: where progress is shown.
        session: name that all processes of a session share; None for one of its own.
    """

    def __init__(self, options: Options, progress: Progress, session: str | None = None) -> None:
        super().__init__(options, progress, session)
        self.attention = Attentions(self)
        self.passes = Passes(self)
        self.tensors = Tensors(self, self.passes)
        self.texts = Texts(self)
        self.timed = Timed(self)
        self.rounds = Rounds(self, self.timed)
        self.ablation = Ablation(self)
        self.embeddings = Embeddings(self)
        self.layers = Layers(self)
        self.analytics = Analytics(self)

    def close(self) -> None:
        """Stop everything that is alive."""
        super().close()
        self.analytics.close()
