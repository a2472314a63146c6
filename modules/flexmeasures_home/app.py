"""The app's life: exactly one runs, over script reloads and Home Assistant's stop."""

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import homeassistant.components.persistent_notification as notification
from homeassistant.const import EVENT_HOMEASSISTANT_STOP, STATE_UNAVAILABLE
from homeassistant.core import CoreState, HassJob, async_get_hass, callback
from homeassistant.helpers.event import async_call_later

import flexmeasures_home.device as devices
import flexmeasures_home.fields as fields
import flexmeasures_home.resource_state as resource_state
import flexmeasures_home.schedule_state as schedule_state
import flexmeasures_home.services as services
import flexmeasures_home.site_state as site_state
import flexmeasures_home.status as statuses
import flexmeasures_s2.listener as listeners

KEY = "flexmeasures_for_pyscript"
RELOAD_SECONDS = 30
NOT_LOADED = "not_loaded"
"""The cause of the notification that apps/flexmeasures/__init__.py makes where it cannot import this."""
LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(repr=False)
    class App:
        """The devices of a right configuration, or the mistakes of a wrong one, or why it did not start."""

        configuration: object
        mistakes: list
        failure: str | None = None
        devices: list = field(default_factory=list)
        started: asyncio.Event = field(default_factory=asyncio.Event)

    @dataclass(repr=False)
    class Stage:
        """Where the running app is, kept in `hass.data` over reloads."""

        lock: asyncio.Lock = field(default_factory=asyncio.Lock)
        running: object = None
        stop: object = None
        forget_stop_event: object = None
        forget_withdrawal: object = None
        answering: object = None
        forget_services: object = None

    return App, Stage


App, Stage = records()


@pyscript_compile
def answer(app):
    """Answer calls from now on; those that come before the start wait for it.

    So do S2 devices while Home Assistant starts, which would be refused otherwise.
    """
    hass = async_get_hass()
    stage = hass.data.setdefault(KEY, Stage())
    if hass.state is not CoreState.running and not app.mistakes and app.configuration.s2.enabled:
        listeners.reserve(app.configuration.s2.host, app.configuration.s2.port)
    release_services(stage)
    stage.answering, stage.forget_services = app, services.register(hass, app)


@pyscript_compile
def release_services(stage: Any) -> None:
    """Stop replacing pyscript's handlers by those of the app that answers calls.

    The fields are missing on a Stage that an earlier version of the scripts made.
    """
    if forget_services := getattr(stage, "forget_services", None):
        forget_services()
    stage.answering = stage.forget_services = None


@pyscript_compile
async def swap_in(app):
    """Start the app; the one that ran before is stopped first."""
    hass = async_get_hass()
    stage = hass.data.setdefault(KEY, Stage())

    async def when_home_assistant_stops(_event):
        stage.forget_stop_event = None
        await swap_out(app)

    async with stage.lock:
        # The field is missing on a Stage that an earlier version of the scripts made.
        if forget_withdrawal := getattr(stage, "forget_withdrawal", None):
            forget_withdrawal()
            stage.forget_withdrawal = None
        if stage.running is not None:
            await stage.stop(stage.running)
        if stage.forget_stop_event:
            stage.forget_stop_event()
        stage.running, stage.stop = app, stop
        stage.forget_stop_event = hass.bus.async_listen_once(
            EVENT_HOMEASSISTANT_STOP, when_home_assistant_stops
        )
        try:
            await start(hass, app)
        finally:
            listeners.release()


@pyscript_compile
async def swap_out(app):
    """Stop the app if it is still the one that runs."""
    hass = async_get_hass()
    stage = hass.data.setdefault(KEY, Stage())

    @callback
    def withdraw_all(_now: datetime) -> None:
        stage.forget_withdrawal = None
        withdraw(hass, statuses.ENTITY_ID)
        withdraw(hass, schedule_state.ENTITY_ID)
        if hass.states.get(site_state.ENTITY_ID):
            withdraw(hass, site_state.ENTITY_ID)
        for entity_id in hass.states.async_entity_ids("sensor"):
            if entity_id.startswith(resource_state.PREFIX):
                withdraw(hass, entity_id)
        statuses.dismiss(hass)

    if getattr(stage, "answering", None) is app:
        release_services(stage)
    async with stage.lock:
        if stage.running is app:
            stage.running = None
            if stage.forget_stop_event:
                stage.forget_stop_event()
                stage.forget_stop_event = None
            await stop(app)
            job = HassJob(withdraw_all, cancel_on_shutdown=True)
            stage.forget_withdrawal = async_call_later(hass, RELOAD_SECONDS, job)


@pyscript_compile
def withdraw(hass, entity_id):
    """Make a state unavailable, since nobody renews it."""
    state = hass.states.get(entity_id)
    attributes, info = (state.attributes, state.state_info) if state else (None, None)
    hass.states.async_set(entity_id, STATE_UNAVAILABLE, attributes, state_info=info)


@pyscript_compile
async def start(hass, app):
    """Start the devices; of a wrong configuration tell every mistake."""
    status = statuses.Status(hass)
    statuses.dismiss(hass, [NOT_LOADED])
    if app.mistakes:
        for mistake in app.mistakes:
            LOGGER.error("Configuration: %s", mistake)
        text = "Please correct `apps: flexmeasures:` in the pyscript configuration:\n\n" + "\n".join(
            f"- {mistake}" for mistake in app.mistakes
        )
        statuses.dismiss(hass)
        withdraw(hass, schedule_state.ENTITY_ID)
        status.resting = "misconfigured"
        statuses.show(status, last_error="; ".join(fields.listed(app.mistakes)))
        notification.async_create(hass, text, "FlexMeasures", statuses.notification_id("misconfigured"))
    else:
        for device in [devices.new(hass, app.configuration, status)]:
            try:
                await devices.start(device)
            except Exception as error:
                LOGGER.exception("The app could not start")
                await devices.stop(device)
                why = fields.short(status.redact(repr(error)))
                app.failure = f"FlexMeasures could not start ({why}): please report the log"
                statuses.fail(status, "start", app.failure, cause="failed")
            else:
                app.devices.append(device)
    app.started.set()


@pyscript_compile
async def stop(app):
    """Stop the devices."""
    for device in app.devices:
        await devices.stop(device)
        statuses.stop(device.status)
