"""What FlexMeasures is asked for a site beside its devices: limits and prices."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

import flexmeasures_cem.site.site as sites
import flexmeasures_home.site_plan as site_plan
import flexmeasures_home.status as statuses
from flexmeasures_api.connection import Connection, Sensor
from flexmeasures_api.errors import InvalidProblem
from flexmeasures_api.quantities import PowerPrice

HOUR = 3600.0


def test_the_sites_limits_are_told_where_they_vary():
    assert site_plan.limits_over_time({}, {}) == {}
    spans = [(0.0, HOUR, 9000.0), (HOUR, 2 * HOUR, 10_000.0)]
    limits = {"power_capacity": spans, "production_capacity": [(0.0, HOUR, 0.0)]}
    assert site_plan.limits_over_time({}, limits) == {
        "site-power-capacity": [
            {"start": "1970-01-01T00:00:00+00:00", "end": "1970-01-01T01:00:00+00:00", "value": "9.0 kW"},
            {"start": "1970-01-01T01:00:00+00:00", "end": "1970-01-01T02:00:00+00:00", "value": "10.0 kW"},
        ],
        "site-production-capacity": [
            {"start": "1970-01-01T00:00:00+00:00", "end": "1970-01-01T01:00:00+00:00", "value": "0.0 kW"}
        ],
    }


def test_loads_of_the_users_own_void_what_is_known_of_the_limit():
    raw = {"inflexible-consumption": [{"sensor": 9}]}
    assert site_plan.limits_over_time(raw, {"power_capacity": [(0.0, HOUR, 9000.0)]}) == {}


async def test_a_sensor_that_cannot_be_used_keeps_no_other_device_from_its_plan():
    known = {
        7: Sensor(id=7, unit="kW", resolution=timedelta(0), timezone="Europe/Amsterdam", asset=1),
        8: Sensor(
            id=8, unit="kW", resolution=timedelta(minutes=15), timezone="Europe/Amsterdam", asset=1, sign=1
        ),
    }
    plan_request = SimpleNamespace(
        given=SimpleNamespace(power_sensor=2),
        link=Connection(host="http://x", client=None, sensors=known),
        planner=SimpleNamespace(controlled={}, unusable={}, now=lambda: 100.0),
        own_schedule=lambda: None,
    )
    assert await site_plan.inflexible(plan_request, [], {7: None, 8: None}) == {
        "inflexible-consumption": [{"sensor": 8, "exclude-source-types": ["scheduler"]}]
    }
    assert plan_request.planner.unusable == {7: 3700.0}


@pytest.mark.parametrize(("others", "hours"), [({}, 24), ({"meter": None}, -2), ({"meter": None}, 72)])
async def test_without_others_or_time_to_come_the_own_plan_counts_nothing_in(others, hours):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    planner = SimpleNamespace(controlled={}, others=others, now=start.timestamp)
    plan_request = SimpleNamespace(planner=planner)
    end = start + timedelta(hours=hours)
    assert (
        await site_plan.other_loads(plan_request, end - timedelta(hours=1), end, timedelta(minutes=15), {})
        == {}
    )


async def test_the_site_is_planned_with_prices_for_each_hour(hass, monkeypatch, caplog):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    sensors = {
        4: Sensor(id=4, unit="EUR/kWh", resolution=timedelta(hours=1), timezone="Europe/Amsterdam", asset=1)
    }
    asked = []

    async def read(_link, _sensor, begin, duration, **_more):
        hours = round(duration / timedelta(hours=1))
        values = [None] * 24 + [0.3] + [None] * (hours - 25)
        return {"values": values, "start": begin, "resolution": timedelta(hours=1), "unit": "EUR/kWh"}

    async def schedule_site(_link, _site, _devices, *, flex_context, **_when):
        asked.append(flex_context)
        return {}

    monkeypatch.setattr(site_plan.sensor_data, "read", read)
    monkeypatch.setattr(site_plan.schedule_requests, "schedule_site", schedule_site)
    given = SimpleNamespace(
        site=1,
        power_sensor=2,
        consumption_price_sensor=4,
        production_price_sensor=4,
        site_power_capacity=17_000.0,
        site_consumption_capacity=12_000.0,
        site_production_capacity=0.0,
        site_peak_consumption=2500.0,
        site_peak_consumption_price=PowerPrice(per_kilowatt=3.5, currency="EUR"),
        flex_context=None,
    )
    link, status = Connection(host="http://x", client=None, sensors=sensors), statuses.Status(hass)
    plan_request = site_plan.SitePlanRequest(
        given=given, link=link, status=status, planning=asyncio.Lock(), own_schedule=lambda: None
    )
    plan_request.planner = SimpleNamespace(unusable={})
    window = sites.Window(start.timestamp(), 900.0, start.timestamp() + 4 * HOUR, 1.0, math.inf, False)
    varying = {"consumption_capacity": [(window.start, window.end, 11_000.0)]}
    for limits in ({}, varying):
        await site_plan.solve(plan_request, [], window, {}, limits)
    whole = {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T04:00:00+00:00", "value": "0.3 EUR/kWh"}
    assert asked[0]["consumption-price"] == asked[0]["production-price"] == [whole]
    configured = {
        "site-power-capacity": "17.0 kW",
        "site-consumption-capacity": "12.0 kW",
        "site-production-capacity": "0.0 kW",
        "site-peak-consumption": "2.5 kW",
        "site-peak-consumption-price": "3.5 EUR/kW",
    }
    assert {name: value for name, value in asked[0].items() if name.startswith("site")} == configured
    assert asked[1]["site-consumption-capacity"] == [whole | {"value": "11.0 kW"}]
    shown = hass.states.get(statuses.ENTITY_ID).attributes["prices_known_until"]
    assert datetime.fromisoformat(shown) == start + timedelta(hours=1)
    assert caplog.text.count("s2: Prices are known for 25% of the schedule") == 1
    intervals = await site_plan.prices(plan_request, window.start, window.end)
    assert [(interval.consumption, interval.is_known) for interval in intervals[::3]] == [
        (0.3, True),
        (0.3, False),
    ]
    given.site_peak_consumption_price = PowerPrice(per_kilowatt=3.5, currency="SEK")
    with pytest.raises(
        InvalidProblem, match="site_peak_consumption_price is in SEK, and the price of energy in EUR"
    ):
        await site_plan.prices(plan_request, window.start, window.end)
