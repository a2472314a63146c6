"""Power profile based control: which sequence of each container runs when, and what the device is told.

The choice is made in the site model (models/ppbc.py), not by FlexMeasures. A profile of which a container
was aborted is over as a whole, since its containers follow from each other. S2 says nothing of a sequence
without max_pause_before: any pause before it is allowed then; and none counts before a profile's first
container. Progress is taken as the time that a sequence has been at work; where a device adds its pauses,
that is seen and allowed for.
"""

from dataclasses import replace
from typing import Any

import flexmeasures_cem.plans as plans
import flexmeasures_cem.profiles as profiles
from flexmeasures_cem.profiles import (
    ABORTED,
    DESCRIPTION,
    FINISHED,
    PAUSE,
    PAUSED,
    RESUME,
    RUNNING,
    START,
    WAITING,
    Device,
    Phase,
    ProfilePlan,
    State,
    misfit,
    passed,
    usual,
)

CONTROL_TYPE = "POWER_PROFILE_BASED_CONTROL"
STATUS = ("PPBC.PowerProfileStatus",)
CALL_FOR_A_PLAN = (DESCRIPTION,)
"""The messages that change the problem."""
TIME_TOLERANCE = 120.0
"""How much earlier or later than expected a sequence may end (s)."""
LABELS = {START: "start", PAUSE: "pause", RESUME: "go on"}
KINDS = {
    "NOT_SCHEDULED": WAITING,
    "SCHEDULED": WAITING,
    "EXECUTING": RUNNING,
    "INTERRUPTED": PAUSED,
    "FINISHED": FINISHED,
    "ABORTED": ABORTED,
}
PLAN = ProfilePlan
device = profiles.device
upcoming, missed = plans.upcoming, plans.missed


@pyscript_compile
def lacks(memory):
    """Return which message is still missing to plan on, or None."""
    return None if any(key[0] == DESCRIPTION for key in memory) else DESCRIPTION


@pyscript_compile
def valid_from(_memory):
    """Return from when on the description holds: a definition does at once, it can be planned ahead."""
    return 0.0


@pyscript_compile
def unfit(found):
    """Return why a device cannot be planned, or None where at least one of its profiles can be."""
    why = [misfit(each) for each in found.profiles]
    return why[-1] if why and all(why) else None


@pyscript_compile
def until(found):
    """Return the last moment that the plan has to look ahead to."""
    return max([each.end for each in found.profiles], default=0.0)


@pyscript_compile
def condition(found, memory, heard, plan, now):
    """Return how far each container is now: as the device told, or as it was told later than that.

    `heard` has when the statuses were told last (None); `plan` is the one in force, or None.
    """
    told = statuses(memory[STATUS]) if STATUS in memory else {}
    heard_at = min(heard.get(None, getattr(plan, "made", now) if plan else now), now)
    phases = {}
    for profile in found.profiles:
        for each in profile.containers:
            key = profile.id, each.id
            phase = planned_phase(plan, each, key, heard_at)
            if key in told and (plan is None or key not in plan.phases or heard_at > plan.made):
                phase = heard_phase(each, phase, told[key], heard_at)
            elif plan and key in plan.phases:
                phase = plan.phases[key]
            phase = phase if phase.sequence in (None, *each.sequences) else Phase(WAITING, phase.at)
            phases[key] = advanced(each, phase, changes_of(plan, key), now)
    coming = [each for each in plan.changes if each.moment > now] if plan else []
    starts = {each.actuator: each.moment for each in reversed(coming) if each.kind in (START, RESUME)}
    return State(now, phases, {each.profile for each in coming}, starts)


@pyscript_compile
def statuses(message):
    """Return a PowerProfileStatus by profile and container."""
    return {
        (each.power_profile_id, each.sequence_container_id): each
        for each in message.sequence_container_status
    }


@pyscript_compile
def changes_of(plan, key):
    """Return a plan's changes of a container."""
    return [each for each in plan.changes if each.actuator == key] if plan else []


@pyscript_compile
def planned_phase(plan, found, key, moment):
    """Return the Phase that a plan expects of a container at a moment."""
    phase = plan.phases.get(key) if plan else None
    if phase is None or phase.sequence not in (None, *found.sequences):
        phase = Phase(WAITING, moment)
    return advanced(found, phase, changes_of(plan, key), moment)


@pyscript_compile
def heard_phase(found, expected, status, moment):
    """Return the Phase that a status tells of; or what is expected, where that was told just before."""
    kind = KINDS[status.status.value]
    if (
        kind != expected.kind
        and expected.since > moment - plans.LAG_SECONDS
        and kind not in (FINISHED, ABORTED)
    ):
        return expected
    chosen = status.selected_sequence_id or expected.sequence
    chosen = chosen if chosen in found.sequences else None
    if kind in (WAITING, ABORTED):
        return Phase(kind, moment, chosen)
    if chosen is None:
        chosen = (usual(found) or list(found.sequences.values()))[0].id
    same = expected if expected.sequence == chosen and expected.kind != WAITING else None
    if kind == FINISHED:
        end = same.at if same and same.kind == FINISHED else moment
        return Phase(kind, end, chosen, fee=same and same.fee)
    done = min(progress(status, same, moment), found.sequences[chosen].seconds)
    begun = same.begun if same and same.begun else moment - done
    since = same.since if same and same.kind == kind else 0.0
    if same:
        return replace(same, kind=kind, at=moment, done=done, since=since, begun=begun)
    return Phase(kind, moment, chosen, done, since, begun)


