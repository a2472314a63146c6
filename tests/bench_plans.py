"""How long it takes to plan the devices of a site together, and how good the plan is: `make bench` runs it.

First the site model is measured alone: the scripts read the introductions of simulated devices, and what the
planner runs in its thread is timed. Then a real Home Assistant with a real FlexMeasures server is measured
(see tests.bench_home).
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from freezegun import freeze_time
from rich.table import Table

import tests.parts.without_pyscript  # noqa: F401

# isort: split

import flexmeasures_api.prices as prices
import flexmeasures_cem.control_types.registry as registry
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.linear as linear
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.site.outlook as outlooks
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.site_model as site_model
import flexmeasures_s2.message_store as message_store
import flexmeasures_s2.messages as messages
from tests import bench_home
from tests.demo_terminal import console, step
from tests.parts.flexmeasures_server import DAY_AHEAD
from tests.parts.home_assistant import REPOSITORY
from tests.parts.s2_catalogue import controlled
from tests.parts.s2_device import AMSTERDAM

MIXED = (
    *("battery", "ev", "boiler", "twin-battery"),
    *("heat-pump", "step-charger"),
    "hybrid-heat-pump",
    "washing-machine",
    *("pv", "envelope-charger"),
)
"""Four devices under FRBC, two under OMBC, one under DDBC, one under PPBC, two under PEBC."""
BATTERIES = ("battery",) * 20
START = datetime(2026, 3, 2, 18, 0, 2, tzinfo=AMSTERDAM)
DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS = 86_400.0, 3600.0, 60.0
QUARTER_SECONDS, FIVE_MINUTES_SECONDS = 900.0, 300.0
LIMIT_W = 6000.0
FEED_IN_SHARE = 0.5
"""The price of feeding in, as a fraction of that of consumption."""
COLUMNS = "steps", "columns", "rows", "whole", "build", "solve", "plans", "cost", "above\nbest", "bound"
BEST_SECONDS = 20.0
BEST_GAP = 1e-3
"""The distance from the optimum (EUR) at which the longer search may stop."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Devices of the catalogue to plan together, in steps (s), with an optional limit of the site (W)."""

    title: str
    devices: tuple[str, ...]
    step: float = QUARTER_SECONDS
    limit: float | None = None

    def __str__(self) -> str:
        """Return a description."""
        limit = "" if self.limit is None else f", {self.limit / 1000:g} kW"
        return f"{self.title}, {self.step / MINUTE_SECONDS:g} min{limit}"


@dataclass(frozen=True, kw_only=True)
class Planning:
    """The size of a program, the duration of every step (s), and the costs of its and the best plan (EUR).

    `whole` is the number of integer variables; no plan costs less than the `bound`.
    """

    steps: int
    columns: int
    rows: int
    whole: int
    build_seconds: float
    solve_seconds: float
    plan_seconds: float
    cost: float
    best: float
    bound: float

    @property
    def excess(self) -> float:
        """Return the additional cost of the plan, as a fraction of the best cost."""
        return (self.cost - self.best) / max(abs(self.best), 1e-9)


@dataclass(frozen=True, kw_only=True)
class Solving:
    """A program solved by `blocks`, with its solution, and the times of its begin and end (s)."""

    program: Any
    blocks: list[tuple[int, int]]
    solution: Any
    began: float
    ended: float


def scenarios(devices: tuple[str, ...] = MIXED) -> list[Scenario]:
    """Return the scenarios of some devices: two steps, with and without a limit; usually batteries, too."""
    is_usual = devices == MIXED
    title = "ten mixed" if is_usual else ", ".join(devices)
    together = [
        Scenario(title=title, devices=devices, step=step, limit=limit)
        for step in (QUARTER_SECONDS, FIVE_MINUTES_SECONDS)
        for limit in (None, LIMIT_W)
    ]
    return [*together, Scenario(title="20 batteries", devices=BATTERIES)] if is_usual else together


def task_of(name: str, number: int, now: float) -> Any:
    """Return the site_model.Task of a device of the catalogue; all batteries have different fill levels."""
    options = {"fill_level": 10.0 + 80.0 * number / len(BATTERIES)} if name == "battery" else {}
    device = controlled(name, "ws://127.0.0.1:9/", every=None, **options)
    kind = registry.BY_NAME[next(iter(device.offers))]
    introduction = [messages.parse(json.dumps(message)) for message in device.introduction()]
    memory = {message_store.key_of(message): message for message in introduction}
    not_connected: Any = None
    task = site_model.Task(
        controlled=sites.Controlled(not_connected, not_connected, kind),
        version=0,
        memory=memory,
        heard={},
        before=None,
        wanted=None,
    )
    task.device = kind.read_device(memory)
    task.state = kind.read_state(task.device, memory, {}, None, now)
    return task


def outlook_of(tasks: list[Any], step: float, now: float) -> Any:
    """Return the Outlook for at least a day, with a day-ahead tariff, and nothing else at the site."""
    start = now // step * step
    end = max(start + DAY_SECONDS, *[task.controlled.type.last_deadline(task.device) for task in tasks])
    tariff, begin = [], start // HOUR_SECONDS * HOUR_SECONDS
    while begin < end:
        price = DAY_AHEAD[datetime.fromtimestamp(begin, AMSTERDAM).hour]
        interval = prices.PriceInterval(
            start=begin, end=begin + HOUR_SECONDS, consumption=price, production=price * FEED_IN_SHARE
        )
        tariff.append(interval)
        begin += HOUR_SECONDS
    return outlooks.new(tariff, start, end, step, now)


