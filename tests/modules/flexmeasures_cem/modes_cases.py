"""Devices with operation modes for tests: their messages, a device of their own, and a market."""

import importlib
import json
import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from uuid import uuid4

from hypothesis import strategies as st

from tests.modules.flexmeasures_cem.frbc_cases import number_range, timer, transition
from tests.parts.s2_messages import example

START = datetime(2026, 3, 2, 10, tzinfo=UTC)
NOW = START.timestamp()
QUARTER = 900.0


def modules() -> SimpleNamespace:
    """Return the modules under test."""
    names = {
        "ombc": "flexmeasures_cem.control_types.ombc.control_type",
        "ddbc": "flexmeasures_cem.control_types.ddbc.control_type",
        "modes": "flexmeasures_cem.control_types.operation_modes.modes",
        "market": "flexmeasures_cem.market",
        "plans": "flexmeasures_cem.control_types.plans",
        "messages": "flexmeasures_s2.messages",
    }
    found = {name: importlib.import_module(path) for name, path in names.items()}
    return SimpleNamespace(**found | {"ombc": found["ombc"].OMBC, "ddbc": found["ddbc"].DDBC})


def mode(label, powers=(0, 0), cost=None, abnormal=False, **quantities) -> dict:
    """Return an operation mode by its electric powers (W); `cost` is a range per hour."""
    ranges = [number_range(*powers) | {"commodity_quantity": "ELECTRIC.POWER.L1"}]
    for name, ends in quantities.items():
        ranges.append(number_range(*ends) | {"commodity_quantity": name.replace("__", ".")})
    made = {
        "id": str(uuid4()),
        "diagnostic_label": label,
        "power_ranges": ranges,
        "abnormal_condition_only": abnormal,
    }
    return made | ({"running_costs": number_range(*[each / 3600 for each in cost])} if cost else {})


def both_ways(one, other, **options) -> list:
    """Return the transitions from one mode to another, and back."""
    return [transition(one, other, **options), transition(other, one, **options)]


def costly(made, cost) -> dict:
    """Return a transition that costs something."""
    return made | {"transition_costs": cost}


def market(
    m, prices, length=QUARTER, begin=2.0, load=0.0, limit=math.inf, production=None, curtailable=0.0
) -> list:
    """Return Intervals from the start on, the first of which is cut; prices are per kWh."""
    loads = load if isinstance(load, list) else [load] * len(prices)
    produced = production if isinstance(production, list) else [production] * len(prices)
    return [
        m.market.Interval(
            NOW + (begin if place == 0 else place * length),
            NOW + (place + 1) * length,
            price,
            price if produced[place] is None else produced[place],
            loads[place],
            limit,
            limit,
            curtailable,
        )
        for place, price in enumerate(prices)
    ]


def parsed(m, message):
    """Return a message as it arrives."""
    return m.messages.parse(json.dumps(message))


def at(seconds) -> str:
    """Return a moment so many seconds after the start."""
    return (START + timedelta(seconds=seconds)).isoformat()


def status(kind, active, factor=0.0, previous=None, since=None, **ids) -> dict:
    """Return a status by its modes; `since` is when the transition began, in seconds after the start."""
    made = {
        "message_type": kind,
        "message_id": str(uuid4()),
        "active_operation_mode_id": active["id"],
        "operation_mode_factor": factor,
        **ids,
    }
    if previous:
        made["previous_operation_mode_id"] = previous["id"]
    return made if since is None else made | {"transition_timestamp": at(since)}


def timer_status(kind, which, ends, **ids) -> dict:
    """Return a TimerStatus that tells when a timer finishes, in seconds after the start."""
    return example(kind, timer_id=which["id"], finished_at=at(ends)) | ids


class Refused(AssertionError):
    """The device would refuse an instruction."""


class SimulatedActuator:
    """An actuator that lives by its description, and refuses what that does not allow."""

    def __init__(self, described, active=None, factor=0.0, timers=None):
        self.modes = {each.get("id", each.get("Id")): each for each in described["operation_modes"]}
        self.transitions = described["transitions"]
        self.durations = {each["id"]: each["duration"] / 1000 for each in described["timers"]}
        self.mode, self.factor, self.ready = active, factor, -math.inf
        self.finished = dict(timers or {})
        self.course = [(-math.inf, active, factor)]
        self.paid = 0.0

    def instruct(self, moment, mode_id, factor) -> None:
        """Follow an instruction, or raise Refused."""
        if self.modes[mode_id]["abnormal_condition_only"]:
            raise Refused("the mode is for an abnormal condition")
        if not 0 <= factor <= 1:
            raise Refused("the factor is out of range")
        if moment < self.ready:
            raise Refused("a transition is under way")
        if mode_id == self.mode:
            self.course.append((moment, mode_id, factor))
            return
        ways = [
            each
            for each in self.transitions
            if each["from"] == self.mode and each["to"] == mode_id and not each["abnormal_condition_only"]
        ]
        if self.mode is not None and not ways:
            raise Refused("there is no such transition")
        ways = [
            each for each in ways if all(self.finished.get(t, 0) <= moment for t in each["blocking_timers"])
        ]
        if self.mode is not None and not ways:
            raise Refused("a timer blocks it")
        way = min(ways, key=lambda each: each.get("transition_costs", 0), default={})
        for each in way.get("start_timers", ()):
            self.finished[each] = moment + self.durations[each]
        self.paid += way.get("transition_costs", 0)
        both = [per_second(self.modes[each]) for each in (self.mode, mode_id) if each is not None]
        self.paid += max(both) * way.get("transition_duration", 0) / 1000
        self.ready = moment + way.get("transition_duration", 0) / 1000
        self.course += [(moment, None, 0.0), (self.ready, mode_id, factor)]
        self.mode = mode_id

    def setting(self, moment) -> tuple:
        """Return (mode or None, factor) at a moment."""
        return [each for each in self.course if each[0] <= moment][-1][1:]

    def quantity(self, moment, quantity="ELECTRIC.POWER.L1") -> float:
        """Return a power at a moment."""
        mode_id, factor = self.setting(moment)
        ranges = self.modes[mode_id]["power_ranges"] if mode_id else []
        return sum(between(each, factor) for each in ranges if each["commodity_quantity"] == quantity)

    def supply(self, moment) -> float:
        """Return the supply at a moment."""
        mode_id, factor = self.setting(moment)
        return between(self.modes[mode_id]["supply_range"], factor) if mode_id else 0.0

    def running(self, moment) -> float:
        """Return the running costs per second at a moment."""
        mode_id, _factor = self.setting(moment)
        return per_second(self.modes[mode_id]) if mode_id else 0.0


