"""What a user gives is converted, or refused with a sentence that names the field."""

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import homeassistant.util.dt as dt_util
import pytest
import voluptuous as vol
from homeassistant.exceptions import ServiceValidationError
from s2python.frbc import FRBCInstruction

import flexmeasures_home.fields as fields
import flexmeasures_home.services as services
import flexmeasures_home.status as statuses
import flexmeasures_s2.messages as messages


@pytest.fixture(autouse=True)
def in_amsterdam():
    """Let Home Assistant's time zone be Europe/Amsterdam."""
    before = dt_util.get_default_time_zone()
    dt_util.set_default_time_zone(dt_util.get_time_zone("Europe/Amsterdam"))
    yield
    dt_util.set_default_time_zone(before)


MAX_SECONDS = 10.0
"""Of the processor's time: what is refused at once takes a small part, what is not takes minutes."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("PT24H", timedelta(hours=24)),
        ("P1D", timedelta(days=1)),
        ("P1W", timedelta(weeks=1)),
        ("pt90m", timedelta(minutes=90)),
        ("12:00:00", timedelta(hours=12)),
        ({"hours": 6}, timedelta(hours=6)),
        (timedelta(hours=1), timedelta(hours=1)),
    ],
)
def test_reads_a_duration(value, expected):
    assert fields.DURATION(value) == expected


@pytest.mark.parametrize("value", ["PT0S", "-PT1H", "P1M", "P", "tomorrow", "", None, [], {"moons": 1}])
def test_refuses_what_is_no_duration_above_zero(value):
    with pytest.raises(vol.Invalid, match="ISO 8601"):
        fields.DURATION(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-01-15T07:00:00+00:00", datetime(2026, 1, 15, 7, tzinfo=UTC)),
        ("2026-01-15 07:00", datetime(2026, 1, 15, 6, tzinfo=UTC)),
        ("2026-07-15 07:00:00", datetime(2026, 7, 15, 5, tzinfo=UTC)),
        (datetime(2026, 7, 15, 7), datetime(2026, 7, 15, 5, tzinfo=UTC)),
    ],
)
def test_a_time_without_an_offset_is_in_home_assistants_zone(value, expected):
    assert fields.MOMENT(value) == expected


@pytest.mark.parametrize("value", ["soon", "2026-13-01 00:00", "", None, 5])
def test_refuses_what_is_no_time(value):
    with pytest.raises(vol.Invalid, match="date and time"):
        fields.MOMENT(value)


@pytest.mark.parametrize(("value", "expected"), [(3, 3), ("12", 12), (7.0, 7)])
def test_a_sensors_number_may_be_a_text(value, expected):
    assert fields.SENSOR(value) == expected


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", True, None, "", []])
def test_refuses_what_is_no_sensors_number(value):
    with pytest.raises(vol.Invalid, match="number of a FlexMeasures sensor"):
        fields.SENSOR(value)


def test_a_wish_holds_for_a_moment_or_a_span():
    wish = fields.target(fields.energy("kWh", 10_000))
    seven = datetime(2026, 1, 15, 6, tzinfo=UTC)
    hour = timedelta(hours=1)
    span = (seven, seven + hour, 8000)
    for given, expected in [
        ({"value": 8, "datetime": "2026-01-15 07:00"}, (seven, seven, 8000)),
        ({"value": "80 %", "start": "2026-01-15 07:00", "end": "2026-01-15 08:00"}, span),
        ({"value": "8 kWh", "start": "2026-01-15 07:00", "duration": "PT1H"}, span),
        ({"value": "8", "end": "2026-01-15 08:00", "duration": "PT1H"}, span),
    ]:
        found = wish(given)
        assert (found.start, found.end, found.value) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"value": 8}, "expected datetime, or two of"),
        ({"datetime": "2026-01-15 07:00"}, "required key"),
        (
            {"value": 8, "datetime": "2026-01-15 07:00", "end": "2026-01-15 08:00"},
            "expected datetime, or two of",
        ),
        ({"value": 8, "start": "2026-01-15 07:00", "end": "2026-01-15 06:00"}, "not before the start"),
        ({"value": -1, "datetime": "2026-01-15 07:00"}, "not below 0"),
        ({"value": 8, "datetime": "2026-01-15 07:00", "soc": 3}, "extra keys|not a valid option"),
        (8, "expected items such as"),
    ],
)
def test_refuses_what_is_no_wish(given, says):
    with pytest.raises(vol.Invalid, match=says):
        fields.target(fields.energy("kWh", 10_000))(given)


def test_every_mistake_names_its_field_and_what_was_given():
    energy = fields.energy("kWh", 10_000)
    schema = vol.Schema(
        {
            vol.Required("soc_at_start"): energy,
            vol.Required("start"): fields.MOMENT,
            "soc_targets": fields.many(fields.target(energy)),
            "duration": fields.DURATION,
        }
    )
    given = {
        "soc_at_start": "full",
        "duraton": "PT1H",
        "soc_targets": [{"value": "x", "datetime": "2026-01-15 07:00"}],
    }
    with pytest.raises(vol.Invalid) as caught:
        schema(given)
    found = fields.mistakes(caught.value, given, [str(key) for key in schema.schema], "field")
    expected = "expected a number in kWh, or text such as '5.2 kWh' or '80 %', not below 0"
    assert sorted(found) == [
        "duraton is not a field: did you mean duration?",
        f"soc_at_start: {expected}, but got 'full'",
        f"soc_targets[0].value: {expected}, but got 'x'",
        "start is missing",
    ]


def test_what_is_given_for_an_unknown_key_is_not_repeated():
    with pytest.raises(vol.Invalid) as caught:
        vol.Schema({"password": str})({"pasword": "geheim"})
    [sentence] = fields.mistakes(caught.value, {"pasword": "geheim"}, ["password"], "key of this app")
    assert sentence == "pasword is not a key of this app: did you mean password?"


def test_a_wrong_password_is_not_repeated():
    schema = vol.Schema({"password": fields.expects(fields.text, "a text")})
    with pytest.raises(vol.Invalid) as caught:
        schema({"password": 12345})
    assert fields.mistakes(caught.value, {"password": 12345}, [], "key") == ["password: expected a text"]


LONG = "x" * 100_000
POST, PLAN = {"sensor_id": 1, "values": 1}, {"soc_at_start": 4}


def nested(depth):
    """Return lists in lists."""
    found = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("unit", LONG),
        ("entity_id", f"sensor.{LONG}"),
        ("start", LONG),
        ("duration", f"P{LONG}"),
        ("duration", "9" * 100_000),
        ("prior", LONG),
        ("positive", LONG),
        ("sensor_id", "9" * 100_000),
        ("sensor_id", 10**400),
        ("values", LONG),
        ("values", "1" * 100_000 + "!"),
        ("values", [10**400]),
        ("values", 1e16),
        ("values", [LONG] * 10_000),
        (LONG, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_call_with_anything_endless_is_refused_in_short_and_at_once(name, given):
    schema, begun = services.post_measurements(None), time.thread_time()
    with pytest.raises(ServiceValidationError) as caught:
        services.checked(schema, POST | {name: given})
    assert len(str(caught.value)) < 1_200
    assert time.thread_time() - begun < MAX_SECONDS


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("soc_at_start", LONG),
        ("soc_at_start", f"{'1' * 100_000}!"),
        ("soc_at_start", 1e300),
        ("duration", f"PT{'1' * 100_000}H"),
        ("soc_targets", [{"value": 1, "datetime": "2026-01-15T07:00:00+01:00"}] * 3_001),
        ("soc_targets", [{"value": LONG, "datetime": LONG, LONG: 1}] * 3_000),
        ("flex_model", {"soc-min": LONG}),
        ("flex_model", {LONG: 1}),
        ("flex_model", {"x": 10**400}),
        ("flex_model", {"x": nested(900)}),
        ("flex_context", {"x": nested(20)}),
        ("flex_context", {"x": [[1] * 100] * 2_001}),
        ("flex_context", {"x": float("nan")}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_plan_with_anything_endless_is_refused_in_short_and_at_once(name, given):
    configuration = SimpleNamespace(soc_unit="kWh", soc_max=10_000.0, soc_entity=None)
    schema, begun = services.trigger_and_get_schedule(configuration), time.thread_time()
    with pytest.raises(ServiceValidationError) as caught:
        services.checked(schema, PLAN | {name: given})
    assert len(str(caught.value)) < 1_200
    assert time.thread_time() - begun < MAX_SECONDS


def test_what_fits_is_taken():
    services.checked(services.post_measurements(None), POST | {"unit": "EUR/MWh", "values": [1e15, None, -3]})
    raw = {"x": nested(18), "inflexible": [{"sensor": n} for n in range(1_000)]}
    assert fields.RAW_FIELDS(raw) == raw


def test_a_wish_for_each_quarter_and_a_raw_item_for_each_minute_of_the_longest_schedule_are_taken():
    minutes, begin = fields.MAX_SCHEDULE // timedelta(minutes=1), datetime(2026, 1, 1, tzinfo=UTC)
    times = [(begin + n * timedelta(minutes=1)).isoformat() for n in range(minutes)]
    wishes = [{"value": 1, "datetime": moment} for moment in times[::15]]
    assert len(fields.many(fields.target(fields.NUMBER))(wishes)) == 2_976
    raw = {"soc-minima": [{"value": "1 kWh", "start": moment, "end": moment} for moment in times]}
    assert fields.RAW_FIELDS(raw) == raw


def test_how_many_raw_items_are_too_many_is_told():
    with pytest.raises(vol.Invalid, match="at most 200000 items in all, not 200002 or more"):
        fields.RAW_FIELDS({"x": [1] * 200_001})


def test_five_mistakes_are_told_and_how_many_more_there_are():
    with pytest.raises(ServiceValidationError) as caught:
        services.checked(services.post_measurements(None), {f"field {n}": n for n in range(100)} | POST)
    assert str(caught.value).count("is not a field of this service") == 5
    assert str(caught.value).endswith("; and 95 more mistakes")


def test_what_was_given_is_quoted_in_short():
    assert fields.quoted("soon") == "'soon'"
    for value in (LONG, [LONG] * 1_000, {LONG: LONG}, nested(900), 10**5000):
        assert len(fields.quoted(value)) <= 85


async def test_no_state_has_an_endless_text(hass):
    status = statuses.Status(hass)
    status.fail("x", LONG)
    assert len(hass.states.get(statuses.ENTITY_ID).attributes["last_error"]) < 2_100


@pytest.mark.parametrize("name", ["id", "message_id"])
@pytest.mark.parametrize("given", ["None", "null", "instruction-1", "..ab..", "x", "", None, 12, "é" * 36])
def test_an_id_that_s2_python_cannot_read_is_refused_by_its_field(name, given):
    with pytest.raises(ServiceValidationError, match=rf"^{name}: expected a UUID such as "):
        services.checked(services.send_frbc_instruction(None), {"operation_mode": "charge", name: given})


@pytest.mark.parametrize("form", ["{}", "{{{}}}", "urn:uuid:{}"])
def test_an_id_is_sent_as_devices_refer_to_it(form):
    own = uuid4()
    given = form.format(str(own).upper())
    call = services.checked(services.send_frbc_instruction(None), {"operation_mode": "charge", "id": given})
    assert call["id"] == str(own)
    fields_of_it = {"actuator_id": str(own), "operation_mode": str(own), "abnormal_condition": False}
    fields_of_it |= {"operation_mode_factor": 1.0, "execution_time": datetime.now(UTC)}
    message = messages.new("FRBC.Instruction", id=call["id"], **fields_of_it)
    assert str(FRBCInstruction.model_validate(message).id) == call["id"]
