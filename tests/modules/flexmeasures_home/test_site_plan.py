"""What FlexMeasures is asked for a site beside its devices: limits and prices."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

import flexmeasures_home.site_plan as site_plan
from flexmeasures_optimiser.connection import Sensor

HOUR = 3600.0


def test_prices_of_both_directions_are_put_side_by_side():
    consumption = [(0.0, HOUR, 0.2), (HOUR, 2 * HOUR, 0.3)]
    production = [(0.0, HOUR / 2, 0.1), (HOUR / 2, HOUR, None)]
    assert site_plan.side_by_side(consumption, production) == [
        (0.0, HOUR / 2, 0.2, 0.1),
        (HOUR / 2, HOUR, 0.2, None),
        (HOUR, 2 * HOUR, 0.3, None),
    ]


def test_the_sites_limit_is_told_where_it_varies():
    assert site_plan.limit_over_time({}, None) == {}
    assert site_plan.limit_over_time({}, [(0.0, HOUR, 9000.0), (HOUR, 2 * HOUR, 10_000.0)]) == {
        "site-power-capacity": [
            {"start": "1970-01-01T00:00:00+00:00", "end": "1970-01-01T01:00:00+00:00", "value": "9.0 kW"},
            {"start": "1970-01-01T01:00:00+00:00", "end": "1970-01-01T02:00:00+00:00", "value": "10.0 kW"},
        ]
    }


def test_loads_of_the_users_own_void_what_is_known_of_the_limit():
    raw = {"inflexible-consumption": [{"sensor": 9}]}
    assert site_plan.limit_over_time(raw, [(0.0, HOUR, 9000.0)]) == {}


async def test_a_sensor_that_cannot_be_used_keeps_no_other_device_from_its_plan():
    known = {
        7: Sensor(7, "kW", timedelta(0), "Europe/Amsterdam", 1),
        8: Sensor(8, "kW", timedelta(minutes=15), "Europe/Amsterdam", 1, 1),
    }
    asker = SimpleNamespace(
        given=SimpleNamespace(power_sensor=2),
        link=SimpleNamespace(sensors=known),
        planner=SimpleNamespace(controlled={}, unusable={}, now=lambda: 100.0),
        own_schedule=lambda: None,
    )
    assert await site_plan.inflexible(asker, [], {7: None, 8: None}) == {
        "inflexible-consumption": [{"sensor": 8, "exclude-source-types": ["scheduler"]}]
    }
    assert asker.planner.unusable == {7: 3700.0}


@pytest.mark.parametrize(("others", "hours"), [({}, 24), ({"meter": None}, -2), ({"meter": None}, 72)])
async def test_without_others_or_time_to_come_the_own_plan_counts_nothing_in(others, hours):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    planner = SimpleNamespace(controlled={}, others=others, now=start.timestamp)
    asker = SimpleNamespace(planner=planner)
    end = start + timedelta(hours=hours)
    assert await site_plan.beside(asker, end - timedelta(hours=1), end, timedelta(minutes=15), {}) == {}
