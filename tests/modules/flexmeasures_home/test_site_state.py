"""The site as a state: its planned power, and what it costs."""

from types import SimpleNamespace

import pytest

import flexmeasures_cem.site.costs as costs
import flexmeasures_home.site_state as site_state


@pytest.fixture
def shown() -> SimpleNamespace:
    """Return a Home Assistant of which only the states are used."""
    states: dict[str, SimpleNamespace] = {}

    def set_state(entity_id, state, attributes, state_info=None):
        states[entity_id] = SimpleNamespace(state=state, attributes=attributes, state_info=state_info)

    return SimpleNamespace(states=SimpleNamespace(async_set=set_state, get=states.get))


def site(found) -> SimpleNamespace:
    """Return a site with costs, or none."""
    return SimpleNamespace(costs=found, why="Battery: its first plan")


COSTS = costs.SiteCosts(start=1772445600.0, end=1772532000.0, power_w=1234.4, cost=-0.51239, cost_without=2.0)


def test_nothing_is_shown_before_the_first_plan(shown):
    site_state.show(shown, site(None))
    assert shown.states.get(site_state.ENTITY_ID) is None


def test_the_power_is_the_state_and_the_costs_are_attributes(shown):
    site_state.show(shown, site(COSTS))
    state = shown.states.get(site_state.ENTITY_ID)
    assert state.state == "1234"
    assert state.attributes["unit_of_measurement"] == "W"
    assert (state.attributes["cost"], state.attributes["cost_without"]) == (-0.5124, 2.0)
    assert state.attributes["why"] == "Battery: its first plan"
    assert state.attributes["costs_until"].startswith("2026-03-03T10:00:00")
    assert {"updated_at", "why"} <= state.state_info["unrecorded_attributes"]


def test_without_prices_the_costs_are_unknown(shown):
    site_state.show(shown, site(COSTS))
    site_state.show(shown, site(None))
    state = shown.states.get(site_state.ENTITY_ID)
    assert state.state == "unknown"
    assert state.attributes["cost"] is None
