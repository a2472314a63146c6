"""Resource Managers connect to the app in Home Assistant, against the real FlexMeasures server."""

import asyncio
import contextlib
import socket
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from homeassistant.const import EVENT_HOMEASSISTANT_STARTED
from homeassistant.core import CoreState, callback
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from pytest_homeassistant_custom_component.common import async_fire_time_changed

from tests.apps.flexmeasures.conftest import FRBC, METER, Side
from tests.parts import in_process, trials
from tests.parts.home_assistant import free_port
from tests.parts.s2_devices import Battery, Meter
from tests.parts.s2_messages import example

QUARTER = timedelta(minutes=15)
LONGEST_REPR = 200
"""Pyscript makes a text of each argument of an interpreted call: of the app at its start and stop."""


def power(*watts, start, step=timedelta(minutes=5)):
    """Return PowerMeasurements on one phase, one after the other."""
    return [
        example(
            "PowerMeasurement",
            measurement_timestamp=(start + number * step).isoformat(),
            values=[{"commodity_quantity": "ELECTRIC.POWER.L1", "value": value}],
        )
        for number, value in enumerate(watts)
    ]


def quarter_ago(quarters):
    """Return the start of a quarter before the one that is now."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    return now - timedelta(minutes=now.minute % 15) - quarters * QUARTER


async def test_a_resource_manager_is_a_state(side):
    async with side.rm() as rm:
        assert await rm.establish() == FRBC
        await side.until(FRBC)
        attributes = side.state().attributes
        assert attributes["resource_id"] == rm.details["resource_id"]
        assert attributes["available_control_types"] == [FRBC, METER]
        assert attributes["version"] == "0.0.2-beta"
        assert attributes["instruction"] is None
        assert attributes["plan"] == []
        assert side.state().state_info["unrecorded_attributes"] >= {"plan", "instruction", "last_message"}
        await rm.ask(example("FRBC.SystemDescription"))
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=42))
        await side.home.until(lambda: side.state().attributes["fill_level"] == 42)
        assert side.state().attributes["last_message_type"] == "FRBC.StorageStatus"
        assert datetime.fromisoformat(side.state().attributes["last_message"]).tzinfo is not None
    await side.until("disconnected")
    assert side.state().attributes["fill_level"] is None
    assert side.state().attributes["last_message_type"] == "FRBC.StorageStatus"


async def test_a_new_one_gets_an_asset_and_sensors_which_are_found_again(side, client, flexmeasures_server):
    identity = str(uuid.uuid4())
    async with side.rm(f"EV {identity[:4]}", resource_id=identity) as rm:
        await rm.establish()
        slug = f"ev_{identity[:4]}"
        first = await side.sensors(slug)
    site = (await client.get_asset(flexmeasures_server.ids.battery, parse_json_fields=True))[
        "parent_asset_id"
    ]
    power_sensor, soc_sensor = [await client.get_sensor(each, parse_json_fields=True) for each in first]
    assert (power_sensor["unit"], power_sensor["event_resolution"]) == ("kW", "PT15M")
    assert power_sensor["attributes"]["consumption_is_positive"] is True
    assert (soc_sensor["unit"], soc_sensor["event_resolution"]) == ("%", "P0D")
    asset = await client.get_asset(power_sensor["generic_asset_id"], parse_json_fields=True)
    assert asset["name"] == f"EV {identity[:4]}"
    assert asset["parent_asset_id"] == (site or flexmeasures_server.ids.battery)
    assert asset["attributes"]["resource_id"] == identity
    side.home.device.resources.telemetry.clear()
    side.home.device.resources.cem.resources.clear()
    async with side.rm(f"EV {identity[:4]}", resource_id=identity) as rm:
        await rm.establish()
        assert await side.sensors(slug) == first


async def test_two_of_one_name_have_states_and_assets_of_their_own(side, client):
    async with side.rm("Twin", (METER,)) as one, side.rm("Twin", (METER,)) as other:
        await one.establish()
        await other.establish()
        second = f"twin_{other.details['resource_id'].replace('-', '_')}"
        sensors = [await side.sensors("twin"), await side.sensors(second)]
        assert sensors[0] != sensors[1]
        assert sensors[0][1] is None
        names = []
        for number, _soc in sensors:
            sensor = await client.get_sensor(number, parse_json_fields=True)
            names.append((await client.get_asset(sensor["generic_asset_id"], parse_json_fields=True))["name"])
        assert names == ["Twin", f"Twin ({other.details['resource_id']})"]


async def test_power_arrives_as_means_over_quarters(side):
    begin = quarter_ago(3)
    async with side.rm("Meter A", (METER,)) as rm:
        assert await rm.establish() == METER
        sensor, _soc = await side.sensors("meter_a")
        for message in power(300, 600, 900, -1200, -1200, -1200, 60, start=begin):
            assert (await rm.ask(message))["status"] == "OK"
        found = await side.stored(sensor, 2)
    assert found[:2] == [(begin, pytest.approx(0.6)), (begin + QUARTER, pytest.approx(-1.2))]


async def test_three_phases_are_added_up_and_other_commodities_left_out(side):
    begin = quarter_ago(2)
    values = [
        *({"commodity_quantity": f"ELECTRIC.POWER.L{phase}", "value": 100 * phase} for phase in (1, 2, 3)),
        {"commodity_quantity": "HEAT.THERMAL_POWER", "value": 5000},
    ]
    announced = [each["commodity_quantity"] for each in values]
    details = {"provides_power_measurement_types": announced}
    async with side.rm("Meter B", (METER,), details=details) as rm:
        await rm.establish()
        sensor, _soc = await side.sensors("meter_b")
        for minutes in (0, 15):
            moment = (begin + timedelta(minutes=minutes)).isoformat()
            await rm.ask(example("PowerMeasurement", measurement_timestamp=moment, values=values))
        found = await side.stored(sensor, 1)
    assert found[0] == (begin, pytest.approx(0.6))


async def test_a_sensor_that_holds_production_as_positive_gets_it_so(starting, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15, False)
    side = await starting(resources={"Meter C": {"power_sensor": sensor}})
    begin = quarter_ago(2)
    async with side.rm("Meter C", (METER,)) as rm:
        await rm.establish()
        assert await side.sensors("meter_c") == (sensor, None)
        for message in power(1000, 1000, start=begin, step=QUARTER):
            await rm.ask(message)
        assert (await side.stored(sensor, 1))[0] == (begin, pytest.approx(-1))


async def test_a_forecast_arrives_with_when_it_was_made(side, client):
    begin = quarter_ago(-1)
    forecast = example(
        "PowerForecast",
        start_time=begin.isoformat(),
        elements=[
            {
                "duration": minutes * 60_000,
                "power_values": [{"commodity_quantity": "ELECTRIC.POWER.L1", "value_expected": value}],
            }
            for minutes, value in [(10, 300), (20, 1500), (15, -600)]
        ],
    )
    async with side.rm("Meter D", (METER,)) as rm:
        await rm.establish()
        sensor, _soc = await side.sensors("meter_d")
        assert (await rm.ask(forecast))["status"] == "OK"
        found = await side.stored(sensor, 3)
    assert [value for _start, value in found] == [pytest.approx(each) for each in (0.7, 1.5, -0.6)]
    assert [start for start, _value in found] == [begin + number * QUARTER for number in range(3)]


async def test_the_last_of_many_forecasts_counts(side):
    begin = quarter_ago(-1)

    def forecast(value):
        values = [{"commodity_quantity": "ELECTRIC.POWER.L1", "value_expected": value}]
        elements = [{"duration": 900_000, "power_values": values}]
        return example("PowerForecast", start_time=begin.isoformat(), elements=elements)

    async with side.rm("Meter E", (METER,)) as rm:
        await rm.establish()
        sensor, _soc = await side.sensors("meter_e")
        for value in range(1000, 3000, 100):
            await rm.ask(forecast(value))
        found = await side.stored(sensor, 2)
    assert {value for _start, value in found} == {1, 2.9}
    assert side.home.status().state == "ok"


async def test_the_fill_level_arrives_as_state_of_charge(side):
    async with side.rm("Boiler") as rm:
        await rm.establish()
        _power, sensor = await side.sensors("boiler")
        await rm.ask(example("FRBC.SystemDescription"))
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=37.5))
        assert [value for _start, value in await side.stored(sensor, 1)] == [37.5]


async def test_a_fill_level_is_worth_energy_as_configured(starting, flexmeasures_server):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kWh", 0)
    identity = str(uuid.uuid4())
    listed = {"soc_sensor": sensor, "energy_per_fill_level": "0.2 kWh"}
    side = await starting(resources={identity: listed})
    async with side.rm("Boiler 2", resource_id=identity) as rm:
        await rm.establish()
        assert (await side.sensors("boiler_2"))[1] == sensor
        await rm.ask(example("FRBC.SystemDescription"))
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=40))
        assert (await side.stored(sensor, 1))[0][1] == 8


async def test_without_provisioning_the_apps_own_sensors_are_used(starting):
    side = await starting(auto_provision=False)
    async with side.rm() as rm:
        await rm.establish()
        assert await side.sensors() == (side.config["power_sensor"], side.config["soc_sensor"])
        async with side.rm("Second") as second:
            await second.establish()
            await side.home.until(lambda: side.home.status().attributes["last_error"])
            assert "Home battery has the same power_sensor" in side.home.status().attributes["last_error"]


async def test_what_is_measured_while_the_server_is_away_arrives_later(side, flexmeasures_server):
    begin = quarter_ago(3)
    await asyncio.to_thread(flexmeasures_server.stop_web)
    try:
        async with side.rm("Meter F", (METER,)) as rm:
            await rm.establish()
            for message in power(100, 200, 300, start=begin, step=QUARTER):
                assert (await rm.ask(message))["status"] == "OK"
            await in_process.reload(side.home.hass, global_ctx="*")
            assert await rm.closed() == 1001
    finally:
        await asyncio.to_thread(flexmeasures_server.start_web)
    await side.listening()
    async with side.rm("Meter F", (METER,), resource_id=rm.details["resource_id"]) as again:
        await again.establish()
        sensor, _soc = await side.sensors("meter_f")
        found = await side.stored(sensor, 2)
    assert found[:2] == [(begin, pytest.approx(0.1)), (begin + QUARTER, pytest.approx(0.2))]


async def test_a_chosen_control_type_lasts_over_reconnects_and_reloads(side):
    async with side.rm() as rm:
        assert await rm.establish() == FRBC
        await side.until(FRBC)
        answer = await side.home.call("change_control_type", control_type="not_controlable")
        assert answer == {"resource_id": rm.details["resource_id"], "control_type": METER}
        await side.until(METER)
    async with side.rm(resource_id=rm.details["resource_id"]) as again:
        assert await again.establish() == METER
        await in_process.reload(side.home.hass, global_ctx="*")
        assert await again.closed() == 1001
    await side.listening()
    async with side.rm(resource_id=rm.details["resource_id"]) as later:
        assert await later.establish() == METER
        await side.home.call("change_control_type", control_type="FRBC", resource_id="Home battery")
        await side.until(FRBC)
        await side.home.call("change_control_type", control_type="NO_SELECTION")
        await side.until("NO_SELECTION")


async def test_a_choice_and_a_state_outlast_another_user_of_the_server(side, flexmeasures_server):
    async with side.rm() as rm:
        await rm.establish()
        await side.home.call("change_control_type", control_type="NOT_CONTROLABLE")
    other = {"username": flexmeasures_server.foreign.username}
    in_process.configure(side.home.hass, side.config | other)
    await in_process.reload(side.home.hass, global_ctx="*")
    await side.listening()
    assert side.state().state == "disconnected"
    assert side.state().attributes["power_sensor"] is None
    async with side.rm(resource_id=rm.details["resource_id"]) as again:
        assert await again.establish() == METER


async def test_a_wrong_choice_is_told(side):
    async def refused(**data) -> str:
        with pytest.raises(ServiceValidationError) as error:
            await side.home.call("change_control_type", **data)
        return str(error.value)

    assert "No S2 Resource Manager is connected" in await refused(control_type="FRBC")
    assert "control_type: expected one of FILL_RATE" in await refused(control_type="FRCB")
    async with side.rm("One") as one:
        await one.establish()
        assert f"does not offer POWER_ENVELOPE_BASED_CONTROL, but {FRBC}, {METER}" in await refused(
            control_type="PEBC"
        )
        assert "there is none: 'Two'" in await refused(control_type="FRBC", resource_id="Two")
        async with side.rm("Two") as two:
            await two.establish()
            told = await refused(control_type="NOT_CONTROLABLE")
            assert "several are connected" in told
            assert all(rm.details["resource_id"] in told for rm in (one, two))
            two.answers["SelectControlType"] = "INVALID_CONTENT"
            with pytest.raises(HomeAssistantError, match="Two answered INVALID_CONTENT"):
                await side.home.call("change_control_type", control_type=METER, resource_id="Two")
            assert side.state("two").state == FRBC


async def test_the_preferred_control_type_is_selected_where_it_is_offered(starting):
    side = await starting(control_type="PEBC")
    async with side.rm("A", (FRBC, "POWER_ENVELOPE_BASED_CONTROL")) as both, side.rm("B") as other:
        assert await both.establish() == "POWER_ENVELOPE_BASED_CONTROL"
        assert await other.establish() == FRBC


async def test_a_token_lets_in(starting):
    side = await starting(token="correct horse", host="0.0.0.0")
    async with side.rm(token="correct horse") as rm:
        assert await rm.establish() == FRBC
    assert side.home.status().state == "ok"


async def test_a_port_in_use_is_told_until_it_is_free(start, app_config, clock):
    port = free_port()
    with contextlib.closing(socket.create_server(("127.0.0.1", port))):
        home = await start(app_config | {"s2": {"port": port}})
        await home.checked()
        await home.until(lambda: home.status().state == "error")
        assert f"cannot listen on 127.0.0.1:{port}" in home.status().attributes["last_error"]
        assert "flexmeasures_s2_not_listening" in home.notifications()
        in_process.module_globals("flexmeasures_home.resources")["SECONDS_BETWEEN_LATER_TRIES"] = 1
        assert (await home.plan(soc_at_start=5))["schedule"]
    side = Side(home, app_config | {"s2": {"port": port}}, None)
    await home.until(lambda: "flexmeasures_s2_not_listening" not in home.notifications(), 40)
    async with side.rm() as rm:
        assert await rm.establish() == FRBC


async def test_a_port_in_use_hides_nothing_of_who_never_asked_for_s2(start, app_config, caplog):
    del app_config["s2"]
    with contextlib.closing(socket.create_server(("127.0.0.1", 8765))):
        home = await start(app_config)
        await home.checked()
        await home.until(lambda: "cannot listen on 127.0.0.1:8765" in caplog.text)
        assert home.status().state == "ok"
        assert home.notifications() == {}


async def test_who_connects_as_soon_as_home_assistant_runs_is_served(hass, start, app_config):
    early = []

    @callback
    def connect(_event):
        hass.set_state(CoreState.running)
        early.append(socket.create_connection(("127.0.0.1", app_config["s2"]["port"]), 1))

    hass.set_state(CoreState.starting)
    hass.bus.async_listen_once(EVENT_HOMEASSISTANT_STARTED, connect)
    await start(app_config)
    reader, writer = await asyncio.open_connection(sock=early[0])
    with contextlib.closing(writer):
        writer.write(
            b"GET /s2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        async with asyncio.timeout(10):
            assert b" 101 " in await reader.readline()


async def test_switched_off_nobody_listens(starting):
    side = await starting(enabled=False)
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", side.config["s2"]["port"])
    with pytest.raises(HomeAssistantError, match=r"set s2\.enabled"):
        await side.home.call("change_control_type", control_type="FRBC")


async def test_s2_pythons_own_devices_are_followed(side):
    async with Meter(side.url, power=lambda _now: 750.0, name="Kitchen", every=0.05) as meter:
        await asyncio.wait_for(meter.active.wait(), 10)
        assert meter.control_type == METER
        async with Battery(side.url, fill_level=61.0, name="Garage", every=0.05) as battery:
            await asyncio.wait_for(battery.active.wait(), 10)
            await side.home.until(lambda: side.state("garage").attributes["fill_level"] == 61)
            assert side.state("kitchen").state == METER
            sensor, _soc = await side.sensors("kitchen")
            assert len(await side.stored(sensor, 96)) >= 96


async def test_reloads_free_the_port_and_leave_nothing(side):
    await in_process.reload(side.home.hass, global_ctx="*")
    await side.listening()
    before = len(asyncio.all_tasks())
    for _number in range(20 if trials.is_long else 5):
        async with side.rm() as rm:
            await rm.establish()
            running = side.home.hass.data["flexmeasures_for_pyscript"].running
            assert len(repr(running)) < LONGEST_REPR
            await in_process.reload(side.home.hass, global_ctx="*")
            assert await rm.closed() == 1001
        await side.listening()
    await side.home.checked()
    async_fire_time_changed(side.home.hass, datetime.now(UTC) + timedelta(minutes=2))
    await in_process.settle(side.home.hass)
    assert len(asyncio.all_tasks()) <= before + 3
    assert not side.home.device.resources.listener.sessions
