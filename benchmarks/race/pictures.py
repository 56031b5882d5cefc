"""Small SVG charts of the figures; equal figures give equal bytes."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

from race.figures import Entry
from race.results import Line

OURS, THEIRS = "#1f77b4", "#b0b0b0"

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "lorafit"


def bars(entries: list[Entry], title: str, path: Path) -> None:
    """Draw tokens per second and peak memory of each contestant, the fastest on top."""
    ordered = sorted(entries, key=lambda entry: -entry.behind)
    names = [entry.name for entry in ordered]
    colours = [OURS if name.startswith("lorafit") else THEIRS for name in names]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 0.6 + 0.3 * len(names)), sharey=True)
    left.barh(names, [entry.tokens_per_second for entry in ordered], color=colours)
    left.set_xlabel("tokens/s")
    right.barh(names, [entry.peak_bytes / 1e9 for entry in ordered], color=colours)
    right.set_xlabel("peak memory, GB")
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def curves(lines: list[Line], axes: dict[str, str], path: Path) -> None:
    """Draw tokens per second (upper row) and peak memory (lower row), with one column for each axis."""
    figure, grid = pyplot.subplots(2, len(axes), figsize=(3 * len(axes), 5), squeeze=False)
    for column, (axis, words) in enumerate(axes.items()):
        points = sorted((line for line in lines if line["axis"] == axis), key=lambda line: int(line["value"]))
        values = [line["value"] for line in points]
        _curve(grid[0][column], values, [line["tokens_per_second"] for line in points], "tokens/s")
        _curve(grid[1][column], values, [line["peak_bytes"] / 1e9 for line in points], "peak memory, GB")
        grid[1][column].set_xlabel(words)
    _save(figure, path)


def _curve(plot: Axes, values: list[int], heights: list[float], label: str) -> None:
    plot.plot(values, heights, "o-", color=OURS)
    plot.set_xscale("log")
    plot.set_ylim(bottom=0)
    plot.set_ylabel(label)


def _save(figure: pyplot.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
