"""What a Resource Manager says becomes averages, forecasts and states of charge of its sensors."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from homeassistant.helpers.json import json_bytes
from homeassistant.util.json import json_loads
from pytest_homeassistant_custom_component.common import async_fire_time_changed

import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_home.telemetry as telemetries
import flexmeasures_s2.messages as messages
from flexmeasures_api.connection import Sensor
from flexmeasures_cem.cem import Resource
from flexmeasures_home.outbox import Outbox
from flexmeasures_home.status import Status
from flexmeasures_home.telemetry import Telemetry
from flexmeasures_s2.session import Session
from tests.parts.s2_messages import example

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER, MINUTE = timedelta(minutes=15), timedelta(minutes=1)
L1, ALL = "ELECTRIC.POWER.L1", "ELECTRIC.POWER.3_PHASE_SYMMETRIC"
POWER, SOC = 7, 8


class Device:
    """The telemetry of a connected Resource Manager, with an outbox that nobody empties, and a clock."""

    def __init__(self, hass, freezer) -> None:
        """Start at noon, with sensors that are known."""
        self.hass, self.freezer = hass, freezer
        status = Status(hass)
        self.box = Outbox(
            hass, SimpleNamespace(host="http://x"), status, SimpleNamespace(new_key=lambda: 0), "me"
        )
        self.resource = Resource("abc", "Meter")
        self.telemetry = Telemetry(hass, self.box, self.resource, "sensor.flexmeasures_s2_meter")
        freezer.move_to(NOON)
        self.know()
        self.connect()

    def connect(self):
        """Connect with a session that is established."""
        details = messages.parse(json.dumps(example("ResourceManagerDetails")))
        session = Session(peer="here", transport=None, events=None, details=details)
        self.resource.session = self.resource.last_session = session
        self.telemetry.session_changed()

    def know(self, sign=1, unit="%", minutes=15):
        """Know the sensors."""
        resolution = timedelta(minutes=minutes)
        self.telemetry.power_sensor = Sensor(
            id=POWER, unit="kW", resolution=resolution, timezone="Europe/Amsterdam", asset=1, sign=sign
        )
        self.telemetry.soc_sensor = Sensor(
            id=SOC, unit=unit, resolution=timedelta(0), timezone="Europe/Amsterdam", asset=1
        )

    def reload(self, minutes=15):
        """Stop, and go on in another life with what was kept, and with what is known of the sensor."""
        self.telemetry.stop()
        kept = json_loads(json_bytes(self.telemetry.as_json(is_stopped=True)))
        self.telemetry = Telemetry(self.hass, self.box, self.resource, self.telemetry.entity_id)
        self.telemetry.restore(kept)
        if minutes:
            self.know(minutes=minutes)
        self.telemetry.resume()

    def say(self, message_type, **changes):
        """Have the Resource Manager say something."""
        message = messages.parse(json.dumps(example(message_type, **changes)))
        self.resource.session.memory[(message_type,)] = message
        self.telemetry.received(message)

    def measure(self, watts, minutes, quantity=L1):
        """Have it say what it measured, at some minutes past noon."""
        moment = (NOON + minutes * MINUTE).isoformat()
        values = [{"commodity_quantity": quantity, "value": watts}]
        self.say("PowerMeasurement", measurement_timestamp=moment, values=values)

    def forecast(self, *elements, minutes=0):
        """Have it say what it expects: (minutes, W), from some minutes past noon on."""
        found = [
            {
                "duration": round(length * 60_000),
                "power_values": [{"commodity_quantity": L1, "value_expected": watts}],
            }
            for length, watts in elements
        ]
        start = minutes if isinstance(minutes, str) else (NOON + minutes * MINUTE).isoformat()
        self.say("PowerForecast", start_time=start, elements=found)

    async def at(self, minutes):
        """Let the clock go to some minutes past noon."""
        moment = NOON + minutes * MINUTE
        self.freezer.move_to(moment)
        async_fire_time_changed(self.hass, moment)
        await self.hass.async_block_till_done()

    @property
    def posted(self):
        """Return what was posted of the power: minutes past noon and W."""
        return [
            ((item.data.start - NOON) / MINUTE + number * (item.data.step / MINUTE), value)
            for item in self.box.items
            if item.data.sensor == POWER
            for number, value in enumerate(item.data.values)
        ]

    @property
    def levels(self):
        """Return the states of charge that were posted: minutes past noon and value."""
        runs = [item.data for item in self.box.items if item.data.sensor == SOC]
        return [
            ((run.start - NOON) / MINUTE + number, value)
            for run in runs
            for number, value in enumerate(run.values)
            if value is not None
        ]

    @property
    def socs(self):
        """Return the states of charge that were posted, with their units."""
        runs = [item.data for item in self.box.items if item.data.sensor == SOC]
        return [(value, run.unit) for run in runs for value in run.values if value is not None]


@pytest.fixture
async def device(hass, freezer):
    """Return a device at noon."""
    device = Device(hass, freezer)
    yield device
    device.telemetry.stop()


async def test_an_interval_has_one_timer_however_often_it_is_measured(device, monkeypatch):
    real, set_timers = telemetries.async_call_later, []

    def call_later(*given):
        set_timers.append(given)
        return real(*given)

    monkeypatch.setattr(telemetries, "async_call_later", call_later)
    for minute in range(5):
        await device.at(minute)
        device.measure(300, minute)
    assert len(set_timers) == 1
    await device.at(15.2)
    assert device.posted == [(0, pytest.approx(300))]
    await device.at(16)
    device.measure(600, 16)
    await device.at(30.2)
    assert [minute for minute, _power in device.posted] == [0, 15]


async def test_devices_post_one_after_the_other(hass, device, monkeypatch):
    moments = []

    def track(_hass, _job, moment):
        moments.append((moment - NOON - MINUTE).total_seconds())
        return lambda: None

    monkeypatch.setattr(telemetries, "async_track_point_in_utc_time", track)
    session, sensor = device.resource.session, device.telemetry.soc_sensor
    device.say("FRBC.SystemDescription")
    device.say("FRBC.StorageStatus", present_fill_level=1)
    for number in range(99):
        resource = Resource(str(number), "Meter", session=session)
        telemetry = Telemetry(hass, device.box, resource, f"sensor.flexmeasures_s2_{number}")
        telemetry.soc_sensor = sensor
        telemetry.fill_level_changed()
    assert len(moments) == 100
    assert len(set(moments)) > 70
    assert min(moments) >= 0
    assert max(moments) < 0.5


async def test_a_value_lasts_from_its_timestamp_to_the_next(device):
    device.measure(300, 0)
    await device.at(5.05)
    device.measure(600, 5)
    await device.at(10.05)
    device.measure(0, 10)
    await device.at(15.2)
    assert device.posted == [(0, pytest.approx(300))]


async def test_what_was_measured_in_time_counts_though_it_comes_just_after_the_interval(device):
    device.measure(300, 0)
    await device.at(15.05)
    device.measure(-300, 7.5)
    await device.at(15.2)
    assert device.posted == [(0, pytest.approx(0))]


async def test_what_is_measured_before_the_last_value_changes_nothing(device):
    device.measure(300, 0)
    await device.at(10)
    device.measure(600, 9)
    device.measure(9000, 3)
    await device.at(15.2)
    assert device.posted == [(0, pytest.approx((9 * 300 + 6 * 600) / 15))]


async def test_what_was_measured_before_it_connected_arrives_too(device):
    for number, watts in enumerate([100, 200, 300, 400]):
        device.measure(watts, 15 * number - 45)
    assert device.posted == [(-45, 100), (-30, 200), (-15, 300)]
    await device.at(15.2)
    assert device.posted[3:] == [(0, pytest.approx(400))]


@pytest.mark.parametrize(
    "told", ["1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"]
)
async def test_a_wrong_clock_is_not_believed(device, told, caplog):
    values = [{"commodity_quantity": L1, "value": 500}]
    for minutes in (0, 5, 10):
        await device.at(minutes)
        device.say("PowerMeasurement", measurement_timestamp=told, values=values)
    await device.at(15.2)
    assert device.posted == [(0, pytest.approx(500))]
    assert len([each for each in caplog.messages if "its clock is wrong" in each]) == 1


async def test_the_disconnected_time_is_a_gap(device):
    device.measure(300, 0)
    await device.at(12)
    device.resource.session = None
    device.telemetry.session_changed()
    await device.at(15.2)
    assert device.posted == [(0, pytest.approx(300))]
    await device.at(31)
    device.connect()
    device.measure(600, 31)
    await device.at(45.2)
    assert device.posted == [(0, pytest.approx(300)), (15, None), (30, pytest.approx(600))]


@pytest.mark.parametrize(("minutes", "expected"), [(15, [(0, 700)]), (5, [(0, 300), (5, 900), (10, 900)])])
async def test_an_interval_goes_on_after_a_reload(device, minutes, expected):
    device.know(minutes=minutes)
    device.measure(300, 0)
    await device.at(4)
    device.reload(minutes)
    device.measure(300, 4)
    await device.at(5)
    device.measure(900, 5)
    await device.at(15.2)
    assert device.posted == [(start, pytest.approx(value)) for start, value in expected]


async def test_an_interval_of_one_who_never_came_back_is_posted(device):
    device.measure(300, 0)
    await device.at(10)
    device.resource.session = None
    device.reload()
    await device.at(15.2)
    assert device.posted == [(0, 300)]


async def test_what_is_kept_while_it_runs_has_no_interval_that_is_posted_otherwise(device):
    device.measure(300, 0)
    await device.at(5)
    assert device.telemetry.as_json()["interval"] is None


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (15, [(-30, 100), (-15, 200), (0, 300)]),
        (5, [(-30 + 5 * n, watts) for n, watts in enumerate([100] * 3 + [200] * 3 + [300] * 2)]),
        (60, [(-60, 150)]),
    ],
)
@pytest.mark.parametrize("over_a_reload", [False, True])
async def test_what_was_measured_before_the_sensor_was_known_suits_it_once_it_is(
    device, minutes, expected, over_a_reload
):
    device.telemetry.power_sensor = None
    for number, watts in enumerate([100, 200, 300]):
        device.measure(watts, 15 * number - 30)
    await device.at(10)
    if over_a_reload:
        device.reload(None)
        device.measure(300, 10)
    await device.at(12)
    assert device.posted == []
    device.know(minutes=minutes)
    device.telemetry.sensors_known()
    await device.at(15.2)
    assert device.posted[: len(expected)] == [(start, pytest.approx(value)) for start, value in expected]
    assert len(device.posted) <= len(expected) + 1


async def test_an_hour_of_which_the_sensor_was_learnt_late_is_posted_once(device):
    device.telemetry.power_sensor = None
    device.measure(1000, 0)
    await device.at(40)
    device.measure(0, 40)
    device.know(minutes=60, sign=-1)
    device.telemetry.sensors_known()
    await device.at(60.2)
    assert device.posted == [(0, pytest.approx(2000 / 3))]


async def test_nothing_is_known_of_the_time_that_a_clock_jumped_over(device):
    device.measure(300, 0)
    await device.at(5)
    device.measure(300, 5)
    device.freezer.move_to(NOON + 3 * timedelta(hours=1))
    clocks = device.telemetry.clocks
    device.telemetry.clocks = replace(clocks, monotonic=clocks.monotonic + 3 * 3600 - 305)
    device.measure(600, 180)
    assert device.posted == [(0, pytest.approx(300))]


async def test_the_phases_are_added_up_and_a_symmetric_value_stands_for_all(device):
    for phase in (1, 2, 3):
        device.measure(100 * phase, 0, f"ELECTRIC.POWER.L{phase}")
    device.measure(5000, 0, "HEAT.THERMAL_POWER")
    await device.at(7.5)
    device.measure(1200, 7.5, ALL)
    await device.at(15.2)
    assert device.posted == [(0, pytest.approx(900))]


def provide(device, *quantities):
    """Have a device announce which quantities it measures."""
    details = example("ResourceManagerDetails", provides_power_measurement_types=list(quantities))
    device.resource.session.details = messages.parse(json.dumps(details))


def say_powers(device, **watts):
    """Have a device say what it measured now, by phase."""
    values = [
        {"commodity_quantity": f"ELECTRIC.POWER.{name}", "value": value} for name, value in watts.items()
    ]
    device.say("PowerMeasurement", measurement_timestamp=datetime.now(UTC).isoformat(), values=values)


PHASES = [f"ELECTRIC.POWER.L{number}" for number in (1, 2, 3)]


async def test_a_phase_that_is_not_told_any_more_counts_for_a_minute(device):
    provide(device, *PHASES)
    say_powers(device, L1=3680, L2=3680, L3=3680)
    await device.at(0.5)
    say_powers(device, L1=1380)
    assert device.telemetry.power_w == 2 * 3680 + 1380
    await device.at(1.1)
    say_powers(device, L1=1380)
    assert device.telemetry.power_w == 1380


async def test_phases_that_are_told_in_turn_are_added_up(device):
    provide(device, *PHASES)
    for second in range(120):
        await device.at(second / 60)
        say_powers(device, **{f"L{second % 3 + 1}": 100 * (second % 3 + 1)})
        assert second < 2 or device.telemetry.power_w == 600


async def test_what_is_all_that_is_measured_counts_alone(device):
    provide(device, PHASES[0])
    say_powers(device, L1=3680, L2=3680, L3=3680)
    say_powers(device, L1=1380)
    assert device.telemetry.power_w == 1380


async def test_a_symmetric_value_counts_on_beside_one_phase_only_where_both_are_measured(device):
    provide(device, ALL, PHASES[0], "HEAT.THERMAL_POWER")
    say_powers(device, **{"3_PHASE_SYMMETRIC": 9000})
    say_powers(device, L1=3000)
    assert device.telemetry.power_w == 9000
    await device.at(1.1)
    say_powers(device, L1=3000)
    assert device.telemetry.power_w == 3000
    provide(device, *PHASES)
    say_powers(device, **{"3_PHASE_SYMMETRIC": 9000})
    say_powers(device, L1=3000)
    assert device.telemetry.power_w == 3000


async def test_what_is_no_power_at_all_is_left_out(device):
    device.measure(1e300, 0)
    device.measure(-1e308, 1)
    await device.at(15.2)
    assert device.posted == []


async def test_a_forecast_is_averaged_over_the_intervals(device):
    await device.at(2)
    device.forecast((10, 300), (20, 1500), (15, -600), minutes=15)
    assert device.posted == [(15, pytest.approx(700)), (30, pytest.approx(1500)), (45, -600)]
    assert {item.data.prior for item in device.box.items} == {NOON + 2 * MINUTE}


async def test_what_is_over_of_a_forecast_is_left_out(device):
    await device.at(20)
    device.forecast((60, 300), minutes=-15)
    assert device.posted == [(15, 300), (30, 300)]


@pytest.mark.parametrize(
    "start", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1970-01-01T00:00:00Z"]
)
@pytest.mark.parametrize("milliseconds", [0, 900_000, 10**15, 10**17], ids=["0", "quarter", "ages", "more"])
async def test_no_forecast_is_too_far_away_or_too_long_to_deal_with(device, start, milliseconds):
    power_values = [{"commodity_quantity": L1, "value_expected": 5}]
    element = {"duration": milliseconds, "power_values": power_values}
    device.say("PowerForecast", start_time=start, elements=[element] * 288)
    assert len(device.posted) <= 7 * 96


async def test_a_forecast_in_the_same_second_is_posted_as_known_a_second_later(device):
    device.forecast((15, 100), minutes=15)
    assert [item.data.prior for item in device.box.items] == [NOON]
    device.forecast((15, 200), minutes=15)
    device.forecast((15, 300), minutes=15)
    await device.at(0.05)
    runs = [item.data for item in device.box.items]
    assert [(run.values, run.prior) for run in runs] == [([300], NOON + timedelta(seconds=1))]


async def test_a_forecast_supersedes_one_that_still_waits(device):
    for number in range(5):
        await device.at(number)
        device.forecast((60, 100 * number), minutes=15)
    assert [item.data.values for item in device.box.items] == [[400] * 4]


async def test_a_forecast_for_short_intervals_is_cut(device):
    device.know(minutes=1)
    device.forecast((7 * 24 * 60, 100), minutes=0)
    assert len(device.posted) == 2 * 24 * 60


async def test_a_level_that_is_the_same_after_a_reconnect_is_told_again(device):
    device.say("FRBC.SystemDescription")
    device.say("FRBC.StorageStatus", present_fill_level=50)
    await device.at(2)
    device.connect()
    device.say("FRBC.SystemDescription")
    device.say("FRBC.StorageStatus", present_fill_level=50)
    await device.at(3.1)
    assert device.levels == [(0, 50), (3, 50)]


async def test_a_fill_level_is_the_part_of_its_range(device):
    storage = example("FRBC.SystemDescription")["storage"]
    storage["fill_level_range"] = {"start_of_range": 20, "end_of_range": 70}
    device.say("FRBC.StorageStatus", present_fill_level=45)
    assert device.socs == []
    device.say("FRBC.SystemDescription", storage=storage)
    assert device.socs == [(50, "%")]


async def test_a_fill_level_is_posted_each_minute_and_the_same_one_each_five(device):
    device.say("FRBC.SystemDescription")
    await device.at(0.5)
    for level in range(30):
        device.say("FRBC.StorageStatus", present_fill_level=level)
    assert device.levels == [(0, 0)]
    for minutes in range(1, 12):
        await device.at(minutes + 0.01)
    assert device.levels == [(0, 0), (1, 29), (5, 29), (10, 29)]
    device.resource.session = None
    await device.at(15.1)
    assert len(device.levels) == 4


async def test_a_sensor_of_energy_needs_to_know_what_a_fill_level_is_worth(device):
    device.know(unit="kWh")
    description = example("FRBC.SystemDescription")
    whole = {"fill_level_range": {"start_of_range": 20, "end_of_range": 80}}
    device.say("FRBC.SystemDescription", storage=description["storage"] | whole)
    device.say("FRBC.StorageStatus", present_fill_level=40)
    assert device.socs == []
    status = device.hass.states.get("sensor.flexmeasures_status")
    assert "give energy_per_fill_level" in status.attributes["last_error"]
    device.telemetry.energy_per_fill_level = 200
    device.say("FRBC.StorageStatus", present_fill_level=50)
    assert device.socs == [(6_000, "Wh")]


async def test_a_level_that_is_not_believed_is_neither_posted_nor_shown(device):
    cem = SimpleNamespace(
        now=lambda: datetime.now(UTC).timestamp(),
        received=lambda resource, message: device.telemetry.received(message),
    )

    def tell(kind, **changes):
        message = messages.parse(json.dumps(example(kind, **changes)))
        device.resource.session.memory[kind,] = message
        fill_levels.on_message(cem, device.resource, device.resource.session, message)
        device.telemetry.received(message)

    def shown():
        return device.hass.states.get("sensor.flexmeasures_s2_meter").attributes["fill_level"]

    tell("FRBC.SystemDescription")
    tell("FRBC.StorageStatus", present_fill_level=55)
    await device.at(0.1)
    tell("FRBC.StorageStatus", present_fill_level=0)
    await device.at(1)
    assert shown() == 55
    tell("FRBC.StorageStatus", present_fill_level=55)
    await device.at(5.1)
    assert shown() == 55
    assert {value for _minute, value in device.levels} == {55}
    tell("FRBC.StorageStatus", present_fill_level=0)
    await device.at(6.2)
    tell("FRBC.StorageStatus", present_fill_level=0)
    await device.at(7.1)
    assert shown() == 0
    assert device.levels[-1] == (7, 0)
    device.resource.session.end("it is over")


async def test_a_level_is_shown_in_steps_of_a_round_number(device):
    device.say("FRBC.StorageStatus", present_fill_level=41.23456)
    await device.at(0.05)
    state = device.hass.states.get("sensor.flexmeasures_s2_meter")
    assert state.attributes["fill_level"] == 41.23456
    device.say("FRBC.SystemDescription")
    device.say("FRBC.StorageStatus", present_fill_level=42.23456)
    await device.at(1.1)
    state = device.hass.states.get("sensor.flexmeasures_s2_meter")
    assert state.attributes["fill_level"] == 42.2
    assert device.socs[-1] == (42.23456, "%")


async def test_after_a_burst_readings_are_shown_each_minute_and_changes_at_once(device):
    writes = []
    device.hass.bus.async_listen("state_changed", writes.append)
    device.say("FRBC.SystemDescription")
    for second in range(600):
        await device.at(second / 60)
        device.say("FRBC.StorageStatus", present_fill_level=second / 10)
        device.measure(second, second / 60)
    assert 15 <= len(writes) <= 20
    state = device.hass.states.get("sensor.flexmeasures_s2_meter")
    assert 53 <= state.attributes["fill_level"] <= 59.9
    device.telemetry.plan_attributes = lambda: {"instruction": {"id": "new"}}
    device.telemetry.show_soon()
    state = device.hass.states.get("sensor.flexmeasures_s2_meter")
    assert state.attributes["instruction"] == {"id": "new"}
    assert state.attributes["fill_level"] == 59.9
    device.resource.session = None
    device.telemetry.session_changed()
    assert device.hass.states.get("sensor.flexmeasures_s2_meter").state == "disconnected"


async def test_the_state_is_written_once_a_second_and_signs_of_life_once_a_minute(device):
    writes = []
    device.hass.bus.async_listen("state_changed", writes.append)
    for level in range(50):
        device.say("FRBC.StorageStatus", present_fill_level=level)
        device.measure(level, 0)
    await device.hass.async_block_till_done()
    assert len(writes) <= 2
    await device.at(0.03)
    assert device.hass.states.get("sensor.flexmeasures_s2_meter").attributes["fill_level"] == 49
