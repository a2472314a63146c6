"""How things are with FlexMeasures: `sensor.flexmeasures_status`, and one notification per cause."""

import logging
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import homeassistant.components.persistent_notification as notification
import homeassistant.util.dt as dt_util

import flexmeasures_api.errors as errors
import flexmeasures_home.pace as paces
import flexmeasures_s2.texts as texts

ENTITY_ID = "sensor.flexmeasures_status"
BURST, SECONDS_BETWEEN_COUNTS = 10, 60
"""How many changes of the outbox alone are shown at once, before there is one a minute."""
STATE_INFO = {"unrecorded_attributes": frozenset({"options", "outbox"})}
"""What the recorder leaves out."""
MAX_TEXT = 2_000
LONG = timedelta(minutes=15)
NOTICE_STAYS = timedelta(days=1)
LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
STATES = ["ok", "planning", "stale", "error", "unauthorized", "unreachable", "misconfigured"]
KINDS = [errors.FlexMeasuresError, *errors.FlexMeasuresError.__subclasses__()]
CALL = "call"
"""The matter of a call that the server failed over: it is over with whatever goes well next."""
SERVER = "server"
"""The matter of the server as such: it is over with whatever it does for us next."""
DROPPED = "measurements_dropped"
SET_ASIDE, NOT_SAVED, TASK_FAILED = "file_set_aside", "file_not_saved", "task_failed"
NOTICES = (DROPPED, SET_ASIDE)
"""Causes of what nothing will make good: they are told for a day."""
OF_THE_SERVER = [errors.Unreachable.cause, errors.Unauthorized.cause]
"""Causes that several matters have at once, and that are logged but once."""
MAKE_WAIT = [*OF_THE_SERVER, errors.RateLimited.cause]
"""Causes for which something waits, until the server does something else for us at the latest."""
PASSING = [*MAKE_WAIT, errors.ServerFault.cause]
"""Causes that lie in the server as it is just now, not in what it was asked."""
OURS = [
    "misconfigured",
    "wrong_call",
    "no_soc",
    "no_entity",
    "no_measurements",
    DROPPED,
    SET_ASIDE,
    NOT_SAVED,
    TASK_FAILED,
    "outbox_full",
    "s2_not_listening",
    "not_planned",
]
CAUSES = [*OURS, *[kind.cause for kind in KINDS]]
MARKUP = re.compile(r"<(?=[a-zA-Z/!?])|\]\(")
"""Where a tag of HTML begins, or the address of a Markdown link or image."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Problem:
        """What is wrong with one matter, and since when; `temporary` needs the user only if it lasts.

        Until `holds_until` the server asked to be left alone over it.
        """

        text: str
        state: str
        cause: str
        temporary: bool
        since: datetime
        holds_until: datetime | None = None

    @dataclass(repr=False)
    class Status:
        """The problems by their matter (`plan`, `measurements`, ...), the newest last, and the rest.

        `resting` is the state without any; `planning` tells whether a plan is under way.
        `when_recovered` and `when_unreachable` are called when the server answers again, or does not, and
        `when_answered` when it did something for us while it is away for others.
        `shown` is what Home Assistant was last given, but for what waits in the outbox: that has a `pace`.
        `unsaved` has functions that write again what could not be written, by the names of the files.
        `redact` takes secrets out of a text. `untried` are matters that nothing tries again by itself.
        """

        hass: Any
        resting: str = "ok"
        planning: bool = False
        problems: dict = field(default_factory=dict)
        attributes: dict = field(default_factory=dict)
        when_recovered: Any = None
        when_unreachable: Any = None
        when_answered: Any = None
        shown: tuple | None = None
        pace: Any = None
        unsaved: dict = field(default_factory=dict)
        redact: Any = str
        untried: set = field(default_factory=lambda: {CALL})

    return Problem, Status


Problem, Status = records()


@pyscript_compile
def state_of(status):
    """Return the state: `planning`, that of the newest problem, or the resting one."""
    if status.planning:
        return "planning"
    newest = next(reversed(status.problems.values()), None)
    return newest.state if newest else status.resting


@pyscript_compile
def show(status, **attributes):
    """Show the state; attributes that are not given stay."""
    status.attributes |= attributes
    if status.pace is None:
        status.pace = paces.Pace(status.hass, partial(write, status), 0.0, BURST, SECONDS_BETWEEN_COUNTS)
    if status.shown == lasting(status) and status.attributes.get("outbox"):
        paces.want(status.pace)
    else:
        write(status)


@pyscript_compile
def write(status: Status) -> bool:
    """Give the state to Home Assistant, if it has changed, and return whether that was done."""
    status.shown = lasting(status)
    state, attributes = status.shown
    shown = status.hass.states.get(ENTITY_ID)
    attributes = attributes | {"outbox": status.attributes.get("outbox", 0)}
    status.hass.states.async_set(ENTITY_ID, state, attributes, state_info=STATE_INFO)
    return shown is not None and (shown.state, shown.attributes) != (state, attributes)


@pyscript_compile
def lasting(status: Status) -> tuple[str, dict]:
    """Return the state and its attributes without what waits in the outbox."""
    newest = next(reversed(status.problems.values()), None)
    attributes = {
        "friendly_name": "FlexMeasures Status",
        "device_class": "enum",
        "options": STATES,
        "last_success": None,
        "last_error": newest.text if newest else None,
        "next_plan": None,
        "prices_known_until": None,
        "server_version": None,
        "outbox_dropped": 0,
        **status.attributes,
    }
    attributes.pop("outbox", None)
    return state_of(status), attributes


@pyscript_compile
def stop(status: Status) -> None:
    """End the timer of what waits to be shown."""
    if status.pace:
        paces.stop(status.pace)


@pyscript_compile
def fail(
    status: Status,
    matter: str,
    text: str,
    state: str = "error",
    cause: str = "wrong_call",
    temporary: bool = False,
    retry_after: float | None = None,
) -> None:
    """Show what is wrong with a matter, and notify the user; of what is `temporary` only once it lasts.

    It is logged when it starts, however often it is met again. A text that is endless is cut, and stands on
    one line. `retry_after` is for how long the server asked to be left alone (s).
    """
    text = status.redact(text)
    text = text if text.isprintable() else texts.label(text, MAX_TEXT + 1)
    text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    before = status.problems.pop(matter, None)
    same = of_cause(status, cause) + ([before] if before and before.cause == cause else [])
    if not (same if cause in OF_THE_SERVER else before in same):
        LOGGER.warning("%s", text)
    now = dt_util.utcnow()
    since = min([problem.since for problem in same], default=now)
    holds_until = None if retry_after is None else now + timedelta(seconds=retry_after)
    status.problems[matter] = Problem(text, state, cause, temporary, since, holds_until)
    if before:
        notify(status, before.cause)
    notify(status, cause)
    show(status)
    if state == errors.Unreachable.status and status.when_unreachable:
        status.when_unreachable()


@pyscript_compile
def of_cause(status, cause):
    """Return the problems of a cause."""
    return [problem for problem in status.problems.values() if problem.cause == cause]


@pyscript_compile
def notify(status, cause):
    """Keep one notification of all problems of a cause; without any, or none that lasts, there is none."""
    now = dt_util.utcnow()
    lasting_texts = [
        problem.text
        for problem in of_cause(status, cause)
        if not problem.temporary or now - problem.since >= LONG
    ]
    if lasting_texts:
        text = plain("\n\n".join(dict.fromkeys(lasting_texts)))
        notification.async_create(status.hass, text, "FlexMeasures", notification_id(cause))
    else:
        dismiss(status.hass, [cause])


@pyscript_compile
def plain(text: str) -> str:
    """Return a text for a notification, which is Markdown, so that a name makes no image, link or HTML."""
    return MARKUP.sub(lambda found: {"<": "&lt;"}.get(found[0], "]\\("), text)


@pyscript_compile
def fail_with(status, matter, error, text: str | None = None):
    """Show an error of FlexMeasures, with another text than its own if one is given."""
    fail(status, matter, text or str(error), error.status, error.cause, error.temporary, error.retry_after)


@pyscript_compile
def succeed(status, matter, **attributes):
    """Show that the server did what a matter needed: that is well again, and so is the server.

    All else that waits for the server is told so, and what nothing tries again is over, if it lay in the
    server.
    """
    for each in (matter, *[other for other in status.untried if is_passing(status, other)]):
        end(status, each)
    was_away = SERVER in status.problems and status.problems[SERVER].cause in OF_THE_SERVER
    if was_away:
        end(status, SERVER)
    show(status, **attributes)
    if was_away and status.when_recovered:
        status.when_recovered()
    elif status.when_answered and any(of_cause(status, cause) for cause in MAKE_WAIT):
        status.when_answered()


@pyscript_compile
def is_passing(status: Status, matter: str) -> bool:
    """Tell whether a matter has a problem that is over once the server does anything for us."""
    problem = status.problems.get(matter)
    if problem is None or (matter != CALL and problem.cause not in PASSING):
        return False
    return problem.holds_until is None or problem.holds_until <= dt_util.utcnow()


@pyscript_compile
def settle(status, matter):
    """Show that a matter is well again, without anything new from the server."""
    end(status, matter)
    show(status)


@pyscript_compile
def end(status, matter):
    """Forget a problem; its notification goes away with the last one of its cause."""
    problem = status.problems.pop(matter, None)
    if problem:
        notify(status, problem.cause)
        if problem.cause not in OF_THE_SERVER or not of_cause(status, problem.cause):
            LOGGER.info("Over since now: %s", problem.text)


@pyscript_compile
def forget_notices(status):
    """End what tells of values that were dropped, and files that were set aside, a day ago."""
    for matter, problem in list(status.problems.items()):
        if problem.cause in NOTICES and dt_util.utcnow() - problem.since > NOTICE_STAYS:
            settle(status, matter)


@pyscript_compile
def is_fresh_notice(status, matter):
    """Tell whether values were dropped so short ago that the user cannot have seen it."""
    problem = status.problems.get(matter)
    return bool(problem) and problem.cause == DROPPED and dt_util.utcnow() - problem.since < LONG


@pyscript_compile
def dismiss(hass, causes=CAUSES):
    """Take notifications away."""
    for cause in causes:
        notification.async_dismiss(hass, notification_id(cause))


@pyscript_compile
def notification_id(cause):
    """Return the stable id of a cause's notification."""
    return f"flexmeasures_{cause}"
