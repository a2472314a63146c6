"""What runs without being asked: measurements and plans, in Home Assistant with the real server."""

import asyncio
from datetime import UTC, datetime, timedelta

import homeassistant.util.dt as dt_util
import pytest
from aiohttp import web
from homeassistant.core import callback

from tests.apps.flexmeasures.conftest import STATUS
from tests.parts import in_process, trials
from tests.parts.home_assistant import free_port

QUARTER, MINUTE, SECOND = timedelta(minutes=15), timedelta(minutes=1), timedelta(seconds=1)
KWH = {"unit_of_measurement": "kWh"}


def next_quarter(moment: datetime) -> datetime:
    """Return the first quarter after a moment."""
    return datetime.fromtimestamp((moment.timestamp() // 900 + 1) * 900, UTC)


def next_plan(home) -> datetime:
    """Return when the status says that it will be planned next."""
    return datetime.fromisoformat(home.status().attributes["next_plan"])


def waiting(home) -> int:
    """Return how many values wait."""
    return home.status().attributes["outbox"]


@pytest.fixture
def states(hass):
    """Return a function that sets the battery's state of charge and the grid's power."""

    def say(soc, grid=None):
        hass.states.async_set("sensor.battery", soc, KWH)
        if grid is not None:
            hass.states.async_set("sensor.grid", grid, {"unit_of_measurement": "W"})

    return say


async def test_powers_and_the_soc_reach_the_server_also_after_it_was_away(
    start, app_config, flexmeasures_server, clock, states
):
    grid = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    soc = await asyncio.to_thread(flexmeasures_server.add_sensor, "kWh", 0)
    first = next_quarter(datetime.now(UTC) + timedelta(days=3))
    clock.move_to(first - MINUTE)
    states("4", "0")
    measurements = [{"entity": "sensor.grid", "sensor": grid}]
    home = await start(
        app_config | {"soc_entity": "sensor.battery", "soc_sensor": soc, "measurements": measurements}
    )
    await home.checked()
    await home.tick_to(clock, first + SECOND)
    await home.until(lambda: waiting(home) == 0)
    states("5", "2000")
    await home.tick_to(clock, first + QUARTER + SECOND)
    await home.until(lambda: waiting(home) == 0)
    flexmeasures_server.stop_web()
    try:
        for number in range(2, 6):
            states(str(4 + number), "unavailable" if number == 3 else str(1000 * number))
            await home.tick_to(clock, first + number * QUARTER + SECOND)
        await home.until(lambda: home.status().state == "unreachable" and waiting(home) == 7)
        states("3", "0")
        await in_process.reload(home.hass, global_ctx="*")
        assert waiting(home) == 7
        await home.tick_to(clock, first + 6 * QUARTER + SECOND)
    finally:
        flexmeasures_server.start_web()
    await home.tick_to(clock, first + 6 * QUARTER + 30 * SECOND)
    await home.until(lambda: waiting(home) == 0)
    stored = dict(await asyncio.to_thread(flexmeasures_server.beliefs, grid))
    assert len(await asyncio.to_thread(flexmeasures_server.beliefs, grid)) == len(stored)
    assert [(start - first) / QUARTER for start in stored] == [0, 1, 3, 4, 5]
    assert list(stored.values()) == pytest.approx([2, 2, 4, 5, 0], abs=0.02)
    levels = await asyncio.to_thread(flexmeasures_server.beliefs, soc)
    assert levels == [(first + n * QUARTER, level) for n, level in enumerate([4, 5, 6, 7, 8, 9, 3])]
    assert home.status().state == "ok"


async def test_a_wrong_sensor_of_a_measurement_shows_at_once(start, app_config, states):
    states("4", "0")
    home = await start(app_config | {"measurements": [{"entity": "sensor.grid", "sensor": 99999}]})
    await home.checked()
    assert "Sensor 99999" in home.status().attributes["last_error"]
    assert home.status().state == "error"


@pytest.mark.parametrize(
    ("resolution", "says"),
    [
        ("PT20M", "duration or resolution: each value would stand for 0:20:00"),
        ("PT5M", "measurements: a resolution of 0:05:00 is finer than the 0:15:00 of sensor"),
    ],
)
async def test_a_resolution_that_does_not_fit_shows_at_once(
    start, app_config, flexmeasures_server, resolution, says
):
    sensor = flexmeasures_server.ids.power_sensor
    item = {"entity": "sensor.grid", "sensor": sensor, "resolution": resolution}
    home = await start(app_config | {"measurements": [item]})
    await home.checked()
    assert says in home.status().attributes["last_error"]


@pytest.fixture
def cron_config(app_config):
    """Return a configuration that plans each quarter."""
    return app_config | {"cron": "*/15 * * * *", "soc_entity": "sensor.battery", "schedule_duration": "PT4H"}


async def planned(home, times):
    """Wait until it was planned so many times, and all has come to rest."""
    await home.until(lambda: len(home.updates) == times and home.status().state != "planning", 60)


async def test_it_plans_at_once_and_then_at_each_time(start, cron_config, clock, states):
    states("4")
    clock.move_to(next_quarter(datetime.now(UTC)) + SECOND)
    home = await start(cron_config)
    await planned(home, 1)
    for number, soc in enumerate(["5", "6"], start=2):
        due = next_plan(home)
        assert due == next_quarter(datetime.now(UTC))
        assert home.status().attributes["next_plan"] == dt_util.as_local(due).isoformat()
        states(soc)
        await home.tick_to(clock, due + SECOND)
        await planned(home, number)
        assert home.schedule().attributes["soc"][0] == float(soc)
        assert datetime.fromisoformat(home.schedule().attributes["start"]) == due
        assert home.schedule().state != "unknown"
    assert home.status().state == "ok"


async def test_a_reload_plans_only_if_a_time_was_missed(start, cron_config, clock, states):
    states("4")
    home = await start(cron_config)
    await planned(home, 1)
    clock.move_to(next_plan(home) - MINUTE)
    await in_process.reload(home.hass, global_ctx="*")
    await home.checked()
    await asyncio.sleep(0.2)
    assert len(home.updates) == 1
    clock.move_to(next_plan(home) + 20 * MINUTE)
    await in_process.reload(home.hass, global_ctx="*")
    await planned(home, 2)


async def test_a_failed_plan_is_tried_again_with_back_off(
    start, cron_config, clock, states, flexmeasures_server
):
    states("unavailable")
    clock.move_to(next_quarter(datetime.now(UTC)) + SECOND)
    home = await start(cron_config)
    pauses = []
    for _ in range(3):
        await home.until(lambda: home.status().state == "error")
        assert "soc_entity: sensor.battery is 'unavailable'" in home.status().attributes["last_error"]
        assert home.notifications() == {}
        due = next_plan(home)
        pauses.append(due - datetime.now(UTC))
        await home.tick_to(clock, due - SECOND)
        await home.tick_to(clock, due + SECOND)
        await home.until(lambda due=due: home.status().state == "error" and next_plan(home) != due)
    assert [round(pause / timedelta(seconds=30)) for pause in pauses] == [1, 2, 4]
    states("4")
    await home.tick_to(clock, next_plan(home) + SECOND)
    await planned(home, 1)
    assert next_plan(home) == next_quarter(datetime.now(UTC))
    assert home.status().state == "ok"


async def test_a_plan_is_made_at_once_when_the_server_is_back(
    start, cron_config, clock, states, flexmeasures_server
):
    states("4")
    flexmeasures_server.stop_web()
    try:
        home = await start(cron_config)
        await home.until(lambda: home.device.cron.has_failed)
        await home.tick_to(clock, next_plan(home) + SECOND)
        await home.until(lambda: home.device.cron.backoff.seconds == 60)
    finally:
        flexmeasures_server.start_web()
    await home.tick_to(clock, datetime.now(UTC) + timedelta(seconds=21))
    await planned(home, 1)
    assert home.status().state == "ok"
    assert home.notifications() == {}


async def test_what_is_refused_for_good_is_not_asked_again_before_its_time(start, cron_config, clock, states):
    states("4")
    clock.move_to(next_quarter(datetime.now(UTC)) + SECOND)
    home = await start(cron_config | {"flex_model": {"soc-mox": "5 kWh"}})
    await home.until(lambda: "flexmeasures_invalid_problem" in home.notifications())
    assert next_plan(home) == next_quarter(datetime.now(UTC))


async def test_the_servers_retry_after_is_honoured_up_to_a_quarter_of_an_hour(
    start, cron_config, flexmeasures_server, states
):
    limited = flexmeasures_server.limited
    states("4")
    home = await start(
        cron_config
        | {
            "username": limited.username,
            "password": limited.password,
            "power_sensor": limited.power_sensor_60min,
            "soc_sensor": limited.soc_sensor,
            "consumption_price_sensor": limited.price_sensor,
            "flex_context": {"consumption-price": "0.3 EUR/kWh", "production-price": "0.1 EUR/kWh"},
        }
    )
    await home.until(lambda: home.updates or home.status().attributes["last_error"])
    with pytest.raises(Exception, match="429"):
        for _ in range(3):
            await home.plan(soc_at_start=4)
    assert "try again in" in home.status().attributes["last_error"]
    assert timedelta(minutes=14) < next_plan(home) - datetime.now(UTC) <= timedelta(minutes=15)
    assert home.notifications() == {}


async def test_a_busy_server_is_left_alone_as_long_as_it_asks(start, app_config, aiohttp_server, clock):
    seen = []

    async def busy(request):
        seen.append(request.path)
        return web.json_response({"message": "busy"}, status=503, headers={"Retry-After": "120"})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", busy)
    server = await aiohttp_server(application)
    home = await start(app_config | {"host": f"http://127.0.0.1:{server.port}"})
    answer = await home.call("post_measurements", sensor_id=1, values=1)
    assert answer == {"delivered": False, "values": 1, "outbox": 1}
    assert "try again in 120 s" in home.status().attributes["last_error"]
    assert home.status().state == "unreachable"
    tried = len(seen)
    answer = await home.call("post_measurements", sensor_id=1, values=2)
    assert answer == {"delivered": False, "values": 1, "outbox": 2}
    assert len(seen) == tried


async def test_two_plans_never_run_at_once(start, cron_config, states):
    states("4")
    home = await start(cron_config)
    running, most = 0, 0
    original = home.device.link.client.request

    async def request(*given, **named):
        nonlocal running, most
        if "trigger" in named.get("uri", ""):
            running += 1
            most = max(most, running)
        return await original(*given, **named)

    home.device.link.client.request = request
    home.hass.bus.async_listen("flexmeasures_schedule_updated", callback(lambda _event: finish()))

    def finish():
        nonlocal running
        running -= 1

    calls = [asyncio.create_task(home.plan(soc_at_start=4, duration="PT2H")) for _ in range(3)]
    for _ in range(5):
        home.device.cron.plan_now()
    await asyncio.gather(*calls)
    await home.until(lambda: home.status().state == "ok")
    assert most == 1
    assert len(home.updates) <= 5


async def test_the_status_and_one_notification_over_a_whole_outage(start, cron_config, clock, states, caplog):
    states("4")
    home = await start(cron_config | {"host": f"http://127.0.0.1:{free_port()}"})
    await home.checked()
    await home.until(lambda: home.status().state == "unreachable")
    assert home.notifications() == {}
    for _ in range(20):
        await home.tick_to(clock, datetime.now(UTC) + MINUTE)
        await asyncio.sleep(0.05)
    await home.until(lambda: list(home.notifications()) == ["flexmeasures_unreachable"])
    ours = [r.getMessage() for r in caplog.records if r.name == "custom_components.pyscript.flexmeasures"]
    assert len([text for text in ours if "cannot be reached" in text]) == 1
    assert set(home.status().attributes) >= {"last_success", "last_error", "next_plan", "outbox"}


async def test_the_server_is_found_again_without_a_plan(home, flexmeasures_server, clock, caplog):
    flexmeasures_server.stop_web()
    try:
        with pytest.raises(Exception, match="cannot be reached"):
            await home.plan(soc_at_start=4)
        assert home.status().state == "unreachable"
    finally:
        flexmeasures_server.start_web()
    await home.tick_to(clock, datetime.now(UTC) + 11 * SECOND)
    await home.until(lambda: home.status().state == "ok")
    ours = [r.getMessage() for r in caplog.records if r.name == "custom_components.pyscript.flexmeasures"]
    assert len([text for text in ours if text.startswith("Resolved:")]) == 1
    assert home.status().attributes["last_error"] is None


async def test_a_server_that_answers_but_takes_nothing_is_asked_ever_less_often(home, clock, caplog):
    async def refuse(*_given, **_named):
        raise ConnectionError("no way through")

    home.device.link.client.post_sensor_data = refuse
    await home.call("post_measurements", sensor_id=1, values=1)
    pauses = []
    for _ in range(3):
        await home.until(lambda: home.device.server_check.done() is False)
        before = home.device.check_pause
        await home.tick_to(clock, datetime.now(UTC) + timedelta(seconds=before + 1))
        await home.until(lambda before=before: home.device.check_pause != before)
        pauses.append(home.device.check_pause)
        assert home.status().state == "unreachable"
    assert pauses == [20, 40, 80]
    ours = [r.getMessage() for r in caplog.records if r.name == "custom_components.pyscript.flexmeasures"]
    assert len([text for text in ours if "cannot be reached" in text]) == 1


@pytest.mark.usefixtures("early_in_a_quarter")
async def test_reloads_leave_one_of_everything(start, cron_config, states, flexmeasures_server):
    grid = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    states("4", "1000")
    home = await start(cron_config | {"measurements": [{"entity": "sensor.grid", "sensor": grid}]})
    await planned(home, 1)
    shown = home.schedule()
    seen = []
    home.hass.bus.async_listen(
        "state_changed",
        callback(
            lambda event: event.data["entity_id"] == STATUS and seen.append(event.data["new_state"].state)
        ),
    )
    await in_process.reload(home.hass, global_ctx="*")
    before = leftovers(home.hass)
    for _ in range(20 if trials.is_long else 5):
        await in_process.reload(home.hass, global_ctx="*")
        assert home.schedule().state == shown.state
        assert home.schedule().attributes == shown.attributes
    await home.until(lambda: all(a <= b for a, b in zip(leftovers(home.hass), before, strict=True)))
    assert len(home.updates) == 1
    assert set(seen) <= {"ok"}
    meters = home.device.measurements.meters
    assert [meter.entity for meter in meters] == ["sensor.battery", "sensor.grid"]
    assert meters[1].interval.known_seconds > 0


def leftovers(hass) -> tuple[int, int]:
    """Return how many tasks of ours run, and how many listeners there are for changes of states."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("flexmeasures")]
    return len(tasks), sum(hass.bus.async_listeners().values())


async def test_it_plans_as_soon_as_the_state_of_charge_is_known(start, cron_config, clock, states):
    states("unavailable")
    clock.move_to(next_quarter(datetime.now(UTC)) + SECOND)
    home = await start(cron_config)
    await home.until(lambda: home.status().state == "error")
    states("4")
    await planned(home, 1)
    assert home.status().state == "ok"


async def test_daily_targets_are_those_of_each_plan(start, cron_config, clock, states):
    states("4")
    in_two_hours = next_quarter(datetime.now(UTC)) + timedelta(hours=2)
    at = dt_util.as_local(in_two_hours)
    other_day = (at + timedelta(days=1)).strftime("%a")
    targets = [
        {"value": "90 %", "time": at.strftime("%H:%M"), "weekdays": [at.strftime("%a")]},
        {"value": "20 %", "time": at.strftime("%H:%M"), "weekdays": other_day},
    ]
    home = await start(cron_config | {"soc_targets": targets})
    await planned(home, 1)
    shown = home.schedule().attributes
    quarters = (in_two_hours - datetime.fromisoformat(shown["start"])) // QUARTER
    assert shown["soc"][quarters] == pytest.approx(9, abs=0.01)
    assert shown["missed_targets"] == []


async def test_one_odd_reading_is_neither_planned_on_nor_posted(
    start, cron_config, clock, states, flexmeasures_server, caplog
):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kWh", 0)
    states("5.5")
    first = next_quarter(datetime.now(UTC) + timedelta(days=1))
    clock.move_to(first + SECOND)
    home = await start(cron_config | {"soc_sensor": sensor})
    await planned(home, 1)
    await home.tick_to(clock, first + QUARTER - 2 * SECOND)
    states("0")
    await home.tick_to(clock, first + QUARTER + SECOND)
    await planned(home, 2)
    states("5.5")
    [warning] = home.schedule().attributes["warnings"]
    assert "says 0.00 kWh, which its power cannot explain" in warning
    assert home.schedule().attributes["soc"][0] > 3
    await home.tick_to(clock, first + 2 * QUARTER + SECOND)
    await planned(home, 3)
    assert home.schedule().attributes["warnings"] == []
    await home.until(lambda: waiting(home) == 0)
    told = await home.call(
        "get_measurements", sensor_id=sensor, start=first.isoformat(), duration="PT45M", resolution="PT15M"
    )
    assert min(value for value in told["values"] if value is not None) > 3


@pytest.mark.parametrize("key", ["soc_entity", "measurements"])
async def test_an_entity_that_does_not_exist_is_told_within_a_minute(start, app_config, clock, states, key):
    states("4", "2000")
    item = [{"entity": "sensor.gird", "sensor": app_config["power_sensor"]}]
    wrong = {"soc_entity": "sensor.batery"} if key == "soc_entity" else {"measurements": item}
    home = await start(app_config | wrong)
    await home.checked()
    assert home.status().state == "ok"
    await home.tick_to(clock, datetime.now(UTC) + 31 * SECOND)
    meant = "sensor.battery" if key == "soc_entity" else "sensor.grid"
    [text] = home.notifications().values()
    assert text.startswith(f"{key}: ")
    assert text.endswith(f"does not exist in Home Assistant: did you mean {meant}?")
    home.hass.states.async_set("sensor.batery", "4", KWH)
    home.hass.states.async_set("sensor.gird", "2", {"unit_of_measurement": "kW"})
    await home.tick_to(clock, datetime.now(UTC) + 61 * SECOND)
    assert home.notifications() == {}


async def test_a_power_is_posted_in_the_sensors_sign(start, app_config, flexmeasures_server, clock):
    battery, roof = [
        await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15, False) for _sensor in range(2)
    ]
    first = next_quarter(datetime.now(UTC) + timedelta(days=5))
    clock.move_to(first - MINUTE)
    items = [
        {"entity": "sensor.battery_power", "sensor": battery},
        {"entity": "sensor.roof", "sensor": roof, "positive": "production"},
    ]
    home = await start(app_config | {"measurements": items})
    await home.checked()
    for entity in ("sensor.battery_power", "sensor.roof"):
        home.hass.states.async_set(entity, "2000", {"unit_of_measurement": "W"})
    await home.tick_to(clock, first + SECOND)
    await home.tick_to(clock, first + QUARTER + SECOND)
    await home.until(lambda: waiting(home) == 0)
    assert (await asyncio.to_thread(flexmeasures_server.beliefs, battery))[-1] == (first, pytest.approx(-2))
    assert (await asyncio.to_thread(flexmeasures_server.beliefs, roof))[-1] == (first, pytest.approx(2))


async def test_what_keeps_regular_plans_from_being_made_is_told(start, cron_config, states):
    states("9.5")
    home = await start(cron_config | {"flex_model": {"soc-max": "8 kWh"}})
    await home.until(lambda: home.status().state == "error")
    assert home.status().attributes["last_error"] == "soc_at_start: 9.5 kWh is more than soc_max, 8 kWh"
    assert "flexmeasures_failed" in home.notifications()


async def test_a_reload_forgets_an_entity_that_was_wrong(start, app_config, clock, states):
    states("4")
    home = await start(app_config | {"soc_entity": "sensor.batery"})
    await home.checked()
    before = home.device
    await in_process.reload(home.hass, global_ctx="*")
    await home.checked()
    home.device.configuration.soc_entity = "sensor.battery"
    before.status.problems.clear()
    await home.tick_to(clock, datetime.now(UTC) + 31 * SECOND)
    assert before.status.problems == {}
    assert home.notifications() == {}


async def test_prices_that_arrive_after_a_restart_replace_no_plan_of_unknown_wishes(
    start, app_config, flexmeasures_server, clock
):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "EUR/kWh", 60)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    known_at = hour - timedelta(hours=1)
    post = flexmeasures_server.post_hours
    await asyncio.to_thread(post, sensor, hour, [0.3] * 2, "EUR/kWh", known_at)
    home = await start(app_config | {"consumption_price_sensor": sensor})
    await home.plan(soc_at_start=4)
    await in_process.reload(home.hass, global_ctx="*")
    await home.checked()
    await asyncio.to_thread(post, sensor, hour, [0.3] * 12, "EUR/kWh", known_at)
    await home.tick_to(clock, datetime.now(UTC) + 6 * MINUTE)
    await home.until(lambda: home.device.replanning and home.device.replanning.done())
    assert len(home.updates) == 1
