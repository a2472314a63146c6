"""What goes wrong is raised to the caller, shown, notified once, and costs no schedule."""

import asyncio
import json
import logging
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from homeassistant.core import SupportsResponse
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError

from tests.apps.flexmeasures.conftest import STATUS, at_one_home, in_hours
from tests.parts import in_process
from tests.parts.home_assistant import free_port

pytestmark = pytest.mark.usefixtures("early_in_a_quarter")


async def fails(home, kind, says, state, cause, **data):
    """Call the main service; check that the failure is told in every place, and once."""
    before = home.schedule()
    with pytest.raises(kind) as caught:
        await home.plan(**data)
    text = str(caught.value)
    assert says in text
    assert home.status().state == state
    assert home.status().attributes["last_error"] == text
    assert home.schedule().state == before.state
    assert home.schedule().attributes == before.attributes
    assert list(home.notifications()) == ([] if cause is None else [f"flexmeasures_{cause}"])
    assert all(text in notification.split("\n\n") for notification in home.notifications().values())
    assert home.updates == []
    return text


async def refuses(home, says, **data):
    """Call the main service; check that what is wrong with the call is told to the caller alone."""
    before = home.schedule(), home.status()
    with pytest.raises(ServiceValidationError) as caught:
        await home.plan(**data)
    assert says in str(caught.value)
    for state, now in zip(before, (home.schedule(), home.status()), strict=True):
        assert (now.state, now.attributes) == (state.state, state.attributes)
    assert home.notifications() == {}
    assert home.updates == []


async def test_every_mistake_of_the_configuration_is_told_at_once(start, caplog):
    home = await start({"host": "localhost", "username": "me", "power_sensor": "two", "soc_min": 1})
    assert home.status().state == "misconfigured"
    message = home.notifications()["flexmeasures_misconfigured"]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    for mistake in (
        "username: expected the e-mail address of a FlexMeasures user",
        "power_sensor: expected the number of a FlexMeasures sensor, such as 12, but got 'two'",
        "password is missing",
        "consumption_price_sensor is missing",
        "soc_max is missing",
    ):
        assert f"- {mistake}" in message
        assert f"Configuration: {mistake}" in errors
    assert home.schedule().state == "unavailable"
    with pytest.raises(HomeAssistantError, match=r"misconfigured: .*soc_max is missing"):
        await home.plan(soc_at_start=3)


async def test_scripts_that_went_a_moment_ago_have_their_time_to_come_back(home, clock):
    begin = datetime.now(UTC)
    await in_process.reload(home.hass, global_ctx="*")
    await home.tick_to(clock, begin + timedelta(seconds=20))
    shutil.rmtree(Path(home.hass.config.path("pyscript", "apps", "flexmeasures")))
    await in_process.reload(home.hass, global_ctx="*")
    await home.tick_to(clock, begin + timedelta(seconds=40))
    assert "unavailable" not in (home.schedule().state, home.status().state)


async def test_whoever_registers_a_service_anew_its_errors_reach_the_caller(home):
    async def loses_errors(call):
        return {}

    for _ in range(2):
        home.hass.services.async_register(
            "flexmeasures",
            "trigger_and_get_schedule",
            loses_errors,
            supports_response=SupportsResponse.OPTIONAL,
        )
        with pytest.raises(ServiceValidationError, match="soc_at_start is missing"):
            await home.plan()
        await in_process.reload(home.hass, global_ctx="*")


async def test_without_its_scripts_the_sensors_are_unavailable(home, clock):
    shutil.rmtree(Path(home.hass.config.path("pyscript", "apps", "flexmeasures")))
    await in_process.reload(home.hass, global_ctx="*")
    await home.tick_to(clock, datetime.now(UTC) + timedelta(seconds=31))
    assert home.schedule().state == home.status().state == "unavailable"
    assert not home.hass.services.has_service("flexmeasures", "trigger_and_get_schedule")


async def test_files_of_another_form_are_set_aside_and_told(start, app_config, tmp_path):
    contents = {
        "schedule": "null",
        "outbox": "[]",
        "measurements": '{"version": 99, "data": {}}',
        "resources": "",
    }
    folder = tmp_path / ".storage"
    folder.mkdir()
    for name, content in contents.items():
        (folder / f"flexmeasures_for_pyscript.{name}").write_text(content)
    home = await start(app_config)
    await home.checked()
    told = home.notifications()["flexmeasures_file_set_aside"]
    for name, content in contents.items():
        [aside] = folder.glob(f"flexmeasures_for_pyscript.{name}.corrupt.*")
        assert aside.read_text() == content
        assert aside.name in told
    assert home.status().attributes["last_error"] in told
    assert len((await home.plan(soc_at_start=4, duration="PT2H"))["schedule"]) == 8
    assert home.notifications()["flexmeasures_file_set_aside"] == told


