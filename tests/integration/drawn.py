"""What a chart of Observable Plot shows, read back from where its marks are: by the ticks of its axes, as people do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["Drawn", "read_back"]

# The last picture of a view: those before it are marks of its legend.
_READ = """id => {
    const figures = document.querySelectorAll(`#${CSS.escape(id)} .view > svg`);
    const svg = figures[figures.length - 1];
    const place = (element, x, y) => {
        const matrix = element.getScreenCTM();
        return [matrix.a * x + matrix.c * y + matrix.e, matrix.b * x + matrix.d * y + matrix.f];
    };
    const ticks = (axis) => [...svg.querySelectorAll(`[data-mark="${axis}-axis tick label"] text`)]
        .map((text) => [text.textContent, ...place(text, 0, 0)]);
    const dots = [...svg.querySelectorAll('[data-mark="dot"] path, [data-mark="dot"] circle')]
        .map((dot) => place(dot, Number(dot.getAttribute("cx") ?? 0), Number(dot.getAttribute("cy") ?? 0)));
    const lines = [...svg.querySelectorAll('[data-mark="line"] path')].map((line) => {
        const numbers = (line.getAttribute("d").match(/-?[\\d.]+(e-?\\d+)?/g) ?? []).map(Number);
        const points = [];
        for (let at = 0; at + 1 < numbers.length; at += 2) points.push(place(line, numbers[at], numbers[at + 1]));
        return points;
    });
    const bars = [...svg.querySelectorAll('[data-mark="bar"] rect')].map((bar) => {
        const { left, right } = bar.getBoundingClientRect();
        return [left, right];
    });
    return { x: ticks("x"), y: ticks("y"), dots, lines, bars };
}"""


class Drawn:
    """Marks of a chart in the units of its axes.

    Attributes:
        dots: (x, y) of each mark; an axis without numbers gives NaN.
        lines: the points of each line.
        bars: the length of each bar.
    """

    def __init__(self, read: dict[str, Any]) -> None:
        x, y = (_scale([(tick[0], tick[place]) for tick in read[axis]]) for axis, place in (("x", 1), ("y", 2)))
        self.dots = [(x(left), y(top)) for left, top in read["dots"]]
        self.lines = [[(x(left), y(top)) for left, top in line] for line in read["lines"]]
        self.bars = [x(right) - x(left) for left, right in read["bars"]]


def read_back(page: Page, chart: str) -> Drawn:
    """The marks of a chart that is drawn."""
    return Drawn(page.evaluate(_READ, chart))


def _scale(ticks: Sequence[tuple[str, float]]) -> Callable[[float], float]:
    """From pixels to values: linear or logarithmic, whichever the ticks lie on."""
    known = {}
    for text, pixel in ticks:
        try:
            known[float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))] = pixel
        except ValueError:
            return lambda _: math.nan
    if len(known) < 2:
        return lambda _: math.nan
    values = sorted(known)
    low, high = values[0], values[-1]
    straight, powers = (_between(known, low, high, bend) for bend in (float, _log))
    inner = [value for value in values if value not in {low, high}]
    off = [sum(abs(scale(known[value]) / value - 1) if value else 0 for value in inner) for scale in (straight, powers)]
    return powers if low > 0 and inner and off[1] < off[0] else straight


def _log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def _between(
    known: dict[float, float], low: float, high: float, bend: Callable[[float], float]
) -> Callable[[float], float]:
    slope = (bend(high) - bend(low)) / (known[high] - known[low])

    def value(pixel: float) -> float:
        bent = bend(low) + (pixel - known[low]) * slope
        return bent if bend is float else 10**bent

    return value
