"""The simulated devices under power envelope based control: their physics, and their messages to a CEM."""

from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from freezegun.api import FrozenDateTimeFactory

from tests.parts.s2_cem import Cem, introduced
from tests.parts.s2_device import DAY, HOUR, MINUTE, NOT_CONTROLABLE, SECOND
from tests.parts.s2_devices import FRBC
from tests.parts.s2_envelope_devices import (
    PEBC,
    Element,
    EnvelopeCharger,
    PvInverter,
    VersatileBattery,
    sunny,
)
from tests.parts.s2_messages import NOW, example
from tests.parts.s2_unconnected import constant, instructed, rejection, unconnected

pytestmark = pytest.mark.long


def car(**options: Any) -> EnvelopeCharger:
    """Return a charger with a car that leaves in eight hours."""
    return unconnected(EnvelopeCharger, **{"departure": NOW + 8 * HOUR} | options)


# A solar inverter


def test_the_sun_shines_by_day() -> None:
    production = sunny(4000, 6, 20)
    assert production(NOW + 2 * HOUR) == pytest.approx(4000)
    assert production(NOW - 6 * HOUR) == 0


def test_an_inverter_produces_what_the_sun_gives() -> None:
    device = unconnected(PvInverter, production=lambda now: 3000 if now < NOW + HOUR else 1000)
    device.advance(NOW + 2 * HOUR)
    assert device.power == -1000
    assert device.energy(NOW, NOW + 2 * HOUR) == pytest.approx(-4000)
    assert device.earned(constant(0.1)) == pytest.approx(0.4)
    assert (device.curtailed, device.violations) == (0, [])


def test_what_is_above_the_envelope_is_lost() -> None:
    device = unconnected(PvInverter, production=constant(3000))
    instructed(device, (HOUR, -5000, 0), (HOUR, -1000, 0), (HOUR, 0, 0), (HOUR, -5000, 0), at=NOW + HOUR)
    powers = []
    for hour in range(5):
        device.advance(NOW + (hour + 0.5) * HOUR)
        powers.append(device.power)
    assert powers == [-3000, -3000, -1000, 0, -3000]
    assert device.curtailed == pytest.approx(5000)


def test_an_envelope_that_runs_out_is_a_violation() -> None:
    device = unconnected(PvInverter, production=constant(3000))
    instructed(device, (HOUR, 0, 0))
    device.advance(NOW + 2 * HOUR)
    assert device.power == -3000
    assert device.violations == [(NOW + HOUR, "the envelope came to its end")]


def test_an_envelope_that_is_followed_by_another_is_none() -> None:
    device = unconnected(PvInverter, production=constant(3000))
    instructed(device, (HOUR, 0, 0))
    instructed(device, (DAY, -2000, 0), at=NOW + HOUR)
    device.advance(NOW + 2 * HOUR)
    assert (device.power, device.violations) == (-2000, [])


def test_an_envelope_replaces_the_one_before() -> None:
    device = unconnected(PvInverter, production=constant(3000))
    instructed(device, (DAY, 0, 0))
    instructed(device, (DAY, -2000, 0), at=NOW + HOUR)
    device.advance(NOW + HOUR)
    assert device.power == -2000


def test_an_envelope_that_comes_late_counts_from_its_own_time() -> None:
    device = unconnected(PvInverter, production=constant(3000))
    instructed(device, (HOUR, 0, 0), (HOUR, -1000, 0), at=NOW - 0.5 * HOUR)
    device.advance(NOW + 0.5 * HOUR)
    assert device.power == -1000


@pytest.mark.parametrize(
    ("elements", "changes", "field"),
    [
        ([(HOUR, 0, 0)], {"power_constraints_id": str(uuid4())}, "power_constraints_id"),
        ([(HOUR, 0, 0)], {"power_envelopes": []}, "power_envelopes"),
        ([(HOUR, 0, -1)], {}, "above the upper_limit"),
        ([(HOUR, 0, 0), (HOUR, -5001, 0)], {}, "power_envelope_elements[1].lower_limit"),
        ([(HOUR, 0, 1)], {}, "power_envelope_elements[0].upper_limit"),
    ],
)
def test_an_envelope_that_is_not_allowed_is_not_accepted(
    elements: list[Element], changes: dict[str, Any], field: str
) -> None:
    device = unconnected(PvInverter)
    instruction = device.instruction(*elements, **changes)
    problem = rejection(device, instruction)
    assert field in problem
    assert device.rejected == [(instruction["id"], problem)]
    assert device.pending == []


