"""When resource managers are planned, and what they are told, with an optimiser of the test's own."""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

import flexmeasures_api.errors as api_errors
import flexmeasures_cem.cem as cems
import flexmeasures_cem.errors as errors
import flexmeasures_cem.market as markets
import flexmeasures_cem.site.asking as asking
import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.loads as loads
import flexmeasures_cem.site.outlook as outlooks
import flexmeasures_cem.site.planner as planner
import flexmeasures_cem.site.questions as questions
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.triggers as triggers
from flexmeasures_cem.control_types.plans import PowerPiece
from tests.modules.flexmeasures_cem.site_parts import (
    DDBC,
    FRBC,
    LULL,
    NAMES,
    NOT_CONTROLABLE,
    QUARTER,
    battery,
    broken,
    controlled,
    ids,
    introduce,
    introduce_with_target,
    is_scheduled,
    now,
    of_type,
    planned,
    revocation,
    status,
    target_in,
    wake,
)
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.parts.s2_messages import example


async def test_a_device_is_told_its_plan_from_now_on(site):
    before = now(site)
    async with battery(site) as rm:
        charge, discharge, rest = rm.first
        assert charge["operation_mode"] == ids("charge")[1]
        assert charge["operation_mode_factor"] == pytest.approx(1.0, abs=0.01)
        moments = [datetime.fromisoformat(each["execution_time"]) for each in rm.first]
        assert before < moments[0] < before + timedelta(seconds=6)
        assert moments[0] < moments[1] < moments[2]
        assert discharge["operation_mode"] == ids("discharge")[1]
        assert rest["operation_mode"] == ids("idle")[1]
        [question] = site.questions
        assert question.start <= before.timestamp() < question.start + QUARTER + 1
        assert question.left == pytest.approx(1 - before.timestamp() % QUARTER / QUARTER, abs=0.01)


async def test_all_devices_of_a_site_are_one_question(site):
    async with connected(site.cem) as one, connected(site.cem) as other, connected(site.cem) as third:
        for rm in (one, other, third):
            await introduce(rm)
        for rm in (one, other, third):
            await rm.next("FRBC.Instruction")
    assert len(site.questions[-1].storages) == 3
    assert len(site.questions) <= 3


async def test_a_device_that_did_not_tell_its_level_is_not_planned(site):
    async with connected(site.cem) as rm:
        await rm.ask(example("FRBC.SystemDescription"))
        await asyncio.sleep(LULL)
        assert site.questions == []


async def test_a_description_counts_from_when_it_is_valid(site):
    async with connected(site.cem) as rm:
        await introduce(rm, valid_from=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
        await asyncio.sleep(LULL)
        assert site.questions == []
        site.ahead = 3600.0
        wake(site)
        await planned(site, 1)


async def test_a_schedule_for_a_state_that_is_past_is_not_used(site):
    site.gate = asyncio.Event()
    async with connected(site.cem) as rm:
        await introduce(rm)
        await until(lambda: site.questions)
        site.powers = [-5000] + 95 * [0]
        await rm.ask(example("FRBC.UsageForecast", start_time=datetime.now(UTC).isoformat()))
        site.gate.set()
        await until(lambda: is_scheduled(site, rm))
        modes = [each["operation_mode"] for each in of_type(rm, "FRBC.Instruction")]
        assert ids("charge")[1] not in modes
        assert modes[-2:] == [ids("discharge")[1], ids("idle")[1]]
        assert len(site.questions) == 2


@pytest.mark.parametrize(("level", "count"), [(50.5, 1), (54, 2), (46, 2)])
async def test_a_level_that_departs_is_planned_again(site, level, count):
    async with battery(site) as rm:
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=level))
        await planned(site, count)


async def test_one_odd_level_is_not_planned_on(site):
    async with battery(site) as rm:
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=0))
        await asyncio.sleep(LULL)
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=50))
        await asyncio.sleep(LULL)
        await planned(site, 1)


async def test_what_is_planned_meanwhile_is_planned_on_the_level_before(site):
    async with battery(site) as rm:
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=0))
        await rm.ask(example("FRBC.UsageForecast", start_time=datetime.now(UTC).isoformat()))
        await planned(site, 2)
        before, after = [each.storages[0].soc_at_start for each in site.questions]
        assert after == before > 0


async def test_a_level_that_lasts_is_planned_on_after_a_minute_without_a_message(site):
    async with battery(site) as rm:
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=0))
        await planned(site, 1)
        await asyncio.sleep(2 * LULL)
        await planned(site, 2)
        assert site.questions[-1].storages[0].soc_at_start == 0


async def test_a_description_of_later_is_planned_with_once_it_is_valid(site, caplog):
    async with battery(site) as rm:
        begins = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        text = json.dumps(example("FRBC.SystemDescription", valid_from=begins))
        for label in NAMES:
            text = text.replace(ids(label)[1], f"later:{label}")
        await rm.ask(json.loads(text))
        await planned(site, 1)
        assert (await rm.ask(status("charge", 1.0)))["status"] == "OK"
        assert ids("charge")[1] in controlled(site).device.actuators[0].modes
        await asyncio.sleep(290 - LULL)
        sent = len(of_type(rm, "FRBC.Instruction"))
        await until(lambda: "later:charge" in controlled(site).device.actuators[0].modes)
        assert len(site.questions) == 2
        await rm.ask(status() | {"active_operation_mode_id": "later:idle"})
        await asyncio.sleep(LULL)
        new = of_type(rm, "FRBC.Instruction")[sent:]
        assert {each["operation_mode"].split(":")[0] for each in new} == {"later"}
        assert "please report this" not in caplog.text


@pytest.fixture
def wakes(monkeypatch):
    """Return a list that grows each time that the planner looks what is due."""
    real, counted = planner.clamp_to_clock, []

    def look(*given):
        counted.append(given)
        real(*given)

    monkeypatch.setattr(planner, "clamp_to_clock", look)
    return counted


async def test_what_is_as_planned_wakes_nobody(site, wakes):
    async with battery(site) as rm:
        await rm.ask(status("charge", 1.0))
        await asyncio.sleep(1)
        before, version = len(wakes), controlled(site).version
        for message in (
            example("FRBC.StorageStatus", present_fill_level=50.5),
            example("PowerMeasurement"),
            status("charge", 1.0),
        ):
            await rm.ask(message)
        assert (len(wakes), controlled(site).version) == (before, version)
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=60))
        await until(lambda: len(wakes) > before)
        assert controlled(site).version == version + 1


async def test_only_a_sooner_plan_wakes_the_planner(site, wakes):
    async with battery(site):
        await asyncio.sleep(1)
        before = len(wakes)
        site.site.plan_no_later_than(site.site.now() + 30)
        await until(lambda: len(wakes) == before + 1)
        site.site.plan_no_later_than(site.site.now() + 35)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(wakes) == before + 1


async def test_a_clock_that_was_put_forward_wakes_the_planner_with_the_next_wish(site, wakes):
    async with battery(site):
        await asyncio.sleep(1)
        before = len(wakes)
        site.ahead += 2 * QUARTER
        site.site.plan_no_later_than(site.site.now() + 1)
        await until(lambda: len(wakes) > before)


async def test_a_mode_that_departs_is_planned_again(site):
    async with battery(site) as rm:
        await rm.ask(status("charge", 1.0))
        await planned(site, 1)
        site.ahead = 60.0
        await rm.ask(status("idle"))
        await planned(site, 2)


