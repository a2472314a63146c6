"""The Resource Managers that are connected, or were, by their resource_ids; and their control types."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from s2python.common import ReceptionStatus, ResourceManagerDetails

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
    and restarts, and `planned_under` that of the plan which is kept for it; `unplannable` are the control
    types that its messages of this session cannot be planned under. `fill_level` has the one that is
    believed, within `fill_level_range`; `doubt` is the task that waits until another one is, and
    `doubt_warned_at` when the log had one that is not believed (s since 1970).
    """

    resource_id: str
    name: str
    choice: str | None = None
    planned_under: str | None = None
    session: sessions.Session | None = None
    last_session: sessions.Session | None = None
    unplannable: set[str] = field(default_factory=set)
    fill_level: plausibility.BelievedLevel = field(default_factory=plausibility.BelievedLevel)
    fill_level_range: tuple[float, float] | None = None
    doubt: asyncio.Task[None] | None = None
    doubt_warned_at: float | None = None


Resource = _Resource


@pyscript_compile
def current_time() -> float:
    """Return the present moment (s since 1970)."""
    return time.time()


@dataclass(repr=False)
class _Cem:
    """All Resource Managers by their ids, the preferred control type, and what is called when.

    `changed(resource)`: it connected, disconnected, or is under another control type.
    `received(resource, message)`: it sent a message that is now confirmed and remembered, or one counts
    only now.
    `leaving(resource)`: it is about to get another control type. `with_token` are the names or resource_ids
    of Resource Managers that have a token of their own.
    """

    changed: Callable[[Resource], None]
    received: Callable[[Resource, Any], None]
    preferred: str | None = None
    resources: dict[str, Resource] = field(default_factory=dict)
    leaving: Callable[[Resource], Awaitable[None]] | None = None
    with_token: frozenset[str] = frozenset()
    now: Callable[[], float] = current_time


Cem = _Cem


@pyscript_compile
def events(cem: Cem) -> sessions.Events:
    """Return what sessions call."""

    def details(session: sessions.Session, message: ResourceManagerDetails) -> str | None:
        return on_details(cem, session, message)

    def established(session: sessions.Session) -> None:
        resource = of_session(cem, session)
        if resource:
            cem.changed(resource)
            if not session.selection_is_due:
                session.selection_is_due = True
                session.spawn(select_best(cem, resource, session))

    def selected(session: sessions.Session) -> None:
        resource = of_session(cem, session)
        if resource:
            fill_levels.reset(resource)
            cem.changed(resource)

    def received(session: sessions.Session, message: Any) -> None:
        resource = of_session(cem, session)
        if resource:
            fill_levels.on_message(cem, resource, session, message)
            cem.received(resource, message)

    return sessions.Events(details=details, established=established, selected=selected, message=received)


@pyscript_compile
def of_session(cem: Cem, session: sessions.Session) -> Resource | None:
    """Return the resource that a session belongs to, unless another session has replaced it."""
    resource = cem.resources.get(session.details.resource_id) if session.details else None
    return resource if resource and resource.session is session else None


@pyscript_compile
def on_details(cem: Cem, session: sessions.Session, details: ResourceManagerDetails) -> str | None:
    """Enter the Resource Manager of a session; return a diagnostic_label if that replaces another session."""
    if session.is_replaced:
        raise s2_errors.InvalidContent(f"message_type: {REPLACED}")
    resource_id = str(details.resource_id)
    name = sessions.display_name(details)
    check_token(cem, session, resource_id, name)
    resource = cem.resources.setdefault(resource_id, Resource(resource_id, name))
    resource.name = name
    before = resource.session
    resource.session = resource.last_session = session
    resource.unplannable = set()
    if before is session:
        return None
    fill_levels.reset(resource)
    LOGGER.info("%s (%s) connected from %s", name, resource.resource_id, session.peer)
    if before is None:
        return None
    LOGGER.warning(
        "%s (%s) connected from %s and replaces its connection from %s",
        name,
        resource.resource_id,
        session.peer,
        before.peer,
    )
    before.is_replaced = True
    before.spawn(before.send_session_request(REPLACED))
    return f"This connection replaces the one from {before.peer}"


