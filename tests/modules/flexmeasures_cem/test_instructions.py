"""When instructions are sent: what is due now at once, what comes next shortly before its time."""

import asyncio
import math
from datetime import datetime, timedelta

import pytest

import flexmeasures_cem.site.instructions as instructions
import flexmeasures_cem.site.site as sites
from tests.modules.flexmeasures_cem.site_parts import (
    LULL,
    QUARTER,
    controlled,
    ids,
    introduce,
    is_scheduled,
    now,
    of_type,
    planned,
    status,
    target_in,
)
from tests.modules.flexmeasures_cem.test_planner import heat_pump, laundry, stepped, washing_machine
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.parts.s2_messages import example

LEAD = 60.0


@pytest.fixture
async def soon(site):
    """Return a site that sends an instruction a minute before its time."""
    site.site.lead = LEAD
    return site


def modes(rm) -> list[str]:
    """Return the modes that a battery was told and that were not revoked, in order."""
    revoked = {each["object_id"] for each in of_type(rm, "RevokeObject")}
    told = of_type(rm, "FRBC.Instruction")
    return [each["operation_mode"] for each in told if each["id"] not in revoked]


async def introduce_to_charge(rm):
    """Introduce a battery, and wait until it was told to charge instead of to rest, and nothing else yet.

    It rests by its first plan; the schedule of FlexMeasures has it charge.
    """
    await introduce(rm)
    await until(lambda: modes(rm) == [ids("charge")[1]])


def usage(site) -> dict:
    """Return a forecast of usage from now on, with which a battery can follow its schedule all the same."""
    return example("FRBC.UsageForecast", start_time=now(site).isoformat())


def until_sent(site, change, lead=LEAD) -> float:
    """Return how long it is until a change is sent (s)."""
    return change.moment - lead - site.site.now()


def coming(site) -> list:
    """Return the changes that the only device is still to be told."""
    found = controlled(site)
    return [each for each in found.plan.changes if each not in found.sent.values()]


async def test_the_next_instruction_is_sent_a_minute_before_its_time(soon):
    async with connected(soon.cem) as rm:
        await introduce_to_charge(rm)
        discharge, rest = coming(soon)
        await asyncio.sleep(until_sent(soon, discharge) - 1)
        assert modes(rm) == [ids("charge")[1]]
        await until(lambda: len(modes(rm)) > 1)
        told = of_type(rm, "FRBC.Instruction")[-1]
        assert told["operation_mode"] == ids("discharge")[1]
        moment = datetime.fromisoformat(told["execution_time"])
        assert moment.timestamp() == pytest.approx(discharge.moment, abs=0.001)
        assert (moment - now(soon)).total_seconds() == pytest.approx(LEAD, abs=0.1)
        assert until_sent(soon, rest) > 0
        await asyncio.sleep(LULL)
        assert len(modes(rm)) == 2


async def test_it_is_sent_in_time_also_while_flexmeasures_is_asked(soon):
    async with connected(soon.cem) as rm:
        await introduce_to_charge(rm)
        discharge = coming(soon)[0]
        await asyncio.sleep(until_sent(soon, discharge) - 20)
        soon.gate = asyncio.Event()
        await rm.ask(usage(soon))
        await until(lambda: len(soon.questions) == 2)
        await asyncio.sleep(25)
        assert len(soon.questions) == 2
        assert modes(rm)[-1] == ids("discharge")[1]
        soon.gate.set()


async def test_a_device_is_told_once_that_it_is_to_go_on(soon):
    soon.powers = [0] * 96
    async with connected(soon.cem) as rm:
        await introduce(rm)
        told = await rm.next("FRBC.Instruction")
        assert (told["operation_mode"], told["operation_mode_factor"]) == (ids("idle")[1], 1.0)
        assert datetime.fromisoformat(told["execution_time"]) - now(soon) < timedelta(seconds=3)
        await rm.ask(target_in(hours=20))
        await planned(soon, 2)
        assert of_type(rm, "RevokeObject") == []
        assert modes(rm) == [ids("idle")[1]]