def test_ranges_for_abnormal_conditions_need_one() -> None:
    device = unconnected(PvInverter)
    device.envelope.abnormal = [("UPPER_LIMIT", 0, 500)]
    assert "upper_limit" in rejection(device, device.instruction((HOUR, 0, 500)))
    instructed(device, (HOUR, 0, 500), abnormal_condition=True)


def test_no_envelope_begins_when_the_constraints_do_not_hold() -> None:
    device = unconnected(PvInverter)
    device.envelope.valid_from, device.envelope.valid_until = NOW + HOUR, NOW + 2 * HOUR
    for hour in (0.5, 1, 2):
        instructed(device, (HOUR, 0, 0), at=NOW + hour * HOUR)
    device.advance(NOW + 3 * HOUR)
    assert [reason.rpartition(" ")[0].split("held")[0] for _, reason in device.rejected] == [
        f"the power constraints hold from {(NOW + HOUR).date()} {(NOW + HOUR).timetz()}",
        "the power constraints ",
    ]


# A charger


def test_a_car_charges_at_once_until_it_has_what_it_needs() -> None:
    device = car()
    device.advance(NOW + HOUR)
    assert device.power == 11040
    device.advance(NOW + 8 * HOUR)
    assert device.energy(NOW, NOW + 8 * HOUR) == pytest.approx(20_000)
    assert (device.power, device.shortfalls, device.violations) == (0, [], [])


def test_a_car_charges_as_fast_as_its_envelope_allows() -> None:
    device = car()
    instructed(device, (HOUR, 0, 0), (HOUR, 0, 4140), (6 * HOUR, 0, 11040))
    powers = []
    for hour in range(5):
        device.advance(NOW + (hour + 0.5) * HOUR)
        powers.append(device.power)
    assert powers == [0, 4140, 11040, 0, 0]
    assert device.delivered == pytest.approx(20_000)


def test_a_limit_in_the_gap_is_not_accepted() -> None:
    device = car()
    assert "power_envelope_elements[0].upper_limit" in rejection(device, device.instruction((HOUR, 0, 2000)))


def test_a_car_that_leaves_with_less_has_a_shortfall() -> None:
    device = car()
    instructed(device, (HOUR, 0, 11040), (7 * HOUR, 0, 0))
    device.advance(NOW + 9 * HOUR)
    [(moment, missing)] = device.shortfalls
    assert moment == NOW + 8 * HOUR
    assert missing == pytest.approx(20_000 - 11_040)
    assert (device.departure, device.power, device.violations) == (None, 0, [])


def test_an_envelope_may_end_when_the_car_has_what_it_needs() -> None:
    device = car()
    instructed(device, (2 * HOUR, 0, 11040))
    device.advance(NOW + 8 * HOUR)
    assert (device.violations, device.shortfalls) == ([], [])


def test_without_a_car_nothing_is_charged_and_no_envelope_runs_out() -> None:
    device = unconnected(EnvelopeCharger)
    instructed(device, (HOUR, 0, 11040))
    device.advance(NOW + 2 * HOUR)
    assert (device.energy(NOW, NOW + DAY), device.violations, device.shortfalls) == (0, [], [])


def test_how_often_time_passes_makes_no_difference() -> None:
    at_once, by_and_by = car(), car()
    for device in (at_once, by_and_by):
        instructed(device, (77.7 * SECOND, 0, 0), (HOUR, 0, 5000), (DAY, 0, 11040))
    at_once.advance(NOW + DAY)
    for steps in range(1, 721):
        by_and_by.advance(NOW + steps * 2 * MINUTE)
    price = sunny(1)
    assert at_once.cost(price) == pytest.approx(by_and_by.cost(price))
    assert at_once.delivered == by_and_by.delivered == pytest.approx(20_000)


# Over a websocket


