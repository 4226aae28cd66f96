"""What flows between the parts: frozen, typed, serializable records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

from gguf_harness.errors import NoData
from gguf_harness.metrics.registry import Better, metric_info

__all__ = ["SCHEMA_VERSION", "WHOLE", "Estimate", "Place", "PlacedEstimate", "Row"]

SCHEMA_VERSION = 1
"""Version of run.json. A reader refuses a newer one and migrates older ones."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its uncertainty. A bare float is not a result.

    Attributes:
        metric: a name from `gguf_harness.metrics.registry.METRICS`, which gives unit and direction.
        value: finite.
        n: number of samples behind the value (tokens, repetitions, 1 for a plain fact such as a file size).
        se: standard error; clustered by window for anything per token. None where none is defined (a maximum,
            a file size).
        se_iid: the same with all samples taken as independent, as llama-perplexity prints it.
        clusters: number of clusters behind `se`; t quantiles use `clusters - 1` degrees of freedom.
        low: lower end of the 95 % confidence interval, which need not be symmetric; None for `value` less a t quantile
            times `se`, or where none is known.
        high: its upper end.
        doubt: why nothing may be decided by it, in words that go on after a colon; None where nothing speaks against
            it.
    """

    metric: str
    value: float
    n: int
    se: float | None = None
    se_iid: float | None = None
    clusters: int | None = None
    low: float | None = None
    high: float | None = None
    doubt: str | None = None

    def __post_init__(self) -> None:
        metric_info(self.metric)
        for name in ("value", "se", "se_iid", "low", "high"):
            number = getattr(self, name)
            if number is None:
                continue
            if not math.isfinite(number):
                raise NoData(f"{self.metric}: {name} is {number}, expected a finite number (n = {self.n}).")
            # A numpy scalar would not survive xdist's serializer.
            object.__setattr__(self, name, float(number))
        if self.n < 1:
            raise NoData(f"{self.metric}: no samples (n = {self.n}). No data is never a number.")
        object.__setattr__(self, "n", int(self.n))

    @property
    def unit(self) -> str:
        """Unit of `value`, from the table of metrics."""
        return metric_info(self.metric).unit

    @property
    def better(self) -> Better:
        """Direction that is good, from the table of metrics."""
        return metric_info(self.metric).better


class Place(NamedTuple):
    """What of a model and of its input a value is about; all None for everything together.

    Attributes:
        layer: number of a layer.
        head: number of a head in that layer.
        part: a group of tensors, such as the role `attn_q`.
        prompt: id of a prompt.
    """

    layer: int | None = None
    head: int | None = None
    part: str | None = None
    prompt: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Place:
        """Of a row of a run.json, a verdict or a comparison, as JSON types."""
        return cls(*(row.get(name) for name in cls._fields))

    def __str__(self) -> str:
        """`layer 2, head 7`, `attn_q`, the id of a prompt; empty for everything together."""
        numbers = [
            f"{name} {value}" for name, value in (("layer", self.layer), ("head", self.head)) if value is not None
        ]
        return ", ".join([*numbers, *(name for name in (self.part, self.prompt) if name is not None)])


WHOLE: Final = Place()
"""Everything together."""


@dataclass(frozen=True, slots=True)
class PlacedEstimate:
    """An estimate and the part of a model that it is about.

    Attributes:
        estimate: the value.
        layer: its layer; None for the model.
        head: its head in the layer; None for all.
        part: the group of tensors that it is about; None for all.
        detail: what the metric's name cannot say.
        extreme_at: (layer, head) of a value that is of the whole model because no other is worse.
    """

    estimate: Estimate
    layer: int | None = None
    head: int | None = None
    part: str | None = None
    detail: str | None = None
    extreme_at: tuple[int, int] | None = None

    @property
    def place(self) -> Place:
        """Where the value was found."""
        layer, head = self.extreme_at or (self.layer, self.head)
        return Place(layer, head, self.part)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `estimates` in run.json: an estimate and where it belongs.

    `detail` says what the metric's name cannot: "pp512, 5 repetitions", "resident memory of the worker (no GPU)";
    `doubt` why nothing may be decided by the number: the machine was busy.
    """

    suite: str
    test: str
    model: str
    reference: str | None
    metric: str
    value: float
    se: float | None
    se_iid: float | None
    clusters: int | None
    n: int
    unit: str
    better: Better
    prompt: str | None = None
    layer: int | None = None
    head: int | None = None
    part: str | None = None
    detail: str | None = None
    low: float | None = None
    high: float | None = None
    doubt: str | None = None

    @classmethod
    def of(
        cls,
        estimate: Estimate,
        *,
        suite: str,
        test: str,
        model: str,
        reference: str | None = None,
        prompt: str | None = None,
        layer: int | None = None,
        head: int | None = None,
        part: str | None = None,
        detail: str | None = None,
    ) -> Row:
        """Place an estimate; its doubt is part of the detail as well, which every reader shows."""
        if estimate.doubt:
            detail = f"{f'{detail}; ' if detail else ''}in doubt: {estimate.doubt}"
        return cls(
            suite=suite,
            test=test,
            model=model,
            reference=reference,
            metric=estimate.metric,
            value=estimate.value,
            se=estimate.se,
            se_iid=estimate.se_iid,
            clusters=estimate.clusters,
            n=estimate.n,
            unit=estimate.unit,
            better=estimate.better,
            prompt=prompt,
            layer=layer,
            head=head,
            part=part,
            detail=detail,
            low=estimate.low,
            high=estimate.high,
            doubt=estimate.doubt,
        )

    @property
    def place(self) -> Place:
        """Where the value belongs."""
        return Place(self.layer, self.head, self.part, self.prompt)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        # Not asdict, which copies all that it finds, value by value: a run has thousands of rows.
        return {field.name: getattr(self, field.name) for field in fields(self)}