async def test_parts_of_files_that_cannot_be_read_stop_nothing(start, app_config, tmp_path):
    user = f"{app_config['username']} {app_config['host']}"
    telemetry = {"name": "Home battery", "choice": None, "entity_id": "sensor.flexmeasures_s2_home_battery"}
    data = {
        "schedule": {"power_sensor": app_config["power_sensor"], "schedule": {"start": "soon"}},
        "outbox": {user: {"runs": [{"sensor": 1}, 7]}},
        "measurements": {"user": user, "sensors": [{"id": 1}], "intervals": {"x": 1}},
        "resources": {
            "resources": {"a": telemetry, "b": 7, "c": {"name": 1}},
            "users": {user: {"a": {"made": 1, "plan": {"control_type": "x"}}}},
        },
    }
    folder = tmp_path / ".storage"
    folder.mkdir()
    for name, content in data.items():
        kept = {"version": 1, "minor_version": 1, "key": name, "data": content}
        (folder / f"flexmeasures_for_pyscript.{name}").write_text(json.dumps(kept))
    home = await start(app_config)
    await home.checked()
    told = home.notifications()["flexmeasures_file_set_aside"]
    assert all(f"flexmeasures_for_pyscript.{name} with" in told for name in data)
    assert home.hass.states.get(telemetry["entity_id"]).state == "disconnected"
    assert len((await home.plan(soc_at_start=4, duration="PT2H"))["schedule"]) == 8


async def test_a_start_that_fails_is_told_and_leaves_nothing_behind(start, app_config, monkeypatch):
    home = await start(app_config)
    await home.checked()
    device_class = in_process.module_globals("flexmeasures_home.device")["Device"]
    before = home.device

    def fails(_device):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(device_class, "measure", fails)
    app = home.hass.data["flexmeasures_for_pyscript"].running
    app.device = None
    await before.stop()
    await in_process.module_globals("flexmeasures_home.app")["start"](home.hass, app)
    assert "a fault of ours" in home.status().attributes["last_error"]
    assert "flexmeasures_failed" in home.notifications()
    with pytest.raises(HomeAssistantError, match="could not start"):
        await home.plan(soc_at_start=4)
    assert not [task for task in asyncio.all_tasks() if "of what waits" in task.get_name()]


async def test_a_call_during_the_start_waits_for_it(home):
    app = home.hass.data["flexmeasures_for_pyscript"].running
    device, app.device = app.device, None
    app.started.clear()
    call = asyncio.create_task(home.plan(soc_at_start=4, duration="PT2H"))
    await asyncio.sleep(0.2)
    assert not call.done()
    app.device = device
    app.started.set()
    assert len((await call)["schedule"]) == 8


async def test_an_empty_configuration_is_told(start):
    home = await start({})
    assert home.status().state == "misconfigured"
    assert "- host is missing" in home.notifications()["flexmeasures_misconfigured"]


async def test_a_corrected_configuration_takes_the_notification_away(start, app_config):
    home = await start(app_config | {"soc_max": 0})
    assert "flexmeasures_misconfigured" in home.notifications()
    assert home.status().state == "misconfigured"
    in_process.configure(home.hass, app_config)
    await in_process.reload(home.hass, global_ctx="*")
    await home.checked()
    assert home.notifications() == {}
    assert home.status().state == "ok"


async def test_a_server_that_cannot_be_reached(start, app_config):
    home = await start(app_config | {"host": f"http://127.0.0.1:{free_port()}"})
    await home.checked()
    assert home.status().state == "unreachable"
    says = "cannot be reached at http://127.0.0.1:"
    await fails(home, HomeAssistantError, says, "unreachable", None, soc_at_start=4)


async def test_a_server_that_is_away_for_long_is_notified(start, app_config, clock):
    home = await start(app_config | {"host": f"http://127.0.0.1:{free_port()}"})
    await home.checked()
    clock.tick(16 * 60)
    says = "cannot be reached"
    await fails(home, HomeAssistantError, says, "unreachable", "unreachable", soc_at_start=4)


async def test_a_wrong_password(start, app_config):
    home = await start(app_config | {"password": "not-this-one"})
    await home.checked()
    assert home.status().state == "unauthorized"
    text = await fails(
        home,
        HomeAssistantError,
        "check username and password",
        "unauthorized",
        "unauthorized",
        soc_at_start=4,
    )
    assert "not-this-one" not in text


