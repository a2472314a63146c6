"""Power profile based control: what its messages refer to."""

from s2python.ppbc import PPBCPowerProfileDefinition, PPBCPowerProfileStatus

import flexmeasures_s2.rules as rules

PROFILE, STATUS = "PPBC.PowerProfileDefinition", "PPBC.PowerProfileStatus"


@pyscript_compile
def power_profile_definition(_memory: rules.Memory, message: PPBCPowerProfileDefinition) -> None:
    """Check PPBC.PowerProfileDefinition."""
    rules.check_period("end_time", message.start_time, message.end_time)
    field = "power_sequences_containers"
    for container_id, container in rules.by_id(message.power_sequences_containers, field).items():
        at = f"{field} {container_id}: power_sequences"
        for sequence_id, sequence in rules.by_id(container.power_sequences, at).items():
            for element in sequence.elements:
                rules.check_quantities(f"{at} {sequence_id}: power_values", element.power_values)


@pyscript_compile
def power_profile_status(memory: rules.Memory, message: PPBCPowerProfileStatus) -> None:
    """Check PPBC.PowerProfileStatus."""
    profiles: dict[str, PPBCPowerProfileDefinition] = {
        key[1]: profile for key, profile in memory.items() if key[0] == PROFILE
    }
    for number, status in enumerate(message.sequence_container_status):
        at = f"sequence_container_status[{number}]."
        profile = rules.lookup(profiles, f"{at}power_profile_id", status.power_profile_id, "power profile")
        containers = {str(container.id): container for container in profile.power_sequences_containers}
        container_id = status.sequence_container_id
        container = rules.lookup(containers, f"{at}sequence_container_id", container_id, "container")
        if status.selected_sequence_id is not None:
            sequences = {str(sequence.id): sequence for sequence in container.power_sequences}
            rules.lookup(sequences, f"{at}selected_sequence_id", status.selected_sequence_id, "sequence")


CHECKS: dict[str, rules.Check | None] = {PROFILE: power_profile_definition, STATUS: power_profile_status}
KEYS = {PROFILE: ("id",)}
