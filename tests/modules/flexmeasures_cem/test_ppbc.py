"""Power profile based control: what is read, how far a device is, and how its statuses depart from a plan."""

import pytest

from tests.modules.flexmeasures_cem.markets import starting_at
from tests.modules.flexmeasures_cem.ppbc_cases import (
    BEGIN,
    DEFINITION,
    HOUR,
    MINUTE,
    NOW,
    STATUS,
    container,
    market,
    memory,
    modules,
    planned,
    profile,
    sequence,
    status,
)
from tests.parts.s2_messages import example
from tests.parts.s2_schemas import problems

PRICES = [0.3] * 2 + [0.1] * 2 + [0.3] * 2 + [0.1] * 2 + [0.3] * 90
"""By quarters: a dryer of an hour starts after 30 minutes, pauses after 60, and goes on after 90."""


def dryer():
    """Return the definition of a dryer of an hour that may be paused."""
    return profile(container(sequence((60, 2000), interruptible=True)), end=180)


def washer(**options):
    """Return the definition of a washing machine that washes and spins, each in an hour."""
    spin = container(sequence((60, 1000), pause=30))
    return profile(container(sequence((60, 2000)), sequence((90, 1000))), spin, **options)


def again(m, definition, cells, plan, minutes, told=None, heard=None, definitions=()):
    """Return (the state, the Plan) some minutes later; `heard` is when the status was told, in minutes."""
    now = NOW + minutes * MINUTE
    later = starting_at(cells, now + BEGIN)
    heard_at = {} if heard is None else {None: NOW + heard * MINUTE}
    _device, state, made = planned(
        m, [definition, *definitions], later, told=told, heard=heard_at, plan=plan, now=now
    )
    return state, made


def phase(state, definition, place=0):
    """Return the Phase of a definition's container."""
    return state.phases[definition["id"], definition["power_sequences_containers"][place]["id"]]


def parsed(m, message):
    """Return a message as it arrives."""
    (found,) = memory(m, told=message).values()
    return found


def departs(m, definition, plan, minutes, *told):
    """Return how a status after some minutes departs from a plan."""
    device = m.ppbc.read_device(memory(m, definition))
    return m.ppbc.deviation(device, plan, parsed(m, status(definition, *told)), NOW + minutes * MINUTE)


def test_the_official_example_is_planned():
    m = modules()
    definition = example(DEFINITION)
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96), told=example(STATUS))
    assert [each.container for each in plan.changes] == [
        each["id"] for each in definition["power_sequences_containers"]
    ]


def test_a_definition_is_what_it_lacks():
    m = modules()
    assert m.ppbc.missing_message({}) == DEFINITION
    assert m.ppbc.missing_message(memory(m, dryer())) is None
    assert m.ppbc.last_deadline(m.ppbc.read_device(memory(m, dryer(), washer(end=600)))) == NOW + 10 * HOUR


def test_alike_elements_are_one():
    m = modules()
    definition = profile(container(sequence((10, 100), (20, 100), (0, 500), (30, 200))))
    ((found,),) = (each.containers for each in m.ppbc.read_device(memory(m, definition)).profiles)
    (only,) = found.sequences.values()
    assert [(each.seconds, each.power) for each in only.elements] == [(1800, 100), (1800, 200)]


def test_instructions_are_valid_messages():
    m = modules()
    definition = dryer()
    device, _state, plan = planned(m, [definition], market(m, PRICES))
    assert [m.ppbc.message_type(each) for each in plan.changes] == [
        "PPBC.ScheduleInstruction",
        "PPBC.StartInterruptionInstruction",
        "PPBC.EndInterruptionInstruction",
    ]
    for each in plan.changes:
        kind = m.ppbc.message_type(each)
        message = example(kind, **m.ppbc.instruction_fields(each))
        assert set(message) == set(example(kind))
        assert problems(message) == []
        assert m.ppbc.describe(device, each, NOW)["power"] in (0, 2000)
        assert each.actuator == (definition["id"], definition["power_sequences_containers"][0]["id"])
    assert len({m.ppbc.describe(device, each, NOW)["label"] for each in plan.changes}) == 3
    assert m.ppbc.is_same_instruction(plan.changes[0], plan.changes[0])
    assert not m.ppbc.is_same_instruction(plan.changes[0], plan.changes[2])


def test_what_was_told_counts_as_begun_without_a_status():
    m = modules()
    definition, cells = dryer(), market(m, PRICES)
    _state, plan = again(m, definition, cells, None, 0)
    state, plan = again(m, definition, cells, plan, 45)
    assert (phase(state, definition).kind, phase(state, definition).done) == ("RUNNING", 15 * MINUTE)
    assert [(each.moment - NOW) / 60 for each in plan.changes] == [60, 90]
    state, plan = again(m, definition, cells, plan, 75)
    assert (phase(state, definition).kind, phase(state, definition).done) == ("PAUSED", 30 * MINUTE)
    assert [(each.moment - NOW) / 60 for each in plan.changes] == [90]
    state, plan = again(m, definition, cells, plan, 100)
    assert phase(state, definition).done == 40 * MINUTE
    assert plan.changes == []
    assert plan.pieces == [
        m.plans.PowerPiece(NOW + 100 * MINUTE, pytest.approx(NOW + 100 * MINUTE + BEGIN), 2000),
        m.plans.PowerPiece(pytest.approx(NOW + 100 * MINUTE + BEGIN), pytest.approx(NOW + 2 * HOUR), 2000),
    ]
    state, plan = again(m, definition, cells, plan, 121)
    assert (phase(state, definition).kind, phase(state, definition).at) == ("FINISHED", NOW + 2 * HOUR)
    assert (plan.changes, plan.pieces) == ([], [])


