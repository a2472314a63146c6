"""What an entity tells of a state of charge is believed if power explains it, else carried on."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import flexmeasures_home.state_of_charge as states_of_charge
from flexmeasures_cem.plausibility import BelievedLevel
from flexmeasures_home.state_of_charge import NoStateOfCharge, StateOfCharge

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
CAR = "sensor.car"
PERCENT = {"unit_of_measurement": "%"}


class Battery:
    """A battery of 1 to 10 kWh and 5 kW at home, its entity, and a clock."""

    def __init__(self, hass, freezer, **options) -> None:
        """Start at noon, with half of it stored."""
        self.hass, self.freezer = hass, freezer
        self.due = self.measured = None
        self.known = 0
        freezer.move_to(NOON)
        self.say("50")
        given = {
            "entity": CAR,
            "unit_if_none": None,
            "soc_unit": "kWh",
            "soc_min": 1000.0,
            "soc_max": 10_000.0,
            "max_power": 5000.0,
            "max_age": HOUR,
            "efficiency": 1.0,
        }
        self.soc = StateOfCharge(
            hass=hass,
            change_planned=lambda begin, end: (self.due or 0.0) * ((end - begin) / HOUR),
            power_measured=lambda: self.measured,
            when_known=self.count,
            **given | options,
        )
        self.soc.start()

    def count(self) -> None:
        """Count how often it became known."""
        self.known += 1

    def say(self, state, attributes=PERCENT) -> None:
        """Set the entity."""
        self.hass.states.async_set(CAR, state, attributes)

    async def wait(self, minutes) -> None:
        """Let the clock go on, with a look each minute as the app has it."""
        for _minute in range(minutes):
            self.freezer.tick(MINUTE)
            self.soc.look()
        await self.hass.async_block_till_done()


@pytest.fixture
def battery(hass, freezer):
    """Return a function that makes the battery."""
    made = []

    def make(**options) -> Battery:
        made.append(Battery(hass, freezer, **options))
        return made[-1]

    yield make
    for each in made:
        each.soc.stop()


@pytest.mark.parametrize(
    ("entity", "state", "attributes", "unit", "soc"),
    [
        ("sensor.x", "45", PERCENT, None, 27_000),
        ("sensor.x", "45", {"unit_of_measurement": "kWh"}, None, 45_000),
        ("sensor.x", "45", {}, None, 45_000),
        ("sensor.x", "45", {}, "%", 27_000),
        ("sensor.x", "45", PERCENT, "kWh", 27_000),
        ("sensor.x.level", "on", {"level": 45}, "%", 27_000),
        ("sensor.x.level", "on", {"level": "45 %"}, None, 27_000),
    ],
)
def test_the_unit_is_the_entitys_own_or_the_configured_one(hass, entity, state, attributes, unit, soc):
    hass.states.async_set("sensor.x", state, attributes)
    assert states_of_charge.of_entity(hass, entity, unit, "kWh", 60_000.0) == soc


@pytest.mark.parametrize(
    ("entity", "state", "says"),
    [
        ("sensor.x.level", "on", "sensor.x.level is 45, without a unit: give soc_entity_unit"),
        ("sensor.x", "67", "is 67 kWh, far above soc_max"),
        ("sensor.x", "unavailable", "sensor.x is 'unavailable': expected a number in kWh"),
        ("sensor.car_leve", "1", "does not exist in Home Assistant: did you mean sensor.car_level?"),
    ],
)
def test_what_is_no_state_of_charge_is_told(hass, entity, state, says):
    hass.states.async_set("sensor.car_level", "1", {})
    if entity.startswith("sensor.x"):
        hass.states.async_set("sensor.x", state, {"level": 45})
    with pytest.raises(NoStateOfCharge) as caught:
        states_of_charge.of_entity(hass, entity, None, "kWh", 60_000.0)
    assert says in str(caught.value)


async def test_one_reading_that_power_cannot_explain_is_not_believed(battery, hass, caplog):
    car = battery()
    await car.wait(30)
    car.say("0")
    await hass.async_block_till_done()
    soc, assumed = car.soc.at(NOON + 30 * MINUTE)
    assert soc == 5000
    assert "says 0.00 kWh, which its power cannot explain: planned with 5.00 kWh" in assumed[0]
    assert car.soc.now() is None
    car.say("50")
    await hass.async_block_till_done()
    assert car.soc.at(NOON + 30 * MINUTE) == (5000, [])
    assert car.soc.now() == 5000
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len([record for record in told if "used only if it lasts" in record.getMessage()]) == 1


async def test_what_is_told_for_a_minute_is_believed(battery, hass):
    car = battery()
    await car.wait(30)
    car.say("20")
    await hass.async_block_till_done()
    assert car.soc.now() is None
    await car.wait(1)
    assert car.soc.now() == 2000
    assert car.soc.at(NOON + 31 * MINUTE) == (2000, [])


async def test_what_power_explains_is_believed_at_once(battery, hass):
    car = battery()
    await car.wait(30)
    car.say("52")
    await hass.async_block_till_done()
    assert car.soc.now() == 5200


async def test_it_is_carried_on_to_a_later_start(battery):
    car = battery()
    car.due = 4000.0
    assert car.soc.at(NOON + 15 * MINUTE) == (6000, [])
    assert car.soc.at(NOON + 3 * HOUR) == (10_000, [])
    car.due = -4000.0
    assert car.soc.at(NOON + 3 * HOUR) == (1000, [])


async def test_an_entity_that_stands_still_while_power_is_due_is_carried_on(battery):
    car = battery()
    car.due = 2000.0
    await car.wait(60)
    assert car.soc.at(NOON + HOUR) == (5000, [])
    await car.wait(30)
    soc, assumed = car.soc.at(NOON + 90 * MINUTE)
    assert soc == pytest.approx(8000)
    assert "has not changed since" in assumed[0]
    assert "its 5.00 kWh are extrapolated to 8.00 kWh" in assumed[0]
    assert car.soc.now() is None
    car.say("75")
    assert car.soc.at(NOON + 90 * MINUTE) == (7500, [])


async def test_one_that_tells_the_same_again_is_believed(battery, hass):
    car = battery()
    car.due = 5000.0
    for _quarter in range(8):
        await car.wait(15)
        car.say("50")
        await hass.async_block_till_done()
    assert car.soc.at(NOON + 2 * HOUR) == (5000, [])
    assert car.soc.now() == 5000


async def test_one_that_would_be_full_for_long_is_believed_again(battery):
    car = battery()
    car.due = 5000.0
    await car.wait(65)
    assert car.soc.at(NOON + 65 * MINUTE)[0] == 10_000
    await car.wait(60)
    car.due = 0.0
    assert car.soc.at(NOON + 125 * MINUTE) == (5000, [])


async def test_after_a_reload_it_stands_still_as_long_as_before(battery):
    car = battery()
    car.due = 2000.0
    await car.wait(90)
    car.soc.stop()
    made_anew = replace(car.soc, level=BelievedLevel(), changed_at=None, looked_at=None, gained=0.0)
    made_anew.start()
    assert made_anew.at(NOON + 90 * MINUTE)[0] == pytest.approx(8000)
    made_anew.stop()


async def test_one_that_stands_still_while_nothing_is_due_is_believed(battery):
    car = battery()
    await car.wait(600)
    assert car.soc.at(NOON + 10 * HOUR) == (5000, [])
    assert car.soc.now() == 5000


async def test_what_is_measured_prevails_over_what_is_due(battery):
    car = battery(efficiency=0.5)
    car.due, car.measured = 5000.0, 1000.0
    await car.wait(120)
    car.due = 0.0
    assert car.soc.at(NOON + 2 * HOUR)[0] == pytest.approx(5000 + 1000)
    car.measured = 0.0
    car = battery()
    car.due, car.measured = 5000.0, 0.0
    await car.wait(120)
    car.due = 0.0
    assert car.soc.at(NOON + 2 * HOUR) == (5000, [])


async def test_it_tells_when_it_is_known_again(battery, hass):
    car = battery()
    car.say("unavailable")
    await hass.async_block_till_done()
    with pytest.raises(NoStateOfCharge):
        car.soc.at(NOON)
    assert (car.soc.now(), car.known) == (None, 0)
    car.say("50")
    await hass.async_block_till_done()
    assert car.known == 1
