"""The fill level of a Resource Manager that is believed, which is planned with, posted and shown.

What it told stays in its session's memory; who wants the fill level asks here.
"""

import asyncio
import logging
import math
from typing import Any

import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.plausibility as plausibility

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
DESCRIPTION, STATUS = ("FRBC.SystemDescription",), ("FRBC.StorageStatus",)
LEAKAGE, USAGE = ("FRBC.LeakageBehaviour",), ("FRBC.UsageForecast",)
TOLERANCE = 0.2
"""By which part of the storage's range a fill level may change at once."""
MARGIN = 2.0
"""How many times as fast as described a fill level may change, since no device is exactly as told."""
SECONDS_BETWEEN_WARNINGS = 3600.0


@pyscript_compile
def of(resource: Any) -> float | None:
    """Return the fill level that is believed, in the Resource Manager's unit, or None without any."""
    session = resource.session
    status = session.memory.get(STATUS) if session else None
    if status is None:
        return None
    return resource.fill_level.value if resource.fill_level.is_suspect else status.present_fill_level


@pyscript_compile
def range_of(resource: Any) -> tuple[float, float] | None:
    """Return the start and end of the storage's fill_level_range, in the Resource Manager's unit, or None."""
    description = resource.session.memory.get(DESCRIPTION) if resource.session else None
    if description is None:
        return None
    limits = description.storage.fill_level_range
    return limits.start_of_range, limits.end_of_range


@pyscript_compile
def remembered(resource: Any, session: Any) -> dict:
    """Return a copy of what a session remembers, with the fill level that is believed."""
    memory = dict(session.memory)
    if STATUS in memory and resource.session is session and resource.fill_level.is_suspect:
        memory[STATUS] = memory[STATUS].model_copy(update={"present_fill_level": of(resource)})
    return memory


@pyscript_compile
def is_doubted(resource: Any, message: Any) -> bool:
    """Return whether a message is an FRBC.StorageStatus that is not believed yet."""
    return message.message_type == STATUS[0] and resource.fill_level.is_suspect


@pyscript_compile
def begin(resource: Any) -> None:
    """Believe the first fill level that comes: the session is new, or the control type."""
    resource.fill_level, resource.fill_level_range = plausibility.BelievedLevel(), None
    if resource.doubt:
        resource.doubt.cancel()
        resource.doubt = None


@pyscript_compile
def take(cem: Any, resource: Any, message: Any) -> None:
    """Take a message that may tell of the fill level, or of how fast it can change."""
    kind, session, level = message.message_type, resource.session, resource.fill_level
    if kind == STATUS[0]:
        now, before, was_suspect = cem.now(), level.value, level.is_suspect
        level.tell(message.present_fill_level, now)
        if level.is_suspect and not was_suspect:
            warn(resource, before, message.present_fill_level, now)
            if resource.doubt is None or resource.doubt.done():
                resource.doubt = session.spawn(believe_when_due(cem, resource, level))
    elif (kind,) in (DESCRIPTION, LEAKAGE, USAGE) and DESCRIPTION in session.memory:
        bind(resource, session.memory, cem.now())


@pyscript_compile
def bind(resource: Any, memory: dict, now: float) -> None:
    """Take how fast the fill level can change; with another range, it is another storage's."""
    level = resource.fill_level
    span = range_of(resource)
    rise, fall = devices.greatest_rates(memory[DESCRIPTION], memory.get(LEAKAGE), memory.get(USAGE))
    level.tolerance = TOLERANCE * (span[1] - span[0]) if span[0] < span[1] else math.inf
    level.greatest_rise, level.greatest_fall = MARGIN * rise, MARGIN * fall
    if resource.fill_level_range not in (None, span):
        level.forget()
        if STATUS in memory:
            level.tell(memory[STATUS].present_fill_level, now)
    resource.fill_level_range = span


@pyscript_compile
def warn(resource: Any, before: float, value: float, now: float) -> None:
    """Warn of a fill level that is doubted: once an hour, so that a device cannot fill the log."""
    since = None if resource.doubt_warned_at is None else now - resource.doubt_warned_at
    is_quiet = since is not None and 0 <= since < SECONDS_BETWEEN_WARNINGS
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
async def believe_when_due(cem: Any, resource: Any, level: Any) -> None:
    """Believe a fill level once it has lasted for long enough, and tell of it as if it came then."""
    session = resource.session
    while level.is_suspect:
        await asyncio.sleep(max(level.believed_from - cem.now(), 0.0) + 0.01)
        if resource.fill_level is not level or resource.session is not session:
            return
        if level.settle(cem.now()) and STATUS in session.memory:
            LOGGER.info(
                "%s has told the fill level %g for long enough to believe it", resource.name, level.value
            )
            cem.received(resource, session.memory[STATUS])
