"""The one place where answers, exceptions and failed jobs become FlexMeasuresErrors.

An answer below 400 counts only if it is FlexMeasures' own: a proxy, or the login page of a network, answers
200 to whatever it is asked.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientResponse
from aiohttp.client_exceptions import ClientError
from flexmeasures_client.exceptions import ContentTypeError, JobFailedError, JobTimeoutError

import flexmeasures_api.answer_shapes as answer_shapes
import flexmeasures_api.errors as errors
import flexmeasures_api.json_response as json_response
import flexmeasures_api.rate_limit as rate_limits

UNAVAILABLE = (502, 503, 504)
"""What a proxy answers for a server that is away, and a server that is starting or overloaded."""
MAX_QUOTED_CHARACTERS = 80
MAX_MESSAGE_CHARACTERS = 500
"""How much of an unexpected value, and of the server's own message, an error quotes."""
CONFLICTING_VALUE = (
    "prior: FlexMeasures holds another value known at that time: leave prior out, or give a later"
)
INVALID_REPLACEMENT = "INVALID_REPLACEMENT"
"""The status of a 403 for another value with the same `prior`."""
PRICES_MISSING = re.compile(r"[Pp]rices unknown for planning window.*?sensor (\d+)")
UNIT_REFUSED = re.compile(r"Required unit for this sensor is (.+), got incompatible unit: (.+)")
NOT_FOUND = re.compile(r"[Nn]o (sensor|asset) found with (?:id|ID) (\d+)")
SENSOR_IN_PATH = re.compile(r"/(sensor|asset)s/(\d+)")
SENSOR_OF_FIELD = re.compile(r"'([a-z-]+)': 'sensor'")
CONTAINERS = ("json", "query", "combined_data", "_schema")
"""Keys in a message of the server that name no field."""


@pyscript_compile
async def raise_for_response(response: ClientResponse) -> None:
    """Raise what an answer means; return for one that the client handles itself.

    The client logs in again after a 401, polls a job that waits, and reads a job's failure (422).
    """
    status, path = response.status, response.url.path
    if status < 400:
        await refuse_foreign_answer(response)
        return
    if status == 401 and path != answer_shapes.LOGIN_PATH:
        return
    payload = await payload_of(response)
    if status == 422 and "/jobs/" in path and answer_shapes.is_job(payload):
        return
    message = message_of(response, payload)
    if status == 400 and "Scheduling job" in message and "failed" not in message:
        return
    raise from_response(response, payload, message)


@pyscript_compile
def from_response(response: ClientResponse, payload: Any, message: str) -> errors.FlexMeasuresError:
    """Return the error that an answer of 400 or above means; `message` is the server's own."""
    status, path, server = response.status, response.url.path, f"FlexMeasures at {response.url.origin()}"
    subject = subject_of(path, message)
    if status < 429 and not answer_shapes.is_refusal(response.headers, payload):
        return no_server(response, message)
    if path == answer_shapes.LOGIN_PATH and status < 429:
        return errors.Unauthorized(f"FlexMeasures refuses the login: check username and password ({message})")
    seconds = rate_limits.retry_after(response.headers)
    when = "later" if seconds is None else f"in {seconds} s"
    if status == 429:
        return errors.RateLimited(f"FlexMeasures asks to wait (429): try again {when}", seconds)
    if status == 403 and isinstance(payload, dict) and payload.get("status") == INVALID_REPLACEMENT:
        return errors.ConflictingValue(CONFLICTING_VALUE)
    if status == 403:
        return errors.NoAccess(
            f"This user may not use {subject} on FlexMeasures: give a sensor of the user's own account, "
            f"or ask its owner for access ({message})"
        )
    if status == 404 and ("/jobs/" in path or "/schedules/" in path):
        return errors.JobLost(f"FlexMeasures has lost the job: call again ({message})")
    if status == 404:
        return not_found(subject, server)
    if status >= 500:
        kind = errors.Unreachable if status in UNAVAILABLE else errors.ServerFault
        return kind(f"FlexMeasures answered {status} to {path}: try again {when} ({message})", seconds)
    if (match := NOT_FOUND.search(message)) is not None:
        return not_found(f"{match[1]} {match[2]}", server)
    if (match := UNIT_REFUSED.search(message)) is not None:
        return errors.InvalidData(
            f"unit: {subject} is in {match[1]}, and {match[2]} cannot be converted to it"
        )
    return errors.InvalidProblem(f"FlexMeasures does not accept the request for {subject}: {message}")


