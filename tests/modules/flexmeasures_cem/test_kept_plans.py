"""Plans that outlive a connection: over a reconnect, and over a restart."""

import asyncio
import copy
import json
import math
from datetime import datetime, timedelta

import pytest

import flexmeasures_api.errors as api_errors
import flexmeasures_cem.cem as cems
import flexmeasures_cem.market as markets
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.kept_plans as kept_plans
from tests.modules.flexmeasures_cem.site_parts import (
    FRBC,
    LULL,
    controlled,
    ids,
    introduce,
    now,
    of_type,
    planned,
    revocation,
    status,
    target_in,
)
from tests.modules.flexmeasures_cem.test_planner import (
    NOT_CONTROLABLE,
    charger,
    heat_pump,
    laundry,
    operation_mode,
    stepped,
    together_at,
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
        await until(lambda: not controlled(site).is_fallback and ids("charge")[1] in modes(rm))
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
    site.error = api_errors.Unreachable("the server is away")
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
    "pieces that are none": {"plan": {"pieces": [{"start": 0.0, "end": 1.0}]}},
    "pieces as earlier versions wrote them": {"plan": {"pieces": [[0.0, 1.0, 2000.0]]}},
    "a description that is a list": {"described": ["x"]},
    "digests that are numbers": {"described": {"x": 1}},
    "an answer that is a text": {"is_asked": "perhaps"},
    "a fallback that is a number": {"is_fallback": 7},
    "a moment that is a text": {"sent_until": "soon"},
}


