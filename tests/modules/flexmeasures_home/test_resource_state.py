"""The entity of a Resource Manager is named after it, and is its own."""

import flexmeasures_home.resource_state as resource_state

GARAGE = "sensor.flexmeasures_s2_garage"


def test_an_entity_is_named_after_the_resource_manager():
    assert resource_state.new_entity_id("Garage", "A-1", []) == GARAGE


def test_of_two_with_a_name_the_second_has_its_id_too():
    assert resource_state.new_entity_id("Garage", "A-1", [GARAGE]) == f"{GARAGE}_a_1"


def test_ids_that_are_written_alike_are_numbered():
    taken = [GARAGE, f"{GARAGE}_a_1"]
    for number in (2, 3, 4):
        assert resource_state.new_entity_id("Garage", "a:1", taken) == f"{GARAGE}_a_1_{number}"
        taken.append(f"{GARAGE}_a_1_{number}")