def test_an_instruction_that_was_refused_does_not_count():
    m = modules()
    definition, cells = dryer(), market(m, PRICES)
    _state, plan = again(m, definition, cells, None, 0)
    plan.changes.clear()
    state, plan = again(m, definition, cells, plan, 45)
    assert phase(state, definition).kind == "WAITING"
    assert plan.changes[0].kind == "ScheduleInstruction"


def test_what_did_not_start_is_told_again():
    m = modules()
    definition, cells = dryer(), market(m, PRICES)
    _state, plan = again(m, definition, cells, None, 0)
    told = status(definition, ("SCHEDULED", 0, None))
    state, _plan = again(m, definition, cells, plan, 31, told, heard=30.4)
    assert phase(state, definition).kind == "RUNNING"
    state, plan = again(m, definition, cells, plan, 31, told, heard=30.6)
    assert phase(state, definition).kind == "WAITING"
    assert plan.changes[0].moment == NOW + 31 * MINUTE + BEGIN


def test_what_runs_already_is_not_told_to_start():
    m = modules()
    definition, cells = washer(), market(m, [0.3] * 96)
    told = status(definition, ("EXECUTING", 1, 20), ("NOT_SCHEDULED", None, None))
    state, plan = again(m, definition, cells, None, 10, told, heard=5)
    assert phase(state, definition).done == 25 * MINUTE
    (change,) = plan.changes
    assert change.container == definition["power_sequences_containers"][1]["id"]
    assert change.moment == pytest.approx(NOW + 75 * MINUTE)
    assert [piece.power_w for piece in plan.pieces] == [1000] * 3


def test_the_pause_counts_from_when_the_container_before_has_finished():
    m = modules()
    definition = washer()
    cells = market(m, [0.3] * 2 + [0.2] * 2 + [0.1] * 92)
    told = status(definition, ("FINISHED", 0, 60), ("NOT_SCHEDULED", None, None))
    _state, plan = again(m, definition, cells, None, 10, told, heard=5)
    assert [(each.moment - NOW) / 60 for each in plan.changes] == [35]


@pytest.mark.parametrize("name", ["ABORTED", "FINISHED"])
def test_what_is_over_is_not_planned(name):
    m = modules()
    definition = dryer()
    told = status(definition, (name, 0, 60))
    _state, plan = again(m, definition, market(m, PRICES), None, 0, told, heard=0)
    assert (plan.changes, plan.pieces, plan.missed) == ([], [], [])


def test_after_an_aborted_container_nothing_follows():
    m = modules()
    definition = washer()
    told = status(definition, ("ABORTED", 0, 20), ("SCHEDULED", 0, None))
    _state, plan = again(m, definition, market(m, PRICES), None, 0, told, heard=0)
    assert plan.changes == []


def test_an_interrupted_sequence_goes_on_in_time():
    m = modules()
    definition = profile(container(sequence((60, 2000), interruptible=True)), end=100)
    told = status(definition, ("INTERRUPTED", 0, 20))
    _state, plan = again(m, definition, market(m, [0.3] * 96), None, 0, told, heard=0)
    assert [each.kind for each in plan.changes] == ["EndInterruptionInstruction"]
    assert plan.changes[0].moment <= NOW + HOUR
    cells = market(m, [0.5] * 3 + [0.1] * 93)
    _state, plan = again(m, definition, cells, None, 0, told, heard=0)
    assert [(each.moment - NOW) / 60 for each in plan.changes] == [45]
    late = profile(container(sequence((60, 2000), interruptible=True)), end=10)
    told = status(late, ("INTERRUPTED", 0, 20))
    _state, plan = again(m, late, cells, None, 0, told, heard=0)
    assert [each.moment for each in plan.changes] == [NOW + BEGIN]
    assert [each.reached for each in plan.missed] == [pytest.approx(30 + BEGIN / 60)]


def test_what_is_interrupted_at_its_very_end_goes_on():
    m = modules()
    definition = dryer()
    told = status(definition, ("INTERRUPTED", 0, 60))
    _state, plan = again(m, definition, market(m, PRICES), None, 0, told, heard=0)
    assert [each.kind for each in plan.changes] == ["EndInterruptionInstruction"]


def test_a_progress_with_the_pauses_in_it_is_seen():
    m = modules()
    definition, cells = dryer(), market(m, PRICES)
    _state, plan = again(m, definition, cells, None, 0)
    for progress in (40, 70):
        told = status(definition, ("EXECUTING", 0, progress))
        state, _plan = again(m, definition, cells, plan, 101, told, heard=100)
        assert phase(state, definition).done == 41 * MINUTE
        assert departs(m, definition, plan, 100, ("EXECUTING", 0, progress)) is None


