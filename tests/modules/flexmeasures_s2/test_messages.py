"""The official JSON schemas decide what a message is; labels name what is wrong; what we send is valid."""

import copy
import json
import math
from datetime import datetime

import pytest

import flexmeasures_s2.messages as messages
from flexmeasures_s2.errors import MAX_LABEL_CHARACTERS, Refused
from tests.parts import s2_schemas
from tests.parts.s2_messages import TYPES, example

WELL_FORMED = ("OK", "INVALID_CONTENT")
SENT_BY_A_CEM = [
    "Handshake",
    "HandshakeResponse",
    "SelectControlType",
    "SessionRequest",
    "ReceptionStatus",
    "RevokeObject",
    *[each for each in TYPES if each.endswith("Instruction")],
]
ABSURD = 2**70
EXCEPTIONS = {
    ("DDBC.SystemDescription", "present_demand_rate", "dropped"): "it is not there from version 1.0.0 on",
    ("DDBC.SystemDescription", "present_demand_rate", "null"): "it is not there from version 1.0.0 on",
    ("ResourceManagerDetails", "provides_power_measurement_types", "[]"): "who measures nothing says so",
    (
        "ResourceManagerDetails",
        "provides_power_measurement_types[]",
        "dropped",
    ): "who measures nothing says so",
    ("DDBC.SystemDescription", "supply_range", "[]"): "a list of ranges is s2-python's form",
    ("PEBC.Instruction", "power_envelopes", "[]"): "nobody sends it to a CEM; who does is refused anyway",
    ("PEBC.Instruction", "power_envelopes", "too long"): "nobody sends it to a CEM",
    ("PEBC.Instruction", "power_envelopes[]", "dropped"): "nobody sends it to a CEM",
}
"""Where our verdict is another one than that of the schemas, and why that may be."""
REFERRED_TO = {"operation_modes": 2, "timers": 2, "allowed_limit_ranges": 4}
DURATIONS = {"duration", "transition_duration", "max_pause_before", "instruction_processing_delay"}
VALUES = {
    "null": None,
    "'12'": "12",
    "true": True,
    "NaN": math.nan,
    "Infinity": math.inf,
    "a wrong string": "nonsense",
    "[]": [],
    "{}": {},
    "-1": -1,
    "1.5": 1.5,
    "1.0": 1.0,
    "1e300": 1e300,
    "absurd": ABSURD,
    "no UUID": "battery:1",
    "a naive time": "2026-03-02T10:00:00",
    "a time": "2026-03-02T10:00:00.5+01:00",
    "no day of any month": "2026-02-30T10:00:00Z",
    "a date": "2026-03-02",
    "''": "",
    "one character": "x",
}


@pytest.fixture
def refused():
    """Return a function that gives the refusal of a text or message."""

    def refuse(message):
        with pytest.raises(Refused) as caught:
            messages.parse(message if isinstance(message, str) else json.dumps(message))
        return caught.value

    return refuse


@pytest.fixture
def schemas():
    """Skip where the official schemas are not available."""
    if not s2_schemas.available():
        pytest.skip(s2_schemas.describe())


def shortened(value, items=1):
    """Return a message with one item in each list, or as many as others refer to."""
    if isinstance(value, dict):
        return {name: shortened(inner, REFERRED_TO.get(name, 1)) for name, inner in value.items()}
    return [shortened(inner) for inner in value[:items]] if isinstance(value, list) else value


def places(value, path=()):
    """Return the path of each part of a message, the message itself first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *[place for step, each in inner for place in places(each, (*path, step))]]


def at(message, path):
    """Return a part of a message."""
    for step in path:
        message = message[step]
    return message


def mutated(message, path, change):
    """Return a copy of a message where `change(container, step)` has been at work."""
    made = copy.deepcopy(message)
    change(at(made, path[:-1]), path[-1])
    return made


def put(value):
    """Return a change: another value."""
    return lambda container, step: container.__setitem__(step, value)


def mutations(message):
    """Return what is done to a message: where, what, and the message that comes of it."""
    for path in places(message):
        part = at(message, path)
        if isinstance(part, dict):
            yield (*path, "surprise"), "added", mutated(message, (*path, "surprise"), put(1))
        if not path:
            continue
        for what, value in VALUES.items():
            yield path, what, mutated(message, path, put(value))
        yield path, "dropped", mutated(message, path, lambda container, step: container.pop(step))
        if isinstance(part, list):
            yield path, "too long", mutated(message, path, put(part * 1100))
        if path[-1] == "from":
            yield path, "from_", mutated(message, path, lambda c, step: c.__setitem__("from_", c.pop(step)))


def without_nulls(value):
    """Return a part of a message without its fields that are null: those count as left out."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def expected(message, kind, place, what):
    """Tell whether a message is well-formed: by the schemas, but for what they leave to common sense."""
    if what in ("NaN", "Infinity"):
        return False  # JSON has no such number, and a schema that is for JSON need not say so
    if what in ("absurd", "1e300") and place in DURATIONS:
        return False  # a duration that no clock can hold
    verdict = not s2_schemas.problems(without_nulls(message))
    return not verdict if (kind, place, what) in EXCEPTIONS else verdict


