"""One flexmeasures-client for the life of an app, its errors told by meaning."""

import asyncio
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import isodate
from aiohttp import ClientSession
from aiohttp.client_exceptions import ClientError
from aiohttp.hdrs import USER_AGENT
from flexmeasures_client import FlexMeasuresClient
from flexmeasures_client.exceptions import ContentTypeError, JobFailedError, JobTimeoutError
from homeassistant.helpers.aiohttp_client import SERVER_SOFTWARE

import flexmeasures_api.errors as errors
import flexmeasures_api.replies as replies
import flexmeasures_api.responses as responses
import flexmeasures_api.secrecy as secrecy

LOCAL_HOSTS = ("localhost", "127.0.0.1")
REQUEST_SECONDS = 30
PATIENCE_SECONDS = 90
AWAY = (502, 503, 504)
"""What a proxy answers for a server that does not, or a server that is starting or overloaded."""
TRIGGER = "/trigger"
"""How the paths end that count towards the RateLimit."""
LONGEST_RESET_SECONDS = 86_400.0
MAX_ASKED_SECONDS = 86_400
MAX_SECONDS_SINCE_1970 = 10**11
MAX_QUOTED = 80
"""How much of an odd answer is told."""
ALREADY_KNOWN = "prior: FlexMeasures holds another value known at that time: leave prior out, or give a later"
INVALID_REPLACEMENT = "INVALID_REPLACEMENT"
"""The status of a refusal to store another value that would be known at the same time."""
PRICES_MISSING = re.compile(r"[Pp]rices unknown for planning window.*?sensor (\d+)")
UNIT_REFUSED = re.compile(r"Required unit for this sensor is (.+), got incompatible unit: (.+)")
SENSOR_IN_PATH = re.compile(r"/(sensor|asset)s/(\d+)")
SENSOR_OF_FIELD = re.compile(r"'([a-z-]+)': 'sensor'")


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Sensor:
        """What we need to know of a FlexMeasures sensor; `sign` is that of consumption in its data."""

        id: int
        unit: str
        resolution: timedelta
        timezone: str
        asset: int
        sign: int = -1

    @dataclass
    class RateLimit:
        """How many triggers FlexMeasures takes, as it told last; `limit` is None while it has not.

        `remaining` of `limit` were left at `told_at`, and none is used any more `seconds` later, at
        `resets_at` (s since 1970, by our clock).
        """

        limit: int | None = None
        remaining: int = 0
        told_at: float = 0.0
        resets_at: float = 0.0
        seconds: float = 0.0

    @dataclass
    class Connection:
        """A client, whose own repr has the password, and what it has learnt of sensors and of the limit."""

        host: str
        client: Any = field(repr=False)
        loggers: Any
        filter: Any
        sensors: dict = field(default_factory=dict)
        rate_limit: Any = field(default_factory=RateLimit)
        redact: Any = field(default=str, repr=False)

    return Sensor, RateLimit, Connection


Sensor, RateLimit, Connection = records()


@pyscript_compile
def address(host):
    """Return (scheme, host name, port or None) of a host as a user writes it.

    Without a scheme it is https, and http for localhost. Raise ValueError where it is no address.
    """
    text = str(host).strip()
    if "://" not in text:
        name = text.split("/")[0].rsplit(":", 1)[0]
        text = f"{'http' if name in LOCAL_HOSTS else 'https'}://{text}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in text:
        raise ValueError("expected an address such as flexmeasures.io or http://localhost:5000")
    if parts.path.strip("/") or parts.query or parts.username:
        raise ValueError("expected only a host and port, without a path, user or query")
    if ":" in parts.hostname:
        raise ValueError("expected a host name or an IPv4 address")
    return parts.scheme, parts.hostname, parts.port


@pyscript_compile
def session(connector: Any, rate_limit: Any) -> ClientSession:
    """Return a session over Home Assistant's connections, whose answers are limited and told by meaning."""
    return ClientSession(
        connector=connector,
        connector_owner=False,
        response_class=responses.LimitedResponse,
        raise_for_status=partial(received, rate_limit),
        headers={USER_AGENT: SERVER_SOFTWARE},
    )


