"""What devices cost the recorder's database: here a real one, in a file."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from homeassistant.components import recorder
from pytest_homeassistant_custom_component.common import async_fire_time_changed
from pytest_homeassistant_custom_component.components.recorder.common import async_wait_recording_done
from sqlalchemy import text

import flexmeasures_s2.messages as messages
from flexmeasures_api.connection import Sensor
from flexmeasures_cem.cem import Resource
from flexmeasures_home.outbox import Outbox
from flexmeasures_home.status import Status
from flexmeasures_home.telemetry import Telemetry
from flexmeasures_s2.session import Session
from tests.parts.s2_messages import example

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
ENTITY = "sensor.flexmeasures_s2_battery"
MAX_BYTES_A_DAY = 2_000_000
SECONDS = 1800
INSTRUCTION = {
    "actuator_id": "520b8a02-a499-48f4-ac06-0598833b415e",
    "operation_mode": "695152b3-d1ae-402d-a742-a6d0805c6e79",
    "operation_mode_factor": 0.512345,
    "abnormal_condition": False,
    "label": "charge",
    "power": 2561,
}


@pytest.fixture
def persistent_database() -> bool:
    """Have the recorder's database in a file."""
    return True


def planned() -> dict:
    """Return what a plan of 24 instructions adds to the state of a device."""
    quarter = datetime.now(UTC).replace(minute=datetime.now(UTC).minute // 15 * 15, second=0, microsecond=0)
    coming = [quarter + number * timedelta(minutes=15) for number in range(25)]
    plan = [INSTRUCTION | {"execution_time": moment.isoformat()} for moment in coming]
    identity = f"{quarter:%H%M}0b8a-a499-48f4-ac06-0598833b415e"
    return {
        "instruction": plan[0] | {"id": identity, "status": "STARTED"},
        "plan": plan[1:],
        "planned_until": coming[-1].isoformat(),
        "has_schedule": True,
        "energy_per_fill_level": 0.1,
    }


def parsed(message_type: str, **changes) -> object:
    """Return an example as a session has it."""
    return messages.parse(json.dumps(example(message_type, **changes)))


class Battery:
    """A battery that tells its level and its power each second, and whose values are posted."""

    def __init__(self, hass, freezer) -> None:
        self.hass, self.freezer, self.second = hass, freezer, 0
        self.outbox = Outbox(
            hass, SimpleNamespace(host="http://x"), Status(hass), SimpleNamespace(new_key=lambda: 0), "me"
        )
        resource = Resource("abc", "Battery")
        self.telemetry = Telemetry(hass, self.outbox, resource, ENTITY)
        self.telemetry.power_sensor = Sensor(
            id=7, unit="kW", resolution=timedelta(minutes=5), timezone="Europe/Amsterdam", asset=1, sign=1
        )
        self.telemetry.soc_sensor = Sensor(
            id=8, unit="%", resolution=timedelta(0), timezone="Europe/Amsterdam", asset=1
        )
        self.telemetry.plan_attributes = planned
        details = parsed("ResourceManagerDetails")
        self.session = Session(peer="here", transport=None, events=None, details=details)
        resource.session = resource.last_session = self.session
        self.telemetry.session_changed()
        self.say(parsed("FRBC.SystemDescription"))
        self.status, self.power = parsed("FRBC.StorageStatus"), parsed("PowerMeasurement")

    def say(self, message) -> None:
        """Have a message remembered, and passed on."""
        self.session.memory[message.message_type,] = message
        self.session.last_message_at = datetime.now(UTC)
        self.session.last_message_type = message.message_type
        self.telemetry.received(message)

    async def live(self, seconds: int) -> None:
        """Let time pass; what waits in the outbox is delivered at once."""
        for _ in range(seconds):
            self.second += 1
            now = NOON + timedelta(seconds=self.second)
            self.freezer.move_to(now)
            async_fire_time_changed(self.hass, now)
            self.say(self.status.model_copy(update={"present_fill_level": 20 + self.second / 72}))
            measured = {"measurement_timestamp": now, "values": self.power.values}
            self.say(self.power.model_copy(update=measured))
            if self.second % 900 == 0:
                self.telemetry.show_soon()
            if self.outbox.items:
                self.outbox.show()
                self.outbox.items.clear()
                self.outbox.show()
            await self.hass.async_block_till_done()


async def size(hass) -> tuple[int, int, int]:
    """Return the size of the database (bytes), and how many states and attributes it has."""
    await async_wait_recording_done(hass)

    def read() -> tuple[int, int, int]:
        with recorder.get_instance(hass).engine.connect() as connection:
            queries = (
                "SELECT SUM(pgsize - unused) FROM dbstat",
                "SELECT COUNT(*) FROM states",
                "SELECT COUNT(*) FROM state_attributes",
            )
            return tuple(connection.execute(text(query)).scalar() for query in queries)

    return await hass.async_add_executor_job(read)


async def test_a_device_with_two_messages_a_second_costs_less_than_2_mb_a_day(recorder_mock, hass, freezer):
    freezer.move_to(NOON)
    battery = Battery(hass, freezer)
    await battery.live(60)
    before = await size(hass)
    await battery.live(SECONDS)
    after = await size(hass)
    battery.telemetry.stop()
    daily = [(last - first) * 86_400 // SECONDS for first, last in zip(before, after, strict=True)]
    print(f"A day: {daily[0]} bytes, {daily[1]} states, {daily[2]} attributes")
    assert daily[0] < MAX_BYTES_A_DAY
    state = hass.states.get(ENTITY)
    assert len(state.attributes["plan"]) == 24


async def test_the_fill_level_is_recorded_and_what_is_long_is_not(recorder_mock, hass, freezer):
    freezer.move_to(NOON)
    battery = Battery(hass, freezer)
    await battery.live(30)
    battery.telemetry.stop()
    await async_wait_recording_done(hass)

    def recorded() -> list[str]:
        with recorder.get_instance(hass).engine.connect() as connection:
            query = (
                "SELECT shared_attrs FROM states JOIN state_attributes USING (attributes_id) "
                "JOIN states_meta USING (metadata_id) WHERE states_meta.entity_id = :entity"
            )
            return [row[0] for row in connection.execute(text(query), {"entity": ENTITY})]

    attributes = [json.loads(each) for each in await hass.async_add_executor_job(recorded)]
    assert 20 < attributes[-1]["fill_level"] < 21
    assert {name for each in attributes for name in each} == {
        "device_class",
        "fill_level",
        "friendly_name",
        "has_schedule",
    }
