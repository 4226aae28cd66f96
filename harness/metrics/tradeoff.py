"""Trade-offs between size and quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["dominated_by", "pareto_frontier", "smallest_passing"]

Point = tuple[float, float]
"""(cost, loss), both the lower the better."""


def dominated_by(points: Mapping[str, Point]) -> dict[str, str]:
    """For each point that another one beats, the name of the best that does.

    A point is dominated when another costs no more, loses no more, and is better in at least one of the two.
    """
    found: dict[str, str] = {}
    for name, (cost, loss) in points.items():
        better = [
            (other_loss, other_cost, other)
            for other, (other_cost, other_loss) in points.items()
            if other_cost <= cost and other_loss <= loss and (other_cost, other_loss) != (cost, loss)
        ]
        if better:
            found[name] = min(better)[2]
    return found


def pareto_frontier(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that nothing dominates, by rising cost."""
    beaten = dominated_by(points)
    return sorted((name for name in points if name not in beaten), key=lambda name: (points[name], name))


def smallest_passing(costs: Mapping[str, float], passing: Iterable[str]) -> str | None:
    """The cheapest of those that pass; None when none does."""
    names = [name for name in passing if name in costs]
    return min(names, key=lambda name: (costs[name], name), default=None)
