"""Devices of several control types at a site, for tests: all that they may do, and what that costs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import flexmeasures_cem.control_types.registry as registry
import flexmeasures_cem.market as markets
import flexmeasures_cem.site.outlook as outlooks
import flexmeasures_cem.site.site_model as site_model
from flexmeasures_cem.market import Connection
from tests.modules.flexmeasures_cem import frbc_cases, modes_cases, ppbc_cases
from tests.modules.flexmeasures_cem.modes_cases import NOW, QUARTER
from tests.parts.local_optimum import priced
from tests.parts.s2_messages import example

FULL = 2.0
"""What the battery holds (kWh): four quarters of an hour at its one power."""


class Planned:
    """A device of a site: its control type, what it told, and what its storage costs in wear."""

    def __init__(self, name: str, kind: Any, memory: dict, described: dict, cycle_cost: float = 0.0) -> None:
        self.name, self.type, self.memory = name, kind, memory
        self.described, self.cycle_cost = described, cycle_cost

    def __repr__(self) -> str:
        """Return what tells the device from others."""
        return f"{self.name}, wear {self.cycle_cost}" if self.cycle_cost else self.name


@dataclass
class Surroundings:
    """What is given at a site, by quarters of an hour: prices per kWh, a load (W), and the connection."""

    prices: list
    production: float | None = None
    load: float = 0.0
    connection: Connection = field(default_factory=Connection)

    @property
    def tariffs(self) -> list[tuple]:
        """The prices of consumption and production in each quarter."""
        return [(each, each if self.production is None else self.production) for each in self.prices]


def battery(level, cycle_cost=0.0, power=2000.0, is_stepped=False, discharges=True) -> Planned:
    """Return a battery without losses at a fill level (%); a stepped one has all of its power, or none."""
    m = frbc_cases.modules()
    ends = {"idle": (0, 0), "charge": (0, power), "discharge": (-power, 0)}
    if is_stepped:
        ends |= {"charge": (power, power), "discharge": (-power, -power)}
    modes = [
        frbc_cases.mode(name, frbc_cases.element(each, unit=1000 * FULL / 100, efficiency=1.0))
        for name, each in ends.items()
        if discharges or name != "discharge"
    ]
    described = frbc_cases.description(frbc_cases.actuator("inverter", modes))
    remembered = frbc_cases.memory(m, described, level)
    frbc_cases.activate(m, remembered, described)
    name = f"{'stepped battery' if is_stepped else 'battery'} of {power} W at {level} %"
    return Planned(name, registry.FRBC, remembered, described, cycle_cost)


def heat_pump(power=1500, cost=0.02, quarters_on=2) -> Planned:
    """Return a device that is off; once on it stays so for some quarters, and to start it costs something."""
    m = modes_cases.modules()
    off, on = modes_cases.mode("off"), modes_cases.mode("on", (power, power))
    least = frbc_cases.timer(quarters_on * QUARTER)
    ways = [
        modes_cases.costly(frbc_cases.transition(off, on, starts=[least]), cost),
        frbc_cases.transition(on, off, blocked_by=[least]),
    ]
    kind = "OMBC.SystemDescription"
    described = example(kind, operation_modes=[off, on], transitions=ways, timers=[least])
    remembered = {
        (kind,): modes_cases.parsed(m, described),
        ("OMBC.Status",): modes_cases.parsed(m, modes_cases.status("OMBC.Status", off)),
    }
    return Planned(f"heat pump of {power} W for {cost}", registry.OMBC, remembered, described)


def machine(power=1500, quarters=2, end=6) -> Planned:
    """Return a machine with one programme of some quarters, to be finished after so many."""
    m = ppbc_cases.modules()
    described = ppbc_cases.profile(
        ppbc_cases.container(ppbc_cases.sequence((15 * quarters, power))), end=15 * end
    )
    return Planned(
        f"machine of {power} W for {quarters} until {end}",
        registry.PPBC,
        ppbc_cases.memory(m, described),
        described,
    )


def planned(devices, site) -> list:
    """Return the Plan of each device, in order, of one program for all."""
    count = len(site.prices)
    known = [
        priced(NOW + place * QUARTER, NOW + (place + 1) * QUARTER, *pair)
        for place, pair in enumerate(site.tariffs)
    ]
    outlook = outlooks.new(known, NOW, NOW + count * QUARTER, QUARTER)
    outlooks.put(outlook, "house", [site.load] * count)
    tasks = []
    for each in devices:
        device = each.type.read_device(each.memory)
        assert each.type.why_not_plannable(device) is None
        tasks.append(
            site_model.Task(
                controlled=each,
                version=0,
                memory=each.memory,
                heard={},
                before=None,
                wanted=None,
                storage=markets.StorageTerms(cycle_cost=each.cycle_cost),
                device=device,
                state=each.type.read_state(device, each.memory, {}, None, NOW),
            )
        )
    found = site_model.planned(tasks, outlook, site_model.spans(outlook, NOW), site.connection, {})
    return [found[each] for each in devices]


def lived(device, plan, end) -> tuple[list[tuple], float]:
    """Return the pieces (start, end, W) that a simulated device has after a plan, and what else it costs."""
    if device.type is registry.OMBC:
        return lived_by_modes(device, plan, end)
    if device.type is registry.PPBC:
        return lived_by_profile(device, plan), 0.0
    return lived_by_fill_rate(device, plan, end), 0.0


def lived_by_modes(device, plan, end) -> tuple[list[tuple], float]:
    """Return the pieces of a heat pump, and what its starts cost."""
    simulated = modes_cases.SimulatedActuator(device.described, device.described["operation_modes"][0]["id"])
    modes_cases.live({None: simulated}, plan)
    moments = sorted({NOW, *[each[0] for each in simulated.course if each[0] > NOW], end})
    return [(*pair, simulated.quantity(pair[0])) for pair in pairwise(moments)], simulated.paid


def lived_by_profile(device, plan) -> list[tuple]:
    """Return the pieces of a machine."""
    ppbc_cases.check(device.described, [], plan, begin=NOW)
    [(_sequence, spans)] = ppbc_cases.courses(plan).values()
    return ppbc_cases.run(sequence_of(device), spans)


def lived_by_fill_rate(device, plan, end) -> list[tuple]:
    """Return the pieces of a battery, which by a simulation of its own has as much stored in the end."""
    level = level_of(device)
    simulated = frbc_cases.live(device.described, plan, level, datetime.fromtimestamp(end, UTC))
    assert (simulated.rejected, simulated.violations) == ([], [])
    pieces = [(each.start, each.end, each.power_w) for each in plan.pieces if each.start < end]
    stored = level * FULL / 100 + sum((until - start) * power for start, until, power in pieces) / 3.6e6
    assert simulated.fill_level * FULL / 100 == pytest.approx(stored, abs=0.01)
    return pieces


def sequence_of(device) -> dict:
    """Return the only sequence of a machine."""
    [container] = device.described["power_sequences_containers"]
    [sequence] = container["power_sequences"]
    return sequence


def deadline_of(device) -> float:
    """Return when a machine has to be finished."""
    return datetime.fromisoformat(device.described["end_time"]).timestamp()


def level_of(device) -> float:
    """Return the fill level (%) that a battery told."""
    return device.memory["FRBC.StorageStatus",].present_fill_level


def beyond_limits(powers, site) -> Any:
    """Return how far (W) devices' powers (W) take the site beyond its limits, more than the load does."""
    net = powers + site.load
    most = max(site.connection.max_consumption, site.load)
    least = -max(site.connection.max_production, -site.load)
    return np.maximum(net - most, 0.0) + np.maximum(least - net, 0.0)


