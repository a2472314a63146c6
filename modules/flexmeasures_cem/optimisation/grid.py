"""The time that is planned, cut into steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flexmeasures_cem.optimisation.arrays import Floats

MIN_STEP_SECONDS = 1.0
"""Edges that are closer together are one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _TimeGrid:
    """Steps between `edges` (s since 1970), of which the first may be what is left of an interval."""

    edges: Floats

    @property
    @pyscript_compile
    def count(self) -> int:
        """The number of steps."""
        return len(self.edges) - 1

    @property
    @pyscript_compile
    def starts(self) -> Floats:
        """The start of each step (s since 1970)."""
        return self.edges[:-1]

    @property
    @pyscript_compile
    def ends(self) -> Floats:
        """The end of each step (s since 1970)."""
        return self.edges[1:]

    @property
    @pyscript_compile
    def seconds(self) -> Floats:
        """The length of each step (s)."""
        return np.diff(self.edges)

    @property
    @pyscript_compile
    def hours(self) -> Floats:
        """The length of each step (h)."""
        return np.diff(self.edges) / 3600

    @pyscript_compile
    def step_at(self, moment: float) -> int:
        """Return the number of the step that a moment is in, or of the nearest."""
        step = int(np.searchsorted(self.edges, moment, "right")) - 1
        return min(max(step, 0), self.count - 1)

    @pyscript_compile
    def shares(self, start: float, end: float) -> Floats:
        """Return which part of each step is between two moments."""
        inside: Floats = np.minimum(self.edges[1:], end) - np.maximum(self.edges[:-1], start)
        return np.maximum(inside, 0.0) / self.seconds

    @pyscript_compile
    def means(self, pieces: Sequence[tuple[float, float, float]], otherwise: float = 0.0) -> Floats:
        """Return the mean of pieces (start, end, value), in order, in each step.

        Where there is no piece, the value is `otherwise`.
        """
        moments, sums = [float(self.edges[0])] if not pieces else [pieces[0][0]], [0.0]
        for start, end, value in pieces:
            moments += [start, end]
            sums += [sums[-1], sums[-1] + (end - start) * (value - otherwise)]
        return otherwise + np.diff(np.interp(self.edges, moments, sums)) / self.seconds


TimeGrid = _TimeGrid


@pyscript_compile
def of(moments: Iterable[float]) -> TimeGrid:
    """Return the TimeGrid with edges at moments (s since 1970), which need not be in order."""
    edges: list[float] = []
    for moment in sorted(moments):
        if not edges or moment - edges[-1] >= MIN_STEP_SECONDS:
            edges.append(float(moment))
    return TimeGrid(edges=np.array(edges))
