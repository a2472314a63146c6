"""How things are with FlexMeasures: `sensor.flexmeasures_status`, and one notification per cause."""

import logging
import re
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import homeassistant.components.persistent_notification as notification
import homeassistant.util.dt as dt_util
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity import StateInfo

import flexmeasures_api.errors as errors
import flexmeasures_s2.texts as texts
from flexmeasures_home.throttle import Throttle

ENTITY_ID = "sensor.flexmeasures_status"
BURST, SECONDS_BETWEEN_COUNTS = 10, 60
"""How many changes of the outbox alone are shown at once, before there is one a minute."""
STATE_INFO: StateInfo = {"unrecorded_attributes": frozenset({"options", "outbox"})}
"""Attributes that the recorder leaves out."""
MAX_TEXT = 2_000
LASTING = timedelta(minutes=15)
"""After this time the user is notified of a temporary problem."""
NOTICE_STAYS = timedelta(days=1)
LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
STATES = ["ok", "planning", "stale", "error", "unauthorized", "unreachable", "misconfigured"]
KINDS: list[type[errors.FlexMeasuresError]] = [
    errors.FlexMeasuresError,
    *errors.FlexMeasuresError.__subclasses__(),
]
CALL = "call"
"""The problem key of a call that the server failed over: the next success of any kind resolves it."""
SERVER = "server"
"""The problem key of the server as such: whatever it does for us next resolves it."""
DROPPED = "measurements_dropped"
SET_ASIDE, NOT_SAVED, TASK_FAILED = "file_set_aside", "file_not_saved", "task_failed"
NOTICES = (DROPPED, SET_ASIDE)
"""Causes of problems that cannot be made good: they are shown for a day."""
OF_THE_SERVER = [errors.Unreachable.cause, errors.Unauthorized.cause]
"""Causes that several problems have at once, and that are logged only once."""
CAUSES_WAIT = [*OF_THE_SERVER, errors.RateLimited.cause]
"""Causes for which something waits, until the server does something else for us at the latest."""
PASSING = [*CAUSES_WAIT, errors.ServerFault.cause]
"""Causes in the present condition of the server, not in the request."""
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


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """A problem and when it began; the user needs to know of a `temporary` one only if it lasts.

    Until `holds_until` the server asked not to be called for it.
    """

    text: str
    state: str
    cause: str
    temporary: bool
    since: datetime
    holds_until: datetime | None = None


Problem = _Problem


@pyscript_compile
def untried_at_first() -> set[str]:
    """Return the keys of problems that nothing tries again by itself."""
    return {CALL}