def bill(powers, site) -> Any:
    """Return what devices' mean powers (W) in quarters of an hour, on the last axis, have the site pay."""
    consumption, production = np.array(site.tariffs).T
    net = (powers + site.load) / 1000
    energy = (np.where(net > 0, consumption, production) * net).sum(axis=-1) * 0.25
    peak = np.maximum(net.max(axis=-1) - site.connection.peak_consumption / 1000, 0.0)
    return energy + peak * site.connection.peak_price


def wear_and_value(device, energies, site) -> Any:
    """Return what a battery's energies (kWh) in each step cost in wear, less the worth of what is kept."""
    if device.type is not registry.FRBC:
        return np.zeros(energies.shape[:-1])
    prices = [pair[1] if site.load < 0 else pair[0] for pair in site.tariffs]
    half = device.cycle_cost / 2
    worth = max(min(prices), 0.0) + half
    if len(device.described["actuators"][0]["operation_modes"]) == 3:
        worth = min(worth, max(max(prices) - half, 0.0))
    return np.abs(energies).sum(axis=-1) * half - worth * energies.sum(axis=-1)


def courses(device, count) -> tuple[Any, Any]:
    """Return all courses of powers (W) that a device may take in quarters of an hour, and their own costs."""
    of = {registry.PPBC: starts, registry.OMBC: runs, registry.FRBC: levels}[device.type]
    powers, costs = zip(*of(device, count), strict=True)
    return np.array(powers, float), np.array(costs, float)


def starts(device, count):
    """Yield the course of a machine for each time that it may start, which costs nothing else."""
    sequence = sequence_of(device)
    power = ppbc_cases.power_of(sequence["elements"][0])
    quarters = round(sequence["elements"][0]["duration"] / 1000 / QUARTER)
    for begin in range(round((deadline_of(device) - NOW) / QUARTER) - quarters + 1):
        yield [power * (begin <= place < begin + quarters) for place in range(count)], 0.0


def runs(device, count):
    """Yield each course of a heat pump, and what its starts cost."""
    described = device.described
    power = described["operation_modes"][1]["power_ranges"][0]["end_of_range"]
    least = round(described["timers"][0]["duration"] / 1000 / QUARTER)
    for course in np.ndindex(*[2] * count):
        edges = np.flatnonzero(np.diff([0, *course, 0]))
        if all(end - begin >= least or end == count for begin, end in edges.reshape(-1, 2)):
            yield (
                [power * each for each in course],
                described["transitions"][0]["transition_costs"] * len(edges) / 2,
            )


