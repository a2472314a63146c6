"""The simulated devices: their physics by the clock, and their messages to a minimal CEM."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from freezegun.api import FrozenDateTimeFactory

from tests.parts import s2_device
from tests.parts.s2_cem import Cem, introduced
from tests.parts.s2_device import AMSTERDAM, DAY, HOUR, MINUTE, NOT_CONTROLABLE, SECOND
from tests.parts.s2_devices import (
    FRBC,
    Boiler,
    ElectricVehicle,
    HomeBattery,
    StorageDevice,
    TwinBattery,
)
from tests.parts.s2_messages import NOW, example
from tests.parts.s2_unconnected import NOWHERE, instructed, reasons, rejection, unconnected

pytestmark = pytest.mark.long


# Physics


@pytest.mark.parametrize(
    ("mode", "factor", "power", "stored"),
    [
        ("charge", 0.5, 2500, 2500 * 0.95),
        ("charge", 0, 0, 0),
        ("discharge", 0, -5000, -5000 / 0.95),
        ("discharge", 0.75, -1250, -1250 / 0.95),
        ("discharge", 1, 0, 0),
    ],
)
def test_what_is_stored_is_what_is_consumed_less_the_losses(
    mode: str, factor: float, power: float, stored: float
) -> None:
    device = unconnected(HomeBattery, fill_level=60)
    instructed(device, mode, factor)
    device.advance(NOW + 2 * SECOND)
    assert device.energy(NOW, device.moment) == 0
    device.advance(NOW + 2 * SECOND + HOUR / 2)
    assert device.power == power
    assert device.energy(NOW, device.moment) == pytest.approx(power / 2)
    assert device.fill_level == pytest.approx(60 + stored / 2 / 100)
    assert device.violations == []


def test_nothing_flows_while_a_transition_lasts() -> None:
    device = unconnected(HomeBattery)
    instructed(device, "charge", at=NOW + 1.5 * SECOND)
    device.advance(NOW + 3.4 * SECOND)
    assert (device.power, device.fill_level) == (0, 50)
    device.advance(NOW + 3.5 * SECOND)
    assert (device.power, device.fill_level) == (5000, 50)


def test_charging_tapers_where_another_element_begins() -> None:
    device = unconnected(HomeBattery, fill_level=89)
    instructed(device, "charge")
    fast, slow = 5000 * 0.95 / 360_000, 2000 * 0.95 / 360_000
    device.advance(NOW + (2 + 1 / fast + 100) * SECOND)
    assert device.power == 2000
    assert device.fill_level == pytest.approx(90 + 100 * slow, abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "factor", "fill_level", "end", "power", "energy"),
    [("charge", 1, 99, 100, 2000, 100 / 0.95), ("discharge", 0, 1, 0, -5000, -100 * 0.95)],
)
def test_a_storage_that_is_full_or_empty_stops_the_power(
    mode: str, factor: float, fill_level: float, end: float, power: float, energy: float
) -> None:
    device = unconnected(HomeBattery, fill_level=fill_level)
    instructed(device, mode, factor)
    device.advance(NOW + 12 * SECOND)
    assert device.power == power
    device.advance(NOW + HOUR)
    assert (device.power, device.fill_level) == (0, end)
    assert device.energy(NOW, device.moment) == pytest.approx(energy, rel=1e-6)
    [(moment, level)] = device.violations
    assert NOW < moment < NOW + HOUR
    assert isinstance(level, float)
    assert 0.1 < abs(level - end) < 0.3


def test_a_hair_too_much_is_no_violation() -> None:
    device = unconnected(HomeBattery, fill_level=99)
    instructed(device, "charge")
    full = NOW + (2 + 360_000 / 2000 / 0.95) * SECOND
    instructed(device, "idle", at=full + 15 * SECOND)
    device.advance(NOW + HOUR)
    assert (device.fill_level, device.violations) == (100, [])


def test_leakage_follows_the_fill_level() -> None:
    device = unconnected(Boiler, fill_level=50.3, usage=lambda _: 0)
    device.advance(NOW + HOUR / 2)
    assert device.fill_level == pytest.approx(50, abs=1e-3)
    device.advance(NOW + HOUR / 2 + HOUR)
    assert device.fill_level == pytest.approx(49.7, abs=1e-3)


def test_a_household_draws_twelve_kelvin_each_morning_and_evening() -> None:
    midnight = datetime(2026, 3, 2, tzinfo=AMSTERDAM)
    device = Boiler(NOWHERE, start=midnight, fill_level=65, leakage=())
    levels = {}
    for hour in (6.5, 8, 18.5, 21):
        device.advance(midnight + hour * HOUR)
        levels[hour] = device.fill_level
    assert levels == pytest.approx({6.5: 65, 8: 53, 18.5: 53, 21: 41})


def test_what_an_empty_storage_cannot_give_is_a_shortfall_and_no_violation() -> None:
    device = unconnected(
        Boiler, fill_level=40, usage=lambda now: 0.001 if now < NOW + HOUR else 0, leakage=()
    )
    device.advance(NOW + 2 * HOUR)
    [(moment, missing)] = device.shortfalls
    assert moment == NOW
    assert missing == pytest.approx(3.6)
    assert (device.fill_level, device.violations) == (40, [])
    device.usage = lambda _: 0.001
    device.advance(NOW + 3 * HOUR)
    assert [moment for moment, _ in device.shortfalls] == [NOW, NOW + 2 * HOUR]


def test_a_boiler_that_stays_on_only_makes_up_for_its_leakage() -> None:
    device = unconnected(Boiler, fill_level=65, usage=lambda _: 0)
    instructed(device, "on")
    device.advance(NOW + HOUR)
    assert device.energy(NOW, device.moment) == pytest.approx(0.6 * 233 / 0.98, rel=0.02)
    assert len(device.violations) == 1


def test_actuators_add_up() -> None:
    device = unconnected(TwinBattery)
    instructed(device, "charge", actuator="big")
    instructed(device, "discharge", 0.5, actuator="small")
    device.advance(NOW + 5 * SECOND)
    assert device.power == 3000 - 500
    before = device.fill_level
    device.advance(NOW + 5 * SECOND + HOUR / 2)
    assert device.fill_level == pytest.approx(before + (3 * 0.94 - 0.5 / 0.94) / 2)


def test_how_often_time_passes_makes_no_difference() -> None:
    at_once, by_and_by = unconnected(Boiler, fill_level=60), unconnected(Boiler, fill_level=60)
    for device in (at_once, by_and_by):
        instructed(device, "on", at=NOW + 77.7 * SECOND)
        instructed(device, "off", at=NOW + HOUR)
    at_once.advance(NOW + DAY)
    for steps in range(1, 721):
        by_and_by.advance(NOW + steps * 2 * MINUTE)
    assert at_once.fill_level == pytest.approx(by_and_by.fill_level)
    assert at_once.energy(NOW, NOW + DAY) == pytest.approx(by_and_by.energy(NOW, NOW + DAY))


def test_time_does_not_go_back() -> None:
    device = unconnected(HomeBattery)
    device.advance(NOW + HOUR)
    device.advance(NOW)
    assert device.moment == NOW + HOUR


def test_the_log_has_each_minute_and_little_more() -> None:
    device = unconnected(HomeBattery)
    instructed(device, "charge", 0.1, at=NOW + 90 * SECOND)
    device.advance(NOW + DAY)
    assert device.log[0] == (NOW, 50, 0)
    assert all(timedelta() < later[0] - former[0] <= MINUTE for former, later in pairwise(device.log))
    assert 1440 < len(device.log) < 1450


def test_the_log_forgets_what_is_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s2_device, "LONGEST_LOG", 100)
    device = unconnected(HomeBattery)
    device.advance(NOW + DAY)
    assert 100 <= len(device.log) <= 200
    assert device.log[-1] == (NOW + DAY, 50, 0)


def test_the_energy_and_the_cost_are_those_of_the_log() -> None:
    device = unconnected(HomeBattery, fill_level=80)
    instructed(device, "discharge", 0.5)
    instructed(device, "charge", 0.2, at=NOW + HOUR)
    device.advance(NOW + 2 * HOUR)
    hours = 3598 / 3600
    assert device.energy(NOW, NOW + HOUR) == pytest.approx(-2500 * hours)
    assert device.energy(NOW + 1.5 * HOUR, NOW + DAY) == pytest.approx(1000 / 2)
    assert device.cost(lambda now: 0.4 if now < NOW + HOUR else 0.1) == pytest.approx((-1 + 0.1) * hours)


# Instructions


def test_instructions_are_carried_out_at_their_time_and_the_past_ones_at_once() -> None:
    device = unconnected(HomeBattery)
    later = instructed(device, "discharge", 0.5, at=NOW + HOUR)
    sooner = instructed(device, "charge", 0.5, at=NOW + MINUTE)
    past = instructed(device, "charge", 0.1, at=NOW - HOUR)
    assert device.instructions == [later, sooner, past]
    assert device.pending == [sooner, later]
    device.advance(NOW + 59 * SECOND)
    assert device.power == 500
    device.advance(NOW + MINUTE)
    assert device.power == 2500
    device.advance(NOW + HOUR + 2 * SECOND)
    assert (device.power, device.pending, device.rejected) == (-2500, [], [])


def test_a_mode_to_which_no_transition_leads_is_rejected() -> None:
    device = unconnected(TwinBattery)
    instructed(device, "charge", actuator="big")
    refused = instructed(device, "discharge", actuator="big", at=NOW + 20 * MINUTE)
    instructed(device, "idle", actuator="big", at=NOW + 21 * MINUTE)
    instructed(device, "discharge", actuator="big", at=NOW + 22 * MINUTE)
    device.advance(NOW + 20 * MINUTE)
    assert device.rejected == [(refused["id"], "no transition from charge to discharge")]
    assert device.power == 3000
    device.advance(NOW + 30 * MINUTE)
    assert (len(device.rejected), device.power) == (1, -3000)


def test_a_timer_that_runs_blocks_its_transition() -> None:
    device = unconnected(ElectricVehicle)
    instructed(device, "charge", 0)
    instructed(device, "off", at=NOW + 5 * MINUTE - SECOND)
    device.advance(NOW + 5 * MINUTE - SECOND)
    assert "timer blocks the transition from charge to off" in reasons(device)[0]
    assert device.power == 4140
    instructed(device, "off", at=NOW + 5 * MINUTE)
    device.advance(NOW + 5 * MINUTE)
    assert (len(device.rejected), device.power) == (1, 0)
    instructed(device, "charge", at=NOW + 9 * MINUTE)
    device.advance(NOW + 9 * MINUTE)
    assert "timer blocks the transition from off to charge" in reasons(device)[1]


def test_another_factor_of_the_same_mode_is_never_blocked() -> None:
    device = unconnected(ElectricVehicle)
    instructed(device, "charge", 0)
    instructed(device, "charge", 1, at=NOW + SECOND)
    device.advance(NOW + SECOND)
    assert (device.power, device.rejected) == (11040, [])


@pytest.mark.parametrize("abnormal", [False, True])
def test_a_mode_for_abnormal_conditions_needs_one(abnormal: bool) -> None:
    device = unconnected(HomeBattery, fill_level=50, description=example("FRBC.SystemDescription"))
    instructed(device, "backup charge", abnormal_condition=abnormal)
    assert device.power == (6000 if abnormal else 0)
    instructed(device, "idle")
    assert device.power == (6000 if abnormal else 0)
    assert reasons(device) == [
        "the transition from backup charge to idle is for abnormal conditions only"
        if abnormal
        else "backup charge is for abnormal conditions only"
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"actuator_id": str(uuid4())}, "actuator_id"),
        ({"operation_mode": str(uuid4())}, "operation_mode:"),
        ({"operation_mode_factor": 1.01}, "operation_mode_factor"),
        ({"operation_mode_factor": -0.01}, "operation_mode_factor"),
    ],
)
def test_an_instruction_that_refers_to_nothing_is_not_accepted(changes: dict[str, Any], field: str) -> None:
    device = unconnected(HomeBattery)
    instruction = device.instruction("charge", at=NOW + HOUR, **changes)
    problem = rejection(device, instruction)
    assert field in problem
    assert device.rejected == [(instruction["id"], problem)]
    assert (device.instructions, device.pending) == ([instruction], [])


def test_a_revoked_instruction_is_not_carried_out() -> None:
    device = unconnected(HomeBattery)
    done = instructed(device, "charge", 0.5)
    dropped = instructed(device, "idle", at=NOW + HOUR)
    kept = instructed(device, "idle", at=NOW + 2 * HOUR)
    assert device.revoke(dropped["id"]) is None
    assert device.revoke(done["id"]) is None
    assert (device.revoked, device.pending) == ({dropped["id"]}, [kept])
    device.advance(NOW + HOUR)
    assert device.power == 2500
    assert "no instruction" in (device.revoke(str(uuid4())) or "")


# Over a websocket


@pytest.mark.parametrize(
    ("kind", "options", "role", "sent"),
    [
        (HomeBattery, {}, "ENERGY_STORAGE", []),
        (ElectricVehicle, {}, "ENERGY_STORAGE", []),
        (
            ElectricVehicle,
            {"departure": NOW + 8 * HOUR},
            "ENERGY_STORAGE",
            ["FRBC.FillLevelTargetProfile"],
        ),
        (Boiler, {}, "ENERGY_CONSUMER", ["FRBC.LeakageBehaviour", "FRBC.UsageForecast"]),
        (TwinBattery, {}, "ENERGY_STORAGE", ["FRBC.ActuatorStatus"]),
    ],
)
async def test_a_device_introduces_itself(
    cem: Cem,
    clock: FrozenDateTimeFactory,
    kind: Callable[..., StorageDevice],
    options: dict[str, Any],
    role: str,
    sent: list[str],
) -> None:
    async with kind(cem.url, every=None, **options) as device:
        await introduced(device)
        assert device.control_type == FRBC
    [details] = cem.of("ResourceManagerDetails")
    assert details["available_control_types"] == [FRBC, NOT_CONTROLABLE]
    assert [entry["role"] for entry in details["roles"]] == [role]
    [measurement] = cem.of("PowerMeasurement")
    assert details["provides_power_measurement_types"] == [measurement["values"][0]["commodity_quantity"]]
    [description] = cem.of("FRBC.SystemDescription")
    storage = description["storage"]
    for field, message_type in {
        "provides_leakage_behaviour": "FRBC.LeakageBehaviour",
        "provides_fill_level_target_profile": "FRBC.FillLevelTargetProfile",
        "provides_usage_forecast": "FRBC.UsageForecast",
    }.items():
        assert storage[field] == (message_type in sent), field
    assert cem.kinds() == [
        "Handshake",
        "ResourceManagerDetails",
        "FRBC.SystemDescription",
        "FRBC.ActuatorStatus",
        *sent,
        "FRBC.StorageStatus",
        "PowerMeasurement",
    ]


async def test_a_round_tells_only_what_changed(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with ElectricVehicle(cem.url, every=None) as device:
        await introduced(device)
        cem.kinds()
        clock.tick(60)
        await device.tell()
        assert cem.kinds() == ["PowerMeasurement"]
        instruction = device.instruction("charge", 0)
        clock.tick(30)
        assert await cem.ask(instruction) == "OK"
        clock.tick(60)
        await device.tell()
        [measurement] = cem.of("PowerMeasurement")
        assert measurement["values"][0]["value"] == 4140
        [status] = cem.of("FRBC.ActuatorStatus")
        assert status["operation_mode_factor"] == 0
        assert status["active_operation_mode_id"] == instruction["operation_mode"]
        assert status["previous_operation_mode_id"] == device.instruction("off")["operation_mode"]
        assert datetime.fromisoformat(status["transition_timestamp"]) == NOW + 1.5 * MINUTE
        [timer] = cem.of("FRBC.TimerStatus")
        assert datetime.fromisoformat(timer["finished_at"]) == NOW + 6.5 * MINUTE
        [level] = cem.of("FRBC.StorageStatus")
        assert level["present_fill_level"] == device.fill_level > 30
        cem.kinds()
        clock.tick(60)
        await device.tell()
        assert cem.kinds() == ["FRBC.StorageStatus", "PowerMeasurement"]
        clock.tick(600)
        assert await cem.ask(device.instruction("off")) == "OK"
        await device.tell()
        cem.kinds()
        clock.tick(60)
        await device.tell()
        assert cem.kinds() == ["PowerMeasurement"]


async def test_it_tells_what_became_of_its_instructions(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with HomeBattery(cem.url, every=None) as device:
        await introduced(device)
        first = device.instruction("charge", at=NOW + MINUTE)
        aborted = device.instruction("charge", at=NOW + 2 * MINUTE, factor=0.5)
        for instruction in (first, aborted):
            assert await cem.ask(instruction) == "OK"
        await cem.until(lambda: len(cem.updates()) == 2)
        assert cem.updates() == [(first["id"], "ACCEPTED"), (aborted["id"], "ACCEPTED")]
        cem.kinds()
        clock.move_to(NOW + 61 * SECOND)
        await device.tell()
        assert cem.updates() == [(first["id"], "STARTED")]
        last = device.instruction("discharge")
        assert await cem.ask(last) == "OK"
        await cem.until(lambda: len(cem.updates()) == 4)
        assert cem.updates()[1:] == [
            (last["id"], "ACCEPTED"),
            (last["id"], "STARTED"),
            (first["id"], "ABORTED"),
        ]
        assert datetime.fromisoformat(cem.of("InstructionStatusUpdate")[0]["timestamp"]) == NOW + MINUTE
        clock.move_to(NOW + 63 * SECOND)
        await device.tell()
        assert cem.updates()[4:] == [(last["id"], "SUCCEEDED")]


async def test_it_tells_which_instruction_it_rejects(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with TwinBattery(cem.url, every=None) as device:
        await introduced(device)
        assert await cem.ask(device.instruction("charge", actuator="big")) == "OK"
        rejected = device.instruction("discharge", actuator="big", at=NOW + MINUTE)
        assert await cem.ask(rejected) == "OK"
        clock.tick(60)
        await device.tell()
        assert cem.updates()[-1] == (rejected["id"], "REJECTED")
        assert [instruction_id for instruction_id, _ in device.rejected] == [rejected["id"]]


async def test_it_confirms_a_revocation(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with HomeBattery(cem.url, every=None) as device:
        await introduced(device)
        instruction = device.instruction("charge", at=NOW + MINUTE)
        assert await cem.ask(instruction) == "OK"
        revoked = example("RevokeObject", object_type="FRBC.Instruction", object_id=instruction["id"])
        assert await cem.ask(revoked) == "OK"
        await cem.until(lambda: (instruction["id"], "REVOKED") in cem.updates())
        clock.tick(120)
        await device.tell()
        assert (device.power, device.revoked, device.pending) == (0, {instruction["id"]}, [])


async def test_content_that_refers_to_nothing_is_refused_once(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with HomeBattery(cem.url, every=None) as device:
        await introduced(device)
        refused = [
            device.instruction("charge", actuator_id=str(uuid4())),
            device.instruction("charge", 1.5),
            example("RevokeObject", object_type="FRBC.Instruction", object_id=str(uuid4())),
            example("RevokeObject", object_type="FRBC.SystemDescription", object_id=str(uuid4())),
        ]
        for message in refused:
            assert await cem.ask(message) == "INVALID_CONTENT"
        assert await cem.ask(device.instruction("charge")) == "OK"
        assert [cem.statuses(message) for message in refused] == [["INVALID_CONTENT"]] * len(refused)
        assert len(device.rejected) == 2


async def test_without_control_it_measures_and_takes_no_instructions(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with HomeBattery(cem.url, every=None) as device:
        await introduced(device)
        assert await cem.ask(device.instruction("charge", at=NOW + HOUR)) == "OK"
        await cem.select(NOT_CONTROLABLE)
        await cem.until(lambda: device.control_type == NOT_CONTROLABLE)
        assert device.pending == []
        assert await cem.ask(device.instruction("charge")) == "INVALID_CONTENT"
        cem.kinds()
        await device.tell()
        assert cem.kinds() == ["PowerMeasurement"]


async def test_a_target_is_told_with_the_whole_storage_around_it(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with ElectricVehicle(cem.url, every=None, departure=NOW + 2 * HOUR) as device:
        await introduced(device)
        await device.set_target([(NOW + 3 * HOUR, NOW + 4 * HOUR, 60, 90), (NOW - HOUR, NOW + HOUR, 10, 20)])
        await device.set_target([(NOW - 2 * HOUR, NOW - HOUR, 10, 20)])
    profiles = [
        [
            (element["duration"] / 3_600_000, *element["fill_level_range"].values())
            for element in profile["elements"]
        ]
        for profile in cem.of("FRBC.FillLevelTargetProfile")
    ]
    assert profiles == [
        [(2, 0, 100), (1, 80, 100)],
        [(1, 10, 20), (2, 0, 100), (1, 60, 90)],
        [(24, 0, 100)],
    ]


async def test_a_forecast_is_of_the_usage_or_of_what_it_is_told_to_be(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    def forecasts() -> list[tuple[datetime, list[float]]]:
        return [
            (datetime.fromisoformat(forecast["start_time"]), [e["usage_rate_expected"] for e in elements])
            for forecast in cem.of("FRBC.UsageForecast")
            if len(elements := forecast["elements"]) == 96
        ]

    async with Boiler(cem.url, every=None) as device:
        await introduced(device)
        [(start, rates)] = forecasts()
        assert start == NOW
        assert sum(rates) * 900 == pytest.approx(24)
        assert sum(rates[30:40]) * 900 == pytest.approx(12)
        clock.tick(100)
        await device.set_usage(lambda _: 0.001, forecast=lambda _: 0.0005)
        start, rates = forecasts()[1]
        assert start == NOW
        assert rates == pytest.approx([0.0005] * 96)
        before = device.fill_level
        assert before == pytest.approx(55 - 100 * 0.6 / 3600)
        clock.tick(1000)
        await device.tell()
        assert before - device.fill_level == pytest.approx(1 + 1000 * 0.6 / 3600)
        assert len(forecasts()) == 2
        clock.move_to(NOW + HOUR + 100 * SECOND)
        await device.tell()
        start, rates = forecasts()[2]
        assert start == NOW + HOUR
        assert rates == pytest.approx([0.0005] * 96)


async def test_a_device_that_connects_again_tells_its_state_and_forgets_its_instructions(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    device = ElectricVehicle(cem.url, every=None)
    async with device:
        await introduced(device)
        assert await cem.ask(device.instruction("charge")) == "OK"
        assert await cem.ask(device.instruction("off", at=NOW + HOUR)) == "OK"
    cem.kinds()
    clock.tick(120)
    async with device:
        await introduced(device)
        [status] = cem.of("FRBC.ActuatorStatus")
        assert status["active_operation_mode_id"] == device.instruction("charge")["operation_mode"]
        assert len(cem.of("FRBC.TimerStatus")) == 1
        assert cem.of("FRBC.StorageStatus")[0]["present_fill_level"] > 30
        assert cem.updates() == []
        assert device.pending == []


async def test_another_session_does_not_hear_of_the_instructions_before(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    device = HomeBattery(cem.url, every=None)
    async with device:
        await introduced(device)
        assert await cem.ask(device.instruction("charge")) == "OK"
        await cem.until(lambda: len(cem.updates()) == 2)
    cem.kinds()
    async with device:
        await introduced(device)
        clock.tick(10)
        await device.tell()
        assert (device.power, cem.updates()) == (5000, [])


async def test_by_itself_it_tells_every_so_often(cem: Cem) -> None:
    async with TwinBattery(cem.url, every=0.02) as device:
        await asyncio.wait_for(device.active.wait(), 5)
        assert await cem.ask(device.instruction("charge", 0.5, actuator="small")) == "OK"
        await cem.until(lambda: len(cem.of("FRBC.StorageStatus")) > 3)
        assert cem.of("PowerMeasurement")[-1]["values"][0]["value"] == 500
        levels = [status["present_fill_level"] for status in cem.of("FRBC.StorageStatus")]
        assert levels == sorted(set(levels))
    assert device.control_type is None
