"""The demo's output in a terminal: steps with their duration, and charts of a day."""

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime

import plotext
from rich.console import Console

COLUMNS = 100
CHART_ROWS = 12
console = Console(width=COLUMNS, highlight=False)

type Chart = tuple[str, list[float], str]
"""A title, values and a colour."""


@contextlib.contextmanager
def step(doing: str) -> Iterator[None]:
    """Print a step while it runs, and then how long it took."""
    began = time.monotonic()
    with console.status(doing):
        yield
    console.print(f"[green]✓[/] {doing} [dim]{time.monotonic() - began:.1f} s[/]")


def draw(starts: list[datetime], charts: list[Chart]) -> None:
    """Draw charts over the day, one above the other."""
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.subplots(len(charts), 1)
    plotext.plotsize(COLUMNS, CHART_ROWS * len(charts))
    for row, chart in enumerate(charts, start=1):
        plotext.subplot(row, 1)
        _plot(starts, *chart)
    console.print(f"\n{starts[0]:%A %d %B %Y, %H:%M} to the next day", style="bold")
    plotext.show()


def draw_one(starts: list[datetime], chart: Chart) -> None:
    """Draw a chart over the day by itself."""
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plotsize(COLUMNS, CHART_ROWS)
    _plot(starts, *chart)
    plotext.show()


def _plot(starts: list[datetime], title: str, values: list[float], colour: str) -> None:
    """Plot a day's values: a schedule's power as bars, anything else as a line."""
    hours = [number for number, start in enumerate(starts) if start.minute == 0 and start.hour % 3 == 0]
    steps = range(len(values))
    plotext.theme("clear")
    plotext.title(title)
    if title.startswith("Power"):
        plotext.bar(steps, values, width=1, color=colour)
    else:
        plotext.plot(steps, values, color=colour)
    plotext.xlim(-0.5, len(values) - 0.5)
    plotext.xticks(hours, [f"{starts[hour]:%H:%M}" for hour in hours])