def levels(device, count):
    """Yield each course of a battery, in steps of half its power or all of it, that keeps to its range."""
    elements = [each["elements"][0] for each in device.described["actuators"][0]["operation_modes"]]
    ends = {end for each in elements for end in each["power_ranges"][0].values() if not isinstance(end, str)}
    is_stepped = all(
        each["fill_rate"]["start_of_range"] == each["fill_rate"]["end_of_range"] for each in elements
    )
    powers = sorted(ends if is_stepped else ends | {end / 2 for end in ends})
    for course in product(powers, repeat=count):
        stored = level_of(device) * FULL / 100 + np.cumsum(course) * QUARTER / 3.6e6
        if stored.min() >= 0.0 and stored.max() <= FULL:
            yield course, 0.0


def least_of_all(devices, site) -> tuple[float, float]:
    """Return the least (Wh beyond the limits, cost) of all courses in quarters of an hour."""
    count = len(site.prices)
    powers, costs = np.zeros((1, count)), np.zeros(1)
    for device in devices:
        own, paid = courses(device, count)
        paid = paid + wear_and_value(device, own * (QUARTER / 3.6e6), site)
        powers = (powers[:, None] + own[None]).reshape(-1, count)
        costs = (costs[:, None] + paid[None]).reshape(-1)
    beyond = beyond_limits(powers, site).sum(axis=-1).round(3) * 0.25
    cost = bill(powers, site) + costs
    best = np.lexsort((cost, beyond))[0]
    return float(beyond[best]), float(cost[best])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What simulated devices come to together: energies (Wh) beyond the limits, and the cost.

    `beyond` counts each moment, `mean_beyond` the means of the quarters of an hour; `late` is how late a
    machine is ready (s).
    """

    beyond: float
    mean_beyond: float
    cost: float
    late: float


def outcome(devices, plans, site) -> Outcome:
    """Return the Outcome of devices that follow their Plans."""
    quarters = NOW + np.arange(len(site.prices) + 1) * QUARTER
    each_lived = [lived(device, plan, quarters[-1]) for device, plan in zip(devices, plans, strict=True)]
    moments = [moment for pieces, _cost in each_lived for piece in pieces for moment in piece[:2]]
    edges = np.unique(np.clip([*quarters, *moments], quarters[0], quarters[-1]))
    hours, middles = np.diff(edges) / 3600, (edges[1:] + edges[:-1]) / 2
    cost, late, total = 0.0, 0.0, np.zeros(len(hours))
    for device, (pieces, own_cost) in zip(devices, each_lived, strict=True):
        powers = np.zeros(len(hours))
        for start, until, power in pieces:
            powers += power * ((middles >= start) & (middles < until))
        cost += own_cost + float(wear_and_value(device, powers * hours / 1000, site))
        total += powers
        if device.type is registry.PPBC:
            late = max(pieces[-1][1] - deadline_of(device), 0.0)
    means = np.histogram(middles, quarters, weights=total * hours)[0] / 0.25
    return Outcome(
        beyond=float((beyond_limits(total, site) * hours).sum()),
        mean_beyond=float(beyond_limits(means, site).sum() * 0.25),
        cost=float(bill(means, site)) + cost,
        late=late,
    )


CONNECTIONS = [
    Connection(),
    Connection(power_capacity=2500.0),
    Connection(power_capacity=4000.0, production_capacity=600.0),
    Connection(consumption_capacity=2100.0),
    Connection(production_capacity=0.0),
    Connection(peak_consumption=1000.0, peak_price=0.4),
    Connection(consumption_capacity=3600.0, peak_price=0.1),
]


@st.composite
def sites(draw, count):
    """Draw the Surroundings of some quarters of an hour."""
    prices = draw(modes_cases.random_prices(count))
    production = draw(st.sampled_from([None, None, 0.05]))
    if production is not None:
        prices = [max(each, production) for each in prices]
    load = draw(st.sampled_from([0.0, 800.0, -900.0]))
    return Surroundings(prices, production, load, draw(st.sampled_from(CONNECTIONS)))


@st.composite
def houses(draw, least, count, consume=False):
    """Draw some devices, one of a control type at most, and none that produces where all are to consume."""
    made = [
        battery(
            draw(st.sampled_from([5, 30, 55, 95])),
            draw(st.sampled_from([0.0, 0.1])),
            is_stepped=draw(st.booleans()),
            discharges=not consume,
        ),
        heat_pump(draw(st.sampled_from([1500, 2500])), draw(st.sampled_from([0.0, 0.02]))),
        machine(
            draw(st.sampled_from([800, 1500] if consume else [800, 1500, -700])),
            draw(st.integers(1, 2)),
            draw(st.integers(2, count)),
        ),
    ]
    return draw(st.permutations(made))[: draw(st.integers(least, len(made)))]
