"""Fill rate based control as a control type: see base.ControlType."""

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.frbc.device as devices
import flexmeasures_cem.control_types.frbc.instructions as instructions
import flexmeasures_cem.control_types.frbc.model as model
import flexmeasures_cem.control_types.frbc.monitoring as monitoring
import flexmeasures_cem.control_types.frbc.plan as frbc_plan
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans

FRBC = base.ControlType(
    name="FILL_RATE_BASED_CONTROL",
    describing_messages=(devices.DESCRIPTION, devices.LEAKAGE, devices.USAGE, devices.TARGETS),
    plan_class=frbc_plan.Plan,
    flexibility=4,
    keeps_mode=True,
    missing_message=devices.missing_message,
    valid_from=devices.valid_from,
    read_device=devices.read_device,
    why_not_plannable=devices.why_not_plannable,
    last_deadline=devices.last_deadline,
    read_state=devices.read_state,
    grid_edges=model.cuts,
    add_to_site=model.add,
    flex_model=model.flex_model,
    energy_per_fill_level=devices.fill_level_energy,
    message_type=instructions.message_type,
    instruction_fields=instructions.instruction_fields,
    describe=instructions.describe,
    is_same_instruction=transitions.is_same_instruction,
    upcoming=plans.upcoming,
    missed_targets=instructions.missed_targets,
    present_changes=instructions.present_changes,
    planned_power=monitoring.planned_power,
    deviation=monitoring.deviation,
    power_deviation=monitoring.power_deviation,
    power_tolerance=monitoring.power_tolerance,
    has_changed=monitoring.has_changed,
    resumed=monitoring.resumed,
)
