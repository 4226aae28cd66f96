"""Records passed between the rooms: frozen, typed, serializable."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, NamedTuple, TypeAlias

from gguf_harness.errors import NoData
from gguf_harness.metrics.registry import Better, metric_info

__all__ = ["SCHEMA_VERSION", "WHOLE", "Estimate", "Estimates", "Place", "Row", "each_estimate", "whole"]

SCHEMA_VERSION = 2
"""Version of run.json. A reader refuses a newer one and migrates older ones (`gguf_harness.store.migrations`)."""


class Place(NamedTuple):
    """The place of an estimate in a model and its input; all None for the whole.

    Attributes:
        layer: number of a layer.
        head: number of a head in that layer.
        part: a group of tensors, such as the role `attn_q`; a setting of a sweep, such as `scale 0.5`.
        prompt: id of a prompt.
    """

    layer: int | None = None
    head: int | None = None
    part: str | None = None
    prompt: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Place:
        """The place of a row of a run.json, a verdict or a comparison, as JSON types."""
        return cls(*(row.get(name) for name in cls._fields))

    def __str__(self) -> str:
        """`layer 2, head 7`, `attn_q`, the id of a prompt; empty for the whole."""
        numbers = [
            f"{name} {value}" for name, value in (("layer", self.layer), ("head", self.head)) if value is not None
        ]
        return ", ".join([*numbers, *(name for name in (self.part, self.prompt) if name is not None)])


WHOLE: Final = Place()
"""The place of the whole model, over all prompts."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its uncertainty. A bare float is not a result.

    Attributes:
        metric: a name from `gguf_harness.metrics.registry.METRICS`, which gives unit and direction.
        value: finite.
        n: number of samples behind the value (tokens, repetitions, 1 for a fact such as a file size).
        se: standard error; clustered by window for anything per token. None if not defined (a maximum, a file size).
        se_iid: the same, taking all samples as independent, as llama-perplexity prints it.
        clusters: number of clusters behind `se`; t quantiles use `clusters - 1` degrees of freedom.
        low: lower end of the 95 % confidence interval, which need not be symmetric; None for `value` minus a t quantile
            times `se`, or if unknown.
        high: its upper end.
        doubt: why it must not decide anything, worded to follow a colon; None if it is reliable.
        place: the place in the model and its input.
        extreme_at: for a value of the whole model that is the extreme of its parts, the place of that part: the worst
            head.
        detail: what the metric's name does not say but a verdict needs: `mean of 30 layers`.
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
    place: Place = WHOLE
    extreme_at: Place | None = None
    detail: str | None = None

    def __post_init__(self) -> None:
        metric_info(self.metric)
        for name in ("value", "se", "se_iid", "low", "high"):
            number = getattr(self, name)
            if number is None:
                continue
            if not math.isfinite(number):
                raise NoData(f"{self.metric}: {name} is {number}, expected a finite number (n = {self.n}).")
            # xdist cannot serialize NumPy scalars.
            object.__setattr__(self, name, float(number))
        if self.n < 1:
            raise NoData(f"{self.metric}: no samples (n = {self.n}). Missing data is reported as missing, never as 0.")
        object.__setattr__(self, "n", int(self.n))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Estimate:
        """Inverse of `dataclasses.asdict`, after JSON."""
        extreme_at = value["extreme_at"]
        return cls(**{
            **value,
            "place": Place(*value["place"]),
            "extreme_at": None if extreme_at is None else Place(*extreme_at),
        })  # fmt: skip

    @property
    def unit(self) -> str:
        """Unit of `value`, from the table of metrics."""
        return metric_info(self.metric).unit

    @property
    def better(self) -> Better:
        """The good direction, from the table of metrics."""
        return metric_info(self.metric).better

    @property
    def found_at(self) -> Place:
        """Its place; for an extreme, that of the part."""
        if self.extreme_at is None:
            return self.place
        return self.extreme_at._replace(prompt=self.extreme_at.prompt or self.place.prompt)

    @property
    def where(self) -> str:
        """The place in words, or for the whole model its detail; may be empty."""
        return str(self.found_at) or self.detail or ""

    def of_prompt(self, prompt: str | None) -> Estimate:
        """The estimate as a value of a prompt, unless it is one already."""
        return self if self.place.prompt else replace(self, place=self.place._replace(prompt=prompt))


Estimates: TypeAlias = "Estimate | Collection[Estimates] | Mapping[Any, Estimates]"
"""An estimate, or a list or dictionary of them. Not an iterator, which could be read only once."""


def each_estimate(*given: Estimates) -> list[Estimate]:
    """All estimates, in order.

    Raises:
        TypeError: something else is included.
    """
    estimates: list[Estimate] = []
    members: tuple[object, ...] = given
    for member in members:
        if isinstance(member, Estimate):
            estimates.append(member)
        elif isinstance(member, Collection) and not isinstance(member, str):
            estimates += each_estimate(*(member.values() if isinstance(member, Mapping) else member))
        else:
            raise TypeError(f"Expected estimates, or lists or dictionaries of them, not {member!r}")
    return estimates


def whole(estimates: Collection[Estimate]) -> list[Estimate]:
    """Estimates of the whole model, over all prompts."""
    return [estimate for estimate in estimates if estimate.place == WHOLE]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `estimates` in run.json: an estimate and its context.

    `detail` says what the metric's name does not: "pp512, 5 repetitions", "resident memory of the worker (no GPU)";
    `doubt` says why the number must not decide anything: the machine was busy.
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
        detail: str | None = None,
    ) -> Row:
        """The row of an estimate; the place of an extreme and its doubt are part of the displayed detail.

        Args:
            estimate: the value, with its place.
            suite: name of the suite that measured it.
            test: name of the test.
            model: the measured model.
            reference: what the model was compared with.
            detail: how it was measured, added to the estimate's own detail.
        """
        doubt = f"in doubt: {estimate.doubt}" if estimate.doubt else None
        details = (str(estimate.extreme_at or ""), estimate.detail, detail, doubt)
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
            **estimate.place._asdict(),
            detail="; ".join(filter(None, details)) or None,
            low=estimate.low,
            high=estimate.high,
            doubt=estimate.doubt,
        )

    @property
    def place(self) -> Place:
        """The place of the value."""
        return Place(self.layer, self.head, self.part, self.prompt)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        # Not asdict, which copies every value deeply: a run has thousands of rows.
        return {field.name: getattr(self, field.name) for field in fields(self)}
