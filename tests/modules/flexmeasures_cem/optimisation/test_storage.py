"""What is stored in the site model: a level that follows from flows, in segments, with targets."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

HOUR = 3600.0


def modules() -> SimpleNamespace:
    """Return the modules under test."""
    names = ("grid", "linear", "search", "site", "storage")
    found = {name: importlib.import_module(f"flexmeasures_cem.optimisation.{name}") for name in names}
    return SimpleNamespace(**found)


class Tank:
    """A site with a storage that is filled by up to 1 kW in its lower half, by up to `above` in the upper."""

    def __init__(self, hours: int, level: float, borders: list, above: float = 1.0, price: float = 0.1):
        self.m = modules()
        grid = self.m.grid.of([place * HOUR for place in range(hours + 1)])
        tariffs = self.m.site.Tariffs(consumption_price=price, production_price=price)
        self.site = self.m.site.Site(grid, tariffs)
        self.storage = self.m.storage.Storage(self.site, level, borders)
        shares = self.storage.share
        self.flows = [self.site.program.variables(hours, 0.0) for _share in shares]
        for flow, share, most in zip(self.flows, shares, [1.0, above], strict=False):
            self.site.program.require(share * most - flow, 0.0)
        self.site.add(self.m.linear.total(self.flows, hours))

    def levels(self, drain: float = 0.0, leakage: tuple = (0.0, 0.0)) -> list:
        """Return the level at each edge of the cheapest solution."""
        self.storage.flow([self.flows[0] - drain, *self.flows[1:]], leakage)
        self.site.connect()
        solution = self.site.solve(self.m.search.Effort(gap=1e-9, relative_gap=0.0))
        return solution.of(self.storage.level).tolist()


def none(hours: int) -> np.ndarray:
    """Return no target at any edge."""
    return np.full(hours, np.nan)


def test_a_level_follows_from_what_flows():
    assert Tank(3, 2.0, [0.0, 4.0]).levels(drain=0.5) == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_a_level_is_kept_in_its_range():
    levels = Tank(4, 1.0, [0.0, 4.0]).levels(drain=0.5)
    assert min(levels) >= -1e-9
    assert levels[-1] == pytest.approx(0.0)


def test_what_leaks_grows_with_the_level():
    first, second, *_more = Tank(2, 4.0, [0.0, 8.0]).levels(leakage=(0.1, 0.1))
    assert first - second == pytest.approx(0.1 + 0.1 * (first + second) / 2)


def test_a_target_is_reached_by_its_edge():
    tank = Tank(4, 0.0, [0.0, 4.0])
    lowest = none(4)
    lowest[2] = 2.5
    tank.storage.aim(lowest, none(4))
    assert tank.levels()[3] == pytest.approx(2.5)


def test_a_target_that_cannot_be_reached_is_come_near_to():
    tank = Tank(2, 0.0, [0.0, 4.0])
    lowest = none(2)
    lowest[1] = 3.0
    tank.storage.aim(lowest, none(2))
    assert tank.levels() == pytest.approx([0.0, 1.0, 2.0])


def test_a_storage_outside_of_its_range_comes_back_as_soon_as_it_can():
    assert Tank(3, -1.5, [0.0, 4.0]).levels() == pytest.approx([-1.5, -0.5, 0.0, 0.0])
    assert Tank(3, 5.0, [0.0, 4.0]).levels(drain=0.4) == pytest.approx([5.0, 4.6, 4.2, 3.8])


def test_in_each_segment_the_level_moves_as_it_can_there():
    """Half a step is spent in the lower half, where it is filled by 1 kW, and the rest above at 0.2 kW."""
    tank = Tank(3, 1.5, [0.0, 2.0, 4.0], above=0.2)
    lowest = none(3)
    lowest[:] = 4.0
    tank.storage.aim(lowest, none(3))
    assert tank.levels() == pytest.approx([1.5, 2.1, 2.3, 2.5])


def test_a_segment_that_is_passed_within_a_step_counts_for_its_part():
    tank = Tank(1, 0.5, [0.0, 1.0, 1.25, 4.0], above=0.5)
    tank.site.program.require(tank.storage.share[2] * 0.1 - tank.flows[2], 0.0)
    tank.storage.aim(np.array([4.0]), none(1))
    assert tank.levels()[-1] == pytest.approx(1.25)


def test_room_is_left_for_what_goes_on_after_the_end():
    tank = Tank(4, 0.0, [0.0, 4.0])
    lowest = none(4)
    lowest[:] = 4.0
    tank.storage.aim(lowest, none(4))
    tank.storage.leave_room(
        tank.m.linear.constant([0.0]) + tank.flows[0][-1:] * 1.0, tank.m.linear.constant([0.0])
    )
    levels = tank.levels()
    assert levels[-1] + (levels[-1] - levels[-2]) <= 4.0 + 1e-6
