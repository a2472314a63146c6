"""The app's life: exactly one runs at a time, over reloads of the scripts and Home Assistant's stop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import homeassistant.components.persistent_notification as notification
from homeassistant.const import EVENT_HOMEASSISTANT_STOP, STATE_UNAVAILABLE
from homeassistant.core import (
    CALLBACK_TYPE,
    CoreState,
    Event,
    HassJob,
    HomeAssistant,
    async_get_hass,
    callback,
)
from homeassistant.helpers.event import async_call_later

import flexmeasures_home.device as devices
import flexmeasures_home.fields as fields
import flexmeasures_home.resource_state as resource_state
import flexmeasures_home.schedule_state as schedule_state
import flexmeasures_home.services as services
import flexmeasures_home.site_state as site_state
import flexmeasures_home.status as statuses
import flexmeasures_home.version as version
import flexmeasures_s2.listener as listeners
from flexmeasures_home.configuration import Configuration
from flexmeasures_home.device import Device
from flexmeasures_home.status import Status

KEY = "flexmeasures_for_pyscript"
RELOAD_SECONDS = 30
NOT_LOADED = "not_loaded"
"""The cause of the notification of apps/flexmeasures/__init__.py if it cannot import this module."""
LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")


@dataclass(repr=False, kw_only=True)
class _App:
    """The app: its device, or the mistakes in its configuration, or why it did not start."""

    configuration: Configuration | None
    mistakes: list[str] = field(default_factory=list)
    failure: str | None = None
    device: Device | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)


App = _App


@dataclass(repr=False, kw_only=True)
class _Stage:
    """The app that runs and how to stop it, and the app that answers calls; kept in `hass.data` over reloads.

    The apps may be those of another version of the scripts, with other classes. So may the Stage itself: its
    fields keep their names, and later ones may be missing.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: Any = None
    stop: Callable[[Any], Awaitable[None]] | None = None
    forget_stop_event: CALLBACK_TYPE | None = None
    forget_withdrawal: CALLBACK_TYPE | None = None
    answering: Any = None
    forget_services: CALLBACK_TYPE | None = None


Stage = _Stage


@pyscript_compile
def stage_of(hass: HomeAssistant) -> Stage:
    """Return the Stage, which is created by the first app."""
    stage: Stage = hass.data.setdefault(KEY, Stage())
    return stage


@pyscript_compile
def answer(app: App) -> None:
    """Answer calls from now on; calls before the start wait for it.

    So do S2 devices while Home Assistant starts, which would be refused otherwise.
    """
    hass = async_get_hass()
    stage = stage_of(hass)
    if hass.state is not CoreState.running and app.configuration and app.configuration.s2.enabled:
        listeners.reserve(app.configuration.s2.host, app.configuration.s2.port)
    release_services(stage)
    stage.answering, stage.forget_services = app, services.register(hass, app)


@pyscript_compile
def release_services(stage: Stage) -> None:
    """Stop replacing pyscript's handlers by those of the app that answers calls."""
    if forget_services := getattr(stage, "forget_services", None):
        forget_services()
    stage.answering = stage.forget_services = None


@pyscript_compile
async def swap_in(app: App) -> None:
    """Start the app; the one that runs is stopped first."""
    hass = async_get_hass()
    stage = stage_of(hass)

    async def when_home_assistant_stops(_event: Event[Any]) -> None:
        stage.forget_stop_event = None
        await swap_out(app)

    async with stage.lock:
        if forget_withdrawal := getattr(stage, "forget_withdrawal", None):
            forget_withdrawal()
            stage.forget_withdrawal = None
        if stage.running is not None and stage.stop:
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
async def swap_out(app: App) -> None:
    """Stop the app if it is still the one that runs."""
    hass = async_get_hass()
    stage = stage_of(hass)

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
def withdraw(hass: HomeAssistant, entity_id: str) -> None:
    """Make a state unavailable, since it is not updated any more."""
    state = hass.states.get(entity_id)
    attributes, info = (state.attributes, state.state_info) if state else (None, None)
    hass.states.async_set(entity_id, STATE_UNAVAILABLE, attributes, state_info=info)


@pyscript_compile
async def start(hass: HomeAssistant, app: App) -> None:
    """Start the device; show every mistake of a wrong configuration."""
    LOGGER.info("FlexMeasures for pyscript %s", version.VERSION)
    status = Status(hass)
    statuses.dismiss(hass, [NOT_LOADED])
    if app.configuration is None:
        show_mistakes(status, app.mistakes)
    else:
        device = devices.new(hass, app.configuration, status)
        try:
            await device.start()
        except Exception as error:
            LOGGER.exception("The app could not start")
            await device.stop()
            why = fields.short(status.redact(repr(error)))
            app.failure = f"FlexMeasures could not start ({why}): please report the log"
            status.fail("start", app.failure, cause="failed")
        else:
            app.device = device
    app.started.set()


@pyscript_compile
def show_mistakes(status: Status, mistakes: list[str]) -> None:
    """Log the mistakes of a configuration, and show them in the status and a notification."""
    for mistake in mistakes:
        LOGGER.error("Configuration: %s", mistake)
    text = "Please correct `apps: flexmeasures:` in the pyscript configuration:\n\n" + "\n".join(
        f"- {mistake}" for mistake in mistakes
    )
    statuses.dismiss(status.hass)
    withdraw(status.hass, schedule_state.ENTITY_ID)
    status.resting = "misconfigured"
    status.show(last_error="; ".join(fields.listed(mistakes)))
    notification.async_create(status.hass, text, "FlexMeasures", statuses.notification_id("misconfigured"))


@pyscript_compile
async def stop(app: App) -> None:
    """Stop the device."""
    if app.device:
        await app.device.stop()
        app.device.status.stop()
