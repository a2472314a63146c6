"""Devices with operation modes in one Site: together within its limit, and no dearer than they need be."""

import importlib
import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.modules.flexmeasures_cem.modes_cases import (
    NOW,
    SimulatedActuator,
    beyond,
    costly,
    live,
    market,
    mode,
    modules,
    parsed,
    price,
    random_prices,
    status,
    transition,
)
from tests.parts.s2_messages import example
from tests.parts.trials import trials


def described(modes, cost=0.0) -> dict:
    """Return an OMBC.SystemDescription with a transition from each mode to each other."""
    ways = [costly(transition(one, other), cost) for one in modes for other in modes if one is not other]
    return example("OMBC.SystemDescription", operation_modes=modes, transitions=ways, timers=[])


def planned(m, descriptions, intervals) -> list:
    """Return the Plan of each device, which is in its first mode, of one solution for all."""
    alone = importlib.import_module("flexmeasures_cem.site.alone")
    model = importlib.import_module("flexmeasures_cem.control_types.ombc.model")
    site, parts = alone.site_of(intervals), []
    for description in descriptions:
        memory = {
            ("OMBC.SystemDescription",): parsed(m, description),
            ("OMBC.Status",): parsed(m, status("OMBC.Status", description["operation_modes"][0])),
        }
        device = m.ombc.read_device(memory)
        state = m.ombc.read_state(device, memory, {}, None, NOW)
        parts.append(model.add_to_site(site, device, state, None, {}))
    solution = alone.solved(site)
    return [part.plan(solution, intervals) for part in parts]


def lived(descriptions, plans) -> list:
    """Return the simulated devices that have followed their Plans."""
    found = []
    for description, plan in zip(descriptions, plans, strict=True):
        simulated = SimulatedActuator(description, description["operation_modes"][0]["id"])
        live({None: simulated}, plan)
        found.append(simulated)
    return found


def test_two_devices_take_turns_within_the_limit_of_the_site():
    m = modules()
    descriptions = [described([mode("off"), mode("on", (2000, 2000))]) for _device in range(2)]
    intervals = market(m, [0.3, -0.1, -0.1, 0.3], begin=0.0, limit=2500.0)
    devices = lived(descriptions, planned(m, descriptions, intervals))
    for seconds, power in ((450, 0), (1350, 2000), (2250, 2000), (3150, 0)):
        assert sum(each.quantity(NOW + seconds) for each in devices) == power


@trials(100)
@given(st.data())
def test_no_other_course_of_devices_together_is_better(data):
    m = modules()
    count = data.draw(st.integers(2, 3))
    powers = st.lists(st.sampled_from([-1500, 700, 1000, 2500]), min_size=1, max_size=2, unique=True)
    devices = [(data.draw(powers), data.draw(st.sampled_from([0.0, 0.03]))) for _device in range(count)]
    descriptions = [
        described([mode("off"), *[mode(f"{power} W", (power, power)) for power in listed]], cost)
        for listed, cost in devices
    ]
    prices = data.draw(random_prices(data.draw(st.integers(1, 3))))
    limit = data.draw(st.sampled_from([1000.0, 2500.0, math.inf]))
    load = data.draw(st.sampled_from([0.0, 800.0, -900.0]))
    intervals = market(m, prices, begin=0.0, load=load, limit=limit, production=0.05)
    found = lived(descriptions, planned(m, descriptions, intervals))

    def outcome(courses):
        """Return (excess in Ws, cost) of each device's power in each interval."""
        excess = cost = 0.0
        for place, interval in enumerate(intervals):
            power = sum(course[place] for course in courses)
            excess += beyond(interval, power) * 900
            cost += price(interval, power) * 900
        for (_powers, change), course in zip(devices, courses, strict=True):
            cost += change * sum(one != other for one, other in zip((0, *course), course, strict=False))
        return round(excess), cost

    every = [list(product((0, *listed), repeat=len(intervals))) for listed, _cost in devices]
    least = min(outcome(courses) for courses in product(*every))
    reached = outcome([[each.quantity((one.start + one.end) / 2) for one in intervals] for each in found])
    assert reached[0] == least[0]
    assert reached[1] == pytest.approx(least[1], abs=2e-5)
