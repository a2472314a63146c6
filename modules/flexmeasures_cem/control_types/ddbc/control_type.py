"""Demand driven based control as a control type: see base.ControlType."""

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.ddbc.device as devices
import flexmeasures_cem.control_types.ddbc.instructions as instructions
import flexmeasures_cem.control_types.ddbc.model as model
import flexmeasures_cem.control_types.ddbc.monitoring as monitoring
import flexmeasures_cem.control_types.operation_modes.transitions as transitions
import flexmeasures_cem.control_types.plans as plans

DDBC = base.ControlType(
    name="DEMAND_DRIVEN_BASED_CONTROL",
    describing_messages=(devices.DESCRIPTION, devices.FORECAST),
    plan_class=plans.Plan,
    flexibility=1,
    keeps_mode=True,
    missing_message=devices.missing_message,
    valid_from=devices.valid_from,
    read_device=devices.read_device,
    why_not_plannable=devices.why_not_plannable,
    last_deadline=devices.last_deadline,
    read_state=devices.read_state,
    commodities_of=devices.commodities_of,
    grid_edges=model.grid_edges,
    add_to_site=model.add_to_site,
    message_type=instructions.message_type,
    instruction_fields=instructions.instruction_fields,
    describe=instructions.describe,
    is_same_instruction=transitions.is_same_instruction,
    upcoming=plans.upcoming,
    missed_targets=plans.missed_targets,
    present_changes=instructions.present_changes,
    planned_power=monitoring.planned_power,
    deviation=monitoring.deviation,
    power_deviation=monitoring.power_deviation,
    power_tolerance=monitoring.power_tolerance,
    has_changed=monitoring.has_changed,
    resumed=monitoring.resumed,
)
