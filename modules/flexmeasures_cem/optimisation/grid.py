"""The time that is planned, cut into steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np

SHORTEST_SECONDS = 1.0
"""Edges that are closer together are one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _TimeGrid:
    """Steps between `edges` (s since 1970), of which the first may be what is left of an interval."""

    edges: Any

    @property
    @pyscript_compile
    def count(self) -> int:
        """How many steps there are."""
        return len(self.edges) - 1

    @property
    @pyscript_compile
    def starts(self) -> Any:
        """When each step starts."""
        return self.edges[:-1]

    @property
    @pyscript_compile
    def ends(self) -> Any:
        """When each step ends."""
        return self.edges[1:]

    @property
    @pyscript_compile
    def seconds(self) -> Any:
        """How long each step is."""
        return np.diff(self.edges)

    @property
    @pyscript_compile
    def hours(self) -> Any:
        """How long each step is."""
        return np.diff(self.edges) / 3600

    @pyscript_compile
    def step_at(self, moment: float) -> int:
        """Return the number of the step that a moment is in, or of the nearest."""
        place = int(np.searchsorted(self.edges, moment, "right")) - 1
        return min(max(place, 0), self.count - 1)

    @pyscript_compile
    def shares(self, start: float, end: float) -> Any:
        """Return which part of each step is between two moments."""
        inside = np.minimum(self.edges[1:], end) - np.maximum(self.edges[:-1], start)
        return np.maximum(inside, 0.0) / self.seconds

    @pyscript_compile
    def means(self, pieces: Any, otherwise: float = 0.0) -> Any:
        """Return the mean of pieces (start, end, value), in order, in each step.

        Where there is no piece, the value is another.
        """
        moments, sums = [float(self.edges[0])] if not pieces else [pieces[0][0]], [0.0]
        for start, end, value in pieces:
            moments += [start, end]
            sums += [sums[-1], sums[-1] + (end - start) * (value - otherwise)]
        return otherwise + np.diff(np.interp(self.edges, moments, sums)) / self.seconds


TimeGrid = _TimeGrid


@pyscript_compile
def of(moments: Any) -> Any:
    """Return the TimeGrid with edges at some moments (s since 1970), which need not be in order."""
    edges = []
    for moment in sorted(moments):
        if not edges or moment - edges[-1] >= SHORTEST_SECONDS:
            edges.append(float(moment))
    return TimeGrid(edges=np.array(edges))
