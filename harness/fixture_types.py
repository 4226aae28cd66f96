"""Types of the fixtures, to annotate tests with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.engine.server import Server
    from harness.errors import HarnessError
    from harness.measure.generate import Generation
    from harness.measure.layers import LayersResult
    from harness.measure.observers import Arrays
    from harness.measure.served import ServedResult
    from harness.measure.speed import SpeedResult
    from harness.metrics.text import TextPair
    from harness.prompts import Prompt
    from harness.records import Estimate
    from harness.regressions import Comparison
    from harness.runner import LoadedModel
    from harness.verdicts import Verdict

    Measure = Callable[[LoadedModel], Mapping[str, Estimate]]

__all__ = ["BaselineCheck", "CorpusPass", "GateCheck", "Generate", "LayersOf", "Record", "Serve", "Served", "Speed"]


class Record(Protocol):
    """The fixture `record`."""

    def __call__(
        self, *estimates: Estimate, detail: str | None = None, layer: int | None = None, head: int | None = None
    ) -> None:
        """Keep estimates as rows of the run, whatever the test's outcome.

        Args:
            estimates: what was measured.
            detail: what the metric's name cannot say ("pp512, 5 repetitions").
            layer: the layer that they are of, counted from 0; None for the whole model.
            head: the attention head that they are of, counted from 0.
        """


class GateCheck(Protocol):
    """The fixture `gate`."""

    def __call__(self, estimate: Estimate, *others: Estimate) -> Verdict:
        """Fail the test when an estimate's confidence bound is beyond the limit of its metric.

        Args:
            estimate: its metric must have a gate.
            others: decided as well where their metrics have gates.
        """

    def where_set(self, *estimates: Estimate, measure: Measure | None = None, paired: Measure | None = None) -> None:
        """Decide on those estimates whose metrics have gates, none by default: a person may have set some.

        The reference is not held against limits, unless it is the only model.

        Args:
            estimates: of the model under test.
            measure: the same estimates of a given model; called with the reference for limits relative to it.
            paired: their ratios to a given reference, with paired errors, under the metrics of `estimates`.
        """


class BaselineCheck(Protocol):
    """The fixture `baseline`."""

    def __call__(self, metric: str, candidate: LoadedModel, arrays: Arrays, reference: Arrays) -> Comparison | None:
        """Fail the test when a candidate is worse than it was in the baseline of --gguf-baseline.

        Args:
            metric: one of `harness.metrics.windows.COMPARED`.
            candidate: the model under test.
            arrays: its pass over the corpus.
            reference: the reference's, on the same windows.
        """


class Speed(Protocol):
    """The fixture `speed`."""

    def __call__(self, model: LoadedModel) -> SpeedResult:
        """Timings and memory of a model, from the cache if they are there."""


class Serve(Protocol):
    """The fixture `server`."""

    def __call__(self, model: LoadedModel) -> Server:
        """A running server of a model; one runs at a time, so that asking for another model stops it."""


class Served(Protocol):
    """The fixture `served`."""

    def __call__(self, model: LoadedModel) -> ServedResult:
        """Throughput and latency of a served model under several clients, from the cache if they are there."""


class CorpusPass(Protocol):
    """The fixture `corpus_pass`: decodes the corpus, once per model however many tests ask."""

    def __call__(
        self, model: LoadedModel, *, against: LoadedModel | None = None, windows_of: Arrays | None = None
    ) -> Arrays:
        """Per-token values of a model, each [windows, scored tokens].

        Args:
            model: the model to decode.
            against: the reference to compare with.
            windows_of: values of a candidate: only its windows, in its order. With --gguf-until-decided these are not
                all; without, it changes nothing.

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


class LayersOf(Protocol):
    """The fixture `layers_of`: hidden states on the prompts, decoded once per model however many tests ask."""

    def __call__(self, model: LoadedModel) -> LayersResult:
        """What happens in the layers of a model; see `harness.measure.layers.measure_layers`."""

    def compare(self, candidate: LoadedModel, reference: LoadedModel) -> LayersResult:
        """The same, with the distance of a candidate's states from the reference's.

        Raises:
            ModelError: models of different shape.
        """

    def importance(self, model: LoadedModel) -> Arrays:
        """Loss without each of the selected layers; see `harness.measure.patching.measure_importance`."""

    def interchange(self, candidate: LoadedModel, reference: LoadedModel) -> Arrays:
        """KL with the reference's stream put in; see `harness.measure.patching.measure_interchange`."""

    def selected(self, model: LoadedModel) -> list[int]:
        """The layers of --gguf-layers, all by default.

        Raises:
            OptionError: the model does not have them.
        """