@contextmanager
def solvings() -> Iterator[list[Solving]]:
    """Give a list to which every Solving is added meanwhile."""
    solve = linear.Program.solve
    noted: list[Solving] = []

    def timed(program: Any, effort: Any, blocks: Iterable[tuple[int, int]] = ()) -> Any:
        """Solve a program, and add it to the list."""
        blocks, began = list(blocks), time.perf_counter()
        solution = solve(program, effort, blocks)
        ended = time.perf_counter()
        noted.append(Solving(program=program, blocks=blocks, solution=solution, began=began, ended=ended))
        return solution

    with patch.object(linear.Program, "solve", timed):
        yield noted


def plan(scenario: Scenario, best_seconds: float = BEST_SECONDS) -> Planning:
    """Plan the devices of a scenario as the planner does; then search for a better plan for some seconds."""
    now = START.timestamp()
    with freeze_time(START):
        tasks = [task_of(name, number, now) for number, name in enumerate(scenario.devices)]
    outlook = outlook_of(tasks, scenario.step, now)
    spans = site_model.spans(outlook, now)
    with solvings() as noted:
        began = time.perf_counter()
        site_model.planned(tasks, outlook, spans, markets.Connection(power_capacity=scenario.limit), {})
        ended = time.perf_counter()
    [solving] = noted
    problem = solving.program.problem()
    best, bound = best_of(solving, best_seconds)
    return Planning(
        steps=len(spans),
        columns=len(problem.costs),
        rows=len(problem.row_lower),
        whole=int(problem.whole.sum()),
        build_seconds=solving.began - began,
        solve_seconds=solving.ended - solving.began,
        plan_seconds=ended - solving.ended,
        cost=solving.solution.objective,
        best=best,
        bound=bound,
    )


def best_of(solving: Solving, seconds: float) -> tuple[float, float]:
    """Return the cost of the best plan and its lower bound (EUR), after some seconds of search.

    In these HiGHS solves the whole program, and the scripts' own search runs again in parallel.
    """
    effort = search.Effort(seconds=seconds, gap=BEST_GAP, relative_gap=0.0)

    def solve(blocks: list[tuple[int, int]]) -> Any:
        """Return a Solution, or the given one if none is found in time."""
        try:
            return solving.program.solve(effort, blocks)
        except search.NoSolution:
            return solving.solution

    with patch.object(search, "PATIENCE_FACTOR", 1.0), ThreadPoolExecutor(2) as threads:
        solutions = [solving.solution, *threads.map(solve, [solving.blocks, []])]
    best = min(solution.objective for solution in solutions)
    return best, min(best, max(solution.objective - solution.gap for solution in solutions))


def measure_plans(chosen: list[Scenario], best_seconds: float) -> Table:
    """Plan the scenarios, and return the table."""
    plan(Scenario(title="warming up", devices=("battery",)), 0.0)
    table = Table(title="Devices planned together", padding=0)
    table.add_column("", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for scenario in chosen:
        with step(f"Planning {scenario}"):
            try:
                table.add_row(str(scenario), *cells(plan(scenario, best_seconds)))
            except search.NoSolution:
                table.add_row(str(scenario), "no solution in time")
    (ahead, length), *_ = site_model.COARSER
    table.caption = (
        f"From {START:%H:%M} on for a day. Steps are {length / MINUTE_SECONDS:g} min at least from "
        f"{ahead / HOUR_SECONDS:g} h ahead on, whatever is asked for. Build, solve and plans are seconds, of "
        f"which the planner gives the search {site_model.EFFORT.seconds:g} s of its thread. The cost (EUR) "
        "has what unmet wishes count too. The best plan known is that of HiGHS on the whole program, or of "
        f"our search, in {best_seconds:g} s; none costs less than the bound. Load: {os.getloadavg()[0]:.1f}."
    )
    return table


def cells(planning: Planning) -> list[str]:
    """Return the cells of a row."""
    sizes = [planning.steps, planning.columns, planning.rows, planning.whole]
    numbers = [planning.build_seconds, planning.solve_seconds, planning.plan_seconds, planning.cost]
    return [
        *[f"{size:,}" for size in sizes],
        *[f"{number:.2f}" for number in numbers],
        f"{planning.excess:.2%}",
        f"{planning.bound:.2f}",
    ]


async def measure_home(scripts: Path, extent: bench_home.Extent) -> None:
    """Measure a home, and print the tables."""
    figures = await bench_home.measure(scripts, extent)
    console.print(bench_home.instructions_table(figures, scripts))
    console.print(bench_home.load_table(figures, extent))


def main() -> None:
    """Measure the chosen scenarios."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench_plans", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "devices", nargs="*", metavar="device", help="devices of the catalogue to plan, not the ten"
    )
    parser.add_argument("--each", action="store_true", help="plan each device by itself")
    parser.add_argument(
        "--only", choices=("model", "home"), help="measure only the site model, or only the home"
    )
    parser.add_argument(
        "--best", type=float, default=BEST_SECONDS, metavar="SECONDS", help="of each longer search (20)"
    )
    parser.add_argument(
        "--scripts", type=Path, default=REPOSITORY, help="the checkout that the home has its scripts of"
    )
    parser.add_argument("--short", action="store_true", help="have fewer devices in the home, for less long")
    options = parser.parse_args()
    devices = tuple(options.devices) or MIXED
    chosen = scenarios(devices)
    if options.each:
        chosen = [Scenario(title=name, devices=(name,)) for name in devices]
    if options.only != "home":
        console.print(measure_plans(chosen, options.best))
    if options.only != "model":
        extent = bench_home.SHORT if options.short else bench_home.Extent()
        asyncio.run(measure_home(options.scripts.resolve(), extent))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