@pyscript_compile
def not_found(subject: str, server: str) -> errors.UnknownSensor:
    """Return the error for a sensor or asset that does not exist."""
    return errors.UnknownSensor(
        f"{subject[0].upper()}{subject[1:]} does not exist on {server}: check the number"
    )


@pyscript_compile
async def refuse_foreign_answer(response: ClientResponse) -> None:
    """Raise Unreachable for an answer below 400 of something other than FlexMeasures.

    Raise a FlexMeasuresError for one of FlexMeasures in an unexpected form. An empty answer, and a 202 that
    only asks to come back, may be anybody's: they need FlexMeasures' header.
    """
    path, payload = response.url.path, await payload_of(response)
    is_own = answer_shapes.is_own(response.headers)
    is_waiting = response.status == 202 and response.method == "GET"
    if response.status == 303 and "/schedules/" in path:
        target = urlsplit(response.headers.get("Location", ""))
        is_accepted = (target.scheme, target.hostname) == (response.url.scheme, response.url.host)
    elif is_waiting and "/jobs/" not in path:
        is_accepted = is_own
    else:
        has_shape = response.status < 300 and await has_expected_shape(response, payload)
        is_accepted = has_shape and (is_own or bool(payload))
    if is_accepted:
        return
    if response.status == 303 and is_own:
        raise wrong_redirect(response)
    if response.status < 300 and is_own:
        raise errors.FlexMeasuresError(
            f"FlexMeasures at {response.url.origin()} answered {response.method} {path} in an unknown form: "
            f"see that its release is supported ({shortened(payload)})"
        )
    raise no_server(response, f"{response.status} {response.reason}")


@pyscript_compile
def wrong_redirect(response: ClientResponse) -> errors.FlexMeasuresError:
    """Return the error for a redirect to another server, which is not followed: it would get the token."""
    target = urlsplit(response.headers.get("Location", ""))
    place = shortened(f"{target.scheme}://{target.hostname}" if target.scheme else "nothing")
    return errors.FlexMeasuresError(
        f"FlexMeasures at {response.url.origin()} refers to {place} for a schedule: have the proxy before it "
        f"send X-Forwarded-Proto and X-Forwarded-Host, and FlexMeasures heed them (werkzeug's ProxyFix)"
    )


@pyscript_compile
def no_server(response: ClientResponse, message: str) -> errors.Unreachable:
    """Return the error for an answer of something other than FlexMeasures."""
    return errors.Unreachable(
        f"There is no FlexMeasures server at {response.url.origin()}: check the host, and whether a proxy or "
        f"the login page of a network answers in its place ({message})"
    )


@pyscript_compile
async def has_expected_shape(response: ClientResponse, payload: Any) -> bool:
    """Tell whether an answer has FlexMeasures' form; a long one is checked outside the event loop."""
    method, path = response.method, response.url.path
    if (getattr(response, "size", None) or 0) <= json_response.LONG_BYTES:
        return answer_shapes.has_shape(method, path, payload)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, answer_shapes.has_shape, method, path, payload)


@pyscript_compile
async def payload_of(response: ClientResponse) -> Any:
    """Return the JSON of an answer, or None where there is none."""
    if "json" not in response.headers.get("Content-Type", ""):
        return None
    try:
        return await response.json()
    except (UnicodeDecodeError, ValueError, RecursionError):
        return None


