"""What is done for all S2 devices together, and what becomes of it."""

import asyncio
import functools
from types import SimpleNamespace

import pytest
from homeassistant.exceptions import HomeAssistantError

import flexmeasures_api.errors as errors
import flexmeasures_cem.cem as cems
import flexmeasures_home.kept as kept
import flexmeasures_home.resources as resources
import flexmeasures_home.site_plan as site_plan
import flexmeasures_home.status as statuses
from flexmeasures_api.provisioning import DeviceIds
from flexmeasures_cem.market import Connection
from flexmeasures_home.telemetry import Telemetry


@pytest.mark.parametrize(
    ("problem_key", "error", "was_away", "is_planned"),
    [
        ("measurements", errors.Unreachable("x"), False, False),
        ("measurements", errors.Unreachable("x"), True, True),
        (site_plan.PROBLEM_KEY, errors.Unreachable("x"), False, True),
        (site_plan.PROBLEM_KEY, errors.Unauthorized("x"), False, True),
        (site_plan.PROBLEM_KEY, errors.RateLimited("x", 60), False, False),
    ],
)
async def test_devices_that_have_a_plan_get_another_only_where_their_own_failed(
    hass, monkeypatch, problem_key, error, was_away, is_planned
):
    planned, status = [], statuses.Status(hass)
    monkeypatch.setattr(resources.triggers, "plan_soon", planned.append)
    status.fail_with(problem_key, error)
    device = SimpleNamespace(is_fallback=False, plan="a plan", is_returning=False)
    site = SimpleNamespace(controlled={"battery": device})
    resources.retry_now(SimpleNamespace(status=status, site=site, retry=asyncio.Event()), was_away)
    assert planned == [site] * is_planned


@pytest.fixture
def side(hass, tmp_path, monkeypatch):
    """Return the S2 side of an app, with a device that takes each control type."""
    hass.config.config_dir = str(tmp_path)
    status = statuses.Status(hass)
    store = kept.KeptFile(hass, status, "resources", "the S2 devices")
    session = SimpleNamespace(
        control_type=None,
        selection_lock=asyncio.Lock(),
        details=SimpleNamespace(available_control_types=[SimpleNamespace(value="NOT_CONTROLABLE")]),
    )
    resource = cems.Resource("a", "Home battery", session=session, last_session=session)

    async def select(_cem, _resource, its_session, wanted):
        its_session.control_type = wanted
        return SimpleNamespace(status=SimpleNamespace(value="OK"))

    monkeypatch.setattr(cems, "select", select)
    monkeypatch.setattr(resources, "content", lambda side: {"choice": resource.choice})
    cem = cems.Cem(None, None, resources={"a": resource})
    return SimpleNamespace(status=status, store=store, cem=cem)


async def test_a_control_type_that_was_selected_but_not_written_is_told_to_the_caller(side, tmp_path):
    call = {"control_type": "NOT_CONTROLABLE"}
    (tmp_path / ".storage").write_text("a file where the folder should be")
    with pytest.raises(HomeAssistantError) as caught:
        await resources.change_control_type(side, call)
    assert "control_type: Home battery is under NOT_CONTROLABLE now" in str(caught.value)
    assert "only until a restart or reload: " in str(caught.value)
    assert "cannot be written (FileExistsError" in str(caught.value)
    assert side.cem.resources["a"].session.control_type == "NOT_CONTROLABLE"
    (tmp_path / ".storage").unlink()
    answer = await resources.change_control_type(side, call)
    assert answer == {"resource_id": "a", "control_type": "NOT_CONTROLABLE"}
    assert side.status.problems == {}


@pytest.fixture
def telemetry():
    """Return what is known of a device that is connected."""
    resource = SimpleNamespace(resource_id="a", name="Home battery", session="its session")
    return SimpleNamespace(resource=resource, are_sensors_checked=False, soc_sensor=None)


async def test_a_search_for_sensors_that_fails_unexpectedly_is_told_and_begun_again(
    hass, monkeypatch, clock, telemetry
):
    status, begun = statuses.Status(hass), []

    async def find(_side, _telemetry):
        begun.append(clock.time())
        if len(begun) < 3:
            raise KeyError("generic_asset_id")

    monkeypatch.setattr(resources, "find_sensors", find)
    side = SimpleNamespace(hass=hass, status=status, learning={})
    resources.learn_sensors(side, telemetry)
    await asyncio.sleep(1)
    told = hass.states.get(statuses.ENTITY_ID).attributes["last_error"]
    assert told.startswith("The search for the sensors of Home battery (a) failed unexpectedly (KeyError: ")
    await asyncio.sleep(20)
    assert len(begun) == 3
    assert (side.learning, status.problems) == ({}, {})


async def test_a_search_that_is_ended_while_it_fails_leaves_nothing_behind(
    hass, monkeypatch, clock, telemetry
):
    status = statuses.Status(hass)

    async def find(_side, _telemetry):
        raise KeyError("generic_asset_id")

    monkeypatch.setattr(resources, "find_sensors", find)
    side = SimpleNamespace(hass=hass, status=status, learning={})
    resources.learn_sensors(side, telemetry)
    await asyncio.sleep(1)
    assert status.problems
    side.learning["a"].cancel()
    await asyncio.sleep(1)
    assert (side.learning, status.problems) == ({}, {})


