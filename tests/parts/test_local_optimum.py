"""The local optimum: what FlexMeasures would do, in problems whose answer is known."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import flexmeasures_api.errors as errors
import flexmeasures_api.flexible_devices as storages
import flexmeasures_api.schedule as schedules
import flexmeasures_cem.site.site as sites
from flexmeasures_api.prices import PriceInterval
from tests.parts.local_optimum import Device, Optimiser, Spans, priced

BEGIN = datetime(2026, 1, 14, 18, tzinfo=UTC)
HOUR = 3600.0


def at(hours: float) -> datetime:
    """Return the moment after some hours."""
    return BEGIN + timedelta(hours=hours)


def storage(
    sensor: int = 1, soc: float = 0.0, full: float = 10_000.0, power: float = 5000.0, **options: Any
) -> storages.Storage:
    """Return a storage (Wh, W)."""
    return storages.Storage(
        power_sensor=sensor, soc_at_start=soc, soc_min=0.0, soc_max=full, power_capacity=power, **options
    )


def wish(hours: float, value: float) -> storages.SocEvent:
    """Return a wish for an energy (Wh) at a moment."""
    return storages.SocEvent(at(hours), at(hours), value)


async def solved(
    consumption: Sequence[float],
    *devices: Device,
    production: Sequence[float] | None = None,
    loads: Sequence[float] = (),
    limit: float | None = None,
    limits: dict[str, Spans] | None = None,
) -> list[list[float | None]]:
    """Return the hourly powers (W) of every device, by hourly prices and fixed loads (W)."""
    start = BEGIN.timestamp()

    async def prices(_start: float, _end: float) -> list[PriceInterval]:
        pairs = zip(consumption, production or consumption, strict=True)
        return [
            priced(start + hour * HOUR, start + (hour + 1) * HOUR, *pair) for hour, pair in enumerate(pairs)
        ]

    window = sites.Window(start, HOUR, start + len(consumption) * HOUR, 1.0, math.inf, True)
    given = {99: [(start + hour * HOUR, start + (hour + 1) * HOUR, load) for hour, load in enumerate(loads)]}
    solution = await Optimiser(prices, limit).solve(list(devices), window, given, limits or {})
    assert all(schedule.start == BEGIN for schedule in solution.values())
    return [solution[device.power_sensor].values for device in devices]


async def test_the_cheapest_hours_are_taken_for_a_target() -> None:
    car = storage(production_capacity=0.0, soc_minima=[wish(4, 7000)])
    [powers] = await solved([0.3, 0.1, 0.2, 0.3, 0.05], car)
    assert powers == pytest.approx([0, 5000, 2000, 0, 0])


async def test_what_costs_the_same_is_charged_sooner() -> None:
    car = storage(production_capacity=0.0, soc_targets=[wish(4, 5000)])
    [powers] = await solved([0.2] * 4, car)
    assert powers == pytest.approx([5000, 0, 0, 0])


@pytest.mark.parametrize(("price", "cycles"), [(0.12, False), (0.13, True)])
async def test_a_battery_cycles_only_where_that_makes_up_for_its_losses(price: float, cycles: bool) -> None:
    battery = storage(charging_efficiency=0.9, discharging_efficiency=0.9, full=4000)
    [powers] = await solved([0.1, price], battery)
    assert powers == pytest.approx([4000 / 0.9, -3600] if cycles else [0, 0])


async def test_a_roundtrip_efficiency_is_shared_by_both_ways() -> None:
    [powers] = await solved([0.1, 0.2], storage(roundtrip_efficiency=0.81, full=4000))
    assert powers == pytest.approx([4000 / 0.9, -3600])


async def test_leakage_and_usage_are_made_up_for_as_flexmeasures_reckons_them() -> None:
    usage = [storages.PowerSpan(at(0), at(4), 500.0)]
    boiler = storage(
        soc=1000,
        charging_efficiency=0.95,
        storage_efficiency=0.9,
        production_capacity=0.0,
        soc_usage=usage,
        soc_minima=[wish(4, 3000)],
    )
    [powers] = await solved([0.3, 0.2, 0.1, 0.3], boiler)
    schedule = schedules.Schedule(
        start=BEGIN,
        resolution=timedelta(hours=1),
        unit="W",
        values=powers,
        soc_unit="Wh",
        soc=None,
        missed_targets=[],
        cost=None,
        updated_at=BEGIN,
    )
    model = storages.storage_entry(boiler, BEGIN, at(4)) | {"soc-usage": ["0.5 kW"]}
    soc = schedules.expected_soc(schedule, model)
    assert soc is not None
    assert soc[-1] == pytest.approx(3000, abs=1)
    assert min(soc) > -1


async def test_more_usage_than_can_be_had_is_infeasible() -> None:
    boiler = storage(soc_usage=[storages.PowerSpan(at(0), at(2), 6000.0)])
    with pytest.raises(errors.Infeasible):
        await solved([0.1, 0.1], boiler)


async def test_a_target_that_cannot_be_met_is_come_near_to() -> None:
    [powers] = await solved([0.3, 0.1, 0.2, 0.1], storage(full=60_000, soc_minima=[wish(3, 40_000)]))
    assert powers[:3] == pytest.approx([5000, 5000, 5000])


async def test_a_level_beyond_the_range_is_led_back_into_it() -> None:
    [powers] = await solved([0.1, 0.2, 0.3], storage(soc=12_000, consumption_capacity=0.0))
    assert powers[0] is not None
    assert powers[0] <= -2000


async def test_capacities_hold_for_their_time() -> None:
    spans = [storages.PowerSpan(at(0), at(1), 1000.0), storages.PowerSpan(at(1), at(3), 3000.0)]
    car = storage(consumption_capacity=spans, production_capacity=0.0, soc_minima=[wish(3, 7000)])
    [powers] = await solved([0.1, 0.1, 0.1], car)
    assert powers == pytest.approx([1000, 3000, 3000])


async def test_a_site_limit_is_shared() -> None:
    cars = [storage(sensor, production_capacity=0.0, soc_minima=[wish(3, 8000)]) for sensor in (1, 2)]
    powers = await solved([0.1, 0.2, 0.3], *cars, limit=7000, loads=[1000, 1000, 1000])
    assert [sum(pair) for pair in zip(*powers, strict=True)] == pytest.approx([6000, 6000, 4000])


async def test_a_limit_that_varies_prevails_over_the_site_limit() -> None:
    start = BEGIN.timestamp()
    limits: dict[str, Spans] = {
        "power_capacity": [(start, start + HOUR, 2000.0), (start + HOUR, start + 3 * HOUR, 4000.0)]
    }
    car = storage(production_capacity=0.0, soc_minima=[wish(3, 8000)])
    [powers] = await solved([0.1, 0.2, 0.3], car, limit=7000, limits=limits)
    assert powers == pytest.approx([2000, 4000, 2000])


async def test_a_load_beyond_the_limit_leaves_a_plan_that_makes_room() -> None:
    [powers] = await solved([0.1, 0.3], storage(soc=7000), limit=4000, loads=[6000, 4000])
    assert powers == pytest.approx([-2000, -5000])


async def test_panels_are_curtailed_to_what_the_site_takes_where_feeding_in_costs() -> None:
    panels = storages.Flow(1, 0.0, [storages.PowerSpan(at(0), at(3), 3000.0)])
    [powers] = await solved([0.2] * 3, panels, production=[0.1, 0.0, -0.1], loads=[1000] * 3)
    assert powers[0] == pytest.approx(-3000)
    assert powers[2] == pytest.approx(-1000)


async def test_a_power_is_one_of_an_operation_mode() -> None:
    car = storage(
        full=60_000,
        power=11_040,
        production_capacity=0.0,
        soc_minima=[wish(3, 13_000)],
        operation_modes=[(0.0, 0.0), (4140.0, 11_040.0)],
    )
    [powers] = await solved([0.1, 0.2, 0.3], car)
    assert powers == pytest.approx([8860, 4140, 0])


async def test_a_battery_does_not_burn_power_where_that_is_paid_for() -> None:
    battery = storage(soc=10_000, charging_efficiency=0.9, discharging_efficiency=0.9)
    [powers] = await solved([-0.1], battery)
    assert powers == pytest.approx([0])
