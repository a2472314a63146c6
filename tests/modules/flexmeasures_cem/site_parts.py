"""A site with a planner and an optimiser of the test's own, and what a battery there tells."""

import asyncio
import math
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

import flexmeasures_api.errors as api_errors
import flexmeasures_api.schedule as schedules
import flexmeasures_cem.site.planner as planner
import flexmeasures_cem.site.site as sites
import flexmeasures_cem.site.triggers as triggers
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.parts.local_optimum import priced
from tests.parts.s2_messages import example

FRBC = "FILL_RATE_BASED_CONTROL"
DDBC = "DEMAND_DRIVEN_BASED_CONTROL"
NOT_CONTROLABLE = "NOT_CONTROLABLE"
QUARTER = 900.0
LULL = 20.0
"""How long nothing is to happen (s), where a plan would be made after a fraction of a second."""
NAMES = {"idle": 0, "charge": 1, "discharge": 2}


@pytest.fixture
async def site(clock, serve):
    """Run a CEM with a site's planner; its optimiser answers `powers` (W per quarter), or raises `error`.

    `powers_of` has those of some by their names, `prices_of` returns the price in an hour (counted from 1970
    on), `fed_in` is which part of that feeding in yields. Its clock is ahead, so that a quarter has just
    begun.
    """
    base = QUARTER - time.time() % QUARTER + 30
    cem = await serve()
    made = SimpleNamespace(
        cem=cem,
        powers=[5000, -5000] + 94 * [0],
        powers_of={},
        error=None,
        refuses=(),
        questions=[],
        failures=[],
        told={},
        unfit=[],
        prices=0.25,
        prices_of=None,
        fed_in=1.0,
        power=None,
        own=0.0,
        ahead=0.0,
        sensors={},
        gate=None,
    )

    def powers_of(power_sensor):
        known = {each.resource_id: each.name for each in made.cem.cem.resources.values()}
        names = {sensor: known.get(each) for each, sensor in made.sensors.items()}
        return made.powers_of.get(names[power_sensor], made.powers)

    async def solve(storages, window, loads, limits):
        duration = window.end - window.start
        question = SimpleNamespace(storages=storages, start=window.start, duration=duration, left=window.left)
        question.given, question.limits = loads, limits
        made.questions.append(question)
        powers = {each.power_sensor: list(powers_of(each.power_sensor)) for each in storages}
        if made.gate:
            await made.gate.wait()
        for each in storages:
            if each.power_sensor in made.refuses:
                raise api_errors.Infeasible("no schedule meets all limits")
        if made.error:
            raise made.error
        begin = datetime.fromtimestamp(window.start, UTC)
        quarter = timedelta(seconds=window.step)
        return {
            each: schedules.Schedule(
                start=begin,
                resolution=quarter,
                unit="W",
                values=each_powers,
                soc_unit="Wh",
                soc=None,
                missed_targets=[],
                cost=None,
                updated_at=begin,
            )
            for each, each_powers in powers.items()
        }

    async def prices(start, end):
        hours = range(int(start) // 3600 * 3600, int(end), 3600)
        values = [made.prices if made.prices_of is None else made.prices_of(each // 3600) for each in hours]
        return [
            priced(each, each + 3600.0, value, value * made.fed_in)
            for each, value in zip(hours, values, strict=True)
        ]

    def means(resource):
        sensor = made.sensors.setdefault(resource.resource_id, len(made.sensors) + 1)
        return sites.PlanningSensors(sensor, QUARTER, None, None)

    made.site = sites.Site(
        solve,
        prices,
        means,
        lambda resource: made.power,
        lambda moment: made.own,
        lambda resource: None,
        lambda resource, text: made.told.__setitem__(resource.name, text),
        lambda resource, session, control_type: made.unfit.append(resource.name),
        made.failures.append,
        lambda: made.failures.append(None),
        24 * 3600.0,
        lead=math.inf,
        now=lambda: time.time() + base + made.ahead,
        settling=0.1,
    )
    cem.cem.changed = lambda resource: triggers.changed(made.site, resource)
    cem.cem.received = lambda resource, message: triggers.received(made.site, resource, message)
    cem.cem.leaving = lambda resource: triggers.leave(made.site, resource)
    planner.start(made.site)
    yield made
    await planner.stop(made.site)


def now(site) -> datetime:
    """Return the time by the site's clock."""
    return datetime.fromtimestamp(site.site.now(), UTC)


def ids(label="idle") -> tuple:
    """Return the ids of the example's actuator, and of one of its modes."""
    [actuator] = example("FRBC.SystemDescription")["actuators"]
    return actuator["id"], actuator["operation_modes"][NAMES[label]]["id"]


def status(label="idle", factor=0.0) -> dict:
    """Return an ActuatorStatus."""
    actuator, mode = ids(label)
    return {
        "message_type": "FRBC.ActuatorStatus",
        "message_id": str(uuid4()),
        "actuator_id": actuator,
        "active_operation_mode_id": mode,
        "operation_mode_factor": factor,
    }


async def introduce(rm, level=50, label="idle", factor=0.0, **description):
    """Have a resource manager tell what it is, and how it is."""
    await rm.ask(example("FRBC.SystemDescription", **description))
    await rm.ask(status(label, factor))
    await rm.ask(example("FRBC.StorageStatus", present_fill_level=level))


def target_in(hours) -> dict:
    """Return the example's target profile, whose fill level of 80 is wanted in some hours."""
    profile = example("FRBC.FillLevelTargetProfile", start_time=datetime.now(UTC).isoformat())
    profile["elements"][0]["duration"] = hours * 3600_000
    return profile


async def introduce_with_target(rm, hours, level):
    """Have a resource manager tell what it is, what is wanted of it, and how it is."""
    await rm.ask(example("FRBC.SystemDescription"))
    await rm.ask(target_in(hours))
    await rm.ask(status())
    await rm.ask(example("FRBC.StorageStatus", present_fill_level=level))


def revocation(kind, object_id) -> dict:
    """Return a RevokeObject."""
    return example("RevokeObject", object_type=kind, object_id=object_id)


@asynccontextmanager
async def battery(site, **options):
    """Give a resource manager that has got its first plan's instructions."""
    async with connected(site.cem, **options) as rm:
        await introduce(rm)
        await until(lambda: is_scheduled(site, rm))
        rm.first = of_type(rm, "FRBC.Instruction")[-3:]
        yield rm


def is_scheduled(site, rm) -> bool:
    """Return whether a resource manager has a plan of FlexMeasures' schedule, and was told all of it."""
    found = site.site.controlled.get(rm.details["resource_id"])
    if found is None or found.plan is None or found.is_fallback or found.is_outdated:
        return False
    told = {id(change) for change in found.sent.values()}
    return {id(change) for change in found.plan.changes} <= told and not found.sending.locked()


def wake(site) -> None:
    """Have the planner read the clock again."""
    site.site.urged.set()
    site.site.asking_urged.set()


def controlled(site):
    """Return what the planner knows of the only resource manager."""
    [found] = site.site.controlled.values()
    return found


def of_type(rm, message_type) -> list:
    """Return what a resource manager has received of a type."""
    return [each for each in rm.received if each["message_type"] == message_type]


async def planned(site, count):
    """Wait until as many questions were asked, and longer than it would take to ask one too many."""
    await until(lambda: len(site.questions) >= count)
    await asyncio.sleep(LULL)
    assert len(site.questions) == count


def broken(rm, instruction, what="REJECTED"):
    """Return what tells that an instruction is not followed."""
    return example(
        "InstructionStatusUpdate",
        instruction_id=instruction["id"],
        status_type=what,
        timestamp=datetime.now(UTC).isoformat(),
    )
