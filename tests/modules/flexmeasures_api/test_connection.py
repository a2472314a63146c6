"""Addresses are read, secrets stay out of the log, and failures are told by meaning."""

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest

import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors
import flexmeasures_api.secrecy as secrecy


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
    assert connection.address(host) == expected


@pytest.mark.parametrize(
    "host",
    ["", "ftp://x", "https://", "http://a b", "https://x/api", "http://u:p@x", "http://[::1]:5000", "x:y"],
)
def test_an_address_that_cannot_be_used_is_refused(host):
    with pytest.raises(ValueError):
        connection.address(host)


@pytest.mark.parametrize("password", ["geheim", "it's", 'a"b\\c', "pässwörd"])
def test_no_secret_reaches_the_log(caplog, password):
    redact = secrecy.log_filter(secrecy.redactor(lambda: (password,)))
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
    session = connection.session(None, connection.RateLimit())
    link = connection.connect(
        "http://localhost", "a@b.c", "geheim", session, "test.client", None, ("eigen",), ("test.ours",)
    )
    for name in ("test.client", "test.ours"):
        logging.getLogger(name).warning("geheim and eigen")
    assert caplog.messages == ["**redacted** and **redacted**"] * 2
    connection.close(link)
    assert not logging.getLogger("test.ours").filters


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (
            "Job a ended with status FAILED. Scheduling job failed with ValueError: Prices unknown for "
            "planning window. (sensor 9).\nServer traceback:\nFile x",
            "PricesMissing",
            "sensor 9",
        ),
        (
            "Job a ended with status FAILED. Scheduling job failed with InfeasibleProblemException: x.",
            "Infeasible",
            "power_capacity",
        ),
        (
            "Job a ended with status FAILED. Scheduling job failed with KeyError: 'y'.",
            "JobFailed",
            "KeyError",
        ),
    ],
)
def test_a_failed_job_is_told_by_meaning(text, kind, says):
    error = connection.failed_job(text)
    assert type(error) is getattr(errors, kind)
    assert says in str(error)
    assert "traceback" not in str(error)


def test_a_nested_refusal_is_one_line_that_names_the_field():
    message = {
        "json": {"flex-model": {"0": {"soc-at-start": ["Not a valid quantity."]}}, "start": ["Missing."]}
    }
    assert connection.flat(message) == "flex-model[0].soc-at-start: Not a valid quantity.; start: Missing."


def test_a_server_says_how_long_to_wait_in_seconds_or_by_a_date():
    assert connection.retry_after({"Retry-After": "90"}) == 90
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert 58 <= connection.retry_after({"Retry-After": format_datetime(soon, usegmt=True)}) <= 60
    assert connection.retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert connection.retry_after({"Retry-After": "soon"}) is None
    assert connection.retry_after({"Retry-After": "²"}) is None
    assert connection.retry_after({"Retry-After": "0090"}) == 90
    assert connection.retry_after({"Retry-After": "9" * 5000}) == 86_400
    assert connection.retry_after({"Retry-After": "Wed, 21 Oct 9999 07:28:00 GMT"}) == 86_400
    assert connection.retry_after({}) is None


@pytest.mark.parametrize(("asked", "waited"), [(None, None), (0, 0), (90, 90), (86_400, 900), (10**400, 900)])
def test_a_server_is_left_alone_for_a_quarter_of_an_hour_at_most(asked, waited):
    assert errors.Unreachable("busy", asked).retry_after == waited


def answer(path="/api/v3_0/assets/1/schedules/trigger", **headers):
    """Return an answer of FlexMeasures' with headers."""
    named = {k.replace("_", "-"): v for k, v in headers.items()} | {"Content-Type": "application/json"}
    url = SimpleNamespace(path=path)

    async def json():
        return {"job": "7", "status": "PROCESSED"}

    return SimpleNamespace(status=202, method="POST", url=url, headers=named, json=json)


async def test_the_answer_to_a_trigger_tells_how_many_more_are_taken():
    limit, before = connection.RateLimit(), datetime.now(UTC)
    server = before + timedelta(hours=1)
    told = {"X_RateLimit_Limit": "60", "X_RateLimit_Remaining": "59"}
    reset = {"X_RateLimit_Reset": str(int(server.timestamp()) + 200), "Date": format_datetime(server, True)}
    await connection.received(limit, answer("/api/v3_0/sensors/1/data", **told, **reset))
    assert limit.limit is None
    await connection.received(limit, answer(**told))
    assert limit.limit is None
    await connection.received(limit, answer(**told, **reset))
    assert (limit.limit, limit.remaining, limit.seconds) == (60, 59, 200)
    assert before.timestamp() + 199 < limit.resets_at < before.timestamp() + 210
    await connection.received(limit, answer())
    assert limit.limit == 60
    await connection.received(limit, answer(**told, X_RateLimit_Reset="9" * 5000))
    assert limit.seconds == 86_400
