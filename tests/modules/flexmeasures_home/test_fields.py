"""What a user gives is converted, or refused with a sentence that names the field."""

from datetime import UTC, datetime, timedelta

import homeassistant.util.dt as dt_util
import pytest
import voluptuous as vol

import flexmeasures_home.fields as fields


@pytest.fixture(autouse=True)
def in_amsterdam():
    """Let Home Assistant's time zone be Europe/Amsterdam."""
    before = dt_util.get_default_time_zone()
    dt_util.set_default_time_zone(dt_util.get_time_zone("Europe/Amsterdam"))
    yield
    dt_util.set_default_time_zone(before)


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
    wish = fields.wish(fields.energy("kWh", 10_000))
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
        fields.wish(fields.energy("kWh", 10_000))(given)


def test_every_mistake_names_its_field_and_what_was_given():
    energy = fields.energy("kWh", 10_000)
    schema = vol.Schema(
        {
            vol.Required("soc_at_start"): energy,
            vol.Required("start"): fields.MOMENT,
            "soc_targets": fields.many(fields.wish(energy)),
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
        "duraton is no field: did you mean duration?",
        f"soc_at_start: {expected}, but got 'full'",
        f"soc_targets[0].value: {expected}, but got 'x'",
        "start is missing",
    ]


def test_what_is_given_for_an_unknown_key_is_not_repeated():
    with pytest.raises(vol.Invalid) as caught:
        vol.Schema({"password": str})({"pasword": "geheim"})
    [sentence] = fields.mistakes(caught.value, {"pasword": "geheim"}, ["password"], "key of this app")
    assert sentence == "pasword is no key of this app: did you mean password?"


def test_a_wrong_password_is_not_repeated():
    schema = vol.Schema({"password": fields.expects(fields.text, "a text")})
    with pytest.raises(vol.Invalid) as caught:
        schema({"password": 12345})
    assert fields.mistakes(caught.value, {"password": 12345}, [], "key") == ["password: expected a text"]
