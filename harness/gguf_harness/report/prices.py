"""The cost of a smaller file in quality: loss per halving of the size, from the reference and for the last step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gguf_harness.metrics.registry import metric_info
from gguf_harness.metrics.tradeoff import Step, frontier_steps, halvings
from gguf_harness.report.data import RunView, saves_cache, visible
from gguf_harness.report.numbers import format_estimate, format_value

__all__ = ["Price", "PriceList", "price_list", "price_note", "show_average", "show_step"]


@dataclass(frozen=True, slots=True)
class Price:
    """The cost of a candidate, in nats per halving of the size.

    Attributes:
        model: its name.
        saved: share of the reference's bytes that it saves.
        average: from the reference, with its standard error.
        average_se: None if the loss has no error.
        step: from the next bigger file of the frontier to this one; None for a dominated file.
    """

    model: str
    saved: float
    average: float
    average_se: float | None
    step: Step | None


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices of all candidates that are smaller than the reference, biggest first, and their loss metric."""

    metric: str
    prices: list[Price]

    @property
    def title(self) -> str:
        """Title of the loss."""
        return metric_info(self.metric).title

    @property
    def steps(self) -> list[Step]:
        """Steps down the frontier."""
        return [price.step for price in self.prices if price.step is not None]

    def explanation(self) -> str:
        """How to read and use the prices."""
        text = (
            f"The cost of halving the file, in nats of {self.title}: averaged from the reference, and for the "
            f"last step, from the next bigger file on the frontier. Choose smaller files as long as the price "
            f"of the last step is worth half of the memory to you"
        )
        if len(self.steps) < 2:
            return f"{text}."
        low, high = (pick(self.steps, key=lambda step: step.price) for pick in (min, max))
        ends = (f"{_rounded(step.price):g} (to {step.end})" for step in (low, high))
        return f"{text}; here it goes from {' to '.join(ends)}."


def price_list(view: RunView) -> PriceList | None:
    """Prices by mean KL if measured, else by ln PPL ratio; None if neither was, or if nothing is smaller."""
    reference = next((model for model in view.models if model.is_reference and model.facts), None)
    metric = next((name for name in view.losses if _is_none_at_the_reference(view, name) and view.measured(name)), None)
    if reference is None or metric is None:
        return None
    size = float(reference.facts["bytes"])
    rows = {
        model.name: (float(model.facts["bytes"]), row)
        for model in view.candidates
        if model.facts and not saves_cache(model.facts)
        if (row := view.row(model.name, metric)) and model.facts["bytes"] < size
    }
    points = {name: (cost, float(row["value"])) for name, (cost, row) in rows.items()}
    steps = {step.end: step for step in frontier_steps(points | {reference.name: (size, 0.0)})}
    prices = []
    for name, (cost, row) in rows.items():
        times = halvings(size, cost)
        se = None if row["se"] is None else row["se"] / times
        prices.append(Price(name, 1 - cost / size, row["value"] / times, se, steps.get(name)))
    return PriceList(metric, prices) if prices else None


def _is_none_at_the_reference(view: RunView, metric: str) -> bool:
    """Whether a loss is in nats relative to the reference, so that it is 0 for the reference."""
    return view.metrics[metric].unit == "nats"


def price_note(view: RunView) -> str | None:
    """The steps in one line for the terminal."""
    prices = price_list(view)
    if prices is None or not prices.steps:
        return None
    words = ", ".join(f"{visible(step.end)} {format_value(_rounded(step.price))}" for step in prices.steps)
    return (
        f"price of a step down from the next bigger file on the frontier, in nats of {prices.title} per halving of"
        f" the size: {words}"
    )


def show_average(price: Price) -> str:
    """`0.0424 ± 0.0016`."""
    return format_estimate(price.average, price.average_se)


def show_step(price: Price) -> str:
    """`0.0424, from model-Q8_0`."""
    step = price.step
    return "" if step is None else f"{format_value(_rounded(step.price))}, from {visible(step.start)}"


def _rounded(value: float) -> float:
    """Round to two significant digits: the steps share their tokens, so the error of their difference is unknown."""
    return round(value, 1 - math.floor(math.log10(abs(value)))) if value else 0.0