async def test_a_power_that_departs_is_planned_again_but_once(site):
    async with battery(site) as rm:
        site.power = 1000.0
        for minutes in range(1, 6):
            site.ahead = 60.0 * minutes
            await rm.ask(example("PowerMeasurement"))
            await asyncio.sleep(0.3)
        await planned(site, 2)
        site.power = 3000.0
        await rm.ask(example("PowerMeasurement"))
        await planned(site, 3)


@pytest.mark.parametrize("what", ["REJECTED", "ABORTED"])
async def test_an_instruction_that_is_not_followed_is_planned_again_but_once(site, what):
    async with battery(site) as rm:
        await rm.ask(broken(rm, rm.first[0], what))
        await planned(site, 2)
        again = of_type(rm, "FRBC.Instruction")[-1]
        assert again["operation_mode"] == rm.first[0]["operation_mode"]
        assert again["id"] not in [each["id"] for each in rm.first]
        await rm.ask(broken(rm, again, what))
        await planned(site, 2)


async def test_an_instruction_that_is_refused_is_planned_again_but_once(site):
    async with connected(site.cem) as rm:
        rm.answers["FRBC.Instruction"] = "INVALID_CONTENT"
        await introduce(rm)
        await planned(site, 2)


async def test_what_a_newer_plan_supersedes_is_revoked_first(site):
    async with battery(site) as rm:
        site.powers = [5000, -5000, 3000] + 93 * [0]
        await rm.ask(example("FRBC.UsageForecast", start_time=datetime.now(UTC).isoformat()))
        await planned(site, 2)
        since = rm.received.index(rm.first[-1])
        later = [
            each
            for each in rm.received[since + 1 :]
            if each["message_type"] in ("FRBC.Instruction", "RevokeObject")
        ]
        revoked = [each["object_id"] for each in later if each["message_type"] == "RevokeObject"]
        assert rm.first[2]["id"] in revoked
        assert [each["message_type"] for each in later[: len(revoked)]] == ["RevokeObject"] * len(revoked)
        assert rm.first[1]["id"] not in revoked


async def test_without_a_schedule_a_device_is_brought_to_rest_and_told_again_later(site):
    site.error = api_errors.Unreachable("the server is away")
    async with connected(site.cem) as rm:
        await introduce(rm, label="charge", factor=1.0)
        instruction = await rm.next("FRBC.Instruction")
        assert instruction["operation_mode"] == ids("idle")[1]
        assert controlled(site).is_fallback
        assert site.failures == [site.error]
        site.error, site.ahead = None, 10.0
        triggers.plan_soon(site.site)
        await until(lambda: not controlled(site).is_fallback)
        again = await rm.next("FRBC.Instruction")
        assert again["operation_mode"] == ids("charge")[1]


async def test_without_a_schedule_a_target_is_still_met(site):
    site.error = api_errors.PricesMissing("there are no prices")
    async with connected(site.cem) as rm:
        await introduce_with_target(rm, hours=2, level=50)
        modes = [(await rm.next("FRBC.Instruction"))["operation_mode"] for _ in range(2)]
        assert modes[-1] == ids("charge")[1]
        assert controlled(site).plan.missed == []


async def test_without_a_new_schedule_the_one_in_force_goes_on(site):
    async with battery(site) as rm:
        site.error = api_errors.Unreachable("the server is away")
        before = len(rm.received)
        site.ahead = 900.0
        wake(site)
        await until(lambda: len(site.questions) == 2)
        await asyncio.sleep(LULL / 2)
        assert not [each for each in rm.received[before:] if each["message_type"] != "ReceptionStatus"]
        assert not controlled(site).is_fallback


async def test_who_cannot_be_planned_does_not_keep_others_from_it(site):
    site.refuses = (2,)
    async with connected(site.cem, name="Good") as good, connected(site.cem, name="Bad") as bad:
        site.sensors |= {good.details["resource_id"]: 1, bad.details["resource_id"]: 2}
        await introduce(good)
        await introduce(bad)
        await until(lambda: is_scheduled(site, good))
        assert ids("charge")[1] in [each["operation_mode"] for each in of_type(good, "FRBC.Instruction")]
        await until(lambda: site.told.get("Bad"))
        assert "no schedule meets all limits" in site.told["Bad"]
        [rest] = of_type(bad, "FRBC.Instruction")
        assert rest["operation_mode"] == ids("idle")[1]


async def test_there_are_no_more_plans_than_the_server_takes(site):
    async with battery(site) as rm:
        most = questions.MOST_PLANS
        for number in range(12):
            await rm.ask(example("FRBC.StorageStatus", present_fill_level=54 - number % 2 * 4))
            await until(lambda number=number: len(site.questions) >= min(number + 2, most))
        await planned(site, most)
        site.ahead = questions.PLANS_SECONDS + 1
        wake(site)
        await until(lambda: len(site.questions) > most)


async def test_new_prices_are_planned_with(site):
    async with battery(site) as rm:
        assert rm.first
        site.prices = 0.5
        site.ahead = triggers.PRICES_SECONDS + 1
        wake(site)
        await until(lambda: len(site.questions) == 2)


async def test_a_plan_is_made_anew_before_it_runs_out(site):
    async with battery(site) as rm:
        assert rm.first
        site.ahead = 901.0
        wake(site)
        await until(lambda: len(site.questions) == 2)
        assert site.questions[1].start == site.questions[0].start + QUARTER


async def test_another_control_type_ends_the_plan(site):
    async with battery(site, control_types=[FRBC, NOT_CONTROLABLE]) as rm:
        [resource] = site.cem.cem.resources.values()
        await cems.change_control_type(site.cem.cem, resource, NOT_CONTROLABLE)
        kinds = [each["message_type"] for each in rm.received]
        assert kinds.index("RevokeObject") < len(kinds) - 1 - kinds[::-1].index("SelectControlType")
        revoked = {each["object_id"] for each in of_type(rm, "RevokeObject")}
        assert {each["id"] for each in rm.first[1:]} <= revoked
        assert site.site.controlled == {}


async def test_what_was_planned_on_a_revoked_description_stops(site):
    async with battery(site) as rm:
        found = controlled(site)
        described = found.session.memory["FRBC.SystemDescription",].message_id
        await rm.ask(revocation("FRBC.SystemDescription", described))
        await until(lambda: len(of_type(rm, "RevokeObject")) >= 2)
        assert found.plan is None


async def test_a_call_plans_now(site):
    async with battery(site) as rm:
        assert rm.first
        plan = await triggers.plan_now(site.site, controlled(site).resource)
        assert plan is controlled(site).plan
        assert len(site.questions) == 2


async def test_a_call_is_told_what_failed(site):
    async with battery(site) as rm:
        assert rm.first
        site.error = api_errors.Unreachable("the server is away")
        with pytest.raises(errors.NotPlanned, match="the server is away"):
            await triggers.plan_now(site.site, controlled(site).resource)


async def test_a_call_is_told_why_a_device_cannot_be_planned(site):
    async with connected(site.cem) as rm:
        await until(lambda: site.site.controlled)
        with pytest.raises(errors.NotPlannable, match=r"it has not sent FRBC\.SystemDescription yet"):
            await triggers.plan_now(site.site, controlled(site).resource)
        assert rm.selected == FRBC


WRONG_INSTRUCTIONS = [
    ({"operation_mode": "nonsense"}, r"operation_mode: there is no 'nonsense', but .*\(charge\)"),
    ({"operation_mode": "charge", "actuator_id": "none"}, "actuator_id: there is no 'none'"),
    ({"operation_mode": "backup charge"}, "operation_mode: backup charge is for an abnormal condition only"),
    (
        {"operation_mode": "charge", "execution_time": datetime(2026, 1, 1, tzinfo=UTC)},
        "execution_time: .* is past",
    ),
]


