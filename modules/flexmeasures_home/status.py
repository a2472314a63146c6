"""How things are with FlexMeasures: `sensor.flexmeasures_status`, and one notification per cause."""

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import homeassistant.components.persistent_notification as notification
import homeassistant.util.dt as dt_util

import flexmeasures_optimiser.errors as errors

ENTITY_ID = "sensor.flexmeasures_status"
LONG = timedelta(minutes=15)
LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
KINDS = [errors.OptimiserError, *errors.OptimiserError.__subclasses__()]
CAUSES = ["misconfigured", "wrong_call", *[kind.cause for kind in KINDS]]


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Status:
        """The state and attributes as shown, and since when the server has been away."""

        hass: Any
        state: str = "ok"
        attributes: dict = field(default_factory=dict)
        away_since: datetime | None = None

    return Status


Status = record()


@pyscript_compile
def show(status, state, **attributes):
    """Show a state; attributes that are not given stay."""
    status.state = state
    status.attributes |= attributes
    status.hass.states.async_set(
        ENTITY_ID, state, {"friendly_name": "FlexMeasures Status", **status.attributes}
    )


@pyscript_compile
def fail(status, text, state="error", cause="wrong_call", temporary=False):
    """Show a failure and notify the user; of what is `temporary` only once it lasts.

    The same failure is logged once, however often it is met.
    """
    now = dt_util.utcnow()
    status.away_since = (status.away_since or now) if temporary else None
    if text != status.attributes.get("last_error"):
        LOGGER.warning("%s", text)
    show(status, state, last_error=text)
    if not temporary or now - status.away_since >= LONG:
        notification.async_create(status.hass, text, "FlexMeasures", notification_id(cause))


@pyscript_compile
def succeed(status, state="ok", **attributes):
    """Show that all is well again; the notifications go away."""
    status.away_since = None
    show(status, state, last_error=None, **attributes)
    dismiss(status.hass)


@pyscript_compile
def dismiss(hass, causes=CAUSES):
    """Take notifications away."""
    for cause in causes:
        notification.async_dismiss(hass, notification_id(cause))


@pyscript_compile
def notification_id(cause):
    """Return the stable id of a cause's notification."""
    return f"flexmeasures_{cause}"