async def test_it_is_told_again_in_another_session(soon):
    soon.powers = [0] * 96
    for _session in range(2):
        async with connected(soon.cem) as rm:
            await introduce(rm)
            assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]


async def test_of_a_plan_that_is_superseded_only_what_was_sent_is_revoked(soon):
    async with connected(soon.cem) as rm:
        await introduce_to_charge(rm)
        discharge = coming(soon)[0]
        await asyncio.sleep(until_sent(soon, discharge) + 5)
        told = of_type(rm, "FRBC.Instruction")[-1]
        assert told["operation_mode"] == ids("discharge")[1]
        before = len(of_type(rm, "RevokeObject"))
        soon.powers = [5000, 5000] + 94 * [0]
        await rm.ask(usage(soon))
        await planned(soon, 2)
        revoked = of_type(rm, "RevokeObject")[before:]
        assert [each["object_id"] for each in revoked] == [told["id"]]


async def test_a_device_that_acts_on_receipt_is_left_alone_and_then_told_in_time(soon, caplog):
    async with connected(soon.cem) as rm:
        await introduce_to_charge(rm)
        await rm.ask(status("charge", 1.0))
        await asyncio.sleep(2 * LULL)
        await asyncio.sleep(until_sent(soon, coming(soon)[0]) + 1)
        factor = of_type(rm, "FRBC.Instruction")[-1]["operation_mode_factor"]
        await rm.ask(status("discharge", factor))
        soon.power = -5000.0
        await planned(soon, 1)
        assert "executes instructions when it gets them, so each is sent at its time" in caplog.text
        soon.powers = [-5000, 5000] + 94 * [0]
        await asyncio.sleep(sites.next_boundary(soon.site.now(), QUARTER) - soon.site.now())
        await planned(soon, 2)
        charge = coming(soon)[0]
        lead = instructions.lead(controlled(soon).session)
        await asyncio.sleep(until_sent(soon, charge, lead) - 1)
        assert modes(rm) == [ids("charge")[1], ids("discharge")[1]]
        await until(lambda: len(modes(rm)) == 3)
        assert charge.moment - soon.site.now() == pytest.approx(lead, abs=0.1)


async def test_a_device_that_is_elsewhere_before_its_time_is_planned_again(soon):
    async with connected(soon.cem) as rm:
        await introduce_to_charge(rm)
        await asyncio.sleep(until_sent(soon, coming(soon)[0]) + 1)
        await rm.ask(status("idle"))
        await planned(soon, 2)


async def test_a_lead_of_its_own_goes_before_that_of_the_site(soon):
    soon.site.own_lead = lambda resource: 2000.0 if resource.name == "Early" else None
    async with connected(soon.cem, name="Early") as early, connected(soon.cem, name="Other") as other:
        await introduce(early)
        await introduce(other)
        await until(lambda: is_scheduled(soon, early) and modes(other) == [ids("charge")[1]])
        assert modes(early) == [ids(label)[1] for label in ("charge", "discharge", "idle")]


async def test_a_device_under_ombc_gets_the_next_instruction_before_its_time(soon):
    async with stepped(soon) as rm:
        await rm.ask(heat_pump())
        on = await rm.next("OMBC.Instruction")
        assert on["operation_mode_id"] == "on"
        await asyncio.sleep(LULL)
        assert len(of_type(rm, "OMBC.Instruction")) == 1


@pytest.mark.parametrize(("own", "is_ahead"), [(None, True), (LEAD, False)])
async def test_a_profile_is_told_its_start_ahead_unless_it_has_a_lead(soon, own, is_ahead):
    soon.site.own_lead = lambda resource: own
    soon.prices_by_hour = True
    async with washing_machine(soon) as rm:
        await rm.ask(laundry(soon, hours=10))
        await until(lambda: controlled(soon).plan and controlled(soon).plan.changes)
        [start] = controlled(soon).plan.changes
        await asyncio.sleep(LULL)
        assert bool(of_type(rm, "PPBC.ScheduleInstruction")) == (is_ahead or until_sent(soon, start) < 0)