def test_a_new_description_of_a_profile_that_runs_is_taken_as_new():
    m = modules()
    definition, cells = dryer(), market(m, PRICES)
    _state, plan = again(m, definition, cells, None, 0)
    other = dryer() | {"id": definition["id"]}
    other["power_sequences_containers"][0]["id"] = definition["power_sequences_containers"][0]["id"]
    told = status(definition, ("EXECUTING", 0, 10))
    state, plan = again(m, other, cells, plan, 45, told, heard=40)
    assert phase(state, other).sequence in (
        None,
        other["power_sequences_containers"][0]["power_sequences"][0]["id"],
    )


def test_what_runs_is_a_load_to_others():
    m = modules()
    running, other = washer(end=900), profile(container(sequence((60, 2000))), end=240)
    cells = market(m, [0.1] * 8 + [0.2] * 88, limit=3000.0)
    told = status(running, ("EXECUTING", 0, 0), ("FINISHED", 0, 60))
    _state, plan = again(m, running, cells, None, 0, told, heard=0, definitions=[other])
    assert [(each.profile, each.moment) for each in plan.changes] == [(other["id"], NOW + BEGIN)]
    told = status(running, ("EXECUTING", 0, 0), ("NOT_SCHEDULED", None, None))
    _state, plan = again(m, running, cells, None, 0, told, heard=0, definitions=[other])
    assert max(piece.power_w for piece in plan.pieces) <= 3000


@pytest.mark.parametrize(
    ("minutes", "told", "text"),
    [
        (20, ("SCHEDULED", 0, None), None),
        (20, ("NOT_SCHEDULED", None, None), None),
        (20, ("EXECUTING", 0, 1), "is EXECUTING"),
        (30.4, ("SCHEDULED", 0, None), None),
        (31, ("SCHEDULED", 0, None), "is SCHEDULED"),
        (45, ("EXECUTING", 0, 15), None),
        (45, ("EXECUTING", 0, 10), "5 minutes behind"),
        (45, ("EXECUTING", 0, 20), "5 minutes ahead"),
        (45, ("ABORTED", 0, 15), "is ABORTED"),
        (45, ("INTERRUPTED", 0, 15), "is INTERRUPTED"),
        (45, ("FINISHED", 0, 15), "45 minutes early"),
        (60.4, ("EXECUTING", 0, 30), None),
        (62, ("EXECUTING", 0, 30), "is EXECUTING"),
        (62, ("INTERRUPTED", 0, 30), None),
        (119, ("FINISHED", 0, 60), None),
        (121, ("EXECUTING", 0, 60), None),
        (123, ("EXECUTING", 0, 59), "is EXECUTING"),
        (123, ("FINISHED", 0, 60), None),
    ],
)
def test_a_status_departs_from_the_plan(minutes, told, text):
    m = modules()
    definition = dryer()
    _device, _state, plan = planned(m, [definition], market(m, PRICES))
    found = departs(m, definition, plan, minutes, told)
    assert (text in found) if text else found is None


def test_another_sequence_than_told_departs():
    m = modules()
    definition = washer()
    _device, _state, plan = planned(m, [definition], market(m, [0.3] * 96))
    assert plan.changes[0].sequence == definition["power_sequences_containers"][0]["power_sequences"][1]["id"]
    waiting = ("NOT_SCHEDULED", None, None)
    assert "runs sequence" in departs(m, definition, plan, 10, ("EXECUTING", 0, 10), waiting)
    assert departs(m, definition, plan, 10, ("EXECUTING", 1, 10), waiting) is None


def test_a_departure_is_planned_once():
    m = modules()
    definition, cells = dryer(), market(m, PRICES)
    _state, plan = again(m, definition, cells, None, 0)
    told = ("ABORTED", 0, 15)
    assert departs(m, definition, plan, 45, told)
    _state, plan = again(m, definition, cells, plan, 45, status(definition, told), heard=45)
    assert departs(m, definition, plan, 46, told) is None
    assert plan.changes == []


def test_a_status_meanwhile_tells_of_another_state():
    m = modules()
    definition = dryer()
    device, state, _plan = planned(m, [definition], market(m, PRICES))
    for told, is_moved in (("SCHEDULED", False), ("EXECUTING", True), ("ABORTED", True)):
        message = parsed(m, status(definition, (told, 0, 0)))
        assert m.ppbc.has_changed(device, state, message) is is_moved


def test_a_measured_power_departs_by_more_than_a_tenth():
    m = modules()
    device, _state, plan = planned(m, [dryer()], market(m, PRICES))
    at = NOW + 45 * MINUTE
    assert m.ppbc.power_deviation(device, plan, 1810, at) is None
    assert "1700 W" in m.ppbc.power_deviation(device, plan, 1700, at)
    assert m.ppbc.power_deviation(device, plan, 0, NOW + 30 * MINUTE + 10) is None
    assert m.ppbc.planned_power(None, NOW, HOUR) == 0