@pyscript_compile
def connect(
    host: str,
    username: str,
    password: str,
    session: ClientSession,
    logger_name: str,
    rate_limit: Any,
    secrets: tuple = (),
    other_loggers: tuple = (),
) -> Connection:
    """Return a connection over a `session`. Nothing is sent yet.

    The client logs to the one logger. That and the others are kept free of the password, and other `secrets`.
    """
    scheme, name, port = address(host)
    logger = logging.getLogger(logger_name)
    redact = secrecy.redactor(lambda: (password, client.access_token, *secrets))
    secrets_filter = secrecy.log_filter(redact)
    loggers = [logger, *[logging.getLogger(name) for name in other_loggers]]
    for each in loggers:
        each.addFilter(secrets_filter)
    client = FlexMeasuresClient(
        email=username,
        password=password,
        host=name,
        port=port,
        ssl=scheme == "https",
        session=session,
        logger=logger,
        request_timeout=REQUEST_SECONDS,
        request_retry_timeout=PATIENCE_SECONDS,
        request_retry_interval=1,
    )
    url = f"{scheme}://{name}{f':{port}' if port else ''}"
    return Connection(url, client, loggers, secrets_filter, rate_limit=rate_limit, redact=redact)


@pyscript_compile
def close(connection):
    """Let go of the session, whose connections are Home Assistant's."""
    for logger in connection.loggers:
        logger.removeFilter(connection.filter)
    connection.client.session.detach()


@pyscript_compile
async def received(rate_limit: Any, response: Any) -> None:
    """Keep what an answer tells of the RateLimit, and raise what it means: see `raise_by_meaning`."""
    if response.url.path.endswith(TRIGGER):
        learn_rate_limit(rate_limit, response.headers)
    await raise_by_meaning(response)


@pyscript_compile
def learn_rate_limit(rate_limit: Any, headers: Any) -> None:
    """Keep what the answer to a trigger tells of the limit; others have that of all requests together."""
    texts = [headers.get(f"X-RateLimit-{name}", "") for name in ("Limit", "Remaining", "Reset")]
    if not all(text.isascii() and text.isdigit() for text in texts):
        return
    limit, remaining, resets_at = [whole_number(text, MAX_SECONDS_SINCE_1970) for text in texts]
    now = datetime.now(UTC)
    try:
        told_at = parsedate_to_datetime(headers.get("Date", ""))
    except (IndexError, OverflowError, TypeError, ValueError):
        told_at = now
    rate_limit.limit, rate_limit.remaining, rate_limit.told_at = limit, remaining, now.timestamp()
    rate_limit.seconds = min(max(resets_at - told_at.timestamp(), 0.0), LONGEST_RESET_SECONDS)
    rate_limit.resets_at = rate_limit.told_at + rate_limit.seconds


@pyscript_compile
async def raise_by_meaning(response):
    """Raise what an error answer means; let pass what the client deals with itself.

    The client logs in again after a 401, polls on a job that waits, and reads a job's failure (422)
    itself.
    """
    status, path = response.status, response.url.path
    if status < 400:
        await refuse_what_is_foreign(response)
        return
    if status == 401 and path != replies.LOGIN_PATH:
        return
    payload = await payload_of(response)
    if status == 422 and "/jobs/" in path and replies.is_job(payload):
        return
    text = await said(response)
    if status == 400 and "Scheduling job" in text and "failed" not in text:
        return
    what = subject(path, text)
    if status < 429 and not replies.is_refusal(response.headers, payload):
        raise foreign(response, text)
    if path == replies.LOGIN_PATH and status < 429:
        raise errors.Unauthorized(f"FlexMeasures refuses the login: check username and password ({text})")
    seconds = retry_after(response.headers)
    when = "later" if seconds is None else f"in {seconds} s"
    if status == 429:
        raise errors.RateLimited(f"FlexMeasures asks to wait (429): try again {when}", seconds)
    if status == 403 and isinstance(payload, dict) and payload.get("status") == INVALID_REPLACEMENT:
        raise errors.AlreadyKnown(ALREADY_KNOWN)
    if status == 403:
        raise errors.NoAccess(
            f"This user may not use {what} on FlexMeasures: give a sensor of the user's own account, "
            f"or ask its owner for access ({text})"
        )
    if status == 404 and ("/jobs/" in path or "/schedules/" in path):
        raise errors.JobLost(f"FlexMeasures has lost the job: call again ({text})")
    if status == 404:
        raise errors.UnknownSensor(f"FlexMeasures knows no {what}: check the number ({text})")
    if status >= 500:
        kind = errors.Unreachable if status in AWAY else errors.ServerFault
        raise kind(f"FlexMeasures answered {status} to {path}: try again {when} ({text})", seconds)
    raise meaning_of_refusal(what, text)