async def test_an_unknown_user(start, app_config):
    home = await start(app_config | {"username": "nobody@example.org"})
    says = "check username and password"
    await fails(home, HomeAssistantError, says, "unauthorized", "unauthorized", soc_at_start=4)


@pytest.mark.parametrize("key", ["power_sensor", "consumption_price_sensor", "production_price_sensor"])
async def test_an_unknown_sensor(start, app_config, key):
    home = await start(app_config | {key: 99999})
    await fails(
        home, HomeAssistantError, "Sensor 99999 does not exist", "error", "unknown_sensor", soc_at_start=4
    )


async def test_an_instantaneous_power_sensor(start, app_config, flexmeasures_server):
    home = await start(app_config | {"power_sensor": flexmeasures_server.ids.soc_sensor})
    await fails(home, HomeAssistantError, "is instantaneous", "error", "unknown_sensor", soc_at_start=4)


async def test_a_power_sensor_of_another_account(start, app_config, flexmeasures_server):
    foreign = flexmeasures_server.foreign.power_sensor
    home = await start(app_config | {"power_sensor": foreign})
    await home.checked()
    says = f"may not use sensor {foreign}"
    await fails(home, HomeAssistantError, says, "error", "no_access", soc_at_start=4)


async def test_a_price_sensor_of_another_account(start, app_config, flexmeasures_server):
    home = await start(app_config | {"consumption_price_sensor": flexmeasures_server.foreign.price_sensor})
    sensor = flexmeasures_server.foreign.price_sensor
    says = f"consumption_price_sensor, production_price_sensor: This user may not use sensor {sensor}"
    await fails(home, HomeAssistantError, says, "error", "no_access", soc_at_start=4)


@pytest.mark.parametrize("key", ["consumption_price_sensor", "production_price_sensor", "soc_sensor"])
async def test_a_wrong_number_shows_before_any_call(start, app_config, key):
    home = await start(app_config | {key: 99999})
    await home.checked()
    keys = "consumption_price_sensor, production_price_sensor" if key.startswith("consumption") else key
    assert (
        home.status()
        .attributes["last_error"]
        .startswith(f"{keys}: Sensor 99999 does not exist on FlexMeasures")
    )
    assert home.status().state == "error"


@pytest.mark.parametrize(
    ("key", "other", "says"),
    [
        ("soc_sensor", "price_sensor", "is in EUR/kWh: expected a unit of a state of charge"),
        ("consumption_price_sensor", "power_sensor", "is in kW: expected a unit of price"),
        ("power_sensor", "price_sensor", "power_sensor: sensor"),
        ("power_sensor", "price_sensor", "is in EUR/kWh: expected a unit of power"),
    ],
)
async def test_a_sensor_of_another_kind_shows_before_any_call(
    start, app_config, flexmeasures_server, key, other, says
):
    home = await start(app_config | {key: getattr(flexmeasures_server.ids, other)})
    await home.checked()
    assert says in home.status().attributes["last_error"]


@pytest.mark.parametrize(
    ("name", "is_right"), [("inflexible-consumption", True), ("inflexible-production", False)]
)
async def test_a_load_of_the_other_sign_shows_before_any_call(
    start, app_config, flexmeasures_server, name, is_right
):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    loads = {"measurements": [{"entity": "sensor.house", "sensor": sensor}]}
    home = await start(app_config | loads | {"flex_context": {name: [{"sensor": sensor}]}})
    await home.checked()
    said = home.status().attributes["last_error"]
    if is_right:
        assert said is None
    else:
        assert (
            f"flex_context: sensor {sensor} under inflexible-production holds consumption as positive" in said
        )
        assert "name it under inflexible-consumption" in said


async def test_a_wrong_site_shows_before_any_call(start, app_config):
    home = await start(app_config | {"site": 99999})
    await home.checked()
    assert "Asset 99999 does not exist" in home.status().attributes["last_error"]


async def test_missing_prices_name_the_sensor(start, app_config, flexmeasures_server):
    empty = flexmeasures_server.ids.empty_price_sensor
    home = await start(app_config | {"consumption_price_sensor": empty})
    says = f"no prices for the planning window on sensor {empty}"
    await fails(home, HomeAssistantError, says, "error", "prices_missing", soc_at_start=4)


async def test_limits_that_cannot_be_met(home):
    says = "no schedule that meets all limits"
    raw = {"soc-min": "5 kWh", "soc-at-start": "1 kWh"}
    await refuses(home, says, soc_at_start=4, flex_model=raw)


