"""Devices under fill rate based control live through a day, planned by the real FlexMeasures server."""

from datetime import timedelta

import pytest

from tests.apps.flexmeasures.conftest import Side
from tests.parts.s2_day import a_day, consumed, lived, next_evening, posted
from tests.parts.s2_day_cases import check_storages, storages
from tests.parts.s2_devices import HomeBattery


@pytest.fixture
async def day(monkeypatch, start, app_config, flexmeasures_server, request):
    """Give the S2 side of a home on the next evening; who lives through all of the day plans so far ahead."""
    begin = next_evening()
    sensor = await posted(Side(None, app_config, flexmeasures_server), begin, consumed)
    config = app_config | {"consumption_price_sensor": sensor}
    if request.node.get_closest_marker("long"):
        config["schedule_duration"] = "PT24H"
    home = await start(config)
    await home.checked()
    with a_day(monkeypatch, Side(home, config, flexmeasures_server), begin, consumed) as day:
        yield day


async def test_a_battery_lives_through_an_evening(day):
    async with HomeBattery(day.url, every=None) as battery:
        await lived(day, battery, length=timedelta(hours=2))
        assert battery.instructions
        assert battery.rejected == []
        assert battery.violations == []
        assert battery.cost(day.price) < 0, "it gives in the hours that cost most"


@pytest.mark.long
async def test_four_devices_live_through_a_day(day, record_property):
    async with storages(day, every=None) as devices:
        await lived(day, *devices.all)
        check_storages(day, devices, record_property)