@pytest.mark.parametrize("kind", TYPES)
def test_our_verdict_is_that_of_the_official_schemas(schemas, kind):
    valid = shortened(example(kind))
    assert s2_schemas.problems(valid) == []
    messages.parse(json.dumps(valid))
    wrong = []
    for path, what, message in mutations(valid):
        status, label = "OK", ""
        try:
            messages.parse(json.dumps(message))
        except Refused as refused:
            status, label = refused.status, str(refused)
        field = next(step for step in reversed(path) if isinstance(step, str))
        place = f"{field}[]" if isinstance(path[-1], int) else field
        if (status in WELL_FORMED) != expected(message, kind, place, what):
            wrong.append((path, what, status, label, s2_schemas.problems(message)[:1]))
        if len(label) > MAX_LABEL_CHARACTERS or (status == "INVALID_MESSAGE" and field not in label):
            wrong.append((path, what, "label", label))
    assert wrong == []


@pytest.mark.parametrize("kind", TYPES)
def test_every_message_is_understood(kind):
    message = messages.parse(json.dumps(example(kind)))
    assert message.message_type == kind


def test_all_validators_can_be_made_beforehand():
    messages.prepare()
    assert set(TYPES) <= set(messages.VALIDATORS)


@pytest.mark.parametrize("kind", SENT_BY_A_CEM)
def test_what_a_cem_sends_is_valid(kind):
    fields = {
        name: value for name, value in example(kind).items() if name not in ("message_type", "message_id")
    }
    if "execution_time" in fields:
        fields["execution_time"] = datetime.fromisoformat(fields["execution_time"])
    message = json.loads(messages.text(messages.new(kind, **fields, absent=None)))
    assert s2_schemas.problems(message) == []
    assert message["message_type"] == kind
    assert fields.keys() <= message.keys()


def test_each_message_to_send_has_an_id_of_its_own():
    made = [messages.new("SelectControlType", control_type="NO_SELECTION") for _ in range(2)]
    assert made[0]["message_id"] != made[1]["message_id"]


def test_what_would_be_invalid_is_not_made():
    with pytest.raises(ValueError, match="control_type"):
        messages.new("SelectControlType", control_type="WHATEVER")


def test_ids_are_text_and_need_not_be_uuids():
    message = messages.parse(json.dumps(example("FRBC.StorageStatus", message_id="battery:1")))
    assert message.message_id == "battery:1"


def test_an_optional_id_is_text_too():
    modes = {"active_operation_mode_id": "on:1", "previous_operation_mode_id": "off:1"}
    message = messages.parse(json.dumps(example("FRBC.ActuatorStatus", **modes)))
    assert message.previous_operation_mode_id == "off:1"


def test_times_are_aware():
    message = messages.parse(json.dumps(example("PowerMeasurement")))
    assert message.measurement_timestamp.utcoffset() is not None


def test_both_forms_of_the_ddbc_description_give_the_same_model():
    official = example("DDBC.SystemDescription")
    other = copy.deepcopy(official)
    for actuator in other["actuators"]:
        for mode in actuator["operation_modes"]:
            mode["id"] = mode.pop("Id")
            mode["supply_range"] = [mode["supply_range"]]
    made = messages.parse(json.dumps(official))
    assert made == messages.parse(json.dumps(other))
    assert made.actuators[0].operation_modes[1].supply_range[0].end_of_range == 8000


@pytest.mark.parametrize("modes", ["12", ["x"], [None], [[]], [3], {}, None])
def test_ddbc_modes_that_are_none_are_invalid_messages(refused, modes):
    description = example("DDBC.SystemDescription")
    description["actuators"][0]["operation_modes"] = modes
    refusal = refused(description)
    assert (refusal.status, refusal.subject) == ("INVALID_MESSAGE", description["message_id"])
    assert "operation_modes" in str(refusal)


@pytest.mark.parametrize("actuators", ["12", ["x"], [None], [[]], {}, None, 3])
def test_ddbc_actuators_that_are_none_are_invalid_messages(refused, actuators):
    refusal = refused(example("DDBC.SystemDescription", actuators=actuators))
    assert refusal.status == "INVALID_MESSAGE"
    assert "actuators" in str(refusal)


