"""Power profile based control: how a device deviates from its plan."""

from typing import Any

import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.ppbc.device as profiles


@pyscript_compile
def resumed(found: profiles.Device, plan: profiles.ProfilePlan, told: Any) -> profiles.ProfilePlan | None:
    """Return a plan that a device goes on with after its Return, or None where it cannot.

    What was to start meanwhile must have: by its status, or, where it tells none, since it was told to.
    """
    sequences = {
        (profile.id, each.id): each.sequences for profile in found.profiles for each in profile.containers
    }
    if not all(change.sequence in sequences.get(change.actuator, {}) for change in plan.changes):
        return None
    status = profiles.statuses(told.memory[profiles.STATUS]) if profiles.STATUS in told.memory else {}
    for change in plan.changes:
        if change.kind != profiles.START or change.moment > told.begin:
            continue
        known = status.get(change.actuator)
        was_sent = told.sent_until is None or change.moment <= told.sent_until
        if profiles.KINDS[known.status.value] == profiles.WAITING if known else not was_sent:
            return None
    return plan


@pyscript_compile
def planned_power(plan, start, length):
    """Return the mean power (W) of a plan in some time, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + length) if plan else 0.0


@pyscript_compile
def deviation(found, plan, message, now):
    """Return how a PowerProfileStatus departs from what the plan expects of the device now, or None."""
    if message.message_type != profiles.STATUS[0]:
        return None
    told = profiles.statuses(message)
    for profile in found.profiles:
        for each in profile.containers:
            key = profile.id, each.id
            if key in told and key in plan.phases:
                expected = profiles.planned_phase(plan, each, key, now)
                if why := differs(each, expected, told[key], now):
                    return f"container {each.id} {why}"
    return None


@pyscript_compile
def differs(found, expected, status, now):
    """Tell where a container's status is not what is expected of it now, or None."""
    kind, chosen = profiles.KINDS[status.status.value], status.selected_sequence_id
    if kind == expected.kind:
        if kind not in (profiles.RUNNING, profiles.PAUSED):
            return None
        if chosen and chosen != expected.sequence:
            return f"runs sequence {chosen}, expected was {expected.sequence}"
        ahead = profiles.progress(status, expected, now) - expected.done
        if kind == profiles.RUNNING and abs(ahead) > profiles.TIME_TOLERANCE:
            return f"is {abs(ahead) / 60:.0f} minutes {'ahead' if ahead > 0 else 'behind'}"
        return None
    if kind == profiles.FINISHED and expected.kind == profiles.RUNNING:
        left = found.sequences[expected.sequence].seconds - expected.done
        return f"has finished {left / 60:.0f} minutes early" if left > profiles.TIME_TOLERANCE else None
    if (
        expected.kind == profiles.FINISHED
        and kind == profiles.RUNNING
        and now - expected.at <= profiles.TIME_TOLERANCE
    ):
        return None
    if expected.kind == profiles.ABORTED or (expected.kind == profiles.FINISHED and kind == profiles.WAITING):
        return None
    if kind not in (profiles.FINISHED, profiles.ABORTED) and now - expected.since <= plans.LAG_SECONDS:
        return None
    return f"is {status.status.value}, expected was {expected.kind}"


@pyscript_compile
def power_deviation(found, plan, power, now):
    """Tell where a measured power (W) is not what is expected, or was expected shortly before."""
    return plans.measured_power_deviation(plan, power, now, power_tolerance(found))


@pyscript_compile
def power_tolerance(found):
    """Return by how much a power may depart (W)."""
    return plans.power_tolerance(found.greatest)


@pyscript_compile
def has_changed(found, state, message):
    """Tell whether a status tells of another state than a plan was asked for."""
    if message.message_type != profiles.STATUS[0]:
        return False
    told = profiles.statuses(message)
    for profile in found.profiles:
        for each in profile.containers:
            status, phase = told.get((profile.id, each.id)), state.phases.get((profile.id, each.id))
            if status and phase and profiles.KINDS[status.status.value] != phase.kind:
                if state.moment - phase.since > plans.LAG_SECONDS:
                    return True
            elif (
                status
                and phase
                and status.selected_sequence_id != phase.sequence
                and phase.kind == profiles.RUNNING
            ):
                return True
    return False
