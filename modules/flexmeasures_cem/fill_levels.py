"""The fill level of a Resource Manager that is believed, which is planned with, posted and shown.

The one that it sent last stays in its session's memory.
"""

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.plausibility as plausibility
import flexmeasures_s2.session as sessions
from flexmeasures_s2.rules import Key, Memory

if TYPE_CHECKING:
    import flexmeasures_cem.cem as cems

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
DESCRIPTION, STATUS = ("FRBC.SystemDescription",), ("FRBC.StorageStatus",)
LEAKAGE, USAGE = ("FRBC.LeakageBehaviour",), ("FRBC.UsageForecast",)
TOLERANCE_SHARE = 0.2
"""By which part of the storage's range a fill level may change at once."""
RATE_FACTOR = 2.0
"""How many times as fast as described a fill level may change, since no description is exact."""
MIN_SECONDS_BETWEEN_WARNINGS = 3600.0
CLOCK_MARGIN_SECONDS = 0.01
"""How much longer is waited, so that the moment has come then."""


@pyscript_compile
def of(resource: "cems.Resource") -> float | None:
    """Return the fill level that is believed, in the Resource Manager's unit, or None without any."""
    status = resource.session.memory.get(STATUS) if resource.session else None
    if status is None:
        return None
    return resource.fill_level.value if resource.fill_level.is_suspect else float(status.present_fill_level)


@pyscript_compile
def range_of(resource: "cems.Resource") -> tuple[float, float] | None:
    """Return the start and end of the storage's fill_level_range, in the Resource Manager's unit, or None."""
    description = resource.session.memory.get(DESCRIPTION) if resource.session else None
    if description is None:
        return None
    limits = description.storage.fill_level_range
    return limits.start_of_range, limits.end_of_range


@pyscript_compile
def remembered(resource: "cems.Resource", session: sessions.Session) -> dict[Key, Any]:
    """Return a copy of a session's memory, with the fill level that is believed."""
    memory = dict(session.memory)
    if STATUS in memory and resource.session is session and resource.fill_level.is_suspect:
        memory[STATUS] = memory[STATUS].model_copy(update={"present_fill_level": of(resource)})
    return memory


@pyscript_compile
def is_doubted(resource: "cems.Resource", message: Any) -> bool:
    """Return whether a message is an FRBC.StorageStatus that is not believed yet."""
    return message.message_type == STATUS[0] and resource.fill_level.is_suspect


@pyscript_compile
def reset(resource: "cems.Resource") -> None:
    """Believe the first fill level that comes: the session is new, or the control type."""
    resource.fill_level, resource.fill_level_range = plausibility.BelievedLevel(), None
    if resource.doubt:
        resource.doubt.cancel()
        resource.doubt = None


@pyscript_compile
def on_message(cem: "cems.Cem", resource: "cems.Resource", session: sessions.Session, message: Any) -> None:
    """Take a message that may have the fill level, or how fast it can change."""
    message_type, level = message.message_type, resource.fill_level
    if message_type == STATUS[0]:
        now, before, was_suspect = cem.now(), level.value, level.is_suspect
        level.update(message.present_fill_level, now)
        if level.is_suspect and not was_suspect:
            warn(resource, before, message.present_fill_level, now)
            if resource.doubt is None or resource.doubt.done():
                resource.doubt = session.spawn(believe_when_due(cem, resource, session, level))
    elif (message_type,) in (DESCRIPTION, LEAKAGE, USAGE) and DESCRIPTION in session.memory:
        set_limits(resource, session.memory, cem.now())


@pyscript_compile
def set_limits(resource: "cems.Resource", memory: Memory, now: float) -> None:
    """Set how fast the fill level can change; with another range, it is another storage's."""
    level, limits = resource.fill_level, memory[DESCRIPTION].storage.fill_level_range
    bottom, top = limits.start_of_range, limits.end_of_range
    rise, fall = devices.greatest_rates(memory[DESCRIPTION], memory.get(LEAKAGE), memory.get(USAGE))
    level.tolerance = TOLERANCE_SHARE * (top - bottom) if bottom < top else math.inf
    level.greatest_rise, level.greatest_fall = RATE_FACTOR * rise, RATE_FACTOR * fall
    if resource.fill_level_range not in (None, (bottom, top)):
        level.forget()
        if STATUS in memory:
            level.update(memory[STATUS].present_fill_level, now)
    resource.fill_level_range = bottom, top


@pyscript_compile
def warn(resource: "cems.Resource", before: float | None, value: float, now: float) -> None:
    """Warn of a fill level that is doubted: once an hour, so that a device cannot fill the log."""
    since = None if resource.doubt_warned_at is None else now - resource.doubt_warned_at
    is_quiet = since is not None and 0 <= since < MIN_SECONDS_BETWEEN_WARNINGS
    if not is_quiet:
        resource.doubt_warned_at = now
    LOGGER.log(
        logging.DEBUG if is_quiet else logging.WARNING,
        "%s says that its fill level is %g, after %g: its power cannot have changed it so fast. That is "
        "believed once it has lasted for a minute",
        resource.name,
        value,
        before,
    )


@pyscript_compile
async def believe_when_due(
    cem: "cems.Cem",
    resource: "cems.Resource",
    session: sessions.Session,
    level: plausibility.BelievedLevel,
) -> None:
    """Believe a fill level once it has lasted for long enough, and act on it as if it came then."""
    while level.believed_from is not None:
        await asyncio.sleep(max(level.believed_from - cem.now(), 0.0) + CLOCK_MARGIN_SECONDS)
        if resource.fill_level is not level or resource.session is not session:
            return
        if level.settle(cem.now()) and STATUS in session.memory:
            LOGGER.info(
                "%s has sent the fill level %g for long enough to believe it", resource.name, level.value
            )
            cem.received(resource, session.memory[STATUS])
