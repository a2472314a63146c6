"""The devices of a site in one program, beside all else that is expected there, and the plan of each.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.site.alone as alone
import flexmeasures_cem.site.outlook as outlooks

MAX_CUTS, CUT_SECONDS = 12, 30.0
"""How many edges the grid gets for what happens within its steps, and how far apart they are (s)."""
SHORTEST_SECONDS = 1.0
"""What is left of a step counts if it is longer."""
COARSER = (4 * 3600.0, 900.0), (26 * 3600.0, 1800.0)
"""From how far ahead (s) on steps are of which length (s) at least: until then it is planned anew."""
COARSE = (4 * 3600.0, 1800.0), (26 * 3600.0, 3600.0)
"""The same where many devices wait for their plans."""
EFFORT = search.Effort(seconds=1.0, gap=0.005, relative_gap=0.001, max_gap=0.02)
"""How near to the optimum devices are planned: half a cent, or a thousandth up to two cents."""
CROWD_SECONDS = 5.0
"""How long (s) is searched at most for better plans of all devices that wait for theirs."""
POOR_KWH = 0.2
"""From how much missed of a target on a plan is poor, and better is searched for longer."""


@dataclass(eq=False, kw_only=True, repr=False)
class _Task:
    """A Controlled to plan, as it was at a moment: its `version`, what it told, and its plan so far.

    `memory` has its messages, `heard` when its statuses came, `before` its plan as far as it was told.
    `device` and `state` are read of those, `described` has digests of what describes it. `wanted` are the
    powers (start, end, W) of the schedule that is to be followed, or None; `storage` has the StorageTerms.
    """

    controlled: Any
    version: int
    memory: dict[tuple[str, ...], Any]
    heard: dict[Any, float]
    before: Any
    wanted: list[tuple[float, float, float]] | None
    storage: Any = markets.AS_DESCRIBED
    device: Any = None
    state: Any = None
    described: dict[str, str] | None = None


Task = _Task


@pyscript_compile
def effort(share: float) -> Any:
    """Return the search.Effort for one program that has a share of all devices that wait for their plans."""
    return replace(EFFORT, seconds=min(EFFORT.seconds, CROWD_SECONDS * share))


@pyscript_compile
def planned(
    tasks: list[Task],
    outlook: outlooks.Outlook,
    spans: list[tuple[float, float]],
    connection: markets.Connection,
    tariffs: dict[str, float],
    effort: Any = None,
) -> dict[Any, Any]:
    """Return the Plan of each Controlled, in spans (start, end) of time.

    `outlook` has what is expected of all others, `connection` is the site's, `tariffs` are those of other
    commodities, `effort` is a search.Effort (None: the usual one). Raise search.NoSolution, or ImportError
    without HiGHS.
    """
    market = outlooks.market(outlook, None, spans, connection)
    kinds = [task.controlled.type for task in tasks]
    cuts = [
        moment
        for kind, task in zip(kinds, tasks, strict=True)
        for moment in kind.grid_edges(task.device, task.state)
    ]
    site = alone.site_of(market, chosen_cuts(cuts, spans), connection)
    parts, powers, blocks = [], [], []
    for kind, task in zip(kinds, tasks, strict=True):
        counted, first = len(site.powers), site.program.count
        parts.append(kind.add_to_site(site, task.device, task.state, task.wanted, tariffs, task.storage))
        powers.append(linear.total(site.powers[counted:], site.grid.count))
        blocks.append((first, site.program.count))
    site.connect()
    solution = site.solve(replace(effort or EFFORT, poor=POOR_KWH * site.priorities.target), blocks)
    powers = [alone.WATTS * solution.of(power) for power in powers]
    together = sum(powers)
    grid = site.grid
    return {
        task.controlled: part.plan(solution, beside(market, grid, together - power))
        for task, part, power in zip(tasks, parts, powers, strict=True)
    }


@pyscript_compile
def spans(
    outlook: outlooks.Outlook, begin: float, coarser: tuple[tuple[float, float], ...] = COARSER
) -> list[tuple[float, float]]:
    """Return (start, end) of each step to plan from a moment on: one or more samples of an Outlook."""
    count = len(outlook.total)
    edges = [outlook.start + place * outlook.step for place in range(count + 1)]
    kept = [edge for edge in edges[:-1] if edge % longest_step(edge - begin, coarser) == 0 or edge <= begin]
    kept.append(edges[-1])
    return [(max(start, begin), end) for start, end in pairwise(kept) if end > begin + SHORTEST_SECONDS]


@pyscript_compile
def longest_step(ahead: float, coarser: tuple[tuple[float, float], ...]) -> float:
    """Return what the edges of steps are multiples of (s) that are so far ahead (s)."""
    return max([length for since, length in coarser if ahead >= since], default=1.0)


@pyscript_compile
def beside(market: list[markets.Interval], grid: Any, powers: Any) -> list[markets.Interval]:
    """Return a market with the powers (W) of others in each step of a grid added to its load."""
    found, place = [], 0
    for start, end, power in zip(grid.starts.tolist(), grid.ends.tolist(), powers.tolist(), strict=True):
        while market[place].end <= start + 0.5:
            place += 1
        found.append(replace(market[place], start=start, end=end, load=market[place].load + power))
    return found


@pyscript_compile
def chosen_cuts(moments: list[float], spans: list[tuple[float, float]]) -> list[float]:
    """Return the first moments of those at which something happens within a span, a little apart."""
    last, found = -math.inf, []
    edges = {moment for span in spans for moment in span}
    for moment in sorted(moments):
        is_inside = spans[0][0] < moment < spans[-1][1]
        if is_inside and moment - last >= CUT_SECONDS and moment not in edges:
            found.append(moment)
            last = moment
    return found[:MAX_CUTS]