async def test_limits_of_the_configuration_that_cannot_be_met(start, app_config):
    raw = {"soc-min": "5 kWh", "soc-at-start": "1 kWh"}
    home = await start(app_config | {"flex_model": raw})
    says = "no schedule that meets all limits"
    await fails(home, HomeAssistantError, says, "error", "infeasible", soc_at_start=4)


async def test_a_field_that_the_server_does_not_know(home):
    says = "soc-mox: Unknown field."
    await refuses(home, says, soc_at_start=4, flex_model={"soc-mox": "5 kWh"})


async def test_a_configured_field_that_the_server_does_not_know(start, app_config):
    home = await start(app_config | {"flex_model": {"soc-mox": "5 kWh"}})
    says = "does not accept the request for asset"
    text = await fails(home, HomeAssistantError, says, "error", "invalid_problem", soc_at_start=4)
    assert "soc-mox: Unknown field." in text


async def test_the_rate_limit_says_when_to_try_again(start, app_config, flexmeasures_server):
    limited = flexmeasures_server.limited
    home = await start(
        app_config
        | {
            "username": limited.username,
            "password": limited.password,
            "power_sensor": limited.power_sensor,
            "soc_sensor": limited.soc_sensor,
            "consumption_price_sensor": limited.price_sensor,
            "flex_context": {"consumption-price": "0.3 EUR/kWh", "production-price": "0.1 EUR/kWh"},
        }
    )
    with pytest.raises(HomeAssistantError) as caught:
        for _ in range(3):
            await home.plan(soc_at_start=4, duration="PT1H")
    assert re.search(r"asks to wait \(429\): try again in \d+ s$", str(caught.value))
    assert home.status().state == "error"
    assert home.notifications() == {}


async def test_a_job_that_takes_too_long(home):
    in_process.module_globals("flexmeasures_api.schedule_requests")["JOB_SECONDS"] = 0
    says = "did not finish within 0 seconds"
    await fails(home, HomeAssistantError, says, "error", "job_timed_out", soc_at_start=4, duration="P2D")


@at_one_home(
    ("data", "says"),
    [
        ({}, "soc_at_start is missing"),
        ({"soc_at_start": "full"}, "soc_at_start: expected a number in kWh"),
        ({"soc_at_start": "unavailable"}, "soc_at_start: expected a number in kWh"),
        ({"soc_at_start": -1}, "soc_at_start: expected a number in kWh"),
        ({"soc_at_start": 55}, "soc_at_start: 55 kWh is more than soc_max, 10 kWh: did you mean 55 %?"),
        ({"soc_at_start": "400 %"}, "soc_at_start: expected at most 100 %, but got '400 %'"),
        ({"soc_at_start": "sensor.car"}, "soc_at_start: sensor.car does not exist in Home Assistant"),
        (
            {"soc_at_start": 4, "soc_targets": [{"value": 80, "datetime": in_hours(3)}]},
            "soc_targets[0]: 80 kWh is more than soc_max, 10 kWh: did you mean 80 %?",
        ),
        ({"soc_at_start": 4, "start": in_hours(-300)}, "is in the past: leave it out"),
        ({"soc_at_start": 4, "duration": "a day"}, "duration: expected an ISO 8601 duration"),
        ({"soc_at_start": 4, "duration": "P400D"}, "at most P31D"),
        ({"soc_at_start": 4, "duration": "12"}, "an ISO 8601 duration of whole minutes above zero"),
        ({"soc_at_start": 4, "start": "soon"}, "start: expected a date and time"),
        ({"soc_at_start": 4, "soc_targets": [{"value": 9}]}, "soc_targets[0]: expected datetime"),
        ({"soc_at_start": 4, "soc_minima": 9}, "soc_minima: expected items such as"),
        (
            {"soc_at_start": 4, "soc_minima": {"value": 9, "datetime": "soon"}},
            "soc_minima.datetime: expected a date",
        ),
        (
            {"soc_at_start": 4, "soc_maxima": [{"value": "x", "datetime": in_hours(3)}]},
            "soc_maxima[0].value: exp",
        ),
        ({"soc_at_start": 4, "soc_targets": [{"value": 9, "datetime": in_hours(-3)}]}, "soc_targets[0]: "),
        ({"soc_at_start": 4, "flex_model": ["soc-max"]}, "flex_model: expected FlexMeasures' own fields"),
        ({"soc_at_start": 4, "flex_context": "x"}, "flex_context: expected FlexMeasures' own fields"),
        (
            {"soc_at_start": 4, "soc_target": []},
            "soc_target is not a field of this service: did you mean soc_targets?",
        ),
    ],
)
async def test_a_wrong_field_is_named(home, data, says):
    await refuses(home, says, **data)