@pyscript_compile
async def refuse_what_is_foreign(response: Any) -> None:
    """Raise Unreachable for an answer below 400 of something else, FlexMeasuresError for an odd one.

    One that is empty may be anybody's, and so may one that only asks to come back (202).
    """
    path, payload = response.url.path, await payload_of(response)
    is_own, is_waiting = replies.is_own(response.headers), response.status == 202 and response.method == "GET"
    if response.status == 303 and "/schedules/" in path:
        target = urlsplit(response.headers.get("Location", ""))
        is_believed = (target.scheme, target.hostname) == (response.url.scheme, response.url.host)
    elif is_waiting and "/jobs/" not in path:
        is_believed = is_own
    else:
        has_form = response.status < 300 and await has_known_form(response, payload)
        is_believed = has_form and (is_own or bool(payload))
    if is_believed:
        return
    if response.status == 303 and is_own:
        raise errors.FlexMeasuresError(moved(response))
    if response.status < 300 and is_own:
        raise errors.FlexMeasuresError(
            f"FlexMeasures at {response.url.origin()} answered {response.method} {path} in a form that is "
            f"not known: see that its release is supported ({short(payload)})"
        )
    raise foreign(response, f"{response.status} {response.reason}")


@pyscript_compile
def moved(response: Any) -> str:
    """Return a sentence on a redirect of FlexMeasures that is not followed, which would show the token."""
    target = urlsplit(response.headers.get("Location", ""))
    place = short(f"{target.scheme}://{target.hostname}" if target.scheme else "nothing")
    return (
        f"FlexMeasures at {response.url.origin()} refers to {place} for a schedule: have the proxy before it "
        f"send X-Forwarded-Proto and X-Forwarded-Host, and FlexMeasures heed them (werkzeug's ProxyFix)"
    )


@pyscript_compile
async def has_known_form(response: Any, payload: Any) -> bool:
    """Tell whether an answer has the form of FlexMeasures', without holding up the loop over a long one."""
    asked = response.method, response.url.path, payload
    if (getattr(response, "size", None) or 0) <= responses.LONG_BYTES:
        return replies.has_form(*asked)
    return await asyncio.get_running_loop().run_in_executor(None, replies.has_form, *asked)


@pyscript_compile
def foreign(response: Any, text: str) -> Exception:
    """Return the error for an answer of something else than FlexMeasures."""
    return errors.Unreachable(
        f"There is no FlexMeasures server at {response.url.origin()}: check the host, and whether a proxy or "
        f"the login page of a network answers in its place ({text})"
    )


@pyscript_compile
async def payload_of(response: Any) -> Any:
    """Return an answer's JSON, or None where there is none."""
    if "json" not in response.headers.get("Content-Type", ""):
        return None
    try:
        return await response.json()
    except (UnicodeDecodeError, ValueError, RecursionError):
        return None


