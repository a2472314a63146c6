"""Several chargers behind one limit, planned with the effort that a home has."""

import json
from itertools import pairwise

import pytest

from flexmeasures_cem.market import Connection
from tests.modules.flexmeasures_cem import frbc_cases
from tests.modules.flexmeasures_cem.site_cases import Planned, Surroundings, battery, outcome, planned
from tests.parts.s2_messages import example

HOURS = 8


def charger(level: float, is_stepped: bool, ranges: tuple = ((HOURS, 0, 100), (1, 90, 100))) -> Planned:
    """Return a charger of 2 kW (stepped: or nothing) whose car has targets: (hours, least and most %)."""
    found = battery(level, is_stepped=is_stepped, discharges=False)
    elements = [
        {"duration": hours * 3600_000, "fill_level_range": {"start_of_range": low, "end_of_range": high}}
        for hours, low, high in ranges
    ]
    start = frbc_cases.START.isoformat()
    profile = example("FRBC.FillLevelTargetProfile", start_time=start, elements=elements)
    found.memory["FRBC.FillLevelTargetProfile",] = frbc_cases.modules().messages.parse(json.dumps(profile))
    return found


def test_however_long_a_target_lasts_the_sites_limit_prevails():
    site = Surroundings([0.25] * 160, connection=Connection(consumption_capacity=0.0))
    devices = [charger(10, False, ranges=((40, 90, 100),))]
    assert outcome(devices, planned(devices, site), site).beyond <= 0.1


@pytest.mark.parametrize("is_stepped", [True, False])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_at_a_flat_tariff_chargers_take_no_turns(count, is_stepped):
    devices = [charger(10 + place, is_stepped) for place in range(count)]
    site = Surroundings([0.25] * (4 * HOURS + 4), connection=Connection(consumption_capacity=2000.0))
    plans = planned(devices, site)
    assert outcome(devices, plans, site).beyond <= 0.1
    assert [plan.missed for plan in plans] == [[]] * count
    for plan in plans:
        powers = [0.0, *[piece.power_w for piece in plan.pieces]]
        assert sum(before <= 0 < after for before, after in pairwise(powers)) == 1