def test_progress_of_a_power_sequence_is_a_duration(refused):
    status = example("PPBC.PowerProfileStatus")
    status["sequence_container_status"][0]["progress"] = 90_000
    [first, second] = messages.parse(json.dumps(status)).sequence_container_status
    assert (first.progress.root, second.progress) == (90_000, None)
    status["sequence_container_status"][0]["progress"] = -1
    assert "sequence_container_status[0].progress" in str(refused(status))


def test_power_on_three_phases_in_one_element():
    description = example("FRBC.SystemDescription")
    element = description["actuators"][0]["operation_modes"][0]["elements"][0]
    phases = [f"ELECTRIC.POWER.L{number}" for number in (1, 2, 3)]
    [power_range] = element["power_ranges"][:1]
    element["power_ranges"] = [power_range | {"commodity_quantity": phase} for phase in phases]
    assert s2_schemas.problems(description) == []
    message = messages.parse(json.dumps(description))
    ranges = message.actuators[0].operation_modes[0].elements[0].power_ranges
    assert [each.commodity_quantity.value for each in ranges] == phases


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "JSON"),
        ("hello", "JSON"),
        ("{", "JSON"),
        ("[1, 2]", "object"),
        ("null", "object"),
        ("12", "object"),
        ("[" * 100_000, "JSON"),
        ("[" * 100_000 + "]" * 100_000, "JSON"),
        ('{"a":' * 100_000, "JSON"),
        ('{"message_id": "\\ud800"}', "JSON"),
        ("9" * 10_000, "JSON"),
        ('{"message_type": "Handshake", "message_id": 1e999999}', "message_id"),
        ('{"message_type": "Handshake"}', "message_id"),
        ("{}", "message_id"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_message_is_invalid_data(refused, text, word):
    refusal = refused(text)
    assert refusal.status in ("INVALID_DATA", "INVALID_MESSAGE")
    assert refusal.subject == "00000000-0000-0000-0000-000000000000"
    assert word in str(refusal)
    assert len(str(refusal)) <= 500


def test_what_has_no_id_is_invalid_data(refused):
    message = example("FRBC.StorageStatus")
    del message["message_id"]
    assert refused(message).status == "INVALID_DATA"


def test_what_is_nested_too_deep_is_invalid_data_with_its_subject(refused):
    message = example("FRBC.StorageStatus", surprise=json.loads("[" * 500 + "]" * 500))
    refusal = refused(message)
    assert (refusal.status, refusal.subject) == ("INVALID_DATA", message["message_id"])
    assert "nested deeper than 64" in str(refusal)


def test_many_brackets_side_by_side_are_not_deep():
    assert messages.parse(
        json.dumps(example("PowerForecast", elements=example("PowerForecast")["elements"] * 90))
    )


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e400", "-Infinity", "NaN"])
def test_a_huge_number_names_its_field(refused, number):
    text = json.dumps(example("FRBC.StorageStatus", present_fill_level=12345)).replace("12345", number)
    assert str(refused(text)).startswith("present_fill_level: ")


def test_half_a_character_does_not_get_back_out(refused):
    text = json.dumps(example("ResourceManagerDetails", name="half")).replace("half", "\\ud83d")
    assert refused(text).status == "INVALID_DATA"
    str(refused(text)).encode()


@pytest.mark.parametrize(
    "kind", [None, 12, [], {}, "FRBC.Nonsense", "frbc.storagestatus", pytest.param("x" * 10_000, id="long")]
)
def test_an_unknown_message_type_is_an_invalid_message(refused, kind):
    message = example("FRBC.StorageStatus") | {"message_type": kind}
    refusal = refused(message)
    assert (refusal.status, refusal.subject) == ("INVALID_MESSAGE", message["message_id"])
    assert str(refusal).startswith("message_type: ")
    assert len(str(refusal)) <= 500


def test_a_label_tells_several_mistakes_and_is_bounded(refused):
    message = example("ResourceManagerDetails", name=3, roles="x" * 5000, currency="x" * 5000, model=4)
    label = str(refused(message))
    assert {"name: ", "roles: ", "model: "} <= {f"{each.split(':')[0]}: " for each in label.split("; ")}
    assert len(label) <= 500


def test_a_list_full_of_mistakes_is_answered_in_time_and_briefly(refused):
    message = example("PowerForecast", elements=[{}] * 250)
    label = str(refused(message))
    assert "elements" in label
    assert len(label) <= 500


def test_a_rule_of_the_model_is_about_content(refused):
    description = example("FRBC.SystemDescription")
    transition = description["actuators"][0]["transitions"][0]
    transition["from"] = "nowhere"
    refusal = refused(description)
    assert refusal.status == "INVALID_CONTENT"
    assert "actuators[0]" in str(refusal)
