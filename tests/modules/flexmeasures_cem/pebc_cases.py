"""Devices under power envelope based control for tests: their messages read, and their plans looked at."""

import importlib
import json
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

from hypothesis import strategies as st

from tests.modules.flexmeasures_cem.planning import plan_alone
from tests.parts.s2_messages import example

START = datetime(2026, 3, 2, 10, tzinfo=UTC)
NOW = START.timestamp()
QUARTER, HOUR = 900.0, 3600.0
L1, L2, L3 = (f"ELECTRIC.POWER.L{phase}" for phase in (1, 2, 3))
ALL = "ELECTRIC.POWER.3_PHASE_SYMMETRIC"
UPPER, LOWER = "UPPER_LIMIT", "LOWER_LIMIT"
CHARGER = {ALL: ([(0, 0), (4140, 11040)], [(0, 0)])}
INVERTER = {L1: ([(0, 0)], [(-5000, 0)])}


def modules() -> SimpleNamespace:
    """Return the modules under test."""
    names = {
        "pebc": "flexmeasures_cem.control_types.pebc.control_type",
        "forecasts": "flexmeasures_cem.forecasts",
        "markets": "flexmeasures_cem.market",
        "plans": "flexmeasures_cem.control_types.plans",
        "storages": "flexmeasures_api.flexible_devices",
        "errors": "flexmeasures_cem.errors",
        "messages": "flexmeasures_s2.messages",
    }
    found = {name: importlib.import_module(path) for name, path in names.items()}
    return SimpleNamespace(**found | {"pebc": found["pebc"].PEBC})


def at(hours) -> str:
    """Return the moment some hours after the start, as messages have it."""
    return (START + timedelta(hours=hours)).isoformat()


def constraints(quantities, kind="VANISH", since=-1.0, until=None, name=None, abnormal=()) -> dict:
    """Return PEBC.PowerConstraints of (upper ranges, lower ranges) by quantity, valid in some hours.

    `abnormal` has further (quantity, limit_type, low, high) for an abnormal condition only.
    """
    ranges = [
        (quantity, limit, *each, False)
        for quantity, both in quantities.items()
        for limit, several in zip((UPPER, LOWER), both, strict=True)
        for each in several
    ]
    message = example(
        "PEBC.PowerConstraints",
        id=name or str(uuid4()),
        valid_from=at(since),
        consequence_type=kind,
        allowed_limit_ranges=[
            {
                "commodity_quantity": quantity,
                "limit_type": limit,
                "range_boundary": {"start_of_range": low, "end_of_range": high},
                "abnormal_condition_only": is_abnormal,
            }
            for quantity, limit, low, high, is_abnormal in [*ranges, *[(*each, True) for each in abnormal]]
        ],
    )
    del message["valid_until"]
    return message if until is None else message | {"valid_until": at(until)}


def energy(average, since=0.0, until=8.0, quantity=ALL, lower=None) -> dict:
    """Return a PEBC.EnergyConstraint of an average power (W) in some hours."""
    return example(
        "PEBC.EnergyConstraint",
        id=str(uuid4()),
        valid_from=at(since),
        valid_until=at(until),
        upper_average_power=average,
        lower_average_power=average if lower is None else lower,
        commodity_quantity=quantity,
    )


def forecast(powers, hours=1.0, quantity=L1, since=0.0) -> dict:
    """Return a PowerForecast of powers (W), each for some hours."""
    return example(
        "PowerForecast",
        start_time=at(since),
        elements=[
            {
                "duration": round(hours * HOUR * 1000),
                "power_values": [{"value_expected": power, "commodity_quantity": quantity}],
            }
            for power in powers
        ],
    )


def memory(m, *messages) -> dict:
    """Return what a session remembers of messages, which came in this order."""
    found = {}
    for each in messages:
        parsed = m.messages.parse(json.dumps(each))
        key = (each["message_type"], each["id"]) if "id" in each else (each["message_type"],)
        found.pop(key, None)
        found[key] = parsed
    return found


