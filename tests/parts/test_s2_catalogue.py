"""The catalogue of simulated devices: all connect, and send valid messages."""

from datetime import datetime, timedelta

import pytest

from tests import demo_devices
from tests.parts.s2_catalogue import DEVICES
from tests.parts.s2_cem import Cem
from tests.parts.s2_device import AMSTERDAM
from tests.parts.s2_envelope_devices import EnvelopeCharger

pytestmark = pytest.mark.long

NAMES = [name for name in DEVICES if name != "meter"]


@pytest.mark.parametrize("name", NAMES)
async def test_each_device_introduces_itself_with_something_to_plan(cem: Cem, name: str) -> None:
    cem.takes_s2_python_for_the_schema = True
    async with DEVICES[name](cem.url, name=name, every=0.05):
        await cem.until(lambda: len(cem.of("PowerMeasurement")) > 2)
    assert cem.of("ResourceManagerDetails")[0]["name"] == name
    prefixes = {message_type.partition(".")[0] for message_type in cem.kinds()}
    assert prefixes & {"FRBC", "OMBC", "PEBC", "PPBC", "DDBC"}


async def test_the_meter_is_only_measured(cem: Cem) -> None:
    async with DEVICES["meter"](cem.url, name="meter", every=0.05):
        await cem.until(lambda: len(cem.of("PowerMeasurement")) > 2)
    assert cem.of("ResourceManagerDetails")[0]["available_control_types"] == ["NOT_CONTROLABLE"]


@pytest.mark.parametrize(
    ("hour", "leaves", "ends"), [(2, 7, 31), (6, 31, 31), (8, 31, 31), (22, 31, 31), (23.5, 31, 55)]
)
def test_what_is_to_be_done_is_to_be_done_by_seven(hour: float, leaves: int, ends: int) -> None:
    midnight = datetime(2026, 3, 2, tzinfo=AMSTERDAM)
    now = midnight + timedelta(hours=hour)
    assert DEVICES["ev"].options(now)["departure"] == midnight + timedelta(hours=leaves)
    assert DEVICES["dryer"].options(now)["deadline"] == midnight + timedelta(hours=ends)


def test_each_has_a_name_of_its_own() -> None:
    assert len({entry.name for entry in DEVICES.values()}) == len(DEVICES)


def test_other_options_prevail() -> None:
    departure = datetime(2030, 1, 1, tzinfo=AMSTERDAM)
    charger = DEVICES["envelope-charger"]("ws://nowhere", departure=departure)
    assert isinstance(charger, EnvelopeCharger)
    assert charger.departure == departure


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_can_show_the_instructions_of_every_device(name: str) -> None:
    dispatch = demo_devices.instructions.dispatch
    assert dispatch(DEVICES[name].kind) is not dispatch(object)