@pytest.mark.parametrize("lead", [math.inf, 1800.0])
async def test_a_device_that_repeats_what_it_did_is_not_taken_to_act_on_receipt(soon, lead, caplog):
    soon.site.lead, soon.powers = lead, [5000, 0, 5000] + 93 * [0]
    async with connected(soon.cem) as rm:
        await introduce(rm)
        await until(lambda: len(modes(rm)) >= 3)
        await rm.ask(status("charge", 1.0))
        rest = next(each for each in controlled(soon).plan.changes if each.mode == ids("idle")[1])
        await asyncio.sleep(rest.moment - soon.site.now() + 1)
        await rm.ask(status("charge", 1.0))
        assert not controlled(soon).obeys_at_once
        assert "executes instructions when it gets them" not in caplog.text


async def test_with_all_sent_ahead_one_that_acts_on_receipt_is_warned_of(soon, caplog):
    soon.site.lead, soon.powers = math.inf, [5000, 0, 5000] + 93 * [0]
    async with connected(soon.cem) as rm:
        await introduce(rm)
        await until(lambda: len(modes(rm)) >= 3)
        await rm.ask(status("charge", 1.0))
        await asyncio.sleep(LULL)
        await rm.ask(status("idle"))
        assert "without instruction_lead: all it gets each in time" in caplog.text


async def test_with_a_long_lead_a_device_that_does_not_follow_is_noticed(soon):
    soon.site.lead, soon.powers = 7200.0, [5000] * 4 + 92 * [0]
    async with connected(soon.cem) as rm:
        await introduce(rm)
        await rm.next("FRBC.Instruction")
        await asyncio.sleep(2 * LULL)
        await rm.ask(status("idle"))
        await planned(soon, 2)


async def test_what_was_never_sent_does_not_count_as_done(soon):
    soon.powers = [5000] + 4 * [-5000] + 91 * [0]
    async with connected(soon.cem) as rm:
        await introduce_to_charge(rm)
        await rm.ask(status("charge", 1.0))
        await asyncio.sleep(LULL)
        soon.ahead += 1200.0
        soon.powers = 4 * [-5000] + 40 * [0] + 8 * [5000] + 44 * [0]
        await rm.ask(target_in(hours=20))
        await until(lambda: modes(rm)[-1] == ids("discharge")[1])


async def test_a_device_that_goes_its_own_way_is_told_to_go_on_with_that_where_it_is_planned(soon):
    soon.powers = [0] * 96
    async with connected(soon.cem) as rm:
        await introduce(rm)
        assert (await rm.next("FRBC.Instruction"))["operation_mode"] == ids("idle")[1]
        await asyncio.sleep(2 * LULL)
        soon.powers = [5000] + 95 * [0]
        await rm.ask(status("charge", 1.0))
        await until(lambda: modes(rm)[-1] == ids("charge")[1])


async def test_instructing_that_fails_unexpectedly_is_told_until_it_works_again_or_the_device_is_gone(
    soon, monkeypatch
):
    faults, instruct, failing = [], instructions.instruct, [True]
    soon.site.fault = lambda what, error: faults.append((what, repr(error)))

    async def fail(*given):
        if failing:
            raise RuntimeError("a fault of ours")
        await instruct(*given)

    monkeypatch.setattr(instructions, "instruct", fail)
    async with connected(soon.cem, name="Battery") as rm:
        what = f"instructing of Battery ({rm.details['resource_id']})"
        await introduce(rm)
        await until(lambda: (what, "RuntimeError('a fault of ours')") in faults)
        failing.clear()
        assert await rm.next("FRBC.Instruction")
        await until(lambda: faults[-1] == (what, "None"))
        failing.append(True)
        controlled(soon).replanned.set()
        await until(lambda: faults[-1] == (what, "RuntimeError('a fault of ours')"))
    await until(lambda: faults[-1] == (what, "None"))