@pyscript_compile
def short(value: Any) -> str:
    """Return the beginning of what a value says."""
    text = str(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


@pyscript_compile
def subject(path, text):
    """Return what an answer is about: the flex-context's field that refers to a sensor, else the path's."""
    if (field := SENSOR_OF_FIELD.search(text)) is not None:
        return f"the sensor given as {field[1]}"
    match = SENSOR_IN_PATH.search(path)
    return f"{match[1]} {match[2]}" if match else path


@pyscript_compile
def meaning_of_refusal(what, text):
    """Return the error for a request that the server does not accept (400, 422)."""
    if (match := re.search(r"[Nn]o (sensor|asset) found with (?:id|ID) (\d+)", text)) is not None:
        return errors.UnknownSensor(f"FlexMeasures knows no {match[1]} {match[2]}: check the number")
    if (match := UNIT_REFUSED.search(text)) is not None:
        return errors.InvalidData(f"unit: {what} is in {match[1]}, and {match[2]} cannot be converted to it")
    return errors.InvalidProblem(f"FlexMeasures does not accept the request for {what}: {text}")


@pyscript_compile
async def said(response):
    """Return the server's own words, short."""
    body = await payload_of(response)
    if body is None:
        return f"{response.status} {response.reason}"
    if not isinstance(body, dict):
        return str(body)[:500]
    return flat(body.get("errors") or body.get("message") or body)[:500]


@pyscript_compile
def flat(message, path=()):
    """Write a nested message of the server on one line, each with the field that it is about."""
    if isinstance(message, dict):
        inner = [
            flat(
                value,
                path if key in ("json", "query", "combined_data", "_schema") else (*path, key),
            )
            for key, value in message.items()
        ]
        return "; ".join(inner)
    text = " ".join(flat(each) for each in message) if isinstance(message, list) else str(message)
    name = "".join(f"[{key}]" if str(key).isdigit() else f".{key}" for key in path).lstrip(".")
    return f"{name}: {text}" if name else text


@pyscript_compile
def retry_after(headers):
    """Return the seconds that a Retry-After asks to wait, as such or as a date, up to a day; else None."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return whole_number(text, MAX_ASKED_SECONDS)
    try:
        wait = parsedate_to_datetime(text) - datetime.now(UTC)
    except (IndexError, OverflowError, TypeError, ValueError):
        return None
    return min(max(0, math.ceil(wait.total_seconds())), MAX_ASKED_SECONDS)


@pyscript_compile
def whole_number(digits: str, most: int) -> int:
    """Return a number of any length, or `most` where it is more."""
    digits = digits.lstrip("0") or "0"
    return most if len(digits) > len(str(most)) else min(int(digits), most)


@pyscript_compile
async def ask(connection, request):
    """Await one of the client's requests; raise only `errors.FlexMeasuresError`s."""
    try:
        return await request
    except errors.FlexMeasuresError:
        raise
    except JobTimeoutError as error:
        raise errors.JobTimedOut(f"{error} Is a worker running on the server?") from error
    except JobFailedError as error:
        raise failed_job(str(error)) from error
    except (ConnectionError, ClientError, TimeoutError, OSError, ContentTypeError) as error:
        raise errors.Unreachable(
            f"FlexMeasures cannot be reached at {connection.host}: check the host, and that the "
            f"server runs ({str(error) or type(error).__name__})"
        ) from error
    except Exception as error:
        if "status code 401" in str(error):
            raise errors.Unauthorized(f"FlexMeasures refuses the user: {short(error)}") from error
        raise odd(connection, error) from error


@pyscript_compile
def odd(connection: Connection, error: Exception) -> Exception:
    """Return the error for an answer that cannot be understood, from what happened over it."""
    return errors.FlexMeasuresError(
        f"FlexMeasures at {connection.host} answered unexpectedly: see that its release is supported "
        f"({type(error).__name__}: {short(error)})"
    )


@pyscript_compile
@contextmanager
def understood(connection: Connection) -> Iterator[None]:
    """Raise a FlexMeasuresError where an answer turns out to be of another form than it is taken for."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise odd(connection, error) from error


@pyscript_compile
def failed_job(text):
    """Return the error that a failed job's message means."""
    text = text.split("\nServer traceback")[0]
    reason = text.split("job failed with ", 1)[-1].strip()[:500]
    if (match := PRICES_MISSING.search(text)) is not None:
        return errors.PricesMissing(
            f"FlexMeasures has no prices for the planning window on sensor {match[1]}: see that its "
            f"prices arrive, or plan a shorter duration"
        )
    if "infeasible" in text.lower():
        return errors.Infeasible(
            f"FlexMeasures finds no schedule that meets all limits: check power_capacity, "
            f"site_power_capacity and the raw flex_model ({reason})"
        )
    if "UniqueViolation" in text:
        return errors.AlreadyKnown(ALREADY_KNOWN)
    return errors.JobFailed(f"The job failed on the server: {reason}")


@pyscript_compile
async def sensor(connection, sensor_id):
    """Return what the server knows of a sensor; asked once."""
    if sensor_id not in connection.sensors:
        found = await ask(connection, connection.client.get_sensor(sensor_id, parse_json_fields=True))
        with understood(connection):
            connection.sensors[sensor_id] = Sensor(
                id=sensor_id,
                unit=found["unit"],
                resolution=isodate.parse_duration(found["event_resolution"]),
                timezone=found["timezone"],
                asset=found["generic_asset_id"],
                sign=1 if (found.get("attributes") or {}).get("consumption_is_positive") else -1,
            )
    return connection.sensors[sensor_id]


@pyscript_compile
async def asset(connection, asset_id):
    """Return the server's record of an asset as it is now, with its stored flex-model."""
    return await ask(connection, connection.client.get_asset(asset_id, parse_json_fields=True))