def market(m, prices, production=None, load=0.0, limit=math.inf, length=HOUR, begin=2.0, since=NOW) -> list:
    """Return Intervals of some length (s): of prices, and of loads, given for each or for all."""

    def of(value, place):
        return value[place] if isinstance(value, list) else value

    return [
        m.markets.Interval(
            since + (begin if place == 0 else place * length),
            since + (place + 1) * length,
            price,
            price if production is None else of(production, place),
            of(load, place),
            of(limit, place),
            of(limit, place),
        )
        for place, price in enumerate(prices)
    ]


def schedule(intervals, powers) -> list[tuple]:
    """Return a schedule of powers (W) in a market's intervals."""
    return [(each.start, each.end, power) for each, power in zip(intervals, powers, strict=True)]


def planned(m, remembered, intervals, wanted=None, plan=None, now=NOW):
    """Return (the device, its Plan) of wanted powers (W, one per interval), or of none."""
    device = m.pebc.read_device(remembered)
    assert m.pebc.why_not_plannable(device) is None
    state = m.pebc.read_state(device, remembered, {}, plan, now)
    powers = None if wanted is None else schedule(intervals, wanted)
    return device, plan_alone(m.pebc, device, state, powers, intervals, {})


def told(plan, quantity=None) -> list[tuple]:
    """Return (hours from the start, upper, lower) of each element that a plan tells, of one quantity."""
    found = []
    for change in plan.changes:
        name = quantity or next(iter(change.widest))
        limits = [(each.start, *each.limits[name]) for each in change.elements]
        kept = [each for place, each in enumerate(limits) if place == 0 or limits[place - 1][1:] != each[1:]]
        found += [(round((start - NOW) / HOUR, 3), upper, lower) for start, upper, lower in kept]
    return found


def instruction(m, change) -> dict:
    """Return the PEBC.Instruction that a Change calls for."""
    return m.messages.new(
        m.pebc.message_type(change),
        id=str(uuid4()),
        execution_time=datetime.fromtimestamp(change.moment, UTC),
        **m.pebc.instruction_fields(change),
    )


def profile(sent) -> dict:
    """Return (start, end, upper, lower) of each element of an instruction that was sent, by quantity."""
    found = {}
    for each in sent["power_envelopes"]:
        moment = datetime.fromisoformat(sent["execution_time"]).timestamp()
        elements = found.setdefault(each["commodity_quantity"], [])
        for element in each["power_envelope_elements"]:
            end = moment + element["duration"] / 1000
            elements.append((moment, end, element["upper_limit"], element["lower_limit"]))
            moment = end
    return found


def room(elements, start, end, place=2) -> float:
    """Return the energy (Wh) that elements allow by their upper (2) or lower (3) limit in some time."""
    return sum(each[place] * max(0.0, min(each[1], end) - max(each[0], start)) / HOUR for each in elements)


@st.composite
def unions(draw, sign=1):
    """Draw ranges of a limit: amounts of one sign, with or without gaps and zero, in any order."""
    edges = sorted(draw(st.lists(st.integers(0, 40), min_size=2, max_size=6)))
    found = [(300.0 * low, 300.0 * high) for low, high in zip(edges[::2], edges[1::2], strict=False)]
    if draw(st.booleans()):
        found.append((0.0, 0.0))
    if sign < 0:
        found = [(-high + 0.0, -low + 0.0) for low, high in found]
    return draw(st.permutations(found))


@st.composite
def random_constraints(draw, since=-1.0, until=None):
    """Draw PEBC.PowerConstraints of one or three phases, or of all, and perhaps of heat too."""
    names = draw(st.sampled_from([[L1], [ALL], [L1, L2, L3], [L1, L2], [ALL, L1]]))
    quantities = {name: (draw(unions()), draw(unions(-1))) for name in names}
    if draw(st.integers(0, 4)) == 0:
        quantities["HEAT.THERMAL_POWER"] = ([(0.0, 9000.0)], [(0.0, 0.0)])
    kind = draw(st.sampled_from(["VANISH", "DEFER", "DEFER"]))
    return constraints(quantities, kind, since, until, abnormal=[(names[0], UPPER, 0, 50_000)])
