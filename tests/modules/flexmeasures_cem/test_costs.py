"""What a site pays with its plans and without them."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.market as markets
import flexmeasures_cem.site.costs as costs
import flexmeasures_cem.site.outlook as outlooks
from tests.modules.flexmeasures_cem.site_parts import (
    QUARTER,
    battery,
    controlled,
    introduce,
    introduce_with_target,
)
from tests.modules.flexmeasures_s2.conftest import connected, until

HOUR = 3600.0


def cheap_from_the_third_hour(site) -> None:
    """Have power be dear for three hours from now on, and cheap thereafter."""
    first = site.site.now() // HOUR
    site.prices_of = lambda hour: 0.40 if hour < first + 3 else 0.10


async def test_a_device_with_a_target_would_charge_at_once_without_a_plan(site):
    cheap_from_the_third_hour(site)
    async with connected(site.cem) as rm:
        site.error = RuntimeError("away")
        await introduce_with_target(rm, 8, 50)
        await until(lambda: site.site.controlled and controlled(site).plan)
        await costs.update(site.site)
        device, found = controlled(site), site.site.costs
        without = device.without_plan
        energy = sum(each.power_w * (each.end - each.start) for each in without.pieces) / 3.6e6
        charging = [piece for piece in without.pieces if piece.power_w > 0]
        assert charging[0].start < without.start + QUARTER
        assert charging[-1].end < without.start + HOUR
        assert energy > 0
        running, stored = without.other_cost, without.gained_kwh * device.plan.value_per_kwh
        assert found.cost_without == pytest.approx(0.40 * energy + running - stored, rel=0.01)
        assert found.cost < found.cost_without - 0.29 * energy


async def test_a_battery_without_a_need_would_do_nothing(site):
    site.prices_of = lambda hour: 0.10 if hour % 4 < 2 else 0.40
    site.error = RuntimeError("away")
    async with connected(site.cem) as rm:
        await introduce(rm)
        await until(lambda: site.site.controlled and controlled(site).plan)
        await costs.update(site.site)
        found = site.site.costs
        assert {round(piece.power_w) for piece in controlled(site).without_plan.pieces} == {0}
        assert found.cost_without == pytest.approx(0.0, abs=1e-6)
        assert found.cost < found.cost_without


async def test_without_prices_there_are_no_costs(site):
    async with battery(site):
        site.site.known_prices = None
        await costs.update(site.site)
        assert site.site.costs is None


async def test_costs_are_computed_again_when_the_problem_is_another(site):
    async with battery(site):
        await costs.update(site.site)
        device = controlled(site)
        before = device.without_plan
        await costs.update(site.site)
        assert device.without_plan is before
        device.planned_version += 1
        device.plan.start += costs.SAME_STATE_SECONDS + 1
        await costs.update(site.site)
        assert device.without_plan is not before


@dataclass(eq=False)
class Device:
    """A device with its plan, and what it would do without one."""

    plan: Any
    without_plan: Any


def outlook(powers: list, prices: list) -> outlooks.Outlook:
    """Return an Outlook of hours from 0 on, with a load (W) and a price for each."""
    found = outlooks.new([], 0.0, HOUR * len(powers), HOUR, 0.0)
    found.prices = prices
    outlooks.put(found, "load", powers)
    return found


def plan(power: float, hours: int, **fields) -> SimpleNamespace:
    """Return a plan of one power (W) for some hours from 0 on."""
    pieces = [plans.PowerPiece(0.0, hours * HOUR, power)]
    return SimpleNamespace(start=0.0, end=hours * HOUR, pieces=pieces, other_cost=0.0, **fields)


def test_what_the_site_pays_depends_on_all_that_is_there():
    load = outlook([-2000.0, 1000.0], [(0.30, 0.05), (0.30, 0.05)])
    device = Device(plan=plan(2000.0, 2), without_plan=plan(0.0, 2))
    outlooks.put(load, device, *outlooks.of_pieces(load, device.plan.pieces))
    found = costs.compared_costs([device], load, 2 * HOUR, markets.Connection())
    assert found.cost == pytest.approx(0.0 + 0.9)
    assert found.cost_without == pytest.approx(-0.1 + 0.3)
    assert found.power_w == 0.0


def test_what_is_stored_more_at_the_end_is_paid_back():
    load = outlook([0.0], [(0.20, 0.20)])
    with_plan = plan(1000.0, 1, gained_kwh=0.9, value_per_kwh=0.2)
    device = Device(plan=with_plan, without_plan=plan(0.0, 1, gained_kwh=0.0))
    outlooks.put(load, device, *outlooks.of_pieces(load, with_plan.pieces))
    found = costs.compared_costs([device], load, HOUR, markets.Connection())
    assert found.cost == pytest.approx(0.20 - 0.18)
    assert found.cost_without == pytest.approx(0.0)


def test_a_peak_is_paid_once():
    load = outlook([5000.0, 4000.0], [(0.0, 0.0), (0.0, 0.0)])
    connection = markets.Connection(peak_consumption=3000.0, peak_price=2.0)
    assert costs.bill(load, 2 * HOUR, connection) == pytest.approx(4.0)