@pyscript_compile
def progress(status, expected, moment):
    """Return how long a sequence has been at work (s), as a status tells.

    Who counts its pauses too is taken at what is expected.
    """
    if status.progress is None:
        return expected.done if expected else 0.0
    told = status.progress.root / 1000
    if expected and expected.begun:
        passed = moment - expected.begun
        paused = passed - expected.done
        if paused > plans.LAG_SECONDS * 2 and abs(told - passed) < min(
            abs(told - expected.done), TIME_TOLERANCE
        ):
            return expected.done
    return told


@pyscript_compile
def advanced(found, phase, changes, now):
    """Return a container's Phase now: as it was, with the changes that it was told since then."""
    for each in changes:
        if phase.at < each.moment <= now:
            phase = passed(found, phase, each.moment)
            if each.kind == START and phase.kind == WAITING and each.sequence in found.sequences:
                at = each.moment
                phase = Phase(RUNNING, at, each.sequence, 0.0, at, at, each.fee, each.is_steady)
            elif (each.kind, phase.kind) in ((PAUSE, RUNNING), (RESUME, PAUSED)):
                kind = PAUSED if each.kind == PAUSE else RUNNING
                phase = replace(phase, kind=kind, since=each.moment)
    return passed(found, phase, now)


@pyscript_compile
def resumed(found: Device, plan: ProfilePlan, told: Any) -> ProfilePlan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot.

    What was to start meanwhile must have: by its status, or, where it tells none, since it was told to.
    """
    sequences = {
        (profile.id, each.id): each.sequences for profile in found.profiles for each in profile.containers
    }
    if not all(change.sequence in sequences.get(change.actuator, {}) for change in plan.changes):
        return None
    status = statuses(told.memory[STATUS]) if STATUS in told.memory else {}
    for change in plan.changes:
        if change.kind != START or change.moment > told.begin:
            continue
        known = status.get(change.actuator)
        was_sent = told.sent_until is None or change.moment <= told.sent_until
        if KINDS[known.status.value] == WAITING if known else not was_sent:
            return None
    return plan


@pyscript_compile
def problem(_found, _state, _means, _window):
    """Return None: FlexMeasures is asked nothing."""


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def departs(found, plan, message, now):
    """Return how a PowerProfileStatus departs from what the plan expects of the device now, or None."""
    if message.message_type != STATUS[0]:
        return None
    told = statuses(message)
    for profile in found.profiles:
        for each in profile.containers:
            key = profile.id, each.id
            if key in told and key in plan.phases:
                expected = planned_phase(plan, each, key, now)
                if why := differs(each, expected, told[key], now):
                    return f"container {each.id} {why}"
    return None


@pyscript_compile
def differs(found, expected, status, now):
    """Tell where a container's status is not what is expected of it now, or None."""
    kind, chosen = KINDS[status.status.value], status.selected_sequence_id
    if kind == expected.kind:
        if kind not in (RUNNING, PAUSED):
            return None
        if chosen and chosen != expected.sequence:
            return f"runs sequence {chosen}, expected was {expected.sequence}"
        ahead = progress(status, expected, now) - expected.done
        if kind == RUNNING and abs(ahead) > TIME_TOLERANCE:
            return f"is {abs(ahead) / 60:.0f} minutes {'ahead' if ahead > 0 else 'behind'}"
        return None
    if kind == FINISHED and expected.kind == RUNNING:
        left = found.sequences[expected.sequence].seconds - expected.done
        return f"has finished {left / 60:.0f} minutes early" if left > TIME_TOLERANCE else None
    if expected.kind == FINISHED and kind == RUNNING and now - expected.at <= TIME_TOLERANCE:
        return None
    if expected.kind == ABORTED or (expected.kind == FINISHED and kind == WAITING):
        return None
    if kind not in (FINISHED, ABORTED) and now - expected.since <= plans.LAG_SECONDS:
        return None
    return f"is {status.status.value}, expected was {expected.kind}"


@pyscript_compile
def measured_power_departs(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_departs(plan, power, now, tolerance(found))


@pyscript_compile
def tolerance(found):
    """Return by how much a power may depart (W)."""
    return plans.tolerance(found.greatest)


@pyscript_compile
def moved(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type != STATUS[0]:
        return False
    told = statuses(message)
    for profile in found.profiles:
        for each in profile.containers:
            status, phase = told.get((profile.id, each.id)), state.phases.get((profile.id, each.id))
            if status and phase and KINDS[status.status.value] != phase.kind:
                if state.moment - phase.since > plans.LAG_SECONDS:
                    return True
            elif status and phase and status.selected_sequence_id != phase.sequence and phase.kind == RUNNING:
                return True
    return False


@pyscript_compile
def message_type(change):
    """Return the type of the message that tells a change."""
    return f"PPBC.{change.kind}"


@pyscript_compile
def fields(change):
    """Return the fields of the instruction that a change calls for, but for its ids and execution_time."""
    return {
        "power_profile_id": change.profile,
        "sequence_container_id": change.container,
        "power_sequence_id": change.sequence,
        "abnormal_condition": False,
    }


@pyscript_compile
def alike(one, other):
    """Tell whether two changes come to the same instruction."""
    same = (one.kind, one.actuator, one.sequence) == (other.kind, other.actuator, other.sequence)
    return same and abs(one.moment - other.moment) < 1.0


@pyscript_compile
def describe(_found, change, _now):
    """Return what a change says, in short, with a label and the power expected (W)."""
    return {
        "message_type": message_type(change),
        **fields(change),
        "label": LABELS[change.kind],
        "power": round(change.power),
    }