async def test_an_entity_without_a_soc(start, app_config):
    home = await start(app_config | {"soc_entity": "sensor.battery"})
    await home.checked()
    with pytest.raises(HomeAssistantError, match=r"sensor\.battery does not exist"):
        await home.plan()
    home.hass.states.async_set("sensor.battery", "unavailable")
    with pytest.raises(HomeAssistantError, match=r"sensor\.battery is 'unavailable'"):
        await home.plan()


async def test_a_failure_keeps_the_schedule_and_a_success_clears_it(home):
    await home.plan(soc_at_start=4)
    home.updates.clear()
    in_process.module_globals("flexmeasures_api.schedule_requests")["JOB_SECONDS"] = 0
    says = "did not finish within 0 seconds"
    await fails(home, HomeAssistantError, says, "error", "job_timed_out", soc_at_start=4, duration="P2D")
    in_process.module_globals("flexmeasures_api.schedule_requests")["JOB_SECONDS"] = 300
    await home.plan(soc_at_start=4)
    assert home.notifications() == {}
    assert home.status().state == "ok"
    assert home.status().attributes["last_error"] is None


async def test_the_status_is_planning_meanwhile(home):
    seen = []
    home.hass.bus.async_listen(
        "state_changed",
        lambda event: event.data["entity_id"] == STATUS and seen.append(event.data["new_state"].state),
    )
    await home.plan(soc_at_start=4, duration="PT2H")
    await home.hass.async_block_till_done()
    assert seen[0] == "planning"
    assert seen[-1] == "ok"


async def test_a_reload_in_the_middle_of_a_plan_is_told_to_its_caller_alone(home, caplog):
    caplog.set_level(logging.DEBUG, "custom_components.pyscript")
    secrets = [home.device.configuration.password, home.device.link.client.access_token]
    calls = [asyncio.create_task(home.plan(soc_at_start=4, duration="P2D")) for _ in range(3)]
    await home.until(lambda: "schedules/trigger" in caplog.text)
    before = home.device
    await in_process.reload(home.hass, global_ctx="*")
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(answer) for answer in answers} == {"The scripts were reloaded meanwhile: call again"}
    await home.checked()
    assert home.status().state == "ok"
    assert home.notifications() == {}
    assert before.link.client.session.closed
    assert before.cancel_boundary is None
    for secret in secrets:
        assert secret not in caplog.text
    await home.plan(soc_at_start=4, duration="PT2H")


async def test_a_server_of_another_kind_is_no_flexmeasures_server(start, app_config, aiohttp_server):
    async def page(_request):
        return web.Response(status=404, text="<html>", content_type="text/html")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", page)
    server = await aiohttp_server(application)
    home = await start(app_config | {"host": f"http://127.0.0.1:{server.port}"})
    says = "There is no FlexMeasures server at"
    await fails(home, HomeAssistantError, says, "unreachable", None, soc_at_start=4)


async def test_what_a_server_echoes_is_shown_nowhere(start, app_config, aiohttp_server, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "gehe'im/ü1"

    async def echo(_request):
        text = f"no entry for {secret}, {repr(secret)[1:-1]}, geheim-token or its-own-token"
        return web.json_response({"message": text, "status": "INVALID_SENDER"}, status=403)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", echo)
    server = await aiohttp_server(application)
    config = {"host": f"http://127.0.0.1:{server.port}", "password": secret}
    tokens = {"token": "geheim-token", "resources": {"Home battery": {"token": "its-own-token"}}}
    home = await start(app_config | config | {"s2": app_config["s2"] | tokens})
    with pytest.raises(HomeAssistantError) as caught:
        await home.plan(soc_at_start=4)
    redacted = "no entry for **redacted**, **redacted**, **redacted** or **redacted**"
    assert redacted in str(caught.value)
    states = [state.as_dict() for state in home.hass.states.async_all()]
    for shown in (str(caught.value), repr(states), repr(home.notifications()), caplog.text):
        assert secret not in shown
        assert "geheim-token" not in shown
        assert "its-own-token" not in shown


async def test_no_secret_reaches_the_log_at_any_level(start, app_config, caplog):
    caplog.set_level(logging.DEBUG)
    home = await start(app_config)
    await home.checked()
    await home.plan(soc_at_start=4, duration="PT2H")
    client = home.device.link.client
    assert any("requestAuthToken" in record.getMessage() for record in caplog.records)
    for secret in (app_config["password"], client.access_token):
        assert secret not in caplog.text
        assert secret not in repr([state.as_dict() for state in home.hass.states.async_all()])
