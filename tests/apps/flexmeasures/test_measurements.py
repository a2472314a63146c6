"""`flexmeasures.post_measurements` and `get_measurements` in Home Assistant, with the real server."""

import asyncio
from datetime import UTC, datetime, timedelta

import homeassistant.util.dt as dt_util
import pytest
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError

from tests.apps.flexmeasures.conftest import at_one_home
from tests.parts import in_process

START = datetime(2026, 11, 20, 9, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def events(*values, start=START, step=QUARTER):
    """Return events one after the other."""
    return [(start + number * step, value) for number, value in enumerate(values)]


def waiting(home):
    """Return how many values wait."""
    return home.status().attributes["outbox"]


@at_one_home(
    ("unit", "minutes", "data", "stored"),
    [
        ("kW", 15, {"values": [1, 2.5, "3"]}, events(1, 2.5, 3)),
        ("kW", 15, {"values": [1000, None, 3000], "unit": "W"}, [events(1)[0], events(1, 2, 3)[2]]),
        ("kW", 15, {"values": [1], "unit": "kWh", "duration": "PT1H"}, events(1, 1, 1, 1)),
        ("kWh", 15, {"values": [1], "unit": "kWh", "duration": "PT1H"}, events(0.25, 0.25, 0.25, 0.25)),
        ("kWh", 15, {"values": 4, "unit": "kW"}, events(1)),
        ("kW", 15, {"values": [1, 2, 3], "duration": "PT15M"}, events(2)),
        ("kW", 15, {"values": [1, 5], "duration": "00:15:00"}, events(3)),
        ("kWh", 0, {"values": 4.2}, events(4.2)),
        ("kWh", 0, {"values": [4200], "unit": "Wh", "duration": "PT0M"}, events(4.2)),
        ("kWh", 0, {"values": [1, 2], "duration": "PT30M"}, events(1, 2)),
        ("°C", 15, {"values": 300, "unit": "K"}, events(pytest.approx(26.85))),
    ],
)
async def test_what_is_posted_is_what_the_server_holds(
    home, flexmeasures_server, unit, minutes, data, stored
):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, unit, minutes)
    answer = await home.call("post_measurements", sensor_id=sensor, start=START.isoformat(), **data)
    assert answer["delivered"] is True
    assert answer["outbox"] == 0
    assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == stored
    assert home.status().state == "ok"


async def test_the_sensor_has_the_sign_of_its_attribute(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15, False)
    call = {"sensor_id": sensor, "start": START.isoformat()}
    await home.call("post_measurements", **call, values=[2, None, -1])
    assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == [
        (START, -2),
        (START + 2 * QUARTER, 1),
    ]
    found = await home.call("get_measurements", **call, duration="PT45M")
    assert found["values"] == [2, None, -1]
    roof = {"sensor_id": sensor, "start": (START + 4 * QUARTER).isoformat(), "positive": "production"}
    await home.call("post_measurements", **roof, values=3)
    assert (await asyncio.to_thread(flexmeasures_server.beliefs, sensor))[-1] == (START + 4 * QUARTER, 3)