@pytest.mark.parametrize(("call", "why"), WRONG_INSTRUCTIONS)
async def test_an_instruction_that_does_not_fit_is_not_sent(site, call, why):
    async with battery(site) as rm:
        before = len(of_type(rm, "FRBC.Instruction"))
        with pytest.raises(errors.InvalidInstruction, match=why):
            await instructions.send_instruction(site.site, controlled(site).resource, call)
        assert len(of_type(rm, "FRBC.Instruction")) == before


async def test_an_instruction_that_a_timer_blocks_is_not_sent(site):
    async with battery(site) as rm:
        [actuator] = example("FRBC.SystemDescription")["actuators"]
        finished = now(site) + timedelta(minutes=5)
        await rm.ask(status("idle"))
        await rm.ask(
            example(
                "FRBC.TimerStatus",
                timer_id=actuator["timers"][1]["id"],
                finished_at=finished.isoformat(),
            )
        )
        call = {"operation_mode": "discharge"}
        controlled(site).heard.clear()
        controlled(site).plan.changes.clear()
        with pytest.raises(errors.InvalidInstruction, match="a timer blocks the transition until"):
            await instructions.send_instruction(site.site, controlled(site).resource, call)


async def test_an_instruction_to_who_gets_another_control_type_is_not_sent(site):
    async with battery(site) as rm:
        before = len(of_type(rm, "FRBC.Instruction"))
        resource = controlled(site).resource
        await triggers.leave(site.site, resource)
        with pytest.raises(errors.InvalidInstruction, match="gets another control type"):
            await instructions.send_instruction(site.site, resource, {"operation_mode": "charge"})
        assert len(of_type(rm, "FRBC.Instruction")) == before


async def test_an_instruction_of_a_user_is_sent_and_shown(site):
    async with battery(site) as rm:
        call = {"operation_mode": "charge", "operation_mode_factor": 0.25}
        site.ahead = 10.0
        sent = await instructions.send_instruction(site.site, controlled(site).resource, call)
        found = of_type(rm, "FRBC.Instruction")[-1]
        assert (found["id"], found["operation_mode_factor"]) == (sent["id"], 0.25)
        assert found["operation_mode"] == ids("charge")[1]
        site.ahead = 15.0
        wake(site)
        await until(lambda: controlled(site).current == sent["id"])
        shown = instructions.instruction_in_force(controlled(site), site.site.now())
        assert (shown["label"], shown["power"]) == ("charge", 1250)


@pytest.mark.parametrize(
    ("given", "sent_as"),
    [
        ({"id": "my:id"}, ("my:id", "my:id")),
        ({"message_id": "my:message"}, ("my:message", "my:message")),
        ({"id": "my:id", "message_id": "my:message"}, ("my:id", "my:message")),
    ],
)
async def test_an_instruction_of_a_user_has_the_ids_that_are_given(site, given, sent_as):
    async with battery(site) as rm:
        call = {"operation_mode": "charge"} | given
        sent = await instructions.send_instruction(site.site, controlled(site).resource, call)
        instruction = of_type(rm, "FRBC.Instruction")[-1]
        assert (instruction["id"], instruction["message_id"]) == sent_as
        assert sent["id"] == sent_as[0]


async def test_a_device_that_reports_under_the_message_id_is_planned_again(site):
    async with battery(site) as rm:
        await rm.ask(broken(rm, {"id": rm.first[0]["message_id"]}))
        await planned(site, 2)
        assert all(each["id"] == each["message_id"] for each in of_type(rm, "FRBC.Instruction"))


async def test_an_instruction_that_is_refused_is_told(site):
    async with battery(site) as rm:
        rm.answers["FRBC.Instruction"] = "INVALID_CONTENT"
        with pytest.raises(errors.NotConfirmed, match="answered INVALID_CONTENT"):
            await instructions.send_instruction(
                site.site, controlled(site).resource, {"operation_mode": "charge"}
            )


async def test_an_instruction_of_a_user_is_not_undone_because_the_device_follows_it(site):
    async with battery(site) as rm:
        site.ahead = 60.0
        await rm.ask(status("charge", 1.0))
        call = {"operation_mode": "charge", "operation_mode_factor": 0.25}
        await instructions.send_instruction(site.site, controlled(site).resource, call)
        site.power, site.ahead = 1250.0, 120.0
        await rm.ask(status("charge", 0.25))
        await rm.ask(example("PowerMeasurement"))
        await planned(site, 1)
        site.ahead = 901.0
        wake(site)
        await until(lambda: len(site.questions) == 2)
        await until(lambda: not controlled(site).manual)