async def test_an_inverter_introduces_itself(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with PvInverter(cem.url, every=None) as device:
        await introduced(device)
        assert device.control_type == PEBC
    [details] = cem.of("ResourceManagerDetails")
    assert details["available_control_types"] == [PEBC, NOT_CONTROLABLE]
    assert details["provides_forecast"] is True
    assert details["roles"][0]["role"] == "ENERGY_PRODUCER"
    [constraints] = cem.of("PEBC.PowerConstraints")
    assert constraints["consequence_type"] == "VANISH"
    [forecast] = cem.of("PowerForecast")
    powers = [element["power_values"][0]["value_expected"] for element in forecast["elements"]]
    assert len(powers) == 96
    assert -sum(powers) / 4 == pytest.approx(
        sum(sunny()(NOW + minute * MINUTE) for minute in range(1440)) / 60
    )
    assert cem.kinds() == [
        "Handshake",
        "ResourceManagerDetails",
        "PEBC.PowerConstraints",
        "PowerForecast",
        "PowerMeasurement",
    ]


async def test_a_forecast_is_told_each_hour_without_control_too(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    cem.control_type = NOT_CONTROLABLE
    async with PvInverter(cem.url, every=None) as device:
        await introduced(device)
        clock.tick(1800)
        await device.tell()
        clock.tick(1800)
        await device.tell()
        forecast, power = "PowerForecast", "PowerMeasurement"
        assert cem.kinds()[2:] == [forecast, power, power, forecast, power]
        await device.set_production(constant(700), forecast=constant(800))
        [message] = cem.of("PowerForecast")
        assert message["elements"][0]["power_values"][0]["value_expected"] == -800
        assert cem.of("PowerMeasurement")[0]["values"][0]["value"] == -700


async def test_it_tells_what_became_of_its_envelopes(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with PvInverter(cem.url, every=None) as device:
        await introduced(device)
        first = device.instruction((DAY, -1000, 0))
        later = device.instruction((HOUR, 0, 0), at=NOW + HOUR)
        refused = device.instruction((HOUR, 1, 2))
        assert await cem.ask(first) == await cem.ask(later) == "OK"
        assert await cem.ask(refused) == "INVALID_CONTENT"
        clock.tick(3600)
        await device.tell()
        clock.tick(3600)
        await device.tell()
        assert sorted(cem.updates()) == sorted(
            (instruction["id"], status)
            for instruction in (first, later)
            for status in ("ACCEPTED", "STARTED", "SUCCEEDED")
        )


async def test_a_revoked_envelope_is_not_followed(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with PvInverter(cem.url, every=None, production=constant(3000)) as device:
        await introduced(device)
        instruction = device.instruction((DAY, 0, 0), at=NOW + MINUTE)
        assert await cem.ask(instruction) == "OK"
        revocation = example("RevokeObject", object_type="PEBC.Instruction", object_id=instruction["id"])
        assert await cem.ask(revocation) == "OK"
        clock.tick(120)
        await device.tell()
        assert (device.power, device.revoked) == (-3000, {instruction["id"]})


async def test_other_constraints_replace_those_before(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with PvInverter(cem.url, every=None, production=constant(3000)) as device:
        await introduced(device)
        [before] = cem.of("PEBC.PowerConstraints")
        old = device.instruction((DAY, 0, 0))
        assert await cem.ask(old) == "OK"
        cem.received.clear()
        await device.constrain(lower=[(-5000, -1000), (0, 0)], valid_until=NOW + HOUR)
        [revocation], [after] = cem.of("RevokeObject"), cem.of("PEBC.PowerConstraints")
        assert (revocation["object_type"], revocation["object_id"]) == ("PEBC.PowerConstraints", before["id"])
        assert datetime.fromisoformat(after["valid_until"]) == NOW + HOUR
        assert device.power == -3000
        old_again = old | {"id": str(uuid4()), "message_id": str(uuid4())}
        assert await cem.ask(old_again) == "INVALID_CONTENT"
        assert await cem.ask(device.instruction((HOUR, -500, 0))) == "INVALID_CONTENT"
        assert await cem.ask(device.instruction((HOUR, -1500, 0))) == "OK"
        assert (device.power, device.doing) == (-1500, "-1500 to 0 W")


async def test_a_charger_tells_what_its_car_needs(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with EnvelopeCharger(cem.url, every=None, departure=NOW + 8 * HOUR) as device:
        await introduced(device)
        [constraints] = cem.of("PEBC.PowerConstraints")
        assert constraints["consequence_type"] == "DEFER"
        [energy] = cem.of("PEBC.EnergyConstraint")
        assert energy["upper_average_power"] == energy["lower_average_power"] == 2500
        assert datetime.fromisoformat(energy["valid_until"]) == NOW + 8 * HOUR
        cem.received.clear()
        clock.tick(60)
        await device.unplug()
        [revocation] = cem.of("RevokeObject")
        assert (revocation["object_type"], revocation["object_id"]) == ("PEBC.EnergyConstraint", energy["id"])
        await device.plug_in(NOW + HOUR, 5900)
        [energy] = cem.of("PEBC.EnergyConstraint")
        assert energy["upper_average_power"] == pytest.approx(6000)


async def test_without_a_car_a_charger_tells_its_limits_only(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with EnvelopeCharger(cem.url, every=None) as device:
        await introduced(device)
    assert cem.kinds()[2:] == ["PEBC.PowerConstraints", "PowerMeasurement"]


async def test_a_charger_that_connects_again_asks_for_what_is_left(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    device = EnvelopeCharger(cem.url, every=None, departure=NOW + 8 * HOUR)
    async with device:
        await introduced(device)
        assert await cem.ask(device.instruction((HOUR, 0, 11040), (DAY, 0, 0))) == "OK"
    cem.received.clear()
    clock.tick(7200)
    async with device:
        await introduced(device)
        assert device.power == 0
    [energy] = cem.of("PEBC.EnergyConstraint")
    assert energy["upper_average_power"] * 6 == pytest.approx(20_000 - 11_040)


async def test_control_is_gone_with_its_control_type(cem: Cem, clock: FrozenDateTimeFactory) -> None:
    async with PvInverter(cem.url, every=None, production=constant(3000)) as device:
        await introduced(device)
        assert await cem.ask(device.instruction((DAY, 0, 0))) == "OK"
        assert await cem.ask(left := device.instruction((DAY, 0, 0), at=NOW + HOUR)) == "OK"
        assert device.power == 0
        await cem.select(NOT_CONTROLABLE)
        await cem.until(lambda: device.control_type == NOT_CONTROLABLE)
        assert device.power == -3000
        assert device.violations == [(NOW, f"PEBC.Instruction {left['id']} was left behind")]


async def test_a_versatile_battery_goes_from_one_control_type_to_the_other(
    cem: Cem, clock: FrozenDateTimeFactory
) -> None:
    async with VersatileBattery(cem.url, every=None) as device:
        await introduced(device)
        assert cem.of("ResourceManagerDetails")[0]["available_control_types"] == [FRBC, PEBC, NOT_CONTROLABLE]
        charge = device.instruction("charge", 0.5)
        assert await cem.ask(charge) == "OK"
        clock.tick(10)
        await device.tell()
        assert device.power == 2500
        cem.received.clear()
        await cem.select(PEBC)
        await cem.until(lambda: device.control_type == PEBC)
        await device.tell()
        assert cem.kinds() == ["PEBC.PowerConstraints", "PowerMeasurement"]
        assert device.power == 0
        assert await cem.ask(device.instruction("charge")) == "INVALID_CONTENT"
        envelope = device.envelope_instruction((HOUR, 0, 5000))
        assert await cem.ask(envelope) == "OK"
        assert await cem.ask(device.envelope_instruction((HOUR, 0, 6000))) == "INVALID_CONTENT"
        left = device.envelope_instruction((HOUR, 0, 0), at=NOW + HOUR)
        assert await cem.ask(left) == "OK"
        cem.received.clear()
        await cem.select(FRBC)
        await cem.until(lambda: device.control_type == FRBC)
        await device.tell()
        assert "FRBC.SystemDescription" in cem.kinds()
        assert device.violations == [(device.moment, f"PEBC.Instruction {left['id']} was left behind")]
        assert await cem.ask(device.instruction("charge")) == "OK"
