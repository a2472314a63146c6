"""The form of FlexMeasures' answer to each call, by which answers of something else are recognised.

A proxy, or the login page of a network, answers 200 or an error to whatever it is asked. FlexMeasures names
its version in a header, which proxies may remove.
"""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import isodate

VERSION_HEADER = "FlexMeasures-Version"
LOGIN_PATH = "/api/requestAuthToken"
STORED = ("PROCESSED", "ALREADY_RECEIVED_AND_SUCCESSFULLY_PROCESSED")
"""The status of data that were stored at once, not by a job."""
JOB_STATES = ("QUEUED", "STARTED", "FINISHED", "FAILED", "DEFERRED", "SCHEDULED", "STOPPED", "CANCELED")


@pyscript_compile
def is_id(value: Any) -> bool:
    """Tell whether a value is the id of a sensor or asset."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@pyscript_compile
def is_text(value: Any) -> bool:
    """Tell whether a value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


@pyscript_compile
def is_duration(value: Any) -> bool:
    """Tell whether a value is an ISO 8601 duration of days and less."""
    try:
        return isinstance(isodate.parse_duration(value), timedelta)
    except (OverflowError, TypeError, ValueError):
        return False


@pyscript_compile
def is_time_zone(value: Any) -> bool:
    """Tell whether a value names a time zone."""
    try:
        ZoneInfo(value)
    except (KeyError, OSError, TypeError, ValueError):
        return False
    return True


@pyscript_compile
def are_numbers(values: Any) -> bool:
    """Tell whether a value is a list of numbers, None for a gap."""
    return isinstance(values, list) and all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values
    )


@pyscript_compile
def is_named(payload: Any) -> bool:
    """Tell whether a value is an asset, a sensor or a type: it has an id and a name."""
    return isinstance(payload, dict) and is_id(payload.get("id")) and is_text(payload.get("name"))


@pyscript_compile
def is_list_of_named(payload: Any) -> bool:
    """Tell whether a value is a list of assets, sensors or types."""
    return isinstance(payload, list) and all(is_named(item) for item in payload)


@pyscript_compile
def is_login(payload: Any) -> bool:
    """Tell whether a value is the answer to a login."""
    return isinstance(payload, dict) and is_text(payload.get("auth_token"))


@pyscript_compile
def is_versions(payload: Any) -> bool:
    """Tell whether a value is the server's versions."""
    return isinstance(payload, dict) and isinstance(payload.get("versions"), list)


@pyscript_compile
def is_sensor(payload: Any) -> bool:
    """Tell whether a value is a sensor."""
    return (
        isinstance(payload, dict)
        and isinstance(payload.get("unit"), str)
        and is_duration(payload.get("event_resolution"))
        and is_time_zone(payload.get("timezone"))
        and is_id(payload.get("generic_asset_id"))
    )


@pyscript_compile
def is_series(payload: Any) -> bool:
    """Tell whether a value is the data of a sensor, whose unit is "" where it has none."""
    return (
        isinstance(payload, dict)
        and are_numbers(payload.get("values"))
        and isinstance(payload.get("unit"), str)
    )


@pyscript_compile
def is_schedule(payload: Any) -> bool:
    """Tell whether a value is a schedule."""
    return is_series(payload) and is_duration(payload.get("duration")) and is_text(payload.get("start"))


@pyscript_compile
def is_statistics(payload: Any) -> bool:
    """Tell whether a value is the statistics of a sensor, by source."""
    sources = payload.values() if isinstance(payload, dict) else [None]
    return not sources or any(
        isinstance(source, dict) and "First event start" in source for source in sources
    )


@pyscript_compile
def is_job(payload: Any) -> bool:
    """Tell whether a value is the status of a job."""
    return isinstance(payload, dict) and payload.get("status") in JOB_STATES


@pyscript_compile
def is_accepted(payload: Any) -> bool:
    """Tell whether a value names the job that a request has started."""
    return isinstance(payload, dict) and is_text(payload.get("job") or payload.get("schedule"))


@pyscript_compile
def is_stored(payload: Any) -> bool:
    """Tell whether a value confirms that data are stored, or names the job that will store them."""
    return isinstance(payload, dict) and (payload.get("status") in STORED or is_text(payload.get("job")))


SHAPES: tuple[tuple[str, re.Pattern[str], Callable[[Any], bool]], ...] = (
    ("POST", re.compile(LOGIN_PATH), is_login),
    ("GET", re.compile("/api/"), is_versions),
    ("GET", re.compile(r".*/sensors/\d+"), is_sensor),
    ("GET", re.compile(r".*/sensors/\d+/data"), is_series),
    ("POST", re.compile(r".*/sensors/\d+/data"), is_stored),
    ("GET", re.compile(r".*/sensors/\d+/stats"), is_statistics),
    ("GET", re.compile(r".*/sensors/\d+/schedules/[^/]+"), is_schedule),
    ("POST", re.compile(r".*/assets/\d+/schedules/trigger"), is_accepted),
    ("GET", re.compile(r".*/jobs/[^/]+"), is_job),
    ("GET", re.compile(r".*/assets/\d+"), is_named),
    ("GET", re.compile(r".*/(assets|assets/types|sensors)"), is_list_of_named),
    ("POST", re.compile(r".*/(assets|sensors)"), is_named),
)
"""(method, path, check of the payload of an answer below 300)."""


@pyscript_compile
def is_own(headers: Mapping[str, str]) -> bool:
    """Tell whether an answer names FlexMeasures as its author."""
    return VERSION_HEADER in headers


@pyscript_compile
def has_shape(method: str, path: str, payload: Any) -> bool:
    """Tell whether an answer below 300 has FlexMeasures' form, and is about what the path names."""
    check = next(
        (check for verb, pattern, check in SHAPES if verb == method and pattern.fullmatch(path)), None
    )
    if check is None:
        return isinstance(payload, dict)
    requested_id = path.rpartition("/")[2]
    if method == "GET" and check in (is_sensor, is_named):
        return check(payload) and str(payload.get("id")) == requested_id
    return check(payload)


@pyscript_compile
def is_refusal(headers: Mapping[str, str], payload: Any) -> bool:
    """Tell whether an error (4xx) is FlexMeasures' own: with a message and a status or result, or errors."""
    if is_own(headers):
        return True
    if not isinstance(payload, dict):
        return False
    return ("message" in payload and ("status" in payload or "result" in payload)) or isinstance(
        payload.get("errors"), list
    )
