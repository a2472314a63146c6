"""Plans that outlive a connection: over a reconnect, and over a restart."""

import asyncio
import json
import math

import pytest

import flexmeasures_cem.cem as cems
import flexmeasures_cem.kept_plans as kept_plans
import flexmeasures_optimiser.errors as optimiser_errors
from tests.modules.flexmeasures_cem.site_parts import (
    LULL,
    controlled,
    ids,
    introduce,
    of_type,
    planned,
    status,
    target_in,
)
from tests.modules.flexmeasures_cem.test_planner import (
    NOT_CONTROLABLE,
    charger,
    heat_pump,
    laundry,
    stepped,
    washing_machine,
)
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.parts.s2_messages import example

BATTERY = "b6a7f0d2-home"


def modes(rm) -> list[str]:
    """Return the modes that a battery was told, in order."""
    return [each["operation_mode"] for each in of_type(rm, "FRBC.Instruction")]


@pytest.fixture
async def site(site):
    """Return a site whose prices are known, and that sends an instruction a minute before its time."""
    site.site.lead = 60.0
    return site


def battery(site, **options):
    """Connect the battery, always the same."""
    return connected(site.cem, resource_id=BATTERY, **options)


async def first_planned(site):
    """Let the battery get its first plan, and leave."""
    async with battery(site) as rm:
        await introduce(rm)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]
        await until(lambda: controlled(site).kept.text)
        return controlled(site).plan


async def test_a_device_that_comes_back_is_told_at_once_and_flexmeasures_is_not_asked(site):
    plan = await first_planned(site)
    await asyncio.sleep(2)
    async with battery(site) as rm:
        begin = site.site.now()
        await introduce(rm)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]
        assert site.site.now() - begin < 0.5
        assert controlled(site).plan is plan
        assert not controlled(site).is_fallback
        await rm.ask(status("charge", 1.0))
        await planned(site, 1)
        assert modes(rm) == [ids("charge")[1]]


async def test_it_goes_on_with_its_day_while_the_server_is_away(site):
    await first_planned(site)
    site.error = optimiser_errors.Unreachable("the server is away")
    async with battery(site) as rm:
        await introduce(rm)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]
        discharge = next(each for each in controlled(site).plan.changes if each.mode == ids("discharge")[1])
        await asyncio.sleep(discharge.moment - site.site.now() - 50)
        assert modes(rm) == [ids("charge")[1], ids("discharge")[1]]


async def test_one_that_returns_again_and_again_has_its_plan_each_time(site):
    await first_planned(site)
    for _time in range(15):
        async with battery(site) as rm:
            await introduce(rm)
            assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]
            await asyncio.sleep(8.5)
    assert len(site.questions) == 1


async def test_its_plan_is_made_anew_where_it_tells_of_itself_in_another_way(site):
    await first_planned(site)
    async with battery(site) as rm:
        await rm.ask(target_in(hours=6))
        await introduce(rm)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]
        assert len(site.questions) == 1
        await planned(site, 2)


async def test_its_plan_is_made_anew_where_its_level_has_departed(site):
    await first_planned(site)
    async with battery(site) as rm:
        await introduce(rm, level=70)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]
        await planned(site, 2)


async def test_another_device_with_its_id_gets_a_plan_of_its_own(site):
    await first_planned(site)
    async with battery(site) as rm:
        text = json.dumps(example("FRBC.SystemDescription"))
        for label in ("idle", "charge", "discharge"):
            text = text.replace(ids(label)[1], f"other:{label}")
        await rm.ask(json.loads(text))
        await rm.ask(status() | {"active_operation_mode_id": "other:idle"})
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=50))
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == "other:charge"
        await planned(site, 2)


async def test_a_plan_that_is_over_is_not_resumed(site):
    await first_planned(site)
    site.ahead = 25 * 3600.0
    site.powers = [0] * 96
    async with battery(site) as rm:
        await introduce(rm)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        assert len(site.questions) == 2


async def test_it_is_under_the_same_control_type_again(site):
    types = ["OPERATION_MODE_BASED_CONTROL", NOT_CONTROLABLE]
    async with battery(site, control_types=types) as rm:
        await rm.ask(charger())
        await rm.next("OMBC.Instruction")
    async with battery(site, control_types=["FILL_RATE_BASED_CONTROL", *types]) as rm:
        assert rm.selected == "OPERATION_MODE_BASED_CONTROL"
    site.ahead = 25 * 3600.0
    async with battery(site, control_types=["FILL_RATE_BASED_CONTROL", *types]) as rm:
        assert rm.selected == "FILL_RATE_BASED_CONTROL"