def per_second(described) -> float:
    """Return the running costs of an operation mode per second."""
    costs = described.get("running_costs", number_range(0, 0))
    return (costs["start_of_range"] + costs["end_of_range"]) / 2


def between(found, factor) -> float:
    """Return a quantity of a range at a factor."""
    return found["start_of_range"] + factor * (found["end_of_range"] - found["start_of_range"])


def live(simulated, plan) -> None:
    """Have simulated actuators, by their ids, follow a plan."""
    for change in plan.changes:
        simulated[change.actuator].instruct(change.moment, change.mode, change.factor)


def bill(simulated, intervals, tariffs=None) -> tuple:
    """Return (cost, excess of the limit in Ws) of what actuators have lived through."""
    cost = sum(each.paid for each in simulated)
    over = 0.0
    for each in intervals:
        edges = {each.start, each.end}
        for actuator in simulated:
            edges |= {moment for moment, *_ in actuator.course if each.start < moment < each.end}
        for start, end in pairwise(sorted(edges)):
            power = sum(actuator.quantity(start) for actuator in simulated)
            gas = sum(actuator.quantity(start, "NATURAL_GAS.FLOW_RATE") for actuator in simulated)
            cost += price(each, power) * (end - start)
            cost += gas / 1000 * (tariffs or {}).get("GAS", 0) * (end - start)
            cost += sum(actuator.running(start) for actuator in simulated) * (end - start)
            over += beyond(each, power) * (end - start)
    return cost, over


def price(interval, power) -> float:
    """Return what a device's power costs the site in a second."""

    def at_meter(net):
        return net * (interval.consumption_price if net > 0 else interval.production_price)

    def paid(net):
        if interval.production_price >= 0:
            return at_meter(net)
        return min(at_meter(net + share * interval.curtailable / 100) for share in range(101))

    return (paid(interval.load + power) - paid(interval.load)) / 3.6e6


def beyond(interval, power) -> float:
    """Return how far a power makes the site exceed its limit."""
    return max(0.0, abs(interval.load + power) - max(interval.consumption_capacity, abs(interval.load)))


@st.composite
def random_modes(draw, most=4, grid=None, supplies=False):
    """Draw (modes, transitions, timers) of a device or an actuator; the first mode is off.

    With a `grid` (s), all durations are of it.
    """
    off = mode("off")
    modes, timers, ways = [off], [], []
    on_times, off_times = ([0, 60, 600, 1700, 3600], [0, 60, 600, 1700])
    if grid:
        on_times = off_times = [0, 0, grid, 2 * grid]
    for place in range(draw(st.integers(1, most - 1))):
        sign = draw(st.sampled_from([1, 1, 1, -1]))
        low = draw(st.integers(1, 20)) * 100
        high = low + draw(st.sampled_from([0, 1000, 2000]))
        ends = sorted((sign * low, sign * high))
        cost = draw(st.sampled_from([None, (0.0, 0.1), (0.02, 0.02)]))
        abnormal = place > 0 and draw(st.integers(0, 7)) == 0
        made = mode(f"mode {place}", ends, cost, abnormal)
        on = timer(draw(st.sampled_from(on_times)))
        rest = timer(draw(st.sampled_from(off_times)))
        lasting = draw(st.sampled_from([0, 0, 0, grid]) if grid else st.sampled_from([0, 0, 5, 45, 1200]))
        timers += [on, rest]
        start = transition(off, made, lasting, [on], [rest])
        ways += [
            costly(start, draw(st.sampled_from([0, 0, 0.01, 0.2]))),
            transition(made, off, 0 if grid else draw(st.sampled_from([0, 5])), [rest], [on]),
        ]
        modes.append(made)
    if len(modes) > 2:
        for one, other in ((modes[1], modes[2]), (modes[2], modes[-1])):
            if one is not other and draw(st.booleans()):
                ways.append(transition(one, other, 0, abnormal=draw(st.integers(0, 4)) == 0))
    return modes, ways, timers


def random_prices(size):
    """Draw prices: few different ones, so that some are alike."""
    return st.lists(st.sampled_from([-0.1, 0.0, 0.05, 0.1, 0.2, 0.3, 0.45]), min_size=size, max_size=size)
