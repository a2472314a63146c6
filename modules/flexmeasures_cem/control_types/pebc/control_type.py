"""Power envelope based control as a control type: see base.ControlType."""

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.pebc.device as devices
import flexmeasures_cem.control_types.pebc.instructions as instructions
import flexmeasures_cem.control_types.pebc.model as model
import flexmeasures_cem.control_types.pebc.monitoring as monitoring
import flexmeasures_cem.control_types.pebc.plan as pebc_plan

PEBC = base.ControlType(
    name="POWER_ENVELOPE_BASED_CONTROL",
    describing_messages=(devices.POWER_CONSTRAINTS, devices.ENERGY_CONSTRAINT, devices.FORECAST),
    plan_class=pebc_plan.Plan,
    flexibility=3,
    sent_when_planned=True,
    has_own_timing=True,
    missing_message=devices.missing_message,
    valid_from=devices.valid_from,
    read_device=devices.read_device,
    why_not_plannable=devices.why_not_plannable,
    last_deadline=devices.last_deadline,
    read_state=devices.read_state,
    grid_edges=model.cuts,
    add_to_site=model.add,
    flex_model=model.flex_model,
    message_type=instructions.message_type,
    instruction_fields=instructions.instruction_fields,
    describe=instructions.describe,
    is_same_instruction=pebc_plan.is_same_instruction,
    upcoming=instructions.upcoming,
    missed_targets=instructions.missed_targets,
    planned_power=monitoring.planned_power,
    deviation=monitoring.deviation,
    power_deviation=monitoring.power_deviation,
    power_tolerance=monitoring.power_tolerance,
    has_changed=monitoring.has_changed,
    resumed=monitoring.resumed,
)
