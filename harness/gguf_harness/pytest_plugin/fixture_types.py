"""Types of the fixtures, to annotate tests with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.judge.regressions import Comparison
    from gguf_harness.judge.verdicts import Verdict
    from gguf_harness.metrics.records import Estimate, PlacedEstimate
    from gguf_harness.store.arrays import Arrays

    Measure = Callable[[Subject], Mapping[str, Estimate]]

__all__ = ["BaselineCheck", "GateCheck", "Record"]


class Record(Protocol):
    """The fixture `record`."""

    def __call__(
        self,
        *estimates: Estimate,
        detail: str | None = None,
        layer: int | None = None,
        head: int | None = None,
        part: str | None = None,
    ) -> None:
        """Keep estimates as rows of the run, whatever the test's outcome.

        Args:
            estimates: what was measured.
            detail: what the metric's name cannot say ("pp512, 5 repetitions").
            layer: where it belongs to one layer of the model.
            head: where it belongs to one head of that layer.
            part: where it belongs to a group of tensors, such as a role.
        """


class GateCheck(Protocol):
    """The fixture `gate`."""

    def __call__(self, estimate: Estimate, *others: Estimate) -> Verdict:
        """Fail the test when an estimate's confidence bound is beyond the limit of its metric.

        Args:
            estimate: its metric must have a gate.
            others: decided as well where their metrics have gates.
        """

    def where_set(
        self, *estimates: Estimate | PlacedEstimate, measure: Measure | None = None, paired: Measure | None = None
    ) -> None:
        """Decide on those estimates whose metrics have gates, none by default: a person may have set some.

        The reference is not held against limits, unless it is the only model.

        Args:
            estimates: of the model under test; with a place where they are of a layer, a head or a group of tensors.
            measure: the same estimates of a given model; called with the reference for limits relative to it.
            paired: their ratios to a given reference, with paired errors, under the metrics of `estimates`.
        """


class BaselineCheck(Protocol):
    """The fixture `baseline`."""

    def __call__(self, metric: str, candidate: Subject, arrays: Arrays, reference: Arrays) -> Comparison:
        """Fail the test when a candidate is worse than in the baseline of --gguf-baseline, or cannot be compared.

        Args:
            metric: one of `gguf_harness.metrics.windows.COMPARED`.
            candidate: the model under test.
            arrays: its pass over the corpus.
            reference: the reference's, on the same windows.
        """