async def test_who_is_refused_is_brought_to_rest_and_tried_again_later(site):
    site.refuses = (2,)
    async with connected(site.cem, name="Good") as good, connected(site.cem, name="Bad") as bad:
        site.sensors |= {good.details["resource_id"]: 1, bad.details["resource_id"]: 2}
        await introduce(good)
        await introduce(bad, label="charge", factor=1.0)
        assert (await bad.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        await until(lambda: site.told.get("Bad"))
        site.refuses = ()
        site.ahead = sites.REFUSED_SECONDS + 1
        wake(site)
        await until(lambda: site.told["Bad"] is None)


async def test_without_a_schedule_a_new_target_is_met_with_the_last_one(site):
    site.powers = [0] * 96
    async with connected(site.cem) as rm:
        await introduce(rm)
        await rm.next("FRBC.Instruction")
        site.error = api_errors.Unreachable("the server is away")
        await rm.ask(target_in(hours=2))
        instruction = await rm.next("FRBC.Instruction")
        assert instruction["operation_mode"] == ids("charge")[1]
        assert controlled(site).plan.missed == []
        assert not controlled(site).is_fallback


async def test_a_device_whose_sensors_stay_unknown_is_brought_to_rest(site):
    known = site.site.means
    site.site.means = lambda resource: None
    async with connected(site.cem) as rm:
        begin = site.site.now()
        await introduce(rm, label="charge", factor=1.0)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        assert site.site.now() - begin < 5
        site.site.means = known
        site.ahead += 10
        triggers.plan_soon(site.site)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("charge")[1]


@pytest.mark.parametrize(
    "connection",
    [
        markets.Connection(power_capacity=4000.0),
        markets.Connection(consumption_capacity=4000.0),
        markets.Connection(peak_consumption=4000.0, peak_price=5.0),
    ],
)
async def test_a_site_without_a_schedule_keeps_its_limit(site, connection):
    site.error = api_errors.Unreachable("the server is away")
    site.site.connection = connection
    async with connected(site.cem) as one, connected(site.cem) as other:
        for rm in (one, other):
            await introduce_with_target(rm, hours=6, level=40)
        for rm in (one, other):
            await rm.next("FRBC.Instruction")
        await until(lambda: all(found.plan for found in site.site.controlled.values()))
        plans = [found.plan for found in site.site.controlled.values()]
        moments = [max(plan.start for plan in plans) + 10 + 60 * minute for minute in range(24 * 60)]
        powers = [
            sum(found.type.planned_power(found.plan, moment, 1) for found in site.site.controlled.values())
            for moment in moments
        ]
        assert 3000 < max(powers) <= 4000 * 1.001


async def test_what_wears_too_much_is_not_planned_for_cost(site):
    site.error = api_errors.Unreachable("the server is away")
    site.prices_of = lambda hour: 0.1 if hour % 4 < 2 else 0.3
    costs = {"Worn": 0.5, "Lasting": 0.01}
    site.site.cycle_cost = lambda resource: costs[resource.name]
    async with connected(site.cem, name="Worn") as worn, connected(site.cem, name="Lasting") as lasting:
        for rm in (worn, lasting):
            await introduce(rm)
        await until(lambda: planned_for(site, "Lasting").plan and planned_for(site, "Worn").plan)
        assert len(planned_for(site, "Lasting").plan.changes) > 4
        assert not any(change.power for change in planned_for(site, "Worn").plan.changes)


async def test_fifty_devices_that_talk_all_the_time_are_few_questions(site):
    site.site.settling = 2.0
    async with AsyncExitStack() as stack:
        rms = [await stack.enter_async_context(connected(site.cem)) for _ in range(50)]
        for round_ in range(4):
            for place, rm in enumerate(rms):
                if round_ == 0:
                    await introduce(rm, level=50)
                level = 20 + (place * 7 + round_ * 31) % 60
                await rm.ask(example("FRBC.StorageStatus", present_fill_level=level))
            await asyncio.sleep(0.2)
        await until(lambda: site.questions and len(site.questions[-1].storages) == 50)
        await asyncio.sleep(LULL)
        assert len(site.questions) <= questions.MOST_PLANS


async def test_a_device_that_tells_another_level_each_moment_is_planned_all_the_same(site):
    async with battery(site) as rm:
        site.gate = asyncio.Event()
        for level in range(53, 83, 3):
            await rm.ask(example("FRBC.StorageStatus", present_fill_level=level))
            await asyncio.sleep(0.2)
            site.gate.set()
            site.gate = asyncio.Event()
        site.gate.set()
        await until(lambda: controlled(site).plan.start > site.site.now() - 3)
        assert len(site.questions) <= questions.MOST_PLANS


async def test_a_timer_that_never_ends_harms_nobody(site):
    async with connected(site.cem, name="Good") as good, connected(site.cem, name="Odd") as odd:
        await introduce(good)
        await rm_with_endless_timer(odd)
        assert await good.next("FRBC.Instruction")
        await until(lambda: all(found.plan for found in site.site.controlled.values()))
        for found in site.site.controlled.values():
            instructions.next_instructions(found, site.site.now(), 30)


async def rm_with_endless_timer(rm):
    """Have a resource manager tell of a timer that ends with the calendar."""
    [actuator] = example("FRBC.SystemDescription")["actuators"]
    await introduce(rm)
    for timer in actuator["timers"]:
        told = example("FRBC.TimerStatus", timer_id=timer["id"], finished_at="9999-12-31T23:59:59Z")
        await rm.ask(told)


async def test_a_plan_that_fails_in_a_way_unheard_of_is_told_to_who_waits(site):
    async with battery(site) as rm:
        assert rm.first
        site.error = KeyError("unheard of")
        with pytest.raises(errors.NotPlanned, match="failed unexpectedly"):
            await triggers.plan_now(site.site, controlled(site).resource)


async def test_a_description_with_other_modes_is_planned_anew(site):
    async with battery(site) as rm:
        described = example("FRBC.SystemDescription")
        [actuator] = described["actuators"]
        for mode in actuator["operation_modes"]:
            mode["id"] = mode["id"][:-4] + "0000"
        for transition in actuator["transitions"]:
            for end in ("from", "to"):
                transition[end] = transition[end][:-4] + "0000"
        site.ahead = 10.0
        before = len(of_type(rm, "FRBC.Instruction"))
        await rm.ask(described)
        await until(lambda: len(of_type(rm, "FRBC.Instruction")) > before)
        assert of_type(rm, "FRBC.Instruction")[-1]["operation_mode"].endswith("0000")


async def test_who_shares_a_sensor_is_told_so(site):
    async with connected(site.cem, name="One") as one, connected(site.cem, name="Other") as other:
        site.sensors |= {one.details["resource_id"]: 1, other.details["resource_id"]: 1}
        await introduce(one)
        await introduce(other)
        await until(lambda: "One has the same power_sensor" in (site.told.get("Other") or ""))
        await one.next("FRBC.Instruction")
        assert {len(each.storages) for each in site.questions} == {1}


async def test_retry_after_is_kept_to_whatever_devices_tell(site):
    async with battery(site) as rm:
        error = api_errors.RateLimited("wait", 280)
        site.error = error
        await rm.ask(example("FRBC.UsageForecast", start_time=datetime.now(UTC).isoformat()))
        await planned(site, 2)
        await rm.ask(example("FRBC.UsageForecast", start_time=datetime.now(UTC).isoformat()))
        await planned(site, 2)


async def test_a_clock_that_is_put_back_does_not_keep_it_from_planning(site):
    site.ahead = 3 * 86_400.0
    async with (
        battery(site) as rm,
        connected(site.cem, name="Meter", control_types=[NOT_CONTROLABLE]) as meter,
    ):
        assert rm.first
        site.site.unusable[99] = site.site.now() + 3600
        site.ahead = 0.0
        wake(site)
        await until(lambda: site.site.due and site.site.due < site.site.now() + 7200)
        assert site.site.unusable[99] < site.site.now() + 7200
        asked = len(site.questions)
        await meter.ask(forecast(site, 3000))
        await until(lambda: len(site.questions) > asked)


async def test_an_instruction_that_the_device_revokes_is_planned_again_but_once(site):
    async with battery(site) as rm:
        for count in (2, 2):
            last = of_type(rm, "FRBC.Instruction")[-1]["id"]
            await rm.ask(revocation("FRBC.Instruction", last))
            await planned(site, count)


async def test_the_apps_own_device_takes_of_the_sites_limit(site):
    site.site.connection, site.own = markets.Connection(power_capacity=5000.0), 3000.0
    site.powers = [0] * 96
    async with connected(site.cem) as rm:
        await introduce_with_target(rm, hours=4, level=40)
        await rm.next("FRBC.Instruction")
        assert 0 < max(each.power for each in controlled(site).plan.changes) <= 2000 * 1.03


async def test_a_users_instruction_for_later_outlasts_other_plans(site):
    async with battery(site) as rm:
        assert rm.first
        call = {"operation_mode": "charge", "execution_time": now(site) + timedelta(hours=2)}
        sent = await instructions.send_instruction(site.site, controlled(site).resource, call)
        site.ahead = 901.0
        wake(site)
        await planned(site, 2)
        assert sent["id"] not in [each["object_id"] for each in of_type(rm, "RevokeObject")]
        assert (sent["label"], sent["power"]) == ("charge", 5000)


async def test_a_plan_of_minutes_does_not_keep_all_from_running(site):
    site.site.horizon, site.site.means = 300.0, lambda resource: None
    async with connected(site.cem) as rm:
        await introduce(rm, label="charge", factor=1.0)
        assert await rm.next("FRBC.Instruction")


async def test_after_a_failure_that_is_over_nothing_waits(site):
    async with battery(site) as rm:
        site.error = api_errors.Infeasible("not now")
        await rm.ask(example("FRBC.UsageForecast", start_time=datetime.now(UTC).isoformat()))
        await planned(site, 2)
        site.error = None
        await triggers.plan_now(site.site, controlled(site).resource)
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=54))
        await until(lambda: len(site.questions) == 4)