@pytest.mark.parametrize("wrong", NO_PLAN.values(), ids=NO_PLAN)
async def test_what_is_no_plan_is_refused(site, wrong):
    begin = site.site.now()
    right = {
        "control_type": "OPERATION_MODE_BASED_CONTROL",
        "plan": {"start": begin, "end": begin + 60, "changes": [], "pieces": []},
        "is_fallback": False,
        "is_asked": None,
        "obeys_at_once": False,
        "described": {"x": "y"},
        "sent_until": None,
        "is_chosen": True,
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
    assert kept_plans.of(site.site, BATTERY).plan.end == begin + 60


# A device that comes back in another state


def ombc_status(mode, **fields) -> dict:
    """Return an OMBC.Status."""
    return operation_mode(mode, 1.0) | fields


def with_steps() -> dict:
    """Return the description of a charger that goes from off to low, and from there to on."""
    described = charger()
    low = copy.deepcopy(described["operation_modes"][1])
    low["id"] = low["diagnostic_label"] = "low"
    low["power_ranges"][0] |= {"start_of_range": 1000, "end_of_range": 1000}
    low["running_costs"] = {"start_of_range": 50 / 3600, "end_of_range": 50 / 3600}
    ways = [("off", "low"), ("low", "on"), ("on", "low"), ("low", "off")]
    transitions = [
        described["transitions"][0] | {"id": f"{begin}-{end}", "from": begin, "to": end}
        for begin, end in ways
    ]
    return described | {"operation_modes": [*described["operation_modes"], low], "transitions": transitions}


def ombc_told(rm) -> list[str]:
    """Return the modes that a device was told under operation mode based control."""
    return [each["operation_mode_id"] for each in of_type(rm, "OMBC.Instruction")]


async def test_one_that_starts_anew_is_led_through_its_transitions_again(site):
    for label in ("off", "on"):
        async with stepped(site, resource_id=BATTERY) as rm:
            await rm.ask(with_steps())
            await rm.ask(ombc_status("off"))
            await until(lambda rm=rm: ombc_told(rm) == ["low", "on"])
            await rm.ask(ombc_status(label))
            await asyncio.sleep(20)


async def test_one_whose_timer_runs_is_not_told_what_that_blocks(site):
    described = heat_pump()
    off_to_on, on_to_off = described["transitions"]
    off_to_on |= {"start_timers": [], "blocking_timers": ["time"]}
    on_to_off |= {"start_timers": ["time"], "blocking_timers": []}
    async with stepped(site, resource_id=BATTERY) as rm:
        await rm.ask(described)
        await rm.ask(ombc_status("off"))
        await until(lambda: ombc_told(rm) == ["on"])
    async with stepped(site, resource_id=BATTERY) as rm:
        await rm.ask(described)
        await rm.ask(
            ombc_status("off", previous_operation_mode_id="on", transition_timestamp=now(site).isoformat())
        )
        ends = (now(site) + timedelta(minutes=50)).isoformat()
        await rm.ask(example("OMBC.TimerStatus", timer_id="time", finished_at=ends))
        await asyncio.sleep(40)
        assert ombc_told(rm) == ["off"]


async def test_one_that_is_full_is_not_told_to_charge(site):
    await first_planned(site)
    site.gate = asyncio.Event()
    async with battery(site) as rm:
        await introduce(rm, level=100)
        await rm.next("FRBC.Instruction")
        await asyncio.sleep(40)
        assert modes(rm) == [ids("idle")[1]]


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_machine_that_missed_its_start_is_started(site, is_told):
    site.site.own_lead = lambda resource: 60.0
    profile = laundry(site, hours=6) | {"start_time": (now(site) + timedelta(minutes=30)).isoformat()}
    [container] = profile["power_sequences_containers"]
    known = {"power_profile_id": profile["id"], "sequence_container_id": container["id"]}
    waits = [known | {"status": "NOT_SCHEDULED"}]
    async with washing_machine(site, resource_id=BATTERY) as rm:
        await rm.ask(profile)
        await until(lambda: controlled(site).plan and controlled(site).plan.changes)
        [start] = controlled(site).plan.changes
    site.ahead += start.moment - site.site.now() + 10
    async with washing_machine(site, resource_id=BATTERY) as rm:
        await rm.ask(profile)
        if is_told:
            await rm.ask(example("PPBC.PowerProfileStatus", sequence_container_status=waits))
        told = await rm.next("PPBC.ScheduleInstruction")
        assert now(site) - timedelta(seconds=5) < datetime.fromisoformat(told["execution_time"])


def together(site) -> float:
    """Return the power (W) that all are to have in a moment."""
    return together_at(site, site.site.now() + 10)


@pytest.mark.parametrize("is_restart", [False, True])
async def test_two_that_were_planned_one_without_the_other_keep_the_sites_limit(site, is_restart):
    site.site.connection = markets.Connection(power_capacity=9000.0)
    for name in ("A", "B"):
        async with stepped(site, name=name, resource_id=f"{name}-of-two") as rm:
            await rm.ask(charger(7000))
            await rm.ask(ombc_status("off"))
            await until(lambda rm=rm: ombc_told(rm) == ["on"])
        await asyncio.sleep(20)
    if is_restart:
        kept = {
            each: json.loads(json.dumps(kept_plans.as_json(other))) for each, other in site.site.kept.items()
        }
        for resource_id, each in kept.items():
            kept_plans.recall(site.site, site.cem.cem.resources[resource_id], each)
    async with (
        stepped(site, name="A", resource_id="A-of-two") as one,
        stepped(site, name="B", resource_id="B-of-two") as other,
    ):
        for rm in (one, other):
            await rm.ask(charger(7000))
            await rm.ask(ombc_status("off"))
        for seconds in (5, 60):
            await asyncio.sleep(seconds)
            assert together(site) == 7000.0
        assert sorted([ombc_told(one)[-1], ombc_told(other)[-1]]) == ["off", "on"]


async def test_a_plan_for_another_limit_of_the_site_is_not_resumed(site):
    site.powers = [5000] * 96
    await first_planned(site)
    site.site.connection, site.powers = markets.Connection(power_capacity=3000.0), [3000] * 96
    async with battery(site) as rm:
        await introduce(rm)
        told = await rm.next("FRBC.Instruction")
        assert told["operation_mode_factor"] < 0.61


@pytest.mark.parametrize(
    "change",
    [
        {"consumption_capacity": 9000.0},
        {"production_capacity": 0.0},
        {"peak_price": 4.0},
        {"peak_consumption": 1.0},
    ],
)
async def test_each_part_of_the_connection_counts_for_a_plan_that_is_kept(site, change):
    before = kept_plans.of_site(site.site)
    site.site.connection = markets.Connection(**change)
    assert kept_plans.of_site(site.site) != before


async def test_a_description_that_is_revoked_and_told_anew_calls_for_a_plan(site):
    await first_planned(site)
    described = example("FRBC.SystemDescription")
    async with battery(site) as rm:
        await rm.ask(described)
        await rm.ask(status())
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=50))
        await rm.next("FRBC.Instruction")
        await rm.ask(revocation("FRBC.SystemDescription", described["message_id"]))
        await introduce(rm)
        await planned(site, 2)
        assert controlled(site).plan


