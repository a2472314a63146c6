"""Power profile based control: what its messages refer to."""

import flexmeasures_s2.content as content

PROFILE = "PPBC.PowerProfileDefinition"


@pyscript_compile
def power_profile_definition(_memory, message):
    """Check PPBC.PowerProfileDefinition."""
    content.in_time("end_time", message.start_time, message.end_time)
    field = "power_sequences_containers"
    for container in content.by_id(message.power_sequences_containers, field).values():
        at = f"{field} {container.id}: power_sequences"
        for sequence in content.by_id(container.power_sequences, at).values():
            for element in sequence.elements:
                content.once_per_quantity(f"{at} {sequence.id}: power_values", element.power_values)


@pyscript_compile
def power_profile_status(memory, message):
    """Check PPBC.PowerProfileStatus."""
    profiles = {
        key[1]: {
            each.id: {sequence.id: sequence for sequence in each.power_sequences}
            for each in found.power_sequences_containers
        }
        for key, found in memory.items()
        if key[0] == PROFILE
    }
    for number, status in enumerate(message.sequence_container_status):
        at = f"sequence_container_status[{number}]."
        wanted = status.power_profile_id
        containers = content.known(profiles, f"{at}power_profile_id", wanted, "power profile")
        wanted = status.sequence_container_id
        sequences = content.known(containers, f"{at}sequence_container_id", wanted, "container")
        if status.selected_sequence_id is not None:
            content.known(sequences, f"{at}selected_sequence_id", status.selected_sequence_id, "sequence")


CHECKS = {PROFILE: power_profile_definition, "PPBC.PowerProfileStatus": power_profile_status}
KEYS = {PROFILE: ("id",)}
