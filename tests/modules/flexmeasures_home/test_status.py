"""What the user is shown and notified of, and until when."""

from datetime import timedelta

import homeassistant.components.persistent_notification as notification
import pytest
from freezegun import freeze_time

import flexmeasures_api.errors as errors
import flexmeasures_home.status as statuses


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("expected 0 <= soc_min < soc_max", "expected 0 <= soc_min < soc_max"),
        ("sensor [1] (main)", "sensor [1] (main)"),
        ("<img src=x>", "&lt;img src=x>"),
        ("</b><!-- -->", "&lt;/b>&lt;!-- -->"),
        ("![a](http://b) and [c](d)", "![a]\\(http://b) and [c]\\(d)"),
    ],
)
async def test_a_notification_has_no_markup_of_a_device(hass, told, shown):
    status = statuses.Status(hass)
    status.fail("s2 plan of x", told, cause="not_planned")
    [found] = notification._async_get_or_create_notifications(hass).values()
    assert found["message"] == shown
    assert hass.states.get(statuses.ENTITY_ID).attributes["last_error"] == told


@pytest.fixture
def status(hass):
    """Return a status of an app that tries no plan again by itself."""
    return statuses.Status(hass, untried={statuses.CALL, "plan"})


@pytest.mark.parametrize("matter", ["plan", statuses.CALL])
@pytest.mark.parametrize("kind", [errors.ServerFault, errors.Unreachable, errors.Unauthorized])
async def test_a_fault_of_the_server_that_nothing_tries_again_is_over_with_any_success(
    hass, status, matter, kind
):
    status.fail_with(matter, kind("FlexMeasures answered 500"))
    assert hass.states.get(statuses.ENTITY_ID).state == kind.status
    status.succeed("measurements of sensor 1")
    state = hass.states.get(statuses.ENTITY_ID)
    assert (state.state, state.attributes["last_error"]) == ("ok", None)


@pytest.mark.parametrize("kind", [errors.ServerFault, errors.Infeasible])
async def test_what_is_tried_again_or_lies_in_the_question_is_not_over_with_another_success(
    hass, status, kind
):
    status.untried = {statuses.CALL} if kind is errors.ServerFault else status.untried
    status.fail_with("plan", kind("x"))
    status.succeed("measurements of sensor 1")
    assert hass.states.get(statuses.ENTITY_ID).state == "error"
    status.succeed("plan")
    assert hass.states.get(statuses.ENTITY_ID).state == "ok"


async def test_a_limit_of_requests_holds_as_long_as_the_server_said(hass, status):
    with freeze_time() as clock:
        status.fail_with("plan", errors.RateLimited("wait", 60))
        clock.tick(timedelta(seconds=59))
        status.succeed(None)
        assert hass.states.get(statuses.ENTITY_ID).state == "error"
        clock.tick(timedelta(seconds=2))
        status.succeed(None)
        assert hass.states.get(statuses.ENTITY_ID).state == "ok"


async def test_what_is_wrong_stands_on_one_line(hass, status, caplog):
    status.fail("x", "Heater\n2026-01-01 ERROR forged\x1b[31m")
    shown = hass.states.get(statuses.ENTITY_ID).attributes["last_error"]
    assert shown == "Heater 2026-01-01 ERROR forged[31m"
    assert shown in caplog.messages