@pyscript_compile
def message_of(response: ClientResponse, payload: Any) -> str:
    """Return the server's own message, shortened."""
    if payload is None:
        return f"{response.status} {response.reason}"
    if not isinstance(payload, dict):
        return str(payload)[:MAX_MESSAGE_CHARACTERS]
    return on_one_line(payload.get("errors") or payload.get("message") or payload)[:MAX_MESSAGE_CHARACTERS]


@pyscript_compile
def on_one_line(message: Any, path: tuple[object, ...] = ()) -> str:
    """Write a nested message of the server on one line, each part after the field that it is about."""
    if isinstance(message, dict):
        parts = [
            on_one_line(value, path if key in CONTAINERS else (*path, key)) for key, value in message.items()
        ]
        return "; ".join(parts)
    text = " ".join(map(on_one_line, message)) if isinstance(message, list) else str(message)
    name = "".join(f"[{key}]" if str(key).isdigit() else f".{key}" for key in path).lstrip(".")
    return f"{name}: {text}" if name else text


@pyscript_compile
def subject_of(path: str, message: str) -> str:
    """Return what an answer is about: the sensor that the flex-context names, else that of the path."""
    if (field := SENSOR_OF_FIELD.search(message)) is not None:
        return f"the sensor given as {field[1]}"
    match = SENSOR_IN_PATH.search(path)
    return f"{match[1]} {match[2]}" if match else path


@pyscript_compile
def shortened(value: object) -> str:
    """Return the beginning of a value's text."""
    text = str(value)
    return text if len(text) <= MAX_QUOTED_CHARACTERS else f"{text[:MAX_QUOTED_CHARACTERS]}…"


@pyscript_compile
def from_exception(host: str, error: Exception) -> errors.FlexMeasuresError:
    """Return what an exception of the client, or of the network, means."""
    if isinstance(error, errors.FlexMeasuresError):
        return error
    if isinstance(error, JobTimeoutError):
        return errors.JobTimedOut(f"{error} Is a worker running on the server?")
    if isinstance(error, JobFailedError):
        return from_failed_job(str(error))
    if isinstance(error, (ConnectionError, ClientError, TimeoutError, OSError, ContentTypeError)):
        return errors.Unreachable(
            f"FlexMeasures cannot be reached at {host}: check the host, and that the "
            f"server runs ({str(error) or type(error).__name__})"
        )
    if "status code 401" in str(error):
        return errors.Unauthorized(f"FlexMeasures refuses the user: {shortened(error)}")
    return unexpected_answer(host, error)


@pyscript_compile
def from_failed_job(message: str) -> errors.FlexMeasuresError:
    """Return what the message of a failed job means."""
    message = message.split("\nServer traceback", maxsplit=1)[0]
    reason = message.split("job failed with ", 1)[-1].strip()[:MAX_MESSAGE_CHARACTERS]
    if (match := PRICES_MISSING.search(message)) is not None:
        return errors.PricesMissing(
            f"FlexMeasures has no prices for the planning window on sensor {match[1]}: see that its "
            f"prices arrive, or plan a shorter duration"
        )
    if "infeasible" in message.lower():
        return errors.Infeasible(
            f"FlexMeasures finds no schedule that meets all limits: check power_capacity, "
            f"site_power_capacity and the raw flex_model ({reason})"
        )
    if "UniqueViolation" in message:
        return errors.ConflictingValue(CONFLICTING_VALUE)
    return errors.JobFailed(f"The job failed on the server: {reason}")


@pyscript_compile
def unexpected_answer(host: str, error: Exception) -> errors.FlexMeasuresError:
    """Return the error for an answer over which an exception occurred."""
    return errors.FlexMeasuresError(
        f"FlexMeasures at {host} answered unexpectedly: see that its release is supported "
        f"({type(error).__name__}: {shortened(error)})"
    )


@pyscript_compile
@contextmanager
def reading_answer(host: str) -> Iterator[None]:
    """Raise a FlexMeasuresError where an answer turns out to have another form than expected."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise unexpected_answer(host, error) from error
