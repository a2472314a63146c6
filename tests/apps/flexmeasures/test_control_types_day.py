"""Devices of all control types but FRBC live through a day at one site, planned by the real server."""

import pytest

from tests.apps.flexmeasures.conftest import Side
from tests.parts.s2_day import a_day, consumed, lived, next_evening, posted
from tests.parts.s2_day_cases import GAS_PRICE, HEAT_PRICE, check_household, fed_in, household, worth


@pytest.fixture
async def day(monkeypatch, start, app_config, flexmeasures_server):
    """Give the S2 side of a home without a power limit, on the next evening."""
    begin = next_evening()
    bare = Side(None, app_config, flexmeasures_server)
    config = app_config | {
        "consumption_price_sensor": await posted(bare, begin, consumed),
        "production_price_sensor": await posted(bare, begin, fed_in),
        "s2": app_config["s2"] | {"prices": {"gas": GAS_PRICE, "heat": HEAT_PRICE}},
        "schedule_duration": "PT24H",
    }
    home = await start(config)
    await home.checked()
    with a_day(monkeypatch, Side(home, config, flexmeasures_server), begin, worth) as day:
        yield day


@pytest.mark.long
async def test_devices_of_each_control_type_live_through_a_day(day, record_property):
    async with household(day, every=None) as devices:
        await lived(day, *devices.all)
        check_household(day, devices, record_property)
