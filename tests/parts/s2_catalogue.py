"""The simulated devices by name, for users of the demo."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tests.parts.s2_device import AMSTERDAM, ControlledDevice, Device
from tests.parts.s2_devices import Boiler, ElectricVehicle, HomeBattery, Meter, TwinBattery
from tests.parts.s2_envelope_devices import EnvelopeCharger, PvInverter
from tests.parts.s2_mode_devices import DistrictHeat, HeatPump, HybridHeatPump, StepCharger
from tests.parts.s2_profile_devices import Dishwasher, Dryer, WashingMachine


class Entry(NamedTuple):
    """A device's class, its name and description, and its options at a moment."""

    kind: type[Device]
    name: str
    what: str
    options: Callable[[datetime], dict[str, Any]] = lambda _: {}

    def __call__(self, url: str, **options: Any) -> Device:
        """Return a device, with further or replaced options."""
        return self.kind(url, **{"name": self.name} | self.options(datetime.now(AMSTERDAM)) | options)


def controlled(key: str, url: str, **options: Any) -> ControlledDevice:
    """Return a device of the catalogue that has instructions; raise TypeError for the meter."""
    device = DEVICES[key](url, **options)
    if not isinstance(device, ControlledDevice):
        raise TypeError(f"{key} has no instructions: choose another device of the catalogue")
    return device


def _leaves_in_the_morning(now: datetime) -> dict[str, Any]:
    """Return a departure at seven, in at least four hours."""
    return {"departure": _next(now + timedelta(hours=4), 7)}


def _done_by_the_morning(now: datetime) -> dict[str, Any]:
    """Return a deadline at seven, in at least eight hours."""
    return {"deadline": _next(now + timedelta(hours=8), 7)}


def _lived_for_an_hour(now: datetime) -> dict[str, Any]:
    """Return a start an hour ago, so that the device already supplies its demand."""
    return {"start": now - timedelta(hours=1)}


def _next(now: datetime, hour: int) -> datetime:
    """Return the next moment at an hour of the day (in Amsterdam)."""
    at = now.replace(hour=hour, minute=0, second=0, microsecond=0)
    return at if at > now else at + timedelta(days=1)


DEVICES: dict[str, Entry] = {
    "battery": Entry(HomeBattery, "Home battery", "a battery of 10 kWh and 5 kW (FRBC)"),
    "ev": Entry(
        ElectricVehicle,
        "Electric vehicle",
        "a car that is to be at 80 % at seven (FRBC)",
        _leaves_in_the_morning,
    ),
    "boiler": Entry(Boiler, "Boiler", "a boiler of 200 l for warm water (FRBC)"),
    "twin-battery": Entry(TwinBattery, "Twin battery", "a battery of 8 kWh with two inverters (FRBC)"),
    "meter": Entry(Meter, "Kitchen meter", "a meter, which is only measured (NOT_CONTROLABLE)"),
    "heat-pump": Entry(HeatPump, "Heat pump", "a heat pump of 2.5 kW with minimum on and off times (OMBC)"),
    "step-charger": Entry(StepCharger, "Step charger", "a charger of three steps up to 11 kW (OMBC)"),
    "pv": Entry(PvInverter, "Solar panels", "a solar inverter of 5 kW that can be curtailed (PEBC)"),
    "envelope-charger": Entry(
        EnvelopeCharger,
        "Envelope charger",
        "a car that takes 20 kWh by seven, at 4 to 11 kW (PEBC)",
        _leaves_in_the_morning,
    ),
    "washing-machine": Entry(
        WashingMachine,
        "Washing machine",
        "a washing machine with an eco and a quick programme (PPBC)",
        _done_by_the_morning,
    ),
    "dishwasher": Entry(
        Dishwasher, "Dishwasher", "a dishwasher that washes, then dries (PPBC)", _done_by_the_morning
    ),
    "dryer": Entry(Dryer, "Dryer", "a tumble dryer that can be interrupted (PPBC)", _done_by_the_morning),
    "hybrid-heat-pump": Entry(
        HybridHeatPump,
        "Hybrid heat pump",
        "a heat pump with a gas boiler, for a house's heat (DDBC)",
        _lived_for_an_hour,
    ),
    "district-heat": Entry(
        DistrictHeat,
        "District heat",
        "district heat with an electric boiler of three steps (DDBC)",
        _lived_for_an_hour,
    ),
}
