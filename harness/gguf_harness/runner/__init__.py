"""Runs measurements for one session: each once, from the cache where it can, in worker processes otherwise."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from gguf_harness.runner.core import Core, LoadedModel, Progress
from gguf_harness.runner.passes import Passes
from gguf_harness.runner.timed import Timed

if TYPE_CHECKING:
    from gguf_harness.runner.ablation import Ablation
    from gguf_harness.runner.analytics import Analytics
    from gguf_harness.runner.attention import Attentions
    from gguf_harness.runner.embeddings import Embeddings
    from gguf_harness.runner.layers import Layers
    from gguf_harness.runner.rounds import Rounds
    from gguf_harness.runner.tensors import Tensors
    from gguf_harness.runner.texts import Texts

__all__ = ["LoadedModel", "Progress", "Runner"]


class Runner(Core):
    """Everything that a session measures, a family of measurements each in its module, imported when it is asked for.

    Args:
        options: what was asked for.
        progress: where progress is shown.
        session: name that all processes of a session share; None for one of its own.
    """

    @cached_property
    def passes(self) -> Passes:
        """Passes over the corpus."""
        return Passes(self)

    @cached_property
    def timed(self) -> Timed:
        """Speed, memory and serving."""
        return Timed(self)

    @cached_property
    def texts(self) -> Texts:
        """Texts that models write."""
        from gguf_harness.runner.texts import Texts

        return Texts(self)

    @cached_property
    def rounds(self) -> Rounds:
        """Rounds of benchmarks."""
        from gguf_harness.runner.rounds import Rounds

        return Rounds(self, self.timed)

    @cached_property
    def attention(self) -> Attentions:
        """What attention heads do."""
        from gguf_harness.runner.attention import Attentions

        return Attentions(self)

    @cached_property
    def ablation(self) -> Ablation:
        """What single heads are worth."""
        from gguf_harness.runner.ablation import Ablation

        return Ablation(self)

    @cached_property
    def tensors(self) -> Tensors:
        """Errors of weights, and what groups of tensors cost."""
        from gguf_harness.runner.tensors import Tensors

        return Tensors(self, self.passes)

    @cached_property
    def layers(self) -> Layers:
        """Hidden states by layer."""
        from gguf_harness.runner.layers import Layers

        return Layers(self)

    @cached_property
    def embeddings(self) -> Embeddings:
        """Embedding spaces."""
        from gguf_harness.runner.embeddings import Embeddings

        return Embeddings(self)

    @cached_property
    def analytics(self) -> Analytics:
        """Projections, clusters and neighbours."""
        from gguf_harness.runner.analytics import Analytics

        return Analytics(self)

    def close(self) -> None:
        """Stop everything that is alive."""
        super().close()
        if "analytics" in vars(self):
            self.analytics.close()