@dataclass(repr=False)
class _Status:
    """The problems by their key (`plan`, `measurements`, ...), the newest last, and the other attributes.

    `resting` is the state without problems; `planning` tells whether a plan is under way.
    `when_recovered` and `when_unreachable` are called when the server answers again, or stops answering, and
    `when_answered` when a request succeeds while others still fail.
    `shown` is the state and attributes last written, without the number of values in the outbox: changes of
    that alone go through a `throttle`. `unsaved` maps the name of a file that could not be written to a
    function that writes it. `redact` takes secrets out of a text. `untried` has the keys of problems that
    nothing tries again by itself.
    """

    hass: HomeAssistant
    resting: str = "ok"
    planning: bool = False
    problems: dict[str, Problem] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    when_recovered: Callable[[], object] | None = None
    when_unreachable: Callable[[], object] | None = None
    when_answered: Callable[[], object] | None = None
    shown: tuple[str, dict[str, Any]] | None = None
    throttle: Throttle | None = None
    unsaved: dict[str, Callable[[], Coroutine[Any, Any, object]]] = field(default_factory=dict)
    redact: Callable[[str], str] = str
    untried: set[str] = field(default_factory=untried_at_first)

    @property
    @pyscript_compile
    def newest(self) -> Problem | None:
        """Return the newest problem, or None."""
        return next(reversed(self.problems.values()), None)

    @pyscript_compile
    def show(self, **attributes: Any) -> None:
        """Show the state; attributes that are not given stay."""
        self.attributes |= attributes
        if self.throttle is None:
            self.throttle = Throttle(self.hass, self.write, 0.0, BURST, SECONDS_BETWEEN_COUNTS)
        if self.shown == self._without_outbox() and self.attributes.get("outbox"):
            self.throttle.request()
        else:
            self.write()

    @pyscript_compile
    def write(self) -> bool:
        """Write the state to Home Assistant, and return whether it changed."""
        self.shown = self._without_outbox()
        state, attributes = self.shown
        before = self.hass.states.get(ENTITY_ID)
        attributes = attributes | {"outbox": self.attributes.get("outbox", 0)}
        self.hass.states.async_set(ENTITY_ID, state, attributes, state_info=STATE_INFO)
        return before is not None and (before.state, before.attributes) != (state, attributes)

    @pyscript_compile
    def _without_outbox(self) -> tuple[str, dict[str, Any]]:
        """Return the state and its attributes without the number of values in the outbox."""
        newest = self.newest
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
            **self.attributes,
        }
        attributes.pop("outbox", None)
        resting = newest.state if newest else self.resting
        return "planning" if self.planning else resting, attributes

    @pyscript_compile
    def stop(self) -> None:
        """Cancel the timer of what waits to be shown."""
        if self.throttle:
            self.throttle.cancel()

    @pyscript_compile
    def fail(
        self,
        problem_key: str,
        text: str,
        state: str = "error",
        cause: str = "wrong_call",
        temporary: bool = False,
        retry_after: float | None = None,
    ) -> None:
        """Show a problem, and notify the user; of a `temporary` one only once it lasts.

        It is logged when it begins, however often it occurs again. A text is cut to `MAX_TEXT`, and put on
        one line. `retry_after` is for how long the server asked not to be called (s).
        """
        text = self.redact(text)
        text = text if text.isprintable() else texts.label(text, MAX_TEXT + 1)
        text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
        before = self.problems.pop(problem_key, None)
        same = self.problems_of(cause) + ([before] if before and before.cause == cause else [])
        if not (same if cause in OF_THE_SERVER else before in same):
            LOGGER.warning("%s", text)
        now = dt_util.utcnow()
        self.problems[problem_key] = Problem(
            text=text,
            state=state,
            cause=cause,
            temporary=temporary,
            since=min([problem.since for problem in same], default=now),
            holds_until=None if retry_after is None else now + timedelta(seconds=retry_after),
        )
        if before:
            self._notify(before.cause)
        self._notify(cause)
        self.show()
        if state == errors.Unreachable.status and self.when_unreachable:
            self.when_unreachable()

    @pyscript_compile
    def fail_with(self, problem_key: str, error: errors.FlexMeasuresError, text: str | None = None) -> None:
        """Show an error of FlexMeasures as a problem, with another text than its own if one is given."""
        self.fail(
            problem_key,
            text or str(error),
            state=error.status,
            cause=error.cause,
            temporary=error.temporary,
            retry_after=error.retry_after,
        )

    @pyscript_compile
    def succeed(self, problem_key: str | None, **attributes: Any) -> None:
        """Show that the server did what was asked: this resolves the problem, and that of the server.

        All else that waits for the server is notified, and problems that nothing tries again are resolved, if
        their cause was in the server.
        """
        if problem_key is not None:
            self._remove(problem_key)
        for untried in [key for key in self.untried if self._is_passing(key)]:
            self._remove(untried)
        was_away = SERVER in self.problems and self.problems[SERVER].cause in OF_THE_SERVER
        if was_away:
            self._remove(SERVER)
        self.show(**attributes)
        if was_away and self.when_recovered:
            self.when_recovered()
        elif self.when_answered and any(self.problems_of(cause) for cause in CAUSES_WAIT):
            self.when_answered()

    @pyscript_compile
    def resolve(self, problem_key: str) -> None:
        """Show that a problem is over, without anything new from the server."""
        self._remove(problem_key)
        self.show()

    @pyscript_compile
    def problems_of(self, cause: str) -> list[Problem]:
        """Return the problems of a cause."""
        return [problem for problem in self.problems.values() if problem.cause == cause]

    @pyscript_compile
    def has_cause(self, problem_key: str, causes: Iterable[str]) -> bool:
        """Tell whether there is a problem of this key, with one of the causes."""
        problem = self.problems.get(problem_key)
        return problem is not None and problem.cause in causes

    @pyscript_compile
    def expire_notices(self) -> None:
        """Remove notices of dropped values and of files set aside after a day."""
        for problem_key, problem in list(self.problems.items()):
            if problem.cause in NOTICES and dt_util.utcnow() - problem.since > NOTICE_STAYS:
                self.resolve(problem_key)

    @pyscript_compile
    def is_fresh_notice(self, problem_key: str) -> bool:
        """Tell whether values were dropped so recently that the user cannot have seen it."""
        problem = self.problems.get(problem_key)
        return problem is not None and problem.cause == DROPPED and dt_util.utcnow() - problem.since < LASTING

    @pyscript_compile
    def _is_passing(self, problem_key: str) -> bool:
        """Tell whether a problem is over once the server does anything for us."""
        problem = self.problems.get(problem_key)
        if problem is None or (problem_key != CALL and problem.cause not in PASSING):
            return False
        return problem.holds_until is None or problem.holds_until <= dt_util.utcnow()

    @pyscript_compile
    def _remove(self, problem_key: str) -> None:
        """Remove a problem; its notification goes with the last one of its cause."""
        problem = self.problems.pop(problem_key, None)
        if problem:
            self._notify(problem.cause)
            if problem.cause not in OF_THE_SERVER or not self.problems_of(problem.cause):
                LOGGER.info("Resolved: %s", problem.text)

    @pyscript_compile
    def _notify(self, cause: str) -> None:
        """Keep one notification of all problems of a cause; none while all are temporary and recent."""
        now = dt_util.utcnow()
        lasting_texts = [
            problem.text
            for problem in self.problems_of(cause)
            if not problem.temporary or now - problem.since >= LASTING
        ]
        if lasting_texts:
            text = without_markup("\n\n".join(dict.fromkeys(lasting_texts)))
            notification.async_create(self.hass, text, "FlexMeasures", notification_id(cause))
        else:
            dismiss(self.hass, [cause])


Status = _Status


@pyscript_compile
def without_markup(text: str) -> str:
    """Escape a text for a notification, which is Markdown, so that a name makes no image, link or HTML."""
    return MARKUP.sub(lambda match: {"<": "&lt;"}.get(match[0], "]\\("), text)


@pyscript_compile
def dismiss(hass: HomeAssistant, causes: Iterable[str] = CAUSES) -> None:
    """Dismiss notifications."""
    for cause in causes:
        notification.async_dismiss(hass, notification_id(cause))


@pyscript_compile
def notification_id(cause: str) -> str:
    """Return the stable id of a cause's notification."""
    return f"flexmeasures_{cause}"