async def test_a_start_without_an_offset_is_in_home_assistants_zone(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    await home.call("post_measurements", sensor_id=sensor, start="2026-11-20 09:00:00", values=1)
    start = datetime(2026, 11, 20, 9, tzinfo=dt_util.get_default_time_zone())
    assert dt_util.get_default_time_zone().utcoffset(start) != timedelta(0)
    assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == events(1, start=start)


@at_one_home(
    ("entity", "state", "attributes", "value"),
    [
        ("sensor.grid", "1500", {"unit_of_measurement": "W"}, 1.5),
        ("sensor.grid", "1.5", {}, 1.5),
        ("sensor.grid.power", "on", {"power": 2.5}, 2.5),
    ],
)
async def test_an_entitys_state_is_posted_in_its_own_unit(
    home, flexmeasures_server, entity, state, attributes, value
):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    home.hass.states.async_set("sensor.grid", state, attributes)
    await home.call("post_measurements", sensor_id=str(sensor), entity_id=entity)
    [(start, stored)] = await asyncio.to_thread(flexmeasures_server.beliefs, sensor)
    assert stored == value
    assert timedelta(0) <= datetime.now(UTC) - start < timedelta(minutes=17)


@at_one_home(
    ("data", "says"),
    [
        ({"values": 1}, "sensor_id is missing"),
        ({"sensor_id": "grid", "values": 1}, "sensor_id: expected the number of a FlexMeasures sensor"),
        ({"sensor_id": 1}, "values, entity_id: expected one of the two"),
        (
            {"sensor_id": 1, "values": 1, "entity_id": "sensor.x"},
            "values, entity_id: expected one of the two",
        ),
        ({"sensor_id": 1, "values": []}, "values: expected 1 to 10000 numbers in the list, but got 0"),
        ({"sensor_id": 1, "values": [None]}, "values: expected at least one number"),
        (
            {"sensor_id": 1, "values": [1, "x"], "start": "now"},
            "values[1]: expected a number, or null for a gap, but got 'x'",
        ),
        ({"sensor_id": 1, "values": "nan"}, "values: expected a number, but got 'nan'"),
        ({"sensor_id": 1, "values": True}, "values: expected a number, but got True"),
        ({"sensor_id": 1, "values": [1, 2]}, "start is missing"),
        ({"sensor_id": 1, "values": 1, "start": "now"}, "start: expected a date and time"),
        ({"sensor_id": 1, "values": 1, "duration": "long"}, "duration: expected an ISO 8601 duration"),
        ({"sensor_id": 1, "values": 1, "prior": "then"}, "prior: expected a date and time"),
        ({"sensor_id": 1, "values": 1, "unit": ""}, "unit: expected a text"),
        ({"sensor_id": 1, "entity_id": "grid"}, "entity_id: expected an entity such as"),
        ({"sensor_id": 1, "entity_id": "sensor.none"}, "entity_id: sensor.none does not exist"),
        (
            {"sensor_id": 1, "entity_id": "sensor.off"},
            "entity_id: sensor.off is 'unavailable', which is not a num",
        ),
        (
            {"sensor_id": 1, "entity_id": "sensor.grid", "unit": "kW"},
            "unit: sensor.grid is in W: leave unit out",
        ),
        ({"sensor_id": 1, "entity_id": "sensor.meter"}, "entity_id: sensor.meter counts energy (kWh)"),
        ({"sensor_id": 1, "value": 1}, "value is not a field of this service: did you mean values?"),
    ],
)
async def test_a_wrong_field_is_named(home, data, says):
    meter = {"unit_of_measurement": "kWh", "state_class": "total_increasing"}
    home.hass.states.async_set("sensor.meter", "12", meter)
    home.hass.states.async_set("sensor.off", "unavailable")
    home.hass.states.async_set("sensor.grid", "5", {"unit_of_measurement": "W"})
    with pytest.raises(ServiceValidationError) as caught:
        await home.call("post_measurements", **data)
    assert says in str(caught.value)
    assert home.status().state == "ok"
    assert waiting(home) == 0


@at_one_home(
    ("sensor", "data", "says"),
    [
        (99999, {"values": 1}, "Sensor 99999 does not exist on FlexMeasures"),
        ("foreign", {"values": 1}, "may not use sensor"),
        ("power", {"values": 1, "unit": "°C"}, "unit: sensor 1 is in kW, and °C cannot be converted to it"),
        ("power", {"values": 1, "duration": "PT10M"}, "duration or resolution: each value would stand for"),
        (
            "power",
            {"values": 1, "duration": "PT0M"},
            "duration or resolution: each value would stand for 0:00:00",
        ),
        ("soc", {"values": [1, 2], "duration": "PT0M"}, "is instantaneous: give one value"),
        ("power", {"values": 2, "prior": START.isoformat()}, "prior: FlexMeasures holds another value"),
    ],
)
async def test_what_the_server_refuses_is_told_and_dropped(home, flexmeasures_server, sensor, data, says):
    ids = flexmeasures_server.ids
    sensors = {
        "foreign": flexmeasures_server.foreign.power_sensor,
        "power": ids.power_sensor,
        "soc": ids.soc_sensor,
    }
    call = {"sensor_id": sensors.get(sensor, sensor), "start": START.isoformat()} | data
    if "prior" in data:
        await home.call("post_measurements", **call | {"values": 1})
    with pytest.raises(ServiceValidationError) as caught:
        await home.call("post_measurements", **call)
    assert says in str(caught.value)
    await home.until(lambda: waiting(home) == 0)
    assert home.status().state == "ok"
    assert home.notifications() == {}


async def test_a_notice_of_refusal_goes_away_when_the_sensor_takes_a_value(home, flexmeasures_server, clock):
    sensors = [await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15) for _ in range(2)]
    flexmeasures_server.stop_web()
    try:
        for sensor in sensors:
            await home.call("post_measurements", sensor_id=sensor, values=1, unit="°C")
    finally:
        flexmeasures_server.start_web()
    await home.call("post_measurements", sensor_id=flexmeasures_server.ids.power_sensor, values=1)
    notification = home.notifications()["flexmeasures_measurements_dropped"]
    assert all(
        f"FlexMeasures refuses 1 values for sensor {sensor} from" in notification for sensor in sensors
    )
    assert "they were dropped. unit: sensor" in notification
    assert home.status().state == "error"
    await home.call("post_measurements", sensor_id=sensors[0], values=1)
    assert home.notifications()["flexmeasures_measurements_dropped"] == notification
    await home.tick_to(clock, datetime.now(UTC) + timedelta(minutes=16))
    await home.call("post_measurements", sensor_id=sensors[0], values=1)
    notification = home.notifications()["flexmeasures_measurements_dropped"]
    assert f"sensor {sensors[0]} from" not in notification
    assert f"sensor {sensors[1]} from" in notification
    await home.tick_to(clock, datetime.now(UTC) + timedelta(days=1, minutes=2))
    await home.tick_to(clock, datetime.now(UTC) + timedelta(minutes=1))
    assert home.notifications() == {}
    assert home.status().state == "ok"


