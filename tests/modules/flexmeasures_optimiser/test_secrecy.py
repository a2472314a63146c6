"""Secrets stand in no text, however they are written there."""

import html
import json
import logging
from urllib.parse import quote

import pytest

import flexmeasures_optimiser.secrecy as secrecy


@pytest.mark.parametrize("secret", ["geheim", "it's", 'a"b\\c', "pässwörd", "a b&c/d", "<xy>", 12345])
@pytest.mark.parametrize("write", [str, repr, json.dumps, quote, html.escape, lambda text: f"x{text}y"])
def test_a_secret_is_taken_out_however_it_is_written(secret, write):
    redact = secrecy.redactor(lambda: (secret, None, ""))
    written = write(str(secret))
    assert str(secret) not in redact(f"no entry for {written}.")
    assert secrecy.REDACTED in redact(f"no entry for {written}.")


def test_a_short_secret_is_taken_out_as_a_word_only():
    assert secrecy.redactor(lambda: ("on",))("no on condition") == "no **redacted** condition"


def test_secrets_are_found_under_whatever_key_and_depth():
    section = {
        "host": "x",
        "passwort": "one",
        "PASSWORD": "two",
        "measurements": [{"api_key": {"value": "three"}}],
        "s2": {"token": "four", "port": 8765},
        "token": True,
    }
    assert secrecy.within(section) == ["one", "two", "three", "four"]
    assert secrecy.within(None) == []


def test_a_response_is_kept_but_for_secrets():
    response = {"a": ["geheim", 1, None, {"b": "x geheim"}], "c": 1.5}
    redact = secrecy.redactor(lambda: ("geheim",))
    assert secrecy.redacted(redact, response) == {
        "a": [secrecy.REDACTED, 1, None, {"b": "x **redacted**"}],
        "c": 1.5,
    }


def test_no_secret_is_in_a_traceback_that_is_logged(caplog):
    logger = logging.getLogger("test.traceback")
    without_secrets = secrecy.log_filter(secrecy.redactor(lambda: ("geheim",)))
    logger.addFilter(without_secrets)
    try:
        raise ValueError("the password geheim is wrong")
    except ValueError:
        logger.exception("It failed with %s", "geheim")
    logger.removeFilter(without_secrets)
    assert "geheim" not in caplog.text.replace('geheim is wrong")', "")
    assert "ValueError: the password **redacted** is wrong" in caplog.text


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
