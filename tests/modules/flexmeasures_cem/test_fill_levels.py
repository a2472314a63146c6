"""Which fill level of a Resource Manager is planned with, posted and shown."""

import asyncio
import json
import logging
from types import SimpleNamespace

import pytest

import flexmeasures_cem.cem as cems
import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_s2.messages as messages
import flexmeasures_s2.session as sessions
from tests.parts.s2_messages import example

DESCRIPTION, STATUS = ("FRBC.SystemDescription",), ("FRBC.StorageStatus",)


def parsed(message_type: str, **changes) -> object:
    """Return an example as a session has it."""
    return messages.parse(json.dumps(example(message_type, **changes)))


class Battery:
    """A Resource Manager whose messages arrive without a connection, and what its CEM tells of them."""

    def __init__(self, is_described: bool = True) -> None:
        self.is_described = is_described
        self.received = []
        self.cem = cems.Cem(lambda resource: None, lambda resource, message: self.received.append(message))
        self.resource = cems.Resource("battery", "Battery")
        self.cem.resources["battery"] = self.resource
        self.connect()

    def connect(self) -> None:
        """Begin a session, under fill rate based control."""
        self.session = sessions.Session(peer="here", transport=None, events=cems.events(self.cem))
        details = parsed("ResourceManagerDetails", resource_id="battery")
        self.session.events.details(self.session, details)
        self.session.details, self.session.stage = details, sessions.ESTABLISHED
        self.session.control_type = "FILL_RATE_BASED_CONTROL"
        if self.is_described:
            self.say("FRBC.SystemDescription")

    def say(self, message_type: str, **changes) -> None:
        """Have a message remembered, and told."""
        message = parsed(message_type, **changes)
        self.session.store.put_in_force(message)
        self.session.events.message(self.session, message)

    def tell(self, level: float) -> None:
        """Tell a fill level."""
        self.say("FRBC.StorageStatus", present_fill_level=level)

    @property
    def levels(self) -> list[float]:
        """Return the fill levels that were believed when the CEM told of a message that has one."""
        return [each.present_fill_level for each in self.received if hasattr(each, "present_fill_level")]

    @property
    def believed(self) -> tuple[float, float]:
        """Return the fill level that is shown and posted, and the one that is planned with."""
        remembered = fill_levels.remembered(self.resource, self.session)
        return fill_levels.of(self.resource), remembered[STATUS].present_fill_level


@pytest.fixture
async def battery(clock):
    """Return a battery of 100 % that fills in two hours, at 55 %."""
    battery = Battery()
    battery.tell(55)
    yield battery
    battery.session.end("it is over")
    await asyncio.sleep(0)


def warnings(caplog) -> list[str]:
    """Return the warnings of a fill level that is not believed."""
    return [each.message for each in caplog.records if each.levelno == logging.WARNING]


async def test_one_odd_level_is_not_believed_and_the_log_has_it_once(battery, caplog):
    await asyncio.sleep(1)
    battery.tell(0)
    assert battery.believed == (55, 55)
    assert battery.session.memory[STATUS].present_fill_level == 0
    await asyncio.sleep(1)
    battery.tell(55)
    await asyncio.sleep(100)
    assert battery.believed == (55, 55)
    [warning] = warnings(caplog)
    assert "Home battery says that its fill level is 0, after 55" in warning
    assert battery.levels == [55, 0, 55]


async def test_a_level_that_lasts_for_a_minute_is_believed_without_another_message(battery):
    battery.tell(0)
    await asyncio.sleep(59)
    assert battery.believed == (55, 55)
    await asyncio.sleep(2)
    assert battery.believed == (0, 0)
    assert battery.levels == [55, 0, 0]


async def test_a_level_that_is_told_over_again_is_believed_after_a_minute(battery, caplog):
    for _ in range(70):
        battery.tell(0.5)
        await asyncio.sleep(1)
    assert battery.believed == (0.5, 0.5)
    assert len(warnings(caplog)) == 1


async def test_odd_levels_that_go_on_do_not_fill_the_log(battery, caplog):
    for _ in range(100):
        battery.tell(0)
        await asyncio.sleep(1)
        battery.tell(55)
        await asyncio.sleep(1)
    assert battery.believed == (55, 55)
    assert len(warnings(caplog)) == 1


async def test_what_power_times_time_explains_is_believed_at_once(battery, caplog):
    for level in range(56, 99):
        await asyncio.sleep(60)
        battery.tell(level)
        assert battery.believed == (level, level)
    assert warnings(caplog) == []


async def test_the_first_level_of_a_session_is_believed(battery):
    battery.session.end("it is over")
    cems.ended(battery.cem, battery.session)
    assert fill_levels.of(battery.resource) is None
    battery.connect()
    battery.tell(3)
    assert battery.believed == (3, 3)


async def test_a_doubt_ends_with_its_session(battery):
    battery.tell(0)
    battery.session.end("it is over")
    cems.ended(battery.cem, battery.session)
    battery.connect()
    battery.tell(90)
    count = len(battery.received)
    await asyncio.sleep(100)
    assert battery.believed == (90, 90)
    assert len(battery.received) == count


async def test_with_another_range_the_level_is_another_storages(battery, caplog):
    battery.tell(0.5)
    assert battery.believed == (55, 55)
    storage = example("FRBC.SystemDescription")["storage"]
    storage["fill_level_range"] = {"start_of_range": 0, "end_of_range": 1}
    battery.say("FRBC.SystemDescription", storage=storage)
    assert battery.believed == (0.5, 0.5)


async def test_without_a_description_every_level_is_believed(clock):
    battery = Battery(is_described=False)
    for level in (55, 0, 55):
        battery.tell(level)
        assert battery.believed == (level, level)


async def test_without_a_level_there_is_none():
    battery = Battery()
    assert fill_levels.of(battery.resource) is None
    assert STATUS not in fill_levels.remembered(battery.resource, battery.session)


def test_the_rates_are_those_of_all_actuators_with_leakage_and_usage():
    description = example("FRBC.SystemDescription")
    [actuator] = description["actuators"]
    description["actuators"].append(json.loads(json.dumps(actuator).replace(actuator["id"], "other")))
    described = messages.parse(json.dumps(description))
    assert devices.greatest_rates(described, None, None) == pytest.approx((2 * 0.015833, 2 * 0.01462))
    leakage = SimpleNamespace(elements=[SimpleNamespace(leakage_rate=each) for each in (-0.1, 0.2)])
    usage = parsed("FRBC.UsageForecast")
    most = max(
        max(rate for rate in (each.usage_rate_expected, each.usage_rate_upper_limit) if rate is not None)
        for each in usage.elements
    )
    rise, fall = devices.greatest_rates(described, leakage, usage)
    assert rise == pytest.approx(2 * 0.015833 + 0.1)
    assert fall == pytest.approx(2 * 0.01462 + 0.2 + most)