async def test_a_limit_holds_over_devices_of_other_resolutions():
    coarse = [PowerPiece(0.0, 900.0, 9000.0)]
    fine = [
        PowerPiece(0.0, 300.0, 1000.0),
        PowerPiece(300.0, 600.0, 500.0),
        PowerPiece(600.0, 900.0, 0.0),
    ]
    outlook = outlooks.new([], 0.0, 900.0, 300.0)
    for powers in (coarse, fine):
        outlooks.put(outlook, str(powers), *outlooks.of_pieces(outlook, powers))
    [left] = outlooks.market(
        outlook, str(coarse), [(0.0, 900.0)], markets.Connection(power_capacity=10_000.0)
    )
    assert left.consumption_capacity - left.load == 9000
    left = outlooks.market(
        outlook,
        str(fine),
        [(piece.start, piece.end) for piece in fine],
        markets.Connection(power_capacity=10_000.0),
    )
    assert [each.consumption_capacity - each.load for each in left] == [1000, 1000, 1000]


PPBC = "POWER_PROFILE_BASED_CONTROL"
LAUNDRY, FORECAST = "PPBC.PowerProfileDefinition", "PowerForecast"


def laundry(site, hours, watts=2000, length=3600_000) -> dict:
    """Return a profile of one sequence that is to be finished in some hours."""
    sequence = {
        "id": str(uuid4()),
        "elements": [
            {
                "duration": length,
                "power_values": [{"value_expected": watts, "commodity_quantity": "ELECTRIC.POWER.L1"}],
            }
        ],
        "is_interruptible": False,
        "abnormal_condition_only": False,
    }
    return example(
        LAUNDRY,
        id=str(uuid4()),
        start_time=now(site).isoformat(),
        end_time=(now(site) + timedelta(hours=hours)).isoformat(),
        power_sequences_containers=[{"id": str(uuid4()), "power_sequences": [sequence]}],
    )


def washing_machine(site, name="Washing machine", **options):
    """Connect a resource manager that offers power profile based control."""
    return connected(site.cem, name=name, control_types=[PPBC, NOT_CONTROLABLE], **options)


def planned_for(site, name):
    """Return what the planner knows of a resource manager."""
    return next(found for found in site.site.controlled.values() if found.resource.name == name)


