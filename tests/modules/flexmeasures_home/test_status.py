"""What the user is notified of."""

import homeassistant.components.persistent_notification as notification
import pytest

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
    statuses.fail(status, "s2 plan of x", told, cause="not_planned")
    [found] = notification._async_get_or_create_notifications(hass).values()
    assert found["message"] == shown
    assert hass.states.get(statuses.ENTITY_ID).attributes["last_error"] == told
