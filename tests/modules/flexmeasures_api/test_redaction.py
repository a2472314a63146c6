"""Secrets stand in no text, however they are written there."""

import html
import json
import logging
from urllib.parse import quote

import pytest
import voluptuous as vol

import flexmeasures_api.redaction as redaction

SECRETS = ["geheim", "it's", 'a"b\\c', "pässwörd", "a b&c/d", "<xy>", 12345]
WAYS = [
    str,
    repr,
    json.dumps,
    quote,
    html.escape,
    lambda text: f"me:{text}@host",
    lambda text: f"/x?p={text}&q",
    lambda text: f"It is {text}. And",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("write", WAYS)
def test_a_secret_is_taken_out_however_it_is_written(secret, write):
    redact = redaction.redactor(lambda: (secret, None, ""))
    written = write(str(secret))
    assert str(secret) not in redact(f"no entry for {written}.")
    assert redaction.REDACTED in redact(f"no entry for {written}.")


def test_a_short_secret_is_taken_out_as_a_word_only():
    assert redaction.redactor(lambda: ("on",))("no on condition") == "no **redacted** condition"
    assert redaction.redactor(lambda: ("geheim-1",))("xgeheim-1y") == "x**redacted**y"


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("2026", "2026-01-15T07:00:00+01:00"),
        ("0700", "+0700Z 2026-01-15T07:00:00.0700"),
        ("1234", "sensor 12345, 12.1234 or 1234.5 kW"),
        ("30", "07:30:00 and 30:00"),
        ("battery", "sensor.home_battery, sensor.battery.power, my-battery, battery_2"),
    ],
)
def test_a_short_secret_within_a_word_number_or_time_is_none(secret, text):
    assert redaction.redactor(lambda: (secret,))(text) == text


def test_a_new_secret_counts_at_once():
    secrets = ["geheim-1"]
    redact = redaction.redactor(lambda: secrets)
    assert redact("geheim-1 geheim-2") == "**redacted** geheim-2"
    secrets.append("geheim-2")
    assert redact("geheim-1 geheim-2") == "**redacted** **redacted**"


def test_secrets_are_prepared_once(monkeypatch):
    prepared, spellings = [], redaction.spellings
    monkeypatch.setattr(redaction, "spellings", lambda secret: prepared.append(secret) or spellings(secret))
    redact = redaction.redactor(lambda: ("geheim-1", None, "geheim-2"))
    for _ in range(10):
        redact("x")
    assert prepared == ["geheim-1", "geheim-2"]


def test_secrets_are_found_under_whatever_key_and_depth():
    section = {
        "host": "x",
        "passwort": "one",
        "PASSWORD": "two",
        "measurements": [{"api_key": {"value": "three"}}],
        "s2": {"token": "four", "port": 8765},
        "token": True,
    }
    assert redaction.secrets_in(section) == ["one", "two", "three", "four"]
    assert redaction.secrets_in(None) == []


@pytest.mark.parametrize("key", ["passwort", "Pasword", "tokens", "access_token", "API-Key", "secret", "pwd"])
def test_a_key_that_nearly_names_a_secret_names_one(key):
    assert redaction.secrets_in({key: "x"}) == ["x"]


@pytest.mark.parametrize(
    "key", ["Passage heater", "Compass", "Secretary's lamp", "Token ring", "broken", "section", "host", 7]
)
def test_a_key_with_a_secrets_name_in_it_names_none(key):
    assert redaction.secrets_in({"s2": {"resources": {key: {"power_sensor": 7}}}}) == []


def test_no_key_of_the_configuration_names_a_secret_but_the_two(configuration):
    schemas = configuration.SCHEMA, configuration.S2_SCHEMA, vol.Schema(configuration.RESOURCE)
    keys = {str(key) for schema in schemas for key in schema.schema}
    assert {key for key in keys if redaction.secrets_in({key: "x"})} == {"password", "token"}


def test_the_free_text_of_a_response_has_no_secrets_and_the_rest_is_kept():
    values = {"start": "geheim", "unit": "geheim", "resource_id": "geheim", "values": [1.5, None]}
    redact = redaction.redactor(lambda: ("geheim",))
    assert redaction.redacted_response(redact, values | {"warnings": ["x geheim", "y"]}) == values | {
        "warnings": ["x **redacted**", "y"]
    }
    assert redaction.redacted_response(redact, None) is None


def test_no_secret_is_in_a_traceback_that_is_logged(caplog):
    logger = logging.getLogger("test.traceback")
    without_secrets = redaction.log_filter(redaction.redactor(lambda: ("geheim",)))
    logger.addFilter(without_secrets)
    try:
        raise ValueError("the password geheim is wrong")
    except ValueError:
        logger.exception("It failed with %s", "geheim")
    logger.removeFilter(without_secrets)
    assert "geheim" not in caplog.text.replace('geheim is wrong")', "")
    assert "ValueError: the password **redacted** is wrong" in caplog.text


class Unfit:
    """What cannot be written."""

    def __repr__(self):
        raise RuntimeError("geheim")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [("%d geheim", ("x geheim",)), ("%s %s geheim", ("one",)), ("geheim %s", (Unfit(),)), (Unfit(), ())],
)
def test_a_message_that_cannot_be_formatted_raises_nothing_and_tells_no_secret(caplog, message, arguments):
    logger = logging.getLogger("test.unfit")
    without_secrets = redaction.log_filter(redaction.redactor(lambda: ("geheim",)))
    logger.addFilter(without_secrets)
    logger.error(message, *arguments)
    logger.removeFilter(without_secrets)
    assert len(caplog.records) == 1
    assert "geheim" not in caplog.text


def test_no_secret_is_in_a_stack_that_is_logged(caplog):
    logger = logging.getLogger("test.stack")
    without_secrets = redaction.log_filter(redaction.redactor(lambda: ("geheim-1",)))
    logger.addFilter(without_secrets)
    logger.error("It failed with %s", "geheim-1", stack_info=True)
    logger.removeFilter(without_secrets)
    assert "Stack (most recent call last)" in caplog.text
    assert "geheim-1" not in caplog.text


def test_a_device_may_be_called_like_a_secret(configuration):
    resource = {"power_sensor": 9_000_000_000}
    section = {"host": "x", "s2": {"resources": {"Passage heater": resource}}}
    assert "9000000000" in " ".join(configuration.read(section)[1])


@pytest.mark.parametrize(
    "section",
    [
        {"username": "geheim-1"},
        {"measurements": {"password": "geheim-1"}},
        {"power_sensor": {"Password": ["geheim-1"]}},
        {"password": "geheim-1", "power_sensor": "geheim-1"},
        {"s2": {"resources": {"x": {"token": "geheim-1"}}}},
        {"passwort": "geheim-1", "soc_min": "geheim-1"},
    ],
)
def test_no_secret_is_in_what_is_told_of_a_configuration(configuration, section):
    _given, mistakes = configuration.read({"host": "x", "soc_max": 10} | section)
    assert mistakes
    assert "geheim-1" not in " ".join(mistakes)
