"""Trade-offs between size and quality."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf_harness.errors import NoData

__all__ = ["Step", "dominated_by", "frontier_steps", "halvings", "pareto_frontier", "smallest_passing"]

Point = tuple[float, float]
"""(cost, loss); lower is better for both."""


def dominated_by(points: Mapping[str, Point]) -> dict[str, str]:
    """For each dominated point, the name of the best point that dominates it.

    A point is dominated when another costs no more, loses no more, and is better in at least one of the two.
    """
    dominators: dict[str, str] = {}
    for name, (cost, loss) in points.items():
        better = [
            (other_loss, other_cost, other)
            for other, (other_cost, other_loss) in points.items()
            if other_cost <= cost and other_loss <= loss and (other_cost, other_loss) != (cost, loss)
        ]
        if better:
            dominators[name] = min(better)[2]
    return dominators


def pareto_frontier(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that are not dominated, by rising cost."""
    beaten = dominated_by(points)
    return sorted((name for name in points if name not in beaten), key=lambda name: (points[name], name))


def smallest_passing(costs: Mapping[str, float], passing: Iterable[str]) -> str | None:
    """The cheapest one that passes; None if none does."""
    names = [name for name in passing if name in costs]
    return min(names, key=lambda name: (costs[name], name), default=None)


@dataclass(frozen=True, slots=True)
class Step:
    """A step from one point to a cheaper one.

    Attributes:
        start, end: names of the points.
        halvings: number of halvings of the cost, log2(cost of start / cost of end), > 0.
        loss: increase of the loss, in the unit of the points' losses.
    """

    start: str
    end: str
    halvings: float
    loss: float

    @property
    def price(self) -> float:
        """Loss per halving of the cost: the slope of the loss over log2(cost).

        Sizes are compared as ratios, so that a step from 16 to 8 GB counts as one from 160 to 80 MB, and prices of
        steps of different width, and of models of different size, can be compared. The price of a step
        between neighbours on the frontier is the marginal rate of substitution of size for quality there (Varian,
        Intermediate Microeconomics, chapter 3). Bits per weight fall with size in the same ratio, so it is also the
        loss per halving of bits, as far as files contain only weights.
        """
        return self.loss / self.halvings


def halvings(bigger: float, smaller: float) -> float:
    """Number of halvings from `bigger` to `smaller`: log2 of their ratio.

    Raises:
        NoData: one is not positive, or `smaller` is not smaller.
    """
    if not bigger > smaller > 0:
        raise NoData(f"From {bigger:g} to {smaller:g} nothing is saved, so there is no price.")
    return math.log2(bigger / smaller)


def frontier_steps(points: Mapping[str, Point]) -> list[Step]:
    """The steps down the frontier, from the most expensive point to the cheapest."""
    names = pareto_frontier(points)[::-1]
    # Points with the same cost and loss are all on the frontier, without a step between them.
    distinct = [name for at, name in enumerate(names) if at == 0 or points[name] != points[names[at - 1]]]
    return [
        Step(start, end, halvings(points[start][0], points[end][0]), points[end][1] - points[start][1])
        for start, end in itertools.pairwise(distinct)
    ]