async def test_a_correction_that_waits_behind_its_original_arrives_too(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    flexmeasures_server.stop_web()
    try:
        for value in (1, 2):
            await home.call("post_measurements", sensor_id=sensor, values=value, start=START.isoformat())
    finally:
        flexmeasures_server.start_web()
    await home.until(lambda: waiting(home) == 0, 60)
    assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == events(1, 2, step=timedelta(0))
    assert home.notifications() == {}


async def test_a_sensor_that_the_server_fails_over_holds_up_nobody_else(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    original = home.device.link.client.post_sensor_data

    async def post(sensor_id, **named):
        if sensor_id == flexmeasures_server.ids.power_sensor:
            raise ValueError("a fault of the server")
        return await original(sensor_id, **named)

    home.device.link.client.post_sensor_data = post
    answer = await home.call(
        "post_measurements", sensor_id=flexmeasures_server.ids.power_sensor, values=1, start=START.isoformat()
    )
    assert answer == {"delivered": False, "values": 1, "outbox": 1}
    assert "a fault of the server" in home.status().attributes["last_error"]
    answer = await home.call("post_measurements", sensor_id=sensor, values=1)
    assert answer == {"delivered": True, "values": 1, "outbox": 1}
    home.device.link.client.post_sensor_data = original
    await home.until(lambda: waiting(home) == 0)
    assert home.status().state == "ok"


async def test_what_waits_is_delivered_as_soon_as_anything_else_works(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    refused = in_process.module_globals("flexmeasures_api.errors")["Unauthorized"]
    original = home.device.link.client.post_sensor_data

    async def refuse(*_given, **_named):
        raise refused("FlexMeasures refuses the user")

    home.device.link.client.post_sensor_data = refuse
    answer = await home.call("post_measurements", sensor_id=sensor, values=1, start=START.isoformat())
    assert answer == {"delivered": False, "values": 1, "outbox": 1}
    assert home.status().state == "unauthorized"
    home.device.link.client.post_sensor_data = original
    await home.plan(soc_at_start=4, duration="PT2H")
    await home.until(lambda: home.status().state == "ok" and waiting(home) == 0, 10)
    assert home.notifications() == {}


async def test_the_server_that_is_away_gets_everything_once_and_in_order(home, flexmeasures_server, caplog):
    sensors = [await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15) for _ in range(2)]
    for sensor in sensors:
        await home.call("post_measurements", sensor_id=sensor, values=0, start=START.isoformat())
    flexmeasures_server.stop_web()
    try:
        for number in range(1, 97):
            answer = await home.call(
                "post_measurements",
                sensor_id=sensors[number % 2],
                values=number,
                start=(START + number * QUARTER + timedelta(minutes=number % 15)).isoformat(),
            )
            assert answer["delivered"] is False
        assert answer["outbox"] == 96
        assert home.status().state == "unreachable"
        await in_process.reload(home.hass, global_ctx="*")
        assert waiting(home) == answer["outbox"]
        posts = count_posts(home)
    finally:
        flexmeasures_server.start_web()
    answer = await home.call("post_measurements", sensor_id=sensors[0], values=97, start=START.isoformat())
    assert answer == {"delivered": True, "values": 1, "outbox": 0}
    assert len(posts) == 3
    for rest, sensor in enumerate(sensors):
        expected = [(START + n * QUARTER, n) for n in range(1, 97) if n % 2 == rest]
        first = [(START, 0), (START, 97)] if rest == 0 else [(START, 0)]
        assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == first + expected
    assert home.status().state == "ok"
    ours = [r.getMessage() for r in caplog.records if r.name == "custom_components.pyscript.flexmeasures"]
    away = [text for text in ours if "cannot be reached" in text]
    assert [text.split()[0] for text in away] == ["FlexMeasures", "FlexMeasures", "Resolved:"]


def count_posts(home) -> list:
    """Return a list that gets each request that posts data."""
    client, seen = home.device.link.client, []
    original = client.post_sensor_data

    async def post(*given, **named):
        seen.append(given)
        return await original(*given, **named)

    client.post_sensor_data = post
    return seen


async def test_what_waits_and_cannot_be_written_is_told_and_written_later(home, flexmeasures_server, clock):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    names = in_process.module_globals("flexmeasures_home.outbox_store")
    write = names["write_rows"]

    def fail(*_given):
        raise OSError(28, "No space left on device")

    names["write_rows"] = fail
    flexmeasures_server.stop_web()
    try:
        with pytest.raises(HomeAssistantError, match=r"only in memory: .*No space left on device"):
            await home.call("post_measurements", sensor_id=sensor, values=3, start=START.isoformat())
        assert "No space left on device" in home.notifications()["flexmeasures_file_not_saved"]
        names["write_rows"] = write
        await home.tick_to(clock, datetime.now(UTC) + timedelta(minutes=1))
        await home.until(lambda: "flexmeasures_file_not_saved" not in home.notifications())
        await in_process.reload(home.hass, global_ctx="*")
        assert waiting(home) == 1
    finally:
        flexmeasures_server.start_web()
    await home.until(lambda: waiting(home) == 0, 60)
    assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == events(3)


async def test_what_is_refused_does_not_block_what_is_behind_it(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    foreign = flexmeasures_server.foreign.power_sensor
    flexmeasures_server.stop_web()
    try:
        for number, each in enumerate([sensor, foreign, 99999, sensor]):
            start = (START + 2 * number * QUARTER).isoformat()
            await home.call("post_measurements", sensor_id=each, values=number, start=start)
        assert waiting(home) == 4
    finally:
        flexmeasures_server.start_web()
    await home.until(lambda: waiting(home) == 0, 60)
    stored = await asyncio.to_thread(flexmeasures_server.beliefs, sensor)
    assert stored == [(START, 0), (START + 6 * QUARTER, 3)]
    assert "sensor 99999" in home.notifications()["flexmeasures_measurements_dropped"]
    assert home.status().state == "error"


async def test_posting_twice_stores_once(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    for _ in range(2):
        await home.call("post_measurements", sensor_id=sensor, values=[1, 2], start=START.isoformat())
    assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == events(1, 2)


async def test_many_values_go_in_several_requests(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    in_process.module_globals("flexmeasures_api.sensor_data")["MAX_STORED_VALUES"] = 3
    posts = count_posts(home)
    call = {"sensor_id": sensor, "start": START.isoformat(), "values": [1, 2, None, 4, 5, 6, 7, 8]}
    for _ in range(2):
        assert (await home.call("post_measurements", **call))["delivered"] is True
    assert len(posts) == 6
    expected = [event for event in events(1, 2, None, 4, 5, 6, 7, 8) if event[1] is not None]
    assert await asyncio.to_thread(flexmeasures_server.beliefs, sensor) == expected


async def test_get_measurements_returns_what_the_server_holds(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    start = START.isoformat()
    await home.call("post_measurements", sensor_id=sensor, values=[1, None, 3, 4], start=start)
    answer = await home.call("get_measurements", sensor_id=sensor, start=start, duration="PT1H")
    local = START.astimezone(dt_util.get_default_time_zone()).isoformat()
    assert answer == {
        "sensor_id": sensor,
        "values": [1, None, 3, 4],
        "start": local,
        "duration": "PT1H",
        "resolution": "PT15M",
        "unit": "kW",
    }
    later = (START + timedelta(minutes=20)).isoformat()
    answer = await home.call(
        "get_measurements", sensor_id=sensor, start=later, duration="PT30M", unit="W", resolution="PT30M"
    )
    assert answer["values"] == [1000, 3500]
    assert answer["start"] == local


async def test_get_measurements_of_one_source(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    await home.call("post_measurements", sensor_id=sensor, values=[1], start=START.isoformat())
    token = await asyncio.to_thread(flexmeasures_server.token)
    _status, stats = await asyncio.to_thread(
        flexmeasures_server.request, "GET", f"/api/v3_0/sensors/{sensor}/stats", None, token
    )
    source = int(next(iter(stats)).split("ID: ")[1].rstrip(")"))
    call = {"sensor_id": sensor, "start": START.isoformat(), "duration": "PT15M"}
    assert (await home.call("get_measurements", **call, source=source))["values"] == [1]
    assert (await home.call("get_measurements", **call, source=source - 1))["values"] == [None]


async def test_an_instantaneous_sensor_is_read_each_five_minutes(home, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kWh", 0)
    start = START.isoformat()
    await home.call("post_measurements", sensor_id=sensor, values=[1, 2], duration="PT10M", start=start)
    answer = await home.call("get_measurements", sensor_id=sensor, start=start, duration="PT15M")
    assert (answer["values"], answer["resolution"]) == ([1, 2, None], "PT5M")


@at_one_home(
    ("data", "says"),
    [
        ({}, "sensor_id is missing; start is missing"),
        ({"sensor_id": 1}, "start is missing"),
        ({"sensor_id": 1, "start": "x"}, "start: expected a date and time"),
        ({"sensor_id": 1, "start": START, "resolution": "x"}, "resolution: expected"),
        (
            {"sensor_id": 1, "start": START, "source": "me"},
            "source: expected the number",
        ),
        ({"sensor_id": 1, "start": "0001-01-01"}, "start: expected a date and time"),
        ({"sensor_id": 99999, "start": START}, "Sensor 99999 does not exist on FlexMeasures"),
        ({"sensor_id": 1, "start": START, "unit": "°C"}, "unit: sensor 1 is in kW"),
        (
            {"sensor_id": 1, "start": START, "source": 99999},
            "source: No data source found",
        ),
    ],
)
async def test_what_cannot_be_read_is_told(home, data, says):
    call = {
        name: value.isoformat() if name == "start" and value is START else value
        for name, value in data.items()
    }
    with pytest.raises(ServiceValidationError) as caught:
        await home.call("get_measurements", **call)
    assert says in str(caught.value)
    assert home.status().state == "ok"