@pyscript_compile
def check_token(cem: Cem, session: sessions.Session, resource_id: str, name: str) -> None:
    """Check that a resource with a token of its own has given it, and all others none of these.

    Raise InvalidContent.
    """
    before = cem.resources.get(resource_id)
    names = {resource_id, name, before.name if before else name}
    if names & cem.with_token and session.token_holder not in names:
        raise s2_errors.InvalidContent(f"resource_id: {name} has a token of its own, and this was not given")
    if session.token_holder is not None and session.token_holder not in names:
        raise s2_errors.InvalidContent(
            f"resource_id: the token that was given is that of {session.token_holder}"
        )


@pyscript_compile
def ended(cem: Cem, session: sessions.Session) -> None:
    """Leave a Resource Manager without its session, which has ended."""
    resource = of_session(cem, session)
    if resource:
        resource.session = None
        cem.changed(resource)


@pyscript_compile
def offered(session: sessions.Session) -> list[str]:
    """Return the control types that a Resource Manager offers."""
    return [control_type.value for control_type in session.details.available_control_types]


@pyscript_compile
def control_type(resource: Resource) -> str | None:
    """Return the active control type, or None."""
    return resource.session.control_type if resource.session else None


@pyscript_compile
def best(cem: Cem, resource: Resource, session: sessions.Session) -> str:
    """Return the control type to select.

    It is the user's choice, the preferred, the one that a plan is kept for, or the first that can be planned.
    """
    possible = [*offered(session), control_types.NO_SELECTION]
    wanted = [resource.choice, cem.preferred]
    if resource.planned_under not in resource.unplannable:
        wanted.append(resource.planned_under)
    wanted += [name for name in control_types.NAMES if name not in resource.unplannable]
    return next(name for name in [*wanted, *control_types.NAMES] if name in possible)


@pyscript_compile
async def select_fallback(cem: Cem, resource: Resource, session: sessions.Session, unplannable: str) -> None:
    """Select the next best of the control types that can be planned, in place of one that cannot.

    A control type that the user chose or prefers stays, and so does the last that could be planned.
    """
    resource.unplannable.add(unplannable)
    possible = {name for name in control_types.PLANNABLE if name in offered(session)}
    is_wanted = unplannable in (resource.choice, cem.preferred)
    if is_wanted or possible <= resource.unplannable or session.control_type != unplannable:
        return
    LOGGER.warning("%s cannot be planned under %s: another one is selected", resource.name, unplannable)
    await select_best(cem, resource, session)


@pyscript_compile
async def select_best(cem: Cem, resource: Resource, session: sessions.Session) -> None:
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
async def select(cem: Cem, resource: Resource, session: sessions.Session, wanted: str) -> ReceptionStatus:
    """Select a control type, and return the confirmation; what belongs to the one before ends first."""
    if cem.leaving:
        await cem.leaving(resource)
    return await session.select(wanted)


@pyscript_compile
def connected(cem: Cem, resource_id: str | None = None) -> Resource:
    """Return the connected resource of an id or name, or the only one; raise NoSuchResource.

    Of several with one name it is the one that has given a token of its own, if one has.
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
    with_token = [
        resource for resource in by_name if resource.session and resource.session.token_holder is not None
    ]
    matching = by_id or with_token or by_name
    if len(matching) != 1:
        is_away = any(
            resource_id in (resource.resource_id, resource.name) for resource in cem.resources.values()
        )
        why = (
            "more than one has that name"
            if matching
            else "it is not connected"
            if is_away
            else "there is none"
        )
        raise errors.NoSuchResource(
            f"resource_id: {why}: {texts.quoted(resource_id)!r}; connected are {ids_and_names}"
        )
    return matching[0]


@pyscript_compile
async def change_control_type(cem: Cem, resource: Resource, wanted: str) -> None:
    """Select a control type, and keep the choice; raise NoSuchResource, NotOffered or NotConfirmed."""
    session = resource.session
    if session is None:
        raise errors.NoSuchResource(f"resource_id: {resource.name} is not connected")
    async with session.selection_lock:
        names = offered(session)
        if wanted not in (*names, control_types.NO_SELECTION):
            raise errors.NotOffered(
                f"control_type: {resource.name} does not offer {wanted}, but {texts.few(names)} "
                f"(and NO_SELECTION stops it)"
            )
        if wanted != session.control_type:
            await select_as_asked(cem, resource, session, wanted)
        resource.choice = wanted


@pyscript_compile
async def select_as_asked(cem: Cem, resource: Resource, session: sessions.Session, wanted: str) -> None:
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