def written(site) -> dict:
    """Return what is written of the battery's plan, read from a file again."""
    return json.loads(json.dumps(kept_plans.as_json(kept_plans.of(site.site, BATTERY))))


def restarted(site, kept) -> None:
    """Forget all that was planned, but for what a file has."""
    [resource] = site.cem.cem.resources.values()
    site.site.kept.clear()
    resource.planned_under = None
    kept_plans.recall(site.site, resource, kept)


async def test_a_plan_is_written_and_read(site):
    plan = await first_planned(site)
    restarted(site, written(site))
    assert site.site.kept[BATTERY].plan == plan
    assert site.site.kept[BATTERY].plan is not plan
    async with battery(site) as rm:
        await introduce(rm)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]
        await planned(site, 1)


async def test_the_plan_of_operation_modes_is_written_and_read(site):
    async with stepped(site, resource_id=BATTERY) as rm:
        await rm.ask(heat_pump())
        assert (await rm.next("OMBC.Instruction"))["operation_mode_id"] == "on"
        await until(lambda: controlled(site).kept.text)
        plan = controlled(site).plan
    restarted(site, written(site))
    assert site.site.kept[BATTERY].plan == plan
    async with stepped(site, resource_id=BATTERY) as rm:
        await rm.ask(heat_pump())
        assert (await rm.next("OMBC.Instruction"))["operation_mode_id"] == "on"
        assert controlled(site).is_resuming


async def test_a_washing_machine_that_comes_back_is_not_started_again(site):
    profile = laundry(site, hours=1)
    async with washing_machine(site, resource_id=BATTERY) as rm:
        await rm.ask(profile)
        start = await rm.next("PPBC.ScheduleInstruction")
        await until(lambda: controlled(site).kept.text)
        plan = controlled(site).plan
    restarted(site, written(site))
    assert site.site.kept[BATTERY].plan == plan
    site.ahead += 600.0
    async with washing_machine(site, resource_id=BATTERY) as rm:
        await rm.ask(profile)
        await until(lambda: controlled(site).plan)
        await asyncio.sleep(LULL)
        [container] = profile["power_sequences_containers"]
        told = {each["execution_time"] for each in of_type(rm, "PPBC.ScheduleInstruction")}
        assert told <= {start["execution_time"]}
        assert container["id"] == start["sequence_container_id"]


NO_PLAN = {
    "nothing": {},
    "a control type that is none": {"control_type": "x"},
    "a control type that is a list": {"control_type": ["x"]},
    "a plan that is a list": {"plan": "[]"},
    "a plan that is no text": {"plan": {}},
    "an end that never comes": {"plan": {"end": math.inf}},
    "an end beyond the calendar": {"plan": {"end": 1e300}},
    "a change without a moment": {"plan": {"changes": [{"power": 1.0}]}},
    "pieces that are none": {"plan": {"pieces": [[0.0, 1.0]]}},
    "a description that is a list": {"described": ["x"]},
    "digests that are numbers": {"described": {"x": 1}},
    "an answer that is a text": {"is_asked": "perhaps"},
    "a fallback that is a number": {"is_fallback": 7},
}


@pytest.mark.parametrize("wrong", NO_PLAN.values(), ids=NO_PLAN)
async def test_what_is_no_plan_is_refused(site, wrong):
    now = site.site.now()
    right = {
        "control_type": "OPERATION_MODE_BASED_CONTROL",
        "plan": {"start": now, "end": now + 60, "changes": [], "pieces": []},
        "is_fallback": False,
        "is_asked": None,
        "described": {"x": "y"},
    }
    resource = cems.Resource(BATTERY, "Home battery")

    def recall(each):
        plan = each.get("plan")
        text = json.dumps(right["plan"] | plan) if isinstance(plan, dict) and plan else plan
        kept_plans.recall(site.site, resource, each | {"plan": text} if "plan" in each else each)

    with pytest.raises((KeyError, TypeError, ValueError)):
        recall(right | wrong if wrong else wrong)
    assert kept_plans.of(site.site, BATTERY) is None
    recall(right)
    assert kept_plans.of(site.site, BATTERY).plan.end == now + 60
