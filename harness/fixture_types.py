"""Types of the fixtures, to annotate tests with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.errors import HarnessError
    from harness.gates import Verdict
    from harness.measure.generate import Generation
    from harness.measure.observers import Arrays
    from harness.measure.speed import SpeedResult
    from harness.metrics.text import TextPair
    from harness.prompts import Prompt
    from harness.records import Estimate
    from harness.runner import LoadedModel

__all__ = ["CorpusPass", "GateCheck", "Generate", "Record", "Speed"]


class Record(Protocol):
    """The fixture `record`."""

    def __call__(self, *estimates: Estimate, detail: str | None = None) -> None:
        """Keep estimates as rows of the run, whatever the test's outcome.

        Args:
            estimates: what was measured.
            detail: what the metric's name cannot say ("pp512, 5 repetitions").
        """


class GateCheck(Protocol):
    """The fixture `gate`."""

    def __call__(self, estimate: Estimate) -> Verdict:
        """Fail the test when the estimate's confidence bound is beyond the limit of its metric."""


class Speed(Protocol):
    """The fixture `speed`."""

    def __call__(self, model: LoadedModel) -> SpeedResult:
        """Timings and memory of a model, from the cache if they are there."""


class CorpusPass(Protocol):
    """The fixture `corpus_pass`: decodes the corpus, once per model however many tests ask."""

    def __call__(self, model: LoadedModel, *, against: LoadedModel | None = None) -> Arrays:
        """Per-token values of a model, each [windows, scored tokens].

        Args:
            model: the model to decode.
            against: the reference to compare with.

        Returns:
            nll (nats) and top (token ids); with `against` also kld and kld_reverse (nats).
        """

    def floor(self, reference: LoadedModel) -> tuple[Arrays, Arrays]:
        """The reference decoded in another batch layout, compared with itself.

        Returns:
            (per-token values of the second decode, those of the first on the same windows).
        """


class Generate(Protocol):
    """The fixture `generation`: continues all prompts, once per model however many tests ask."""

    def __call__(self, model: LoadedModel, prompt: Prompt) -> Generation:
        """How a model continues a prompt.

        Raises:
            PromptError: the model cannot have this prompt.
        """

    def compare(self, candidate: LoadedModel, reference: LoadedModel, prompt: Prompt) -> TextPair:
        """A candidate's continuation of a prompt beside the reference's.

        Raises:
            PromptError: one of both cannot have this prompt, or their chat templates made different prompts of it.
        """

    def compare_all(
        self, candidate: LoadedModel, reference: LoadedModel
    ) -> tuple[Mapping[str, TextPair], Mapping[str, HarnessError]]:
        """All prompts by id: (those that can be compared, those that cannot and why)."""