async def test_what_comes_while_the_messages_are_compared_counts(site, monkeypatch):
    await first_planned(site)
    run = asyncio.to_thread

    async def slow(work, *given):
        found = await run(work, *given)
        await asyncio.sleep(0.5 if work is kept_plans.digests else 0.0)
        return found

    monkeypatch.setattr(kept_plans.asyncio, "to_thread", slow)
    async with battery(site) as rm:
        await introduce(rm)
        await until(lambda: controlled(site).plan)
        await asyncio.sleep(site.site.settling + kept_plans.LATER_SECONDS + 0.2)
        assert len(site.questions) == 1
        await rm.ask(target_in(hours=6))
        await planned(site, 2)


async def test_what_a_user_told_it_is_over_with_the_connection(site):
    async with battery(site) as rm:
        await introduce(rm)
        await rm.next("FRBC.Instruction")
        await asyncio.sleep(5)
        call = {"operation_mode": "charge", "operation_mode_factor": 0.3}
        await instructions.send_instruction(site.site, controlled(site).resource, call)
    async with battery(site) as rm:
        await introduce(rm, label="charge", factor=0.3)
        assert (await rm.next("FRBC.Instruction"))["operation_mode_factor"] == 1.0


async def test_a_second_best_control_type_is_not_kept(site):
    def give_way(resource, session, control_type):
        session.spawn(cems.select_fallback(site.cem.cem, resource, session, control_type))

    site.site.unfit = give_way
    types = [FRBC, "OPERATION_MODE_BASED_CONTROL", NOT_CONTROLABLE]
    useless = example("FRBC.SystemDescription")
    for mode in useless["actuators"][0]["operation_modes"]:
        for element in mode["elements"]:
            element["fill_rate"] = {"start_of_range": 0, "end_of_range": 0}
    async with battery(site, control_types=types) as rm:
        await rm.ask(useless)
        await rm.ask(status())
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=50))
        assert (await rm.next("SelectControlType"))["control_type"] == "OPERATION_MODE_BASED_CONTROL"
        await rm.ask(charger())
        await until(lambda: controlled(site).plan)
    async with battery(site, control_types=types) as rm:
        assert rm.selected == FRBC


async def test_plans_that_are_over_are_forgotten(site):
    for number in range(3):
        async with connected(site.cem, resource_id=f"battery-{number}") as rm:
            await introduce(rm)
            await rm.next("FRBC.Instruction")
    assert len(site.site.kept) == 3
    site.ahead += 25 * 3600.0
    assert kept_plans.of(site.site, "battery-0") is None
    await first_planned(site)
    assert list(site.site.kept) == [BATTERY]


def test_what_writes_plans_is_made_when_it_is_asked_for_and_once(monkeypatch):
    made = []

    def make(kind):
        made.append(kind)
        return f"of {kind}"

    monkeypatch.setattr(kept_plans, "ADAPTERS", {})
    monkeypatch.setattr(kept_plans, "TypeAdapter", make)
    assert made == []
    kept_plans.prepare()
    kept_plans.prepare()
    assert made
    assert len(made) == len(set(made))
    kept_plans.adapter(made[0])
    assert made.count(made[0]) == 1