def forecast(site, watts) -> dict:
    """Return a forecast of the same power for a day."""
    value = {"value_expected": watts, "commodity_quantity": "ELECTRIC.POWER.L1"}
    start = datetime.fromtimestamp(site.site.now() // QUARTER * QUARTER, UTC)
    return example(
        FORECAST,
        start_time=start.isoformat(),
        elements=[{"duration": 86_400_000, "power_values": [value]}],
    )


async def test_what_flexmeasures_cannot_express_is_planned_here_and_given_to_it(site):
    async with battery(site), washing_machine(site) as machine:
        await machine.ask(laundry(site, hours=1))
        instruction = await machine.next("PPBC.ScheduleInstruction")
        assert datetime.fromisoformat(instruction["execution_time"]) < now(site) + timedelta(seconds=5)
        await until(lambda: site.questions[-1].given)
        sensor = site.sensors[machine.details["resource_id"]]
        assert [each.power_sensor for each in site.questions[-1].storages] != [sensor]
        powers = [power for _start, _end, power in site.questions[-1].given[sensor]]
        assert powers[0] > 1000
        assert powers[1:3] == [2000, 2000]
        assert powers[5:] == [0] * 91


async def test_who_is_planned_here_does_not_wait_until_flexmeasures_may_be_asked(site):
    async with battery(site), washing_machine(site) as machine:
        site.site.made.extend([site.site.now()] * questions.MOST_PLANS)
        asked = len(site.questions)
        await machine.ask(laundry(site, hours=1))
        assert await machine.next("PPBC.ScheduleInstruction")
        await asyncio.sleep(LULL)
        assert len(site.questions) == asked
        site.ahead = questions.PLANS_SECONDS + 1
        wake(site)
        await until(lambda: len(site.questions) > asked)


async def test_who_is_planned_here_needs_no_sensor(site):
    site.site.means = lambda resource: None
    async with washing_machine(site) as machine:
        await machine.ask(laundry(site, hours=1))
        assert await machine.next("PPBC.ScheduleInstruction")
        assert site.questions == []


async def test_the_forecast_of_who_is_not_controlled_is_given(site):
    site.site.connection = markets.Connection(power_capacity=4000.0)
    async with battery(site), connected(site.cem, name="Meter", control_types=[NOT_CONTROLABLE]) as meter:
        await meter.ask(forecast(site, 3000))
        sensor = site.sensors.setdefault(meter.details["resource_id"], 99)
        site.ahead = sites.BETWEEN_GIVEN_SECONDS + 1
        wake(site)
        await until(lambda: site.questions[-1].given == {sensor: None})
        assert site.questions[-1].limits["power_capacity"][-1][2] == 4000
        asked = len(site.questions)
        await meter.ask(forecast(site, 5000))
        site.ahead = 2 * sites.BETWEEN_GIVEN_SECONDS + 2
        wake(site)
        await until(lambda: len(site.questions) > asked)
        assert [
            limit for _start, _end, limit in site.questions[-1].limits["power_capacity"]
        ] == pytest.approx([5000 * loads.ABOVE])


async def test_a_machine_that_starts_keeps_the_site_under_its_limit(site):
    site.site.connection = markets.Connection(power_capacity=3000.0)
    async with washing_machine(site, "One") as one, washing_machine(site, "Two") as two:
        for each in (one, two):
            await each.ask(laundry(site, hours=4))
        for each in (one, two):
            await each.next("PPBC.ScheduleInstruction")
        await asyncio.sleep(LULL)
        plans = [planned_for(site, name).plan for name in ("One", "Two")]
        first, second = sorted([each.start, each.end] for plan in plans for each in runs(plan))
        assert first[1] <= second[0] + 1


def runs(plan):
    """Return when a plan of one sequence has power."""
    pieces = [piece for piece in plan.pieces if piece.power_w]
    return [SimpleNamespace(start=pieces[0].start, end=pieces[-1].end)]


async def test_a_control_type_that_what_was_told_does_not_fit_is_told_so(site):
    async with connected(site.cem) as rm:
        description = example("FRBC.SystemDescription")
        for actuator in description["actuators"]:
            for mode in actuator["operation_modes"]:
                for element in mode["elements"]:
                    element["fill_rate"] = {"start_of_range": 0.0, "end_of_range": 0.0}
        await rm.ask(description)
        await rm.ask(status())
        await rm.ask(example("FRBC.StorageStatus"))
        await until(lambda: site.unfit)
        assert site.told["Battery"].startswith("it cannot be planned")


async def test_nothing_of_the_control_type_before_is_left_after_another(site):
    async with washing_machine(site) as machine:
        site.prices = 0.25
        await machine.ask(laundry(site, hours=8))
        await until(lambda: planned_for(site, "Washing machine").plan)
        [resource] = site.cem.cem.resources.values()
        change = asyncio.create_task(cems.change_control_type(site.cem.cem, resource, NOT_CONTROLABLE))
        await machine.next("SelectControlType")
        await change
        assert site.site.controlled == {}
        assert [each.name for each in site.site.others.values()] == ["Washing machine"]


OMBC = "OPERATION_MODE_BASED_CONTROL"


def heat_pump() -> dict:
    """Return a description of what is off or on for an hour at least; to be on is worth its power."""
    modes = [
        {
            "id": label,
            "diagnostic_label": label,
            "power_ranges": [
                {"start_of_range": power, "end_of_range": power, "commodity_quantity": "ELECTRIC.POWER.L1"}
            ],
            "running_costs": {"start_of_range": cost / 3600, "end_of_range": cost / 3600},
            "abnormal_condition_only": False,
        }
        for label, power, cost in [("off", 0, 1.0), ("on", 2000, 0.0)]
    ]
    ways = [("off", "on", ["time"], []), ("on", "off", [], ["time"])]
    return example(
        "OMBC.SystemDescription",
        operation_modes=modes,
        timers=[{"id": "time", "duration": 3600_000}],
        transitions=[
            {
                "id": f"to-{to}",
                "from": begin,
                "to": to,
                "start_timers": starts,
                "blocking_timers": blocks,
                "abnormal_condition_only": False,
            }
            for begin, to, starts, blocks in ways
        ],
    )


async def test_a_device_that_tells_no_status_is_taken_to_be_in_the_mode_that_it_was_told(site):
    async with connected(site.cem, name="Pump", control_types=[OMBC, NOT_CONTROLABLE]) as pump:
        await pump.ask(heat_pump())
        first = await pump.next("OMBC.Instruction")
        assert first["operation_mode_id"] == "on"
        for minutes in (2, 4):
            site.ahead = 60.0 * minutes
            version = planned_for(site, "Pump").planned_version
            site.site.request_replan(planned_for(site, "Pump"), "a test")
            await until(lambda version=version: planned_for(site, "Pump").planned_version > version)
        site.prices = 2.0
        site.ahead = triggers.PRICES_SECONDS + 60.0
        wake(site)
        off = await pump.next("OMBC.Instruction")
        assert off["operation_mode_id"] == "off"
        began = datetime.fromisoformat(first["execution_time"])
        assert datetime.fromisoformat(off["execution_time"]) >= began + timedelta(hours=1)


def demand(rate) -> dict:
    """Return a DDBC.PresentDemandStatus."""
    ends = {"start_of_range": rate, "end_of_range": rate}
    return example("v1.0.0/DDBC.PresentDemandStatus", present_demand_rate=ends)


async def test_a_device_whose_description_has_no_demand_rate_is_planned_with_the_latest(site):
    described = example("v1.0.0/DDBC.SystemDescription")
    del described["actuators"][1:]
    labels = {each["Id"]: each["diagnostic_label"] for each in described["actuators"][0]["operation_modes"]}
    async with connected(site.cem, control_types=[DDBC], versions=["1.0.0"]) as rm:
        await rm.ask(described)
        await rm.ask(example("DDBC.ActuatorStatus"))
        await asyncio.sleep(LULL)
        assert of_type(rm, "DDBC.Instruction") == []
        await rm.ask(demand(8000))
        instruction = await rm.next("DDBC.Instruction")
        factor = instruction["operation_mode_factor"]
        assert (labels[instruction["operation_mode_id"]], factor) == ("on", 1.0)
        version = controlled(site).planned_version
        await rm.ask(demand(8000))
        await asyncio.sleep(LULL)
        assert controlled(site).planned_version == version
        await rm.ask(demand(3500))
        instruction = await rm.next("DDBC.Instruction")
        factor = instruction["operation_mode_factor"]
        assert (labels[instruction["operation_mode_id"]], factor) == ("on", 0.25)


def charger(watts=7000, worth=True) -> dict:
    """Return a description of what is worth to be on at any price, or at none; it has no timer."""
    described = heat_pump()
    for mode in described["operation_modes"]:
        costs = 0.0 if worth == (mode["id"] == "on") else 100.0 / 3600
        mode["running_costs"] = {"start_of_range": costs, "end_of_range": costs}
        power = {"off": 0, "on": watts}[mode["id"]]
        mode["power_ranges"][0] |= {"start_of_range": power, "end_of_range": power}
    for each in described["transitions"]:
        each["start_timers"] = each["blocking_timers"] = []
    return described | {"timers": []}


def stepped(site, name="Charger", **options):
    """Connect a resource manager that offers operation mode based control."""
    return connected(site.cem, name=name, control_types=[OMBC, NOT_CONTROLABLE], **options)


def together_at(site, moment) -> float:
    """Return what all who are controlled are planned to have at a moment (W)."""
    plans = [(found.type, found.plan) for found in site.site.controlled.values() if found.plan]
    return sum(kind.planned_power(plan, moment, 1) for kind, plan in plans)


def all_scheduled(site) -> bool:
    """Return whether all who are controlled have a plan of FlexMeasures' schedule."""
    controlled_ = site.site.controlled.values()
    return not any(each.plan is None or each.is_fallback or each.is_outdated for each in controlled_)


def all_together(site) -> list[float]:
    """Return what all who are controlled are planned to have each half minute (W), for ten hours."""
    begin = max(found.plan.start for found in site.site.controlled.values()) + 10
    return [together_at(site, begin + 30 * place) for place in range(1200)]


def most_together(site) -> float:
    """Return the most that all who are controlled are planned to have at once (W)."""
    return max(all_together(site))


def least_together(site) -> float:
    """Return the least that all who are controlled are planned to have at once (W)."""
    return min(all_together(site))


@pytest.mark.parametrize("is_slow", [False, True])
async def test_the_limit_holds_while_flexmeasures_does_not_answer(site, is_slow):
    site.site.connection, site.site.soon, site.powers = (
        markets.Connection(power_capacity=9000.0),
        0.3,
        96 * [5000],
    )
    async with connected(site.cem) as rm, stepped(site) as other:
        await introduce(rm)
        await rm.next("FRBC.Instruction")
        if is_slow:
            site.gate = asyncio.Event()
        else:
            site.error = api_errors.Unreachable("the server is away")
        await other.ask(charger())
        await until(lambda: planned_for(site, "Charger").plan)
        assert most_together(site) <= 9000


async def test_who_goes_on_without_a_schedule_leaves_others_their_power(site):
    site.site.connection, site.powers = markets.Connection(power_capacity=9000.0), 96 * [0]
    async with connected(site.cem) as rm, stepped(site) as other:
        await other.ask(charger())
        await other.next("OMBC.Instruction")
        await introduce(rm)
        await until(lambda: planned_for(site, "Battery").plan)
        site.error = api_errors.Unreachable("the server is away")
        await rm.ask(target_in(hours=5))
        await until(lambda: planned_for(site, "Battery").plan.changes)
        assert most_together(site) <= 9000


async def test_what_a_battery_cannot_give_another_does_not_take(site):
    site.site.connection, site.own = markets.Connection(power_capacity=5000.0), 4000.0
    site.powers_of = {"Empty": 96 * [-4000], "Other": 96 * [5000]}
    async with connected(site.cem, name="Other") as other, connected(site.cem, name="Empty") as empty:
        for rm, level in ((other, 50), (empty, 10)):
            await introduce(rm, level=level)
        await until(lambda: site.questions and len(site.questions[-1].storages) == 2)
        await until(lambda: all_scheduled(site))
        assert 900 < most_together(site) <= 1010


async def test_what_a_battery_cannot_take_another_does_not_give(site):
    site.site.connection, site.own = markets.Connection(power_capacity=5000.0), -4000.0
    site.powers_of = {"Full": 96 * [4000], "Other": 96 * [-5000]}
    async with connected(site.cem, name="Other") as other, connected(site.cem, name="Full") as full:
        for rm, level in ((other, 50), (full, 90)):
            await introduce(rm, level=level)
        await until(lambda: site.questions and len(site.questions[-1].storages) == 2)
        await until(lambda: all_scheduled(site))
        assert -1010 <= least_together(site) < -900


async def test_two_batteries_that_cannot_help_each_other_keep_the_limit(site):
    site.site.connection, site.own = markets.Connection(power_capacity=5000.0), 4000.0
    site.powers_of = {"One": 8 * [-4000] + 88 * [5000], "Two": 8 * [5000] + 88 * [-4500]}
    async with connected(site.cem, name="One") as one, connected(site.cem, name="Two") as two:
        for rm in (one, two):
            await introduce(rm, level=12)
        await until(lambda: site.questions and len(site.questions[-1].storages) == 2)
        await until(lambda: all_scheduled(site))
        assert 900 < most_together(site) <= 1010


async def test_who_has_no_sensor_is_taken_off_the_limit(site):
    site.site.connection, site.powers = markets.Connection(power_capacity=9000.0), 96 * [0]
    known = site.site.means
    site.site.means = lambda resource: None if resource.name == "Charger" else known(resource)
    async with stepped(site) as other, connected(site.cem) as rm:
        await other.ask(charger())
        await other.next("OMBC.Instruction")
        await introduce(rm)
        await until(lambda: site.questions)
        assert site.questions[-1].given == {}
        assert site.questions[-1].limits["power_capacity"][-1][2] == pytest.approx(2000)


async def test_in_the_rest_of_an_interval_the_limit_holds_too(site):
    site.site.connection, site.powers = markets.Connection(power_capacity=9000.0), 96 * [5000]
    async with stepped(site) as other, connected(site.cem) as rm:
        await other.ask(charger())
        await other.next("OMBC.Instruction")
        site.ahead = 780.0
        await introduce(rm)
        await until(lambda: planned_for(site, "Battery").plan)
        assert most_together(site) <= 9000
        (first, *_others) = site.questions[-1].limits["power_capacity"]
        left = site.questions[-1].left
        assert first[2] == pytest.approx(left * 9000 + (1 - left) * 7000, rel=0.01)


async def test_a_device_that_does_not_follow_is_left_at_it_after_some_tries(site):
    async with stepped(site) as other:
        await other.ask(charger())
        status = {
            "message_type": "OMBC.Status",
            "message_id": str(uuid4()),
            "active_operation_mode_id": "off",
            "operation_mode_factor": 0,
        }
        await other.next("OMBC.Instruction")
        versions = []
        for minute in range(1, 13):
            site.ahead = 60.0 * minute
            await other.ask(status | {"message_id": str(uuid4())})
            await asyncio.sleep(0.3)
            versions.append(planned_for(site, "Charger").version)
        assert len(set(versions)) <= 5


async def test_what_is_planned_here_does_not_use_up_the_questions_of_others(site):
    async with battery(site), stepped(site) as other:
        await until(lambda: planned_for(site, "Battery").plan)
        asked = len(site.questions)
        for turn in range(6):
            site.ahead = 10.0 * turn
            await other.ask(charger(watts=3000 + turn))
            await asyncio.sleep(0.3)
        assert len(site.questions) <= asked + 1
        site.ahead += sites.BETWEEN_GIVEN_SECONDS + 1
        wake(site)
        await until(lambda: len(site.questions) > asked)


async def test_a_call_for_a_device_that_is_planned_here_asks_nobody(site):
    async with battery(site), stepped(site) as other:
        await other.ask(charger())
        await until(lambda: site.questions[-1].given)
        await asyncio.sleep(0.3)
        site.site.made.extend([site.site.now()] * questions.MOST_WITH_CALLS)
        asked = len(site.questions)
        plan = await triggers.plan_now(site.site, planned_for(site, "Charger").resource)
        assert plan is planned_for(site, "Charger").plan
        assert len(site.questions) == asked


async def test_prices_that_become_known_are_planned_with(site):
    prices = site.site.prices

    async def none(*_times):
        raise api_errors.Unreachable("the server is away")

    site.site.prices = none
    async with stepped(site) as other:
        await other.ask(charger())
        await until(lambda: planned_for(site, "Charger").plan)
        assert planned_for(site, "Charger").is_fallback
        site.site.prices = prices
        site.ahead = triggers.PRICES_SECONDS + 1
        wake(site)
        await until(lambda: not planned_for(site, "Charger").is_fallback)


async def test_who_is_about_to_get_another_control_type_is_told_nothing_more(site):
    async with stepped(site) as other:
        await other.ask(charger())
        await other.next("OMBC.Instruction")
        found = planned_for(site, "Charger")
        await triggers.leave(site.site, found.resource)
        told = len(of_type(other, "OMBC.Instruction"))
        triggers.plan_soon(site.site)
        await other.ask(charger(watts=3000))
        await asyncio.sleep(LULL)
        assert len(of_type(other, "OMBC.Instruction")) == told
        site.ahead = triggers.AFTER_SELECTION_SECONDS + 1
        wake(site)
        await other.next("OMBC.Instruction")


async def test_who_was_planned_before_another_joined_chooses_again_where_feeding_in_yields_less(site):
    site.fed_in = 0.5
    async with stepped(site) as one:
        await one.ask(charger())
        await one.next("OMBC.Instruction")
        await asyncio.sleep(1)
        first = planned_for(site, "Charger").plan
        async with stepped(site, "Other") as other:
            await other.ask(charger())
            await other.next("OMBC.Instruction")
            assert planned_for(site, "Charger").plan is first
            site.ahead = planner.NEWCOMER_SECONDS + 0.5
            wake(site)
            await until(lambda: planned_for(site, "Charger").plan is not first)


async def test_a_question_leaves_what_is_expected_as_it_was(site):
    async with battery(site):
        each, start = controlled(site), site.site.now() // QUARTER * QUARTER
        outlook = outlooks.new([], start, start + 96 * QUARTER, QUARTER)
        outlooks.put(outlook, each, [-3000.0] * 96)
        problem = SimpleNamespace(power_sensor=site.site.means(each.resource).power_sensor)
        asked = {each: questions.Question(problem, start + 96 * QUARTER, 1.0)}
        window = sites.Window(start, QUARTER, start + 96 * QUARTER, 1.0, 9000.0, False)
        await questions.ask(site.site, asked, outlook, window)
        assert outlook.total == [-3000] * 96


DOUBLING = pytest.approx([25, 85, 205, 445], abs=15)
"""When a device that does not follow is planned again (s): after half a minute, then 1, 2 and 4 minutes."""


def operation_mode(label, factor=0.0) -> dict:
    """Return the OMBC.Status of a device that has a mode."""
    return {
        "message_type": "OMBC.Status",
        "message_id": str(uuid4()),
        "active_operation_mode_id": label,
        "operation_mode_factor": factor,
    }


async def times_of_plans(site, clock, rm, message, factors=(1.0,)) -> list[float]:
    """Return when plans are made (s) while a device tells the same each 5 seconds, for ten minutes.

    It has one factor after the other in the same mode.
    """
    await asyncio.sleep(10)
    found, begin, made = controlled(site), clock.time(), []
    plan = found.plan
    for number in range(1, 121):
        factor = factors[number % len(factors)]
        await rm.ask(message | {"message_id": str(uuid4()), "operation_mode_factor": factor})
        await asyncio.sleep(begin + 5 * number - clock.time())
        if found.plan is not plan:
            plan = found.plan
            made.append(5 * number - 5)
    return made


async def test_a_charger_that_goes_its_own_way_is_planned_ever_less_often(site, clock):
    async with stepped(site) as rm:
        await rm.ask(charger(worth=False))
        await rm.ask(operation_mode("on", 1.0))
        assert (await rm.next("OMBC.Instruction"))["operation_mode_id"] == "off"
        assert await times_of_plans(site, clock, rm, operation_mode("on", 1.0)) == DOUBLING


async def test_a_battery_that_goes_its_own_way_is_planned_ever_less_often(site, clock):
    site.powers = 96 * [0]
    async with connected(site.cem) as rm:
        await introduce(rm, label="charge", factor=1.0)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        assert await times_of_plans(site, clock, rm, status("charge", 1.0)) == DOUBLING


async def test_a_battery_that_goes_its_own_way_at_changing_power_is_planned_no_more_often(site, clock):
    site.powers = 96 * [0]
    async with connected(site.cem) as rm:
        await introduce(rm, label="charge", factor=1.0)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        assert await times_of_plans(site, clock, rm, status("charge"), (1.0, 0.9, 0.7)) == DOUBLING


def told_limit(site, limit, remaining, seconds=300.0):
    """Have FlexMeasures tell how many triggers it takes, and after what time all of them again."""
    told = site.site.rate_limit
    told.limit, told.remaining, told.reset_seconds = limit, remaining, seconds
    told.updated_at, told.resets_at = site.site.now(), site.site.now() + seconds


async def tell_levels(site, rm, count):
    """Have a battery tell that its fill level is another, so many times, each of which calls for a plan."""
    for number in range(count):
        await rm.ask(example("FRBC.StorageStatus", present_fill_level=54 - number % 2 * 4))
        await asyncio.sleep(1)


async def test_flexmeasures_is_asked_as_often_as_it_grants_but_for_two_calls(site):
    async with battery(site) as rm:
        told_limit(site, limit=60, remaining=14)
        await tell_levels(site, rm, 16)
        await planned(site, 1 + 14 - questions.RESERVED)
        assert await triggers.plan_now(site.site, controlled(site).resource)
        assert await triggers.plan_now(site.site, controlled(site).resource)
        with pytest.raises(errors.NotPlanned, match=r"takes no more plans for now: call in 2\d\d s"):
            await triggers.plan_now(site.site, controlled(site).resource)


async def test_flexmeasures_is_asked_no_more_than_it_grants_until_it_takes_more(site):
    async with battery(site) as rm:
        told_limit(site, limit=10, remaining=questions.RESERVED, seconds=120.0)
        await tell_levels(site, rm, 3)
        await planned(site, 1)
        site.ahead += 120.0
        wake(site)
        await planned(site, 2)


async def test_a_new_device_does_not_wait_until_flexmeasures_may_be_asked(site):
    site.site.made.extend([site.site.now()] * questions.MOST_PLANS)
    async with connected(site.cem) as rm:
        begin = site.site.now()
        await introduce_with_target(rm, hours=2, level=50)
        assert await rm.next("FRBC.Instruction")
        assert site.site.now() - begin < 1
        assert ids("charge")[1] in [change.mode for change in controlled(site).plan.changes]
        assert controlled(site).is_fallback
        assert controlled(site).plan.missed == []
        await planned(site, 0)
        site.ahead += questions.PLANS_SECONDS
        wake(site)
        await planned(site, 1)
        assert not controlled(site).is_fallback


async def test_a_device_that_describes_itself_anew_does_not_wait_either(site):
    async with battery(site) as rm:
        await asyncio.sleep(LULL)
        told_limit(site, limit=10, remaining=0)
        await rm.ask(target_in(hours=2))
        await asyncio.sleep(3)
        assert controlled(site).plan.missed == []
        assert controlled(site).planned_version == controlled(site).version
        assert not controlled(site).is_fallback
        await planned(site, 1)


async def test_devices_that_connect_one_after_another_are_all_told_what_to_do_within_seconds(site, clock):
    begin = clock.time()
    async with AsyncExitStack() as stack:
        for number in range(20):
            await asyncio.sleep(begin + 20 * number - clock.time())
            rm = await stack.enter_async_context(connected(site.cem))
            connected_at = clock.time()
            await introduce(rm, label="charge", factor=1.0)
            await rm.next("FRBC.Instruction")
            assert clock.time() - connected_at < 5
    assert len(site.questions) <= 2 * questions.MOST_PLANS


@pytest.mark.parametrize("limit", [None, 20000.0])
async def test_a_new_device_does_not_wait_until_flexmeasures_has_planned_others(site, limit):
    site.site.connection = markets.Connection(power_capacity=limit)
    async with battery(site) as one, connected(site.cem) as rm, stepped(site) as other:
        site.gate = asyncio.Event()
        await one.ask(target_in(hours=2))
        await until(lambda: len(site.questions) == 2)
        begin = site.site.now()
        await introduce(rm, label="charge", factor=1.0)
        await other.ask(charger())
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        assert (await other.next("OMBC.Instruction"))["operation_mode_id"] == "on"
        assert site.site.now() - begin < 5
        site.gate.set()
        await until(lambda: not any(found.is_fallback for found in site.site.controlled.values()))
        assert len(site.questions) == 3


async def test_a_first_plan_is_made_here_where_flexmeasures_takes_long(site):
    site.gate = asyncio.Event()
    async with connected(site.cem) as rm:
        begin = site.site.now()
        await introduce(rm, label="charge", factor=1.0)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        assert site.site.now() - begin < 1
        assert controlled(site).is_fallback
        site.gate.set()
        await until(lambda: not controlled(site).is_fallback)
        await planned(site, 1)


async def test_asking_that_fails_unexpectedly_is_told_until_it_works_again(site):
    faults = []
    site.site.fault = lambda what, error: faults.append((what, repr(error)))
    site.error = RuntimeError("a fault of ours")
    async with connected(site.cem) as rm:
        await introduce(rm)
        await until(lambda: (asking.ASKING, "RuntimeError('a fault of ours')") in faults)
        assert await rm.next("FRBC.Instruction")
        assert controlled(site).is_fallback
        site.error = None
        faults.clear()
        await rm.ask(example("FRBC.SystemDescription"))
        await until(lambda: (asking.ASKING, "None") in faults)
        await until(lambda: is_scheduled(site, rm))


async def test_without_a_solver_devices_are_left_to_themselves_and_told_why(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    async with connected(site.cem) as rm:
        await introduce(rm)
        await until(lambda: ["highspy" in (text or "") for text in site.told.values()] == [True])
        await asyncio.sleep(0.5)
        assert of_type(rm, "FRBC.Instruction") == []
        assert not any(site.failures)
        monkeypatch.undo()
        await rm.ask(example("FRBC.SystemDescription"))
        await until(lambda: is_scheduled(site, rm))
        assert not any(site.told.values())


async def test_planning_that_fails_unexpectedly_is_told_until_it_works_again(site, monkeypatch):
    faults, solve = [], planner.solve
    site.site.fault = lambda what, error: faults.append((what, repr(error)))

    async def fail(*given):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(planner, "solve", fail)
    async with connected(site.cem) as rm:
        await introduce(rm)
        await until(lambda: (planner.PLANNING, "RuntimeError('a fault of ours')") in faults)
        assert of_type(rm, "FRBC.Instruction") == []
        monkeypatch.setattr(planner, "solve", solve)
        faults.clear()
        await rm.ask(example("FRBC.SystemDescription"))
        await until(lambda: (planner.PLANNING, "None") in faults)
        await until(lambda: is_scheduled(site, rm))


async def test_a_planner_that_ends_is_begun_again_by_who_runs_it(site, monkeypatch):
    begun = {}

    async def end(site):
        raise asyncio.CancelledError

    def run(what, work):
        begun[what] = work
        return asyncio.create_task(work())

    await planner.stop(site.site)
    site.site.run = run
    with monkeypatch.context() as patched:
        for module in (planner, asking):
            patched.setattr(module, "until_due", end)
        planner.start(site.site)
        await asyncio.wait([site.site.task, site.site.asking])
    assert list(begun) == ["planner of S2 devices", "schedules of S2 devices"]
    site.site.task, site.site.asking = [asyncio.create_task(work()) for work in begun.values()]
    async with battery(site) as rm:
        assert rm.first
