"""Devices under fill rate based control live through a day, planned by the real FlexMeasures server."""

import pytest

from tests.apps.flexmeasures.conftest import Side
from tests.parts.s2_day import a_day, consumed, lived, next_evening, posted
from tests.parts.s2_day_cases import check_storages, storages


@pytest.fixture
async def day(monkeypatch, start, app_config, flexmeasures_server):
    """Give the S2 side of a home on the next evening."""
    begin = next_evening()
    sensor = await posted(Side(None, app_config, flexmeasures_server), begin, consumed)
    config = app_config | {"consumption_price_sensor": sensor}
    home = await start(config)
    await home.checked()
    with a_day(monkeypatch, Side(home, config, flexmeasures_server), begin) as side:
        side.price = consumed
        yield side


async def test_four_devices_live_through_a_day(day, record_property):
    async with storages(day, every=None) as devices:
        await lived(day, *devices.all)
        check_storages(day, devices, record_property)
