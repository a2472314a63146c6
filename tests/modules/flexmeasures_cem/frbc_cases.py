"""Devices under fill rate based control for tests: their messages read, and their plans lived through."""

import importlib
import json
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

from hypothesis import strategies as st

from flexmeasures_cem.market import Interval
from tests.parts.s2_devices import StorageDevice
from tests.parts.s2_messages import example

START = datetime(2026, 3, 2, 10, tzinfo=UTC)
QUARTER = 900.0


def modules() -> SimpleNamespace:
    """Return the modules under test."""
    names = {
        "frbc": "flexmeasures_cem.control_types.frbc.control_type",
        "plans": "flexmeasures_cem.control_types.frbc.plan",
        "devices": "flexmeasures_cem.control_types.frbc.device",
        "all_plans": "flexmeasures_cem.control_types.plans",
        "messages": "flexmeasures_s2.messages",
    }
    found = {name: importlib.import_module(path) for name, path in names.items()}
    return SimpleNamespace(**found | {"frbc": found["frbc"].FRBC})


def memory(m, description, level=None, **others) -> dict:
    """Return what a session remembers of a description, a fill level, and other messages by their type."""
    found = {("FRBC.SystemDescription",): m.messages.parse(json.dumps(description))}
    if level is not None:
        status = example("FRBC.StorageStatus", present_fill_level=level)
        found["FRBC.StorageStatus",] = m.messages.parse(json.dumps(status))
    for kind, message in others.items():
        found[f"FRBC.{kind}",] = m.messages.parse(json.dumps(message))
    return found


def activate(m, remembered, description, modes=None) -> None:
    """Have each actuator tell that its first mode, or that of `modes` by its label, is active."""
    for actuator in description["actuators"]:
        wanted = (modes or {}).get(actuator["diagnostic_label"])
        mode = next(
            each for each in actuator["operation_modes"] if wanted in (None, each["diagnostic_label"])
        )
        status = {
            "message_type": "FRBC.ActuatorStatus",
            "message_id": str(uuid4()),
            "actuator_id": actuator["id"],
            "active_operation_mode_id": mode["id"],
            "operation_mode_factor": 0,
        }
        key = "FRBC.ActuatorStatus", actuator["id"]
        remembered[key] = m.messages.parse(json.dumps(status))


def intervals(powers, begin=2.0, length=QUARTER) -> list[tuple]:
    """Return wanted powers as intervals from the start on, the first of which begins a moment later."""
    first = START.timestamp()
    return [
        (first + (begin if place == 0 else place * length), first + (place + 1) * length, power)
        for place, power in enumerate(powers)
    ]


def market(times, prices=None, rooms=None) -> list:
    """Return the market in (start, end, ...) of intervals, by prices, and by the powers there is room for."""
    prices, rooms = prices or [0.3] * len(times), rooms or [(-math.inf, math.inf)] * len(times)
    return [
        Interval(start, end, price, price, 0.0, most, -least)
        for (start, end, *_power), price, (least, most) in zip(times, prices, rooms, strict=True)
    ]


def live(description, plan, level, until, **options) -> StorageDevice:
    """Return a device that has followed a plan until a moment, by physics of its own."""
    device = StorageDevice(
        "ws://nowhere", name="device", description=description, fill_level=level, start=START, **options
    )
    for change in plan.changes:
        device.instruct(
            example(
                "FRBC.Instruction",
                id=str(uuid4()),
                actuator_id=change.actuator,
                operation_mode=change.mode,
                operation_mode_factor=change.factor,
                execution_time=datetime.fromtimestamp(change.moment, UTC).isoformat(),
            )
        )
    device.advance(until)
    return device


def number_range(start, end) -> dict:
    """Return a NumberRange."""
    return {"start_of_range": start, "end_of_range": end}


