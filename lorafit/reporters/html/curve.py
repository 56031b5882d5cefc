"""Geometry of a chart: the positions of curves and ticks. The page's template draws the chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.run_folders.history import Points

WIDTH, HEIGHT, LEFT, RIGHT, BELOW, ABOVE = 960, 240, 64, 12, 28, 12  # of a chart and its margins, in SVG units
MAX_POINTS = 480  # of a line; more points are reduced to means of neighbors


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its position `at` in SVG units, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class CurveLine:
    """One curve: `points` of an SVG polyline, and `dots` (x, y, tooltip) if the curve has at most 40 points."""

    name: str
    points: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart: curves over the same steps, on one scale. `floor` is the y of the x axis."""

    title: str
    lines: list[CurveLine]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    floor: int = HEIGHT - BELOW


def make_chart(title: str, curves: dict[str, Points]) -> Chart | None:
    """Return one chart of the curves that have points, or None if no curve has any."""
    drawn = {name: means(points, MAX_POINTS) for name, points in curves.items() if points}
    if not drawn:
        return None
    steps = [step for points in drawn.values() for step, _value in points]
    values = [value for points in drawn.values() for _step, value in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    y_ticks = nice_ticks(min(values), max(values))
    low, high = min(min(values), y_ticks[0]), max(max(values), y_ticks[-1])

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - RIGHT - LEFT)

    def y(value: float) -> float:
        return HEIGHT - BELOW - (value - low) / (high - low) * (HEIGHT - BELOW - ABOVE)

    lines = [
        CurveLine(
            name,
            " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points),
            [(x(step), y(value), f"{step:g}: {value:.4g}") for step, value in points] if len(points) <= 40 else [],
        )
        for name, points in drawn.items()
    ]
    x_ticks = [
        Tick(x(step), f"{step:,.0f}") for step in nice_ticks(first, last) if first <= step <= last and step == int(step)
    ]
    return Chart(title, lines, x_ticks, [Tick(y(value), f"{value:,.6g}") for value in y_ticks])


def means(points: Points, most: int) -> list[tuple[float, float]]:
    """Return at most `most` points: means over groups of neighboring points."""
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(_mean([step for step, _v in group]), _mean([value for _s, value in group])) for group in groups]


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers that cover `low` to `high` in about `about` intervals of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - abs(low) * 0.05 - 1e-9, high + abs(high) * 0.05 + 1e-9
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    pitch = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(n * pitch, 12) for n in range(math.floor(low / pitch), math.ceil(high / pitch) + 1)]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
