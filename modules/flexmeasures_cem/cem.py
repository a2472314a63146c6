"""The Resource Managers that are connected, or were, each by its resource_id; their control types."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flexmeasures_cem.errors as errors
import flexmeasures_cem.fill_levels as fill_levels
import flexmeasures_cem.plausibility as plausibility
import flexmeasures_s2.control_types as control_types
import flexmeasures_s2.errors as s2_errors
import flexmeasures_s2.session as sessions
import flexmeasures_s2.texts as texts

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
REPLACED = "another connection of the same resource replaces this one"


@dataclass(eq=False, repr=False)
class _Resource:
    """A Resource Manager by its resource_id, and its session while it is connected.

    `last_session` stays after it. `choice` is the control type that the user chose, over reconnects
    and restarts, and `planned_under` that of the plan which is kept for it; `unplannable` are those that
    what it told in this session cannot be planned under. `fill_level` has the one that is believed,
    within `fill_level_range`; `doubt` is the task that waits until it is another, and `doubt_warned_at`
    when the log had one that is not believed (s since 1970).
    """

    resource_id: str
    name: str
    choice: str | None = None
    planned_under: str | None = None
    session: Any = None
    last_session: Any = None
    unplannable: set = field(default_factory=set)
    fill_level: Any = field(default_factory=plausibility.BelievedLevel)
    fill_level_range: tuple | None = None
    doubt: asyncio.Task | None = None
    doubt_warned_at: float | None = None


Resource = _Resource


@pyscript_compile
def current_time() -> float:
    """Return the present moment (s since 1970)."""
    return time.time()


@dataclass(repr=False)
class _Cem:
    """All Resource Managers by their ids, the preferred control type, and who is told what.

    `changed(resource)`: it connected, disconnected, or is under another control type.
    `received(resource, message)`: it sent a message that is now confirmed and remembered, or one counts
    only now.
    `leaving(resource)` (async): it is about to get another control type. `with_token` are the names or
    resource_ids of those that have a token of their own.
    """

    changed: Any
    received: Any
    preferred: str | None = None
    resources: dict = field(default_factory=dict)
    leaving: Any = None
    with_token: frozenset[str] = frozenset()
    now: Callable[[], float] = current_time


Cem = _Cem


@pyscript_compile
def events(cem):
    """Return what a session tells us."""

    def details(session, message):
        return take_in(cem, session, message)

    def established(session):
        resource = of_session(cem, session)
        if resource:
            cem.changed(resource)
            if not session.selection_is_due:
                session.selection_is_due = True
                session.spawn(select_best(cem, resource, session))

    def selected(session):
        resource = of_session(cem, session)
        if resource:
            fill_levels.begin(resource)
            cem.changed(resource)

    def received(session, message):
        resource = of_session(cem, session)
        if resource:
            fill_levels.take(cem, resource, message)
            cem.received(resource, message)

    return sessions.Events(details=details, established=established, selected=selected, message=received)


@pyscript_compile
def of_session(cem, session):
    """Return the resource that a session belongs to, unless another one has replaced it."""
    resource = session.details and cem.resources.get(session.details.resource_id)
    return resource if resource and resource.session is session else None


@pyscript_compile
def take_in(cem, session, message):
    """Take a Resource Manager in; return what it is told if that replaces another connection of it."""
    if session.is_replaced:
        raise s2_errors.InvalidContent(f"message_type: {REPLACED}")
    name = sessions.display_name(message)
    refuse_others(cem, session, message.resource_id, name)
    resource = cem.resources.setdefault(message.resource_id, Resource(message.resource_id, name))
    resource.name = name
    before = resource.session
    resource.session = resource.last_session = session
    resource.unplannable = set()
    if before is session:
        return None
    fill_levels.begin(resource)
    LOGGER.info("%s (%s) connected from %s", name, resource.resource_id, session.peer)
    if before is None:
        return None
    LOGGER.warning(
        "%s (%s) connected from %s and replaces its connection from %s",
        name,
        message.resource_id,
        session.peer,
        before.peer,
    )
    before.is_replaced = True
    before.spawn(before.send_session_request(REPLACED))
    return f"This connection replaces the one from {before.peer}"


@pyscript_compile
def refuse_others(cem: Any, session: Any, resource_id: str, name: str) -> None:
    """Let nobody take the place of a resource that has a token of its own; raise InvalidContent.

    A token of one resource lets in no other.
    """
    known = cem.resources.get(resource_id)
    names = {resource_id, name, known.name if known else name}
    if names & cem.with_token and session.token_holder not in names:
        raise s2_errors.InvalidContent(f"resource_id: {name} has a token of its own, and this was not given")
    if session.token_holder is not None and session.token_holder not in names:
        raise s2_errors.InvalidContent(
            f"resource_id: the token that was given is that of {session.token_holder}"
        )


@pyscript_compile
def ended(cem, session):
    """Take note that a session is over."""
    resource = of_session(cem, session)
    if resource:
        resource.session = None
        cem.changed(resource)


@pyscript_compile
def offered(session):
    """Return the control types that a Resource Manager offers."""
    return [each.value for each in session.details.available_control_types]


@pyscript_compile
def control_type(resource):
    """Return the active control type, or None."""
    return resource.session.control_type if resource.session else None


@pyscript_compile
def best(cem, resource, session):
    """Return the control type to select.

    It is the user's choice, the preferred, the one that a plan is kept for, or the first that we can plan.
    """
    can = [*offered(session), control_types.NO_SELECTION]
    wanted = [resource.choice, cem.preferred]
    if resource.planned_under not in resource.unplannable:
        wanted.append(resource.planned_under)
    wanted += [each for each in control_types.NAMES if each not in resource.unplannable]
    return next(each for each in [*wanted, *control_types.NAMES] if each in can)


@pyscript_compile
async def give_way(cem, resource, session, unplannable):
    """Select the next best of the control types that can be planned, since what was told does not fit this.

    A control type that the user chose or prefers stays, and so does the last that could be planned.
    """
    resource.unplannable.add(unplannable)
    can = [each for each in control_types.PLANNABLE if each in offered(session)]
    is_wanted = unplannable in (resource.choice, cem.preferred)
    if is_wanted or set(can) <= resource.unplannable or session.control_type != unplannable:
        return
    LOGGER.warning("%s cannot be planned under %s: another one is selected", resource.name, unplannable)
    await select_best(cem, resource, session)


@pyscript_compile
async def select_best(cem, resource, session):
    """Select a control type for a Resource Manager that just connected, or offers others now."""
    async with session.selection_lock:
        session.selection_is_due = False
        wanted = best(cem, resource, session)
        if wanted == session.control_type:
            return
        status = await select(cem, resource, session, wanted)
    if status.status.value != sessions.OK:
        LOGGER.warning(
            "%s offers %s but answered %s to its selection: %s",
            resource.name,
            wanted,
            status.status.value,
            texts.quoted(status.diagnostic_label),
        )


@pyscript_compile
async def select(cem, resource, session, wanted):
    """Select a control type, and return the confirmation; what belongs to the one before ends first."""
    if cem.leaving:
        await cem.leaving(resource)
    return await session.select(wanted)


@pyscript_compile
def connected(cem, resource_id=None):
    """Return the connected resource of an id or name, or the only one; raise NoSuchResource.

    Of several with one name it is the one that has shown a token of its own, if one has.
    """
    candidates = [resource for resource in cem.resources.values() if resource.session]
    ids_and_names = texts.few(f"{resource.resource_id} ({resource.name})" for resource in candidates)
    if not candidates:
        names = texts.few(resource.name for resource in cem.resources.values())
        raise errors.NoSuchResource(
            f"No S2 Resource Manager is connected{names and f' ({names} was)'}: see that it can reach the "
            f"address at which Home Assistant listens for it"
        )
    if resource_id is None:
        if len(candidates) > 1:
            raise errors.NoSuchResource(f"resource_id: several are connected, give one of {ids_and_names}")
        return candidates[0]
    by_id = [resource for resource in candidates if resource.resource_id == resource_id]
    by_name = [resource for resource in candidates if resource.name == resource_id]
    by_name = [resource for resource in by_name if resource.session.token_holder is not None] or by_name
    if len(by_id or by_name) != 1:
        is_known = any(resource_id in (one.resource_id, one.name) for one in cem.resources.values())
        wrong = (
            "more than one has that name"
            if by_name
            else "it is not connected"
            if is_known
            else "there is none"
        )
        raise errors.NoSuchResource(
            f"resource_id: {wrong}: {texts.quoted(resource_id)!r}; connected are {ids_and_names}"
        )
    return (by_id or by_name)[0]


@pyscript_compile
async def change_control_type(cem, resource, wanted):
    """Select a control type, and keep the choice; raise NotOffered or NotConfirmed."""
    session = resource.session
    async with session.selection_lock:
        can = offered(session)
        if wanted not in (*can, control_types.NO_SELECTION):
            raise errors.NotOffered(
                f"control_type: {resource.name} does not offer {wanted}, but {texts.few(can)} "
                f"(and NO_SELECTION stops it)"
            )
        if wanted != session.control_type:
            await select_as_asked(cem, resource, session, wanted)
        resource.choice = wanted


@pyscript_compile
async def select_as_asked(cem, resource, session, wanted):
    """Select a control type; raise NotConfirmed."""
    try:
        status = await select(cem, resource, session, wanted)
    except s2_errors.NoConfirmation as error:
        raise errors.NotConfirmed(f"control_type: {error}") from error
    if status.status.value != sessions.OK:
        raise errors.NotConfirmed(
            f"control_type: {resource.name} answered {status.status.value} to the selection of {wanted}: "
            f"{texts.quoted(status.diagnostic_label) or 'without a reason'}"
        )