def element(powers, levels=(0, 100), unit=100.0, efficiency=0.95) -> dict:
    """Return an element by its powers (W) at factor 0 and 1; a unit of fill level is worth `unit` Wh."""

    def rate(power):
        return (power * efficiency if power > 0 else power / efficiency) / unit / 3600

    return {
        "fill_level_range": number_range(*levels),
        "fill_rate": number_range(*map(rate, powers)),
        "power_ranges": [number_range(*powers) | {"commodity_quantity": "ELECTRIC.POWER.L1"}],
    }


def mode(label, *elements, abnormal=False) -> dict:
    """Return an operation mode."""
    return {
        "id": str(uuid4()),
        "diagnostic_label": label,
        "elements": list(elements),
        "abnormal_condition_only": abnormal,
    }


def transition(start, end, seconds=0, starts=(), blocked_by=(), abnormal=False) -> dict:
    """Return a transition between two modes."""
    return {
        "id": str(uuid4()),
        "from": start["id"],
        "to": end["id"],
        "start_timers": [each["id"] for each in starts],
        "blocking_timers": [each["id"] for each in blocked_by],
        "transition_duration": round(seconds * 1000),
        "abnormal_condition_only": abnormal,
    }


def timer(seconds) -> dict:
    """Return a timer."""
    return {"id": str(uuid4()), "duration": round(seconds * 1000)}


def actuator(label, modes, transitions=None, timers=()) -> dict:
    """Return an actuator; without `transitions` there is one from each mode to each other."""
    if transitions is None:
        transitions = [transition(one, other) for one in modes for other in modes if one is not other]
    return {
        "id": str(uuid4()),
        "diagnostic_label": label,
        "supported_commodities": ["ELECTRICITY"],
        "operation_modes": modes,
        "transitions": transitions,
        "timers": list(timers),
    }


def description(*actuators, levels=(0, 100)) -> dict:
    """Return an FRBC.SystemDescription, valid since before the start."""
    whole = example("FRBC.SystemDescription", valid_from=(START - timedelta(hours=1)).isoformat())
    return whole | {
        "actuators": list(actuators),
        "storage": whole["storage"] | {"fill_level_range": number_range(*levels)},
    }


@st.composite
def random_actuators(draw, number=0):
    """Draw an actuator: idle, and modes that charge or discharge, in steps or not, blocked by timers."""
    efficiency = draw(st.sampled_from([0.8, 0.95, 1.0, 3.0])) if number == 0 else 0.9
    idle = mode("idle", element((0, 0)))
    modes, timers, moves = [idle], [], []
    for place in range(draw(st.integers(1, 3))):
        sign = draw(st.sampled_from([1, 1, -1]))
        if efficiency > 1:
            sign = 1
        low, high = sorted(draw(st.tuples(st.integers(0, 40), st.integers(1, 40)))) if place else (0, 30)
        low, high = (high, high) if draw(st.booleans()) else (low, high)
        border = draw(st.integers(20, 80))
        taper = draw(st.sampled_from([1.0, 0.4]))
        ends = [sign * 100 * each for each in ((low, high) if sign > 0 else (high, low))]
        above = [each * taper for each in ends]
        made = mode(
            f"mode {place}",
            element(ends, (0, border), efficiency=efficiency),
            element(above, (border, 100), efficiency=efficiency),
            abnormal=draw(st.integers(0, 9)) == 0,
        )
        least = timer(draw(st.sampled_from([0, 60, 300, 1200])))
        rest = timer(draw(st.sampled_from([0, 60, 300, 1200])))
        seconds = draw(st.sampled_from([0, 0, 2, 30]))
        timers += [least, rest]
        moves += [
            transition(idle, made, seconds, [least], [rest]),
            transition(made, idle, seconds, [rest], [least]),
        ]
        modes.append(made)
    if draw(st.booleans()) and len(modes) > 2:
        moves.append(transition(modes[1], modes[2], 5, abnormal=draw(st.booleans())))
    return actuator(f"actuator {number}", modes, moves, timers)


@st.composite
def random_descriptions(draw):
    """Draw the description of a storage with one or two actuators."""
    return description(*[draw(random_actuators(number)) for number in range(draw(st.integers(1, 2)))])
