"""When S2 devices are planned anew since the server does something for us."""

import asyncio
from types import SimpleNamespace

import pytest

import flexmeasures_home.resources as resources
import flexmeasures_home.site_plan as site_plan
import flexmeasures_home.status as statuses
import flexmeasures_optimiser.errors as errors


@pytest.mark.parametrize(
    ("matter", "error", "was_away", "is_planned"),
    [
        ("measurements", errors.Unreachable("x"), False, False),
        ("measurements", errors.Unreachable("x"), True, True),
        (site_plan.MATTER, errors.Unreachable("x"), False, True),
        (site_plan.MATTER, errors.Unauthorized("x"), False, True),
        (site_plan.MATTER, errors.RateLimited("x", 60), False, False),
    ],
)
async def test_devices_that_have_a_plan_get_another_only_where_their_own_failed(
    hass, monkeypatch, matter, error, was_away, is_planned
):
    planned, status = [], statuses.Status(hass)
    monkeypatch.setattr(resources.triggers, "plan_soon", planned.append)
    statuses.fail_with(status, matter, error)
    device = SimpleNamespace(is_fallback=False, plan="a plan", is_returning=False)
    site = SimpleNamespace(controlled={"battery": device})
    resources.urge(SimpleNamespace(status=status, site=site, urged=asyncio.Event()), was_away)
    assert planned == [site] * is_planned
