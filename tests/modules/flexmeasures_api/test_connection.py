"""Addresses are read, secrets stay out of the log, and a connection is given up."""

import logging

import pytest

import flexmeasures_api.connection as connection
import flexmeasures_api.redaction as redaction


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("flexmeasures.io", ("https", "flexmeasures.io", None)),
        ("https://flexmeasures.io/", ("https", "flexmeasures.io", None)),
        ("http://192.168.1.9:5000", ("http", "192.168.1.9", 5000)),
        ("localhost:5000", ("http", "localhost", 5000)),
        ("127.0.0.1", ("http", "127.0.0.1", None)),
        ("homeserver:8443", ("https", "homeserver", 8443)),
    ],
)
def test_an_address_without_a_scheme_is_https_and_http_for_localhost(host, expected):
    assert connection.parse_host(host) == expected


@pytest.mark.parametrize(
    "host",
    ["", "ftp://x", "https://", "http://a b", "https://x/api", "http://u:p@x", "http://[::1]:5000", "x:y"],
)
def test_an_address_that_cannot_be_used_is_refused(host):
    with pytest.raises(ValueError):
        connection.parse_host(host)


@pytest.mark.parametrize("password", ["geheim", "it's", 'a"b\\c', "pässwörd"])
def test_no_secret_reaches_the_log(caplog, password):
    redact = redaction.log_filter(redaction.redactor(lambda: (password,)))
    logger = logging.getLogger("test.redaction")
    logger.addFilter(redact)
    caplog.set_level(logging.DEBUG, "test.redaction")
    logger.debug(f"payload: { ({'email': 'a@b.c', 'password': password}) }")
    logger.debug("payload: %s", {"auth_token": "WyJ0b2tlbiJd", "user_id": 3})
    logger.debug(f"headers: { ({'Content-Type': 'application/json', 'Authorization': 'WyJ0b2tlbiJd'}) }")
    logger.debug("headers: <CIMultiDictProxy('Set-Cookie': 'session=WyJ0b2tlbiJd; Path=/', 'Server': 'x')>")
    logger.removeFilter(redact)
    assert len(caplog.records) == 4
    for secret in (password, repr(password)[1:-1], "WyJ0b2tlbiJd"):
        assert secret not in caplog.text
    assert "'email': 'a@b.c'" in caplog.text
    assert "'user_id': 3" in caplog.text
    assert "'Server': 'x'" in caplog.text


async def test_each_logger_of_a_connection_is_kept_free_of_its_secrets(caplog):
    caplog.set_level(logging.DEBUG)
    link = connection.connect(
        host="http://localhost",
        username="a@b.c",
        password="geheim",
        connector=None,
        logger_name="test.client",
        secrets=("eigen",),
        other_loggers=("test.ours",),
    )
    for name in ("test.client", "test.ours"):
        logging.getLogger(name).warning("geheim and eigen")
    assert caplog.messages == ["**redacted** and **redacted**"] * 2
    link.close()
    assert not logging.getLogger("test.ours").filters
