"""Power profile based control: how a device deviates from its plan."""

from typing import Any

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.plans as plans
import flexmeasures_cem.control_types.ppbc.device as devices


@pyscript_compile
def resumed(
    device: devices.Device, plan: devices.ProfilePlan, reconnection: "base.Reconnection"
) -> devices.ProfilePlan | None:
    """Return the plan that a device goes on with after it has reconnected, or None where it cannot.

    What was to start meanwhile must have: by its status, or, where that has none, since it was instructed.
    """
    sequences = {
        (profile.id, container.id): container.sequences
        for profile in device.profiles
        for container in profile.containers
    }
    if not all(change.sequence in sequences.get(change.actuator, {}) for change in plan.changes):
        return None
    memory = reconnection.memory
    reports = devices.read_reports(memory[devices.STATUS]) if devices.STATUS in memory else {}
    for change in plan.changes:
        if change.kind != devices.START or change.moment > reconnection.begin:
            continue
        report, sent_until = reports.get(change.actuator), reconnection.sent_until
        was_sent = sent_until is None or change.moment <= sent_until
        if report.kind == devices.WAITING if report else not was_sent:
            return None
    return plan


@pyscript_compile
def planned_power(plan: devices.ProfilePlan | None, start: float, seconds: float) -> float:
    """Return the mean power (W) that a plan has from a moment on, 0 without a plan or after it."""
    return plans.mean_power(plan, start, start + seconds) if plan else 0.0


@pyscript_compile
def deviation(device: devices.Device, plan: devices.ProfilePlan, message: Any, now: float) -> str | None:
    """Return how a PPBC.PowerProfileStatus deviates from the plan now, or None."""
    if message.message_type != devices.STATUS[0]:
        return None
    reports = devices.read_reports(message)
    for profile in device.profiles:
        for container in profile.containers:
            key = profile.id, container.id
            if key in reports and key in plan.phases:
                expected = devices.planned_phase(plan, container, key, now)
                if why := phase_deviation(container, expected, reports[key], now):
                    return f"container {container.id} {why}"
    return None


@pyscript_compile
def phase_deviation(
    container: devices.Container, expected: devices.Phase, report: devices.Report, now: float
) -> str | None:
    """Return how a container's status deviates from what is expected of it now, or None."""
    kind, tolerance = report.kind, devices.TIME_TOLERANCE_SECONDS
    if kind == expected.kind:
        return progress_deviation(expected, report, now)
    if kind == devices.FINISHED and expected.kind == devices.RUNNING and expected.sequence is not None:
        left = container.sequences[expected.sequence].seconds - expected.done
        return f"has finished {left / 60:.0f} minutes early" if left > tolerance else None
    is_finishing = expected.kind == devices.FINISHED and kind == devices.RUNNING
    if is_finishing and now - expected.at <= tolerance:
        return None
    is_over = expected.kind == devices.FINISHED and kind == devices.WAITING
    if expected.kind == devices.ABORTED or is_over:
        return None
    is_settling = now - expected.since <= plans.LAG_SECONDS
    if kind not in (devices.FINISHED, devices.ABORTED) and is_settling:
        return None
    return f"is {report.status}, expected was {expected.kind}"


@pyscript_compile
def progress_deviation(expected: devices.Phase, report: devices.Report, now: float) -> str | None:
    """Return how a container of the kind that is expected deviates in its sequence or progress, or None."""
    if report.kind not in (devices.RUNNING, devices.PAUSED):
        return None
    if report.sequence and report.sequence != expected.sequence:
        return f"runs sequence {report.sequence}, expected was {expected.sequence}"
    ahead = devices.done_seconds(report, expected, now) - expected.done
    if report.kind == devices.RUNNING and abs(ahead) > devices.TIME_TOLERANCE_SECONDS:
        return f"is {abs(ahead) / 60:.0f} minutes {'ahead' if ahead > 0 else 'behind'}"
    return None


@pyscript_compile
def power_deviation(
    device: devices.Device, plan: devices.ProfilePlan, power: float, now: float
) -> str | None:
    """Return how a measured power (W) deviates from the plan now and shortly before, or None."""
    return plans.measured_power_deviation(plan, power, now, power_tolerance(device))


@pyscript_compile
def power_tolerance(device: devices.Device) -> float:
    """Return by how much a power may deviate from the plan (W)."""
    return plans.power_tolerance(device.greatest)


@pyscript_compile
def has_changed(device: devices.Device, state: devices.State, message: Any) -> bool:
    """Return whether a PPBC.PowerProfileStatus is of another state than a plan was asked for."""
    if message.message_type != devices.STATUS[0]:
        return False
    reports = devices.read_reports(message)
    keys = [(profile.id, container.id) for profile in device.profiles for container in profile.containers]
    return any(
        phase_has_changed(reports[key], state.phases[key], state.moment)
        for key in keys
        if key in reports and key in state.phases
    )


@pyscript_compile
def phase_has_changed(report: devices.Report, phase: devices.Phase, moment: float) -> bool:
    """Return whether a container's status is of another kind or sequence than its Phase."""
    if report.kind != phase.kind:
        return moment - phase.since > plans.LAG_SECONDS
    return phase.kind == devices.RUNNING and report.sequence != phase.sequence