async def test_a_listener_whose_start_fails_unexpectedly_is_told_and_started_again(hass, clock):
    status, tries = statuses.Status(hass), []

    async def start():
        tries.append(clock.time())
        if len(tries) < 4:
            raise RuntimeError("x" * 1000)

    s2 = SimpleNamespace(certificate=None, host="127.0.0.1", port=1, path="/s2", is_configured=True)
    listener, given = SimpleNamespace(start=start), SimpleNamespace(s2=s2)
    side = SimpleNamespace(status=status, listener=listener, given=given)
    assert not await resources.listens_at_once(side)
    work = resources.tasks.supervise(status, "start of the S2 listener", lambda: resources.keep_trying(side))
    await asyncio.sleep(1)
    told = hass.states.get(statuses.ENTITY_ID).attributes["last_error"]
    assert told.startswith("The start of the S2 listener failed unexpectedly (RuntimeError: xxx")
    assert len(told) < 250
    await work
    assert len(tries) == 4
    assert status.problems == {}


async def test_a_plan_that_cannot_be_written_keeps_nothing_else_from_being_saved(hass, monkeypatch):
    status = statuses.Status(hass)
    side = SimpleNamespace(status=status, site=None)
    monkeypatch.setattr(resources.kept_plans, "of", lambda _site, _resource_id: "a plan")

    def fail(_kept):
        raise ValueError("no JSON")

    monkeypatch.setattr(resources.kept_plans, "as_json", fail)
    assert resources.plan_as_json(side, "a") == {}
    assert "The writing of the plan of a failed unexpectedly (ValueError: no JSON)" in (
        status.problems["task writing of the plan of a"].text
    )
    monkeypatch.setattr(resources.kept_plans, "as_json", lambda kept: kept)
    assert resources.plan_as_json(side, "a") == {"plan": "a plan"}
    assert status.problems == {}


@pytest.fixture
def house_of_names(hass, monkeypatch):
    """Return a side whose s2.resources list sensors by a name, and a function that has a device connect."""
    listed = {
        "Battery": {"power_sensor": 7, "soc_sensor": 8, "cycle_cost": 0.04},
        "by-id": {"power_sensor": 9},
    }
    side = SimpleNamespace(
        status=statuses.Status(hass),
        given=SimpleNamespace(s2=SimpleNamespace(resources=listed, auto_provision=True)),
        meters=SimpleNamespace(sensors={}),
        telemetry={},
        searches=[],
    )
    monkeypatch.setattr(
        resources,
        "learn_sensors",
        lambda _side, telemetry: side.searches.append(telemetry.resource.resource_id),
    )

    def connect(resource_id, name="Battery"):
        if resource_id not in side.telemetry:
            resource = cems.Resource(resource_id, name)
            telemetry = Telemetry(
                hass, SimpleNamespace(status=side.status), resource, f"sensor.{resource_id}"
            )
            side.telemetry[resource_id] = telemetry
            resources.use_sensors(side, telemetry)
        telemetry = side.telemetry[resource_id]
        telemetry.resource.session, telemetry.resource.name = "its session", name
        resources.assign_listed(side, telemetry)
        return telemetry

    return side, connect


async def test_what_is_listed_by_a_name_is_not_for_another_that_takes_it(house_of_names):
    side, connect = house_of_names
    battery, impostor = connect("battery"), connect("impostor")
    assert battery.ids.power_sensor == 7
    assert impostor.ids == DeviceIds()
    assert side.searches == []
    told = side.status.problems["s2 measurements of impostor"].text
    assert "battery has the same name, and the item of s2.resources with that name" in told


async def test_who_is_known_longer_gets_back_what_is_listed_by_its_name(house_of_names):
    side, connect = house_of_names
    battery = connect("battery")
    battery.resource.session = None
    impostor = connect("impostor")
    assert impostor.ids.power_sensor == 7
    connect("battery")
    assert (battery.ids.power_sensor, impostor.ids.power_sensor) == (7, None)
    assert side.searches == ["impostor"]
    impostor.resource.session = None
    connect("impostor")
    assert (battery.ids.power_sensor, impostor.ids.power_sensor) == (7, None)


async def test_a_name_does_not_take_what_is_listed_by_a_resource_id(house_of_names):
    _side, connect = house_of_names
    listed, impostor = connect("by-id", "Heat pump"), connect("impostor", "Heat pump")
    assert (listed.ids.power_sensor, impostor.ids.power_sensor) == (9, None)
    assert connect("battery").ids.power_sensor == 7


async def test_who_has_a_token_is_forgotten_last(house_of_names, hass):
    side, connect = house_of_names
    side.cem = SimpleNamespace(with_token={"battery"}, resources={})
    for resource_id in ("battery", "chosen", "any"):
        telemetry = connect(resource_id, resource_id)
        telemetry.resource.session = None
    side.telemetry["chosen"].resource.choice = "NOT_CONTROLABLE"
    key = functools.partial(resources.forget_order, side)
    assert sorted(side.telemetry, key=key) == ["any", "chosen", "battery"]


async def test_wear_costs_what_is_listed_and_else_nothing(house_of_names):
    _side, connect = house_of_names
    assert (connect("battery").cycle_cost, connect("by-id", "Heat pump").cycle_cost) == (0.04, 0.0)


@pytest.mark.parametrize(
    ("connection", "is_planned"),
    [
        (Connection(), False),
        (Connection(power_capacity=17_000.0), True),
        (Connection(production_capacity=0.0), True),
        (Connection(peak_consumption=2500.0, peak_price=4.0), True),
    ],
)
def test_the_own_schedule_counts_for_others_where_the_connection_couples_them(
    monkeypatch, connection, is_planned
):
    planned, site = [], SimpleNamespace(connection=connection)
    monkeypatch.setattr(resources.triggers, "plan_soon", planned.append)
    resources.own_schedule_changed(SimpleNamespace(site=site))
    assert planned == [site] * is_planned
