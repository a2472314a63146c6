"""The simulated devices under power profile based control: what they do, and their messages to a CEM."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from freezegun.api import FrozenDateTimeFactory

from tests.parts.s2_cem import Cem, introduced
from tests.parts.s2_device import DAY, HOUR, MINUTE, NOT_CONTROLABLE, SECOND
from tests.parts.s2_messages import NOW, example
from tests.parts.s2_profile_devices import (
    CONTINUE,
    INTERRUPT,
    PPBC,
    SCHEDULE,
    Dishwasher,
    Dryer,
    PoolPump,
    Profile,
    ProfileDevice,
    Run,
    Sequence,
    WashingMachine,
)
from tests.parts.s2_unconnected import instructed, reasons, rejection, unconnected

pytestmark = pytest.mark.long

DEADLINE = NOW + 8 * HOUR


def announced[D: ProfileDevice](kind: Callable[..., D], **options: Any) -> D:
    """Return a device that is not connected, at NOW, and has announced a profile."""
    return unconnected(kind, **{"deadline": DEADLINE} | options)


def profile(device: ProfileDevice) -> Profile:
    """Return the profile that a device announced last."""
    assert device.profile is not None
    return device.profile


def states(device: ProfileDevice) -> list[str]:
    """Return the status of every container of the last profile."""
    return [container.status for container in profile(device).containers.values()]


# What is done


@pytest.mark.parametrize(
    ("sequence", "minutes", "energy"),
    [
        ("eco", 160, 0.5 * 1100 + 110 / 60 * 180 + 450 / 3),
        ("quick", 60, 2200 / 3 + 0.5 * 300 + 600 / 6),
    ],
)
def test_a_programme_runs_when_it_is_scheduled_to(sequence: str, minutes: float, energy: float) -> None:
    device = announced(WashingMachine)
    instructed(device, sequence, NOW + HOUR)
    assert states(device) == ["SCHEDULED"]
    device.advance(NOW + 1.1 * HOUR)
    assert states(device) == ["EXECUTING"]
    [container] = profile(device).containers.values()
    assert device.power == container.running.power(6 * MINUTE)
    device.advance(NOW + DAY)
    assert states(device) == ["FINISHED"]
    assert device.runs == [Run(sequence, NOW + HOUR, NOW + HOUR + minutes * MINUTE)]
    assert device.energy(NOW, NOW + DAY) == pytest.approx(energy)
    assert device.cost(lambda _: 0.2) == pytest.approx(energy * 0.0002)
    assert (device.power, device.violations) == (0, [])


def test_what_is_not_scheduled_is_not_done_and_violates_its_deadline() -> None:
    device = announced(WashingMachine)
    device.advance(NOW + DAY)
    assert (states(device), device.runs) == (["NOT_SCHEDULED"], [])
    assert device.violations == [(DEADLINE, "not done in time: laundry")]


@pytest.mark.parametrize(("late", "count"), [(timedelta(), 0), (SECOND / 2, 0), (MINUTE, 1)])
def test_what_is_finished_after_its_deadline_is_a_violation(late: timedelta, count: int) -> None:
    device = announced(WashingMachine)
    instructed(device, "quick", DEADLINE - HOUR + late)
    device.advance(NOW + DAY)
    assert states(device) == ["FINISHED"]
    assert len(device.violations) == count


def test_a_dishwasher_dries_after_a_pause_that_may_be() -> None:
    device = announced(Dishwasher)
    instructed(device, at=NOW, container="wash")
    instructed(device, at=NOW + 105 * MINUTE, container="dry")
    device.advance(NOW + DAY)
    assert [run.label for run in device.runs] == ["wash", "dry"]
    assert (states(device), device.violations) == (["FINISHED", "FINISHED"], [])


def test_containers_may_follow_each_other_at_once() -> None:
    device = announced(Dishwasher)
    instructed(device, at=NOW + 75 * MINUTE, container="dry")
    instructed(device, at=NOW, container="wash")
    device.advance(NOW + DAY)
    assert (states(device), device.violations) == (["FINISHED", "FINISHED"], [])


def test_a_pause_that_is_too_long_is_a_violation() -> None:
    device = announced(Dishwasher)
    instructed(device, at=NOW, container="wash")
    instructed(device, at=NOW + 106 * MINUTE, container="dry")
    device.advance(NOW + DAY)
    [(moment, text)] = device.violations
    assert (moment, text) == (NOW + 106 * MINUTE, "a pause of 0:31:00 before dry is too long")


def test_the_wrong_order_is_rejected_and_a_violation() -> None:
    device = announced(Dishwasher)
    instructed(device, container="dry")
    assert device.violations == [(NOW, "dry is to begin before wash")]
    assert reasons(device) == ["dry is to begin before wash"]
    assert states(device) == ["NOT_SCHEDULED", "NOT_SCHEDULED"]


def test_nothing_begins_before_its_time() -> None:
    device = announced(WashingMachine)
    profile(device).start = NOW + HOUR
    instructed(device, "eco", NOW + 0.5 * HOUR)
    device.advance(NOW + HOUR)
    assert (len(device.rejected), len(device.violations), device.runs) == (1, 1, [])


def test_what_was_begun_is_not_begun_again() -> None:
    device = announced(WashingMachine)
    instructed(device, "eco")
    instructed(device, "quick", NOW + MINUTE)
    device.advance(NOW + DAY)
    assert reasons(device) == ["laundry was begun before"]
    assert [run.label for run in device.runs] == ["eco"]


def test_a_programme_for_abnormal_conditions_needs_one() -> None:
    steps = {"run": (Sequence("forced", ((HOUR, 100.0),), abnormal_only=True),)}
    device = announced(ProfileDevice, steps=steps, name="Machine")
    instructed(device)
    assert reasons(device) == ["forced is for abnormal conditions only"]
    instructed(device, abnormal_condition=True)
    assert device.power == 100


@pytest.mark.parametrize("kind", [Dryer, PoolPump])
def test_what_is_interruptible_pauses_and_goes_on(kind: type[ProfileDevice]) -> None:
    device = announced(kind)
    label = next(iter(device.steps))
    instructed(device)
    instructed(device, kind=INTERRUPT, at=NOW + HOUR)
    instructed(device, kind=CONTINUE, at=NOW + 2 * HOUR)
    device.advance(NOW + 1.5 * HOUR)
    assert (states(device), device.power) == (["INTERRUPTED"], 0)
    device.advance(NOW + 2 * HOUR)
    assert (states(device), device.power > 0) == (["EXECUTING"], True)
    device.advance(NOW + DAY)
    [sequence] = device.steps[label]
    assert device.runs == [Run(label, NOW, NOW + HOUR + sequence.duration)]
    assert device.energy(NOW, NOW + DAY) == pytest.approx(
        sum(duration / HOUR * power for duration, power in sequence.elements)
    )
    assert device.violations == []


def test_what_does_not_run_is_not_interrupted() -> None:
    device = announced(Dryer)
    instructed(device, kind=INTERRUPT)
    instructed(device, kind=CONTINUE)
    assert reasons(device) == [
        "drying is NOT_SCHEDULED, and not EXECUTING",
        "drying is NOT_SCHEDULED, and not INTERRUPTED",
    ]


def test_a_washing_machine_cannot_be_interrupted() -> None:
    device = announced(WashingMachine)
    assert "cannot be interrupted" in rejection(device, device.instruction(kind=INTERRUPT))


@pytest.mark.parametrize("field", ["power_profile_id", "sequence_container_id", "power_sequence_id"])
def test_an_instruction_that_refers_to_nothing_is_not_accepted(field: str) -> None:
    device = announced(WashingMachine)
    assert field in rejection(device, device.instruction() | {field: str(uuid4())})
    assert (device.pending, states(device)) == ([], ["NOT_SCHEDULED"])


def test_what_is_revoked_is_scheduled_no_longer() -> None:
    device = announced(WashingMachine)
    first = instructed(device, "eco", NOW + HOUR)
    second = instructed(device, "quick", NOW + 2 * HOUR)
    assert device.revoke(second["id"]) is None
    assert states(device) == ["SCHEDULED"]
    assert device.revoke(first["id"]) is None
    assert states(device) == ["NOT_SCHEDULED"]
    device.advance(NOW + 3 * HOUR)
    assert device.runs == []


def test_how_often_time_passes_makes_no_difference() -> None:
    at_once, by_and_by = announced(Dryer), announced(Dryer)
    for device in (at_once, by_and_by):
        instructed(device, at=NOW + 77.7 * SECOND)
        instructed(device, kind=INTERRUPT, at=NOW + HOUR)
        instructed(device, kind=CONTINUE, at=NOW + 1.77 * HOUR)
    at_once.advance(NOW + DAY)
    for steps in range(1, 721):
        by_and_by.advance(NOW + steps * 2 * MINUTE)
    assert at_once.runs == by_and_by.runs
    assert at_once.energy(NOW, NOW + DAY) == pytest.approx(by_and_by.energy(NOW, NOW + DAY))


# Over a websocket


def statuses(cem: Cem) -> list[list[tuple[str, float | None]]]:
    """Return every PowerProfileStatus: the status and the progress (min) of every container."""
    return [
        [
            (status["status"], status["progress"] / 60_000 if "progress" in status else None)
            for status in message["sequence_container_status"]
        ]
        for message in cem.of("PPBC.PowerProfileStatus")
    ]


@pytest.mark.parametrize("kind", [WashingMachine, Dishwasher, Dryer, PoolPump])
async def test_a_device_introduces_itself(
    cem: Cem, clock: FrozenDateTimeFactory, kind: type[ProfileDevice]
) -> None:
    async with kind(cem.url, every=None, deadline=DEADLINE) as device:
        await introduced(device)
        assert device.control_type == PPBC
    [details] = cem.of("ResourceManagerDetails")
    assert details["available_control_types"] == [PPBC, NOT_CONTROLABLE]
    [definition] = cem.of("PPBC.PowerProfileDefinition")
    assert len(definition["power_sequences_containers"]) == len(device.steps)
    assert statuses(cem) == [[("NOT_SCHEDULED", None)] * len(device.steps)]
    assert cem.kinds()[2:] == [
        "PPBC.PowerProfileDefinition",
        "PPBC.PowerProfileStatus",
        "PowerMeasurement",
    ]


async def test_a_pause_is_told_where_there_is_a_longest_one(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with Dishwasher(cem.url, every=None, deadline=DEADLINE) as device:
        await introduced(device)
    [definition] = cem.of("PPBC.PowerProfileDefinition")
    sequences = [container["power_sequences"][0] for container in definition["power_sequences_containers"]]
    assert [sequence.get("max_pause_before") for sequence in sequences] == [None, 1_800_000]


async def test_it_tells_its_state_and_what_became_of_an_instruction(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with WashingMachine(cem.url, every=None, deadline=DEADLINE) as device:
        await introduced(device)
        instruction = device.instruction("quick", NOW + HOUR)
        assert await cem.ask(instruction) == "OK"
        cem.received.clear()
        for minutes in (1, 58, 2, 10, 60):
            clock.tick(minutes * 60)
            await device.tell()
        assert statuses(cem) == [[("SCHEDULED", None)], [("EXECUTING", 1)], [("FINISHED", 60)]]
        ids = [instruction["id"]] * 2
        assert cem.updates()[-2:] == list(zip(ids, ["STARTED", "SUCCEEDED"], strict=True))
        assert len(cem.of("PowerMeasurement")) == 5


async def test_an_interruption_is_told(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with Dryer(cem.url, every=None, deadline=DEADLINE) as device:
        await introduced(device)
        for instruction in (
            device.instruction(),
            device.instruction(kind=INTERRUPT, at=NOW + 10 * MINUTE),
            device.instruction(kind=CONTINUE, at=NOW + 30 * MINUTE),
        ):
            assert await cem.ask(instruction) == "OK"
        cem.received.clear()
        for _ in range(3):
            await device.tell()
            clock.tick(15 * 60)
        await device.tell()
        assert statuses(cem) == [[("EXECUTING", 0)], [("INTERRUPTED", 10)], [("EXECUTING", 10)]]
        assert [status for _, status in cem.updates()].count("SUCCEEDED") == 2


@pytest.mark.parametrize("kind", [SCHEDULE, INTERRUPT, CONTINUE])
async def test_each_kind_of_instruction_can_be_revoked(
    cem: Cem, clock: FrozenDateTimeFactory, kind: str
) -> None:
    async with Dryer(cem.url, every=None, deadline=DEADLINE) as device:
        await introduced(device)
        instruction = device.instruction(kind=kind, at=NOW + HOUR)
        assert await cem.ask(instruction) == "OK"
        revocation = example("RevokeObject", object_type=kind, object_id=instruction["id"])
        assert await cem.ask(revocation) == "OK"
        assert (device.pending, device.revoked) == ([], {instruction["id"]})


async def test_what_is_announced_replaces_what_was_not_begun(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with WashingMachine(cem.url, every=None) as device:
        await introduced(device)
        assert cem.kinds()[2:] == ["PowerMeasurement"]
        first = await device.announce(DEADLINE)
        assert cem.kinds() == ["PPBC.PowerProfileDefinition", "PPBC.PowerProfileStatus"]
        assert await cem.ask(device.instruction("eco", NOW + HOUR)) == "OK"
        second = await device.announce(DEADLINE + HOUR)
        [revocation] = cem.of("RevokeObject")
        assert revocation["object_type"] == "PPBC.PowerProfileDefinition"
        assert revocation["object_id"] == first.id
        assert device.pending == []
        assert await cem.ask(device.instruction("eco", power_profile_id=first.id)) == "INVALID_CONTENT"
        assert await cem.ask(device.instruction("eco")) == "OK"
        third = await device.announce(DEADLINE + 2 * HOUR)
        assert list(device.profiles) == [second.id, third.id]
        assert len(statuses(cem)[-1]) == 2
        clock.tick(3600)
        assert await cem.ask(device.instruction("quick")) == "OK"
        await device.tell()
        assert reasons(device)[-1] == "laundry is still running"


async def test_who_opens_the_door_aborts_it(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with Dishwasher(cem.url, every=None, deadline=DEADLINE) as device:
        await introduced(device)
        instruction = device.instruction()
        assert await cem.ask(instruction) == "OK"
        assert await cem.ask(device.instruction(container="dry", at=NOW + 2 * HOUR)) == "OK"
        clock.tick(60)
        await device.tell()
        device.abort()
        await device.tell()
        assert statuses(cem)[-1] == [("ABORTED", 1), ("ABORTED", None)]
        assert cem.updates()[-1] == (instruction["id"], "ABORTED")
        assert (device.power, device.pending) == (0, [])
        clock.tick(24 * 3600)
        await device.tell()
        assert device.violations == []


async def test_a_machine_that_connects_again_tells_how_far_it_is(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    device = Dishwasher(cem.url, every=None, deadline=DEADLINE)
    async with device:
        await introduced(device)
        assert await cem.ask(device.instruction()) == "OK"
        assert await cem.ask(device.instruction(container="dry", at=NOW + 2 * HOUR)) == "OK"
    cem.received.clear()
    clock.tick(600)
    async with device:
        await introduced(device)
        assert statuses(cem) == [[("EXECUTING", 10), ("NOT_SCHEDULED", None)]]
        assert (device.pending, device.violations) == ([], [])
        assert cem.updates() == []


async def test_what_was_scheduled_is_left_behind_by_another_control_type(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with WashingMachine(cem.url, every=None, deadline=DEADLINE) as device:
        await introduced(device)
        left = device.instruction("eco", NOW + HOUR)
        assert await cem.ask(left) == "OK"
        await cem.select(NOT_CONTROLABLE)
        await cem.until(lambda: device.control_type == NOT_CONTROLABLE)
        assert device.violations == [(NOW, f"PPBC.ScheduleInstruction {left['id']} was left behind")]
        assert states(device) == ["NOT_SCHEDULED"]
