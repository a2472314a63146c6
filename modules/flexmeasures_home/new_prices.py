"""Planning again once prices are known that were assumed for the schedule in force."""

import logging
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import homeassistant.util.dt as dt_util
from homeassistant.exceptions import HomeAssistantError

import flexmeasures_api.errors as errors
import flexmeasures_api.prices as prices
import flexmeasures_api.quantities as quantities
import flexmeasures_api.schedule as schedules
import flexmeasures_home.tasks as tasks
from flexmeasures_api.schedule import Schedule

if TYPE_CHECKING:
    from flexmeasures_home.device import Device

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
BETWEEN_LOOKS = timedelta(minutes=5)
"""How often new prices are looked for, while not all are known."""


@pyscript_compile
def look(device: "Device") -> None:
    """Plan again in the background once prices are known that were assumed; to be called each minute."""
    schedule, now = device.schedule, dt_util.utcnow()
    if device.stopped or (device.replanning and not device.replanning.done()):
        return
    if schedule is None or not any(end > now.timestamp() for _start, end in schedule.assumed_prices):
        return
    if device.prices_due is None or now >= device.prices_due:
        device.prices_due = now + BETWEEN_LOOKS
        work = partial(plan_with_new_prices, device, schedule)
        device.replanning = tasks.supervise(device.status, "plan with new prices", work)


@pyscript_compile
async def plan_with_new_prices(device: "Device", schedule: Schedule) -> None:
    """Plan again if a price is known that was assumed for the schedule."""
    given, now = device.configuration, dt_util.utcnow()
    call = device.last_call
    if call is None and device.cron is None:
        return
    call = call or {}
    raw: dict[str, Any] = (given.flex_context or {}) | call.get("flex_context", {})
    try:
        tariff, _fields = await prices.for_plan(
            device.link,
            consumption_sensor=given.consumption_price_sensor,
            production_sensor=given.production_price_sensor,
            flex_context=raw,
            start=now,
            end=schedule.end,
        )
    except errors.FlexMeasuresError as error:
        LOGGER.debug("Prices cannot be read: %s", error)
        return
    device.status.succeed(None)
    known = [interval for interval in tariff.intervals if interval.is_known] if tariff else []
    if not any(
        interval.start < end and interval.end > start
        for interval in known
        for start, end in schedule.assumed_prices
    ):
        return
    renewed = renewed_call(device, call, schedule, now)
    if renewed is None:
        return
    LOGGER.info("There are new prices")
    with suppress(HomeAssistantError):
        await device.plan(renewed, by_user=False, is_wanted=lambda: device.schedule is schedule)


@pyscript_compile
def renewed_call(
    device: "Device", call: dict[str, Any], schedule: Schedule, now: datetime
) -> dict[str, Any] | None:
    """Return the call that the schedule in force was made for, as of now; None without a state of charge.

    A given state of charge is extrapolated by the schedule.
    """
    if call.get("start", now) > now:
        return call
    renewed = {name: value for name, value in call.items() if name not in ("start", "soc_at_start")}
    for name in ("soc_targets", "soc_minima", "soc_maxima"):
        if name in call:
            renewed[name] = [event for event in call[name] if event.end > now]
    soc = call.get("soc_at_start")
    if isinstance(soc, float):
        if schedule.soc is None:
            return None
        start = min(schedule.interval_start(now) + schedule.resolution, schedule.end)
        level = schedules.soc_at(schedule, schedule.soc, start)
        return renewed | {"start": start, "soc_at_start": quantities.energy(level, schedule.soc_unit)}
    if soc is None and device.state_of_charge is None:
        return None
    return renewed if soc is None else renewed | {"soc_at_start": soc}
