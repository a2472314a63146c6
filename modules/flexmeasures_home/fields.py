"""Values as users give them in the configuration and in service calls, each checked in one place."""

import difflib
import math
import re
import reprlib
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import homeassistant.helpers.config_validation as cv
import homeassistant.util.dt as dt_util
import isodate
import voluptuous as vol
from homeassistant.const import WEEKDAYS

import flexmeasures_api.flexible_devices as storages
import flexmeasures_api.quantities as quantities
import flexmeasures_s2.control_types as control_types

MAX_SCHEDULE = timedelta(days=31)
MAX_DATA = timedelta(days=366)
MAX_RESOLUTION = timedelta(days=1)
MAX_SECONDS = 86_400
MIN_YEAR, MAX_YEAR = 1970, 2200
ZEROS = ("0", "PT0S", "PT0M", "PT0H", "P0D", "0:00", "00:00", "0:00:00", "00:00:00")
MAX_VALUES = 10_000
MAX_TEXT, MAX_UNIT, MAX_TIME, MAX_TARGETS = 255, 40, 64, 3_000
"""The length of a text, of a unit and of the text of a time, and the number of targets in a list: enough for
one in each quarter of an hour of 31 days."""
MAX_QUOTED, MAX_MISTAKES, MAX_MISTAKES_OF_CONFIGURATION = 80, 5, 20
"""How much of a value is quoted, and how many mistakes are shown, of a call and of the configuration."""
MAX_RAW_DEPTH, MAX_RAW_ITEMS, MAX_RAW_TEXT = 20, 200_000, 1_000
"""The depth of raw fields, the number of their items (31 days of minutes with a value, start and end fit),
and the length of a text in them."""
MAX_ID = 2**31 - 1
"""The greatest id in FlexMeasures' database."""
MIN_FRAME_BYTES, MAX_FRAME_BYTES = 2**12, 2**26
IS_ENTITY = re.compile(r"[a-z_]+\.[a-z0-9_]+(\.\w+)?")
MINUTES_OF_A_DAY = 1440
SECRETS = ("password", "token")
HOLD_SECRETS = ("s2", "username")
"""Fields that are not quoted: a token may be in them, or the password in place of the username."""
Validator = Callable[[Any], Any]
"""Returns a value as it is used; raises vol.Invalid, or what `expects` turns into that."""


@pyscript_compile
def expects(convert: Validator, expected: str) -> Validator:
    """Return a validator that converts a value, or says what was expected."""

    def validate(value: Any) -> Any:
        try:
            return convert(value)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise vol.Invalid(f"expected {expected}") from error

    return validate


@pyscript_compile
def whole_number(value: Any) -> int:
    """Return a sensor's or asset's id; a digit string will do."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    if not 1 <= (number := int(value)) <= MAX_ID:
        raise ValueError
    return number


@pyscript_compile
def text(value: Any) -> str:
    """Return a text that is not empty, and not too long."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    if len(value) > MAX_TEXT:
        raise vol.Invalid(f"expected a text of at most {MAX_TEXT} characters")
    return value


@pyscript_compile
def unit(value: Any) -> str:
    """Return the text of a unit."""
    if len(checked := text(value)) > MAX_UNIT:
        raise ValueError
    return checked


@pyscript_compile
def short(value: str, max_length: int = MAX_QUOTED) -> str:
    """Return the beginning of a text."""
    return value if len(value) <= max_length else f"{value[: max_length - 1]}…"


@pyscript_compile
def quoted(value: Any) -> str:
    """Return a short repr of a value, for an error text."""
    if isinstance(value, str):
        return repr(short(value))
    if isinstance(value, int) and abs(value) > quantities.MAX_NUMBER:
        return "a number of many digits"
    return short(QUOTE.repr(value))


@pyscript_compile
def positive(convert: Callable[[Any], float]) -> Validator:
    """Return a conversion that refuses values that are not above zero."""

    def checked(value: Any) -> float:
        number = convert(value)
        if number <= 0:
            raise ValueError
        return number

    return checked


@pyscript_compile
def not_negative(convert: Callable[[Any], float]) -> Validator:
    """Return a conversion that refuses negative values."""

    def checked(value: Any) -> float:
        number = convert(value)
        if number < 0:
            raise ValueError
        return number

    return checked


@pyscript_compile
def price(value: Any) -> float:
    """Return a price as a number: its unit is fixed."""
    number, unit = quantities.parse(value)
    if unit:
        raise ValueError
    return number


@pyscript_compile
def power_price(value: Any) -> quantities.PowerPrice:
    """Return the PowerPrice of a text such as "3.5 EUR/kW", above zero."""
    price = quantities.power_price(value)
    if price.per_kilowatt <= 0:
        raise ValueError
    return price


@pyscript_compile
def energy_price(value: Any) -> float:
    """Return a price per kWh, of a text such as "0.04 EUR/kWh" or a number, not below zero."""
    try:
        price = number(value)
    except ValueError:
        price, _currency = quantities.energy_price(value)
    if price < 0:
        raise ValueError
    return price


@pyscript_compile
def raw_fields(value: Any) -> Any:
    """Return raw FlexMeasures fields as JSON's types: a dict with text keys."""
    if not isinstance(value, dict):
        raise ValueError
    refuse_huge(value)
    return as_json(value)


@pyscript_compile
def refuse_huge(value: Any) -> None:
    """Raise ValueError or vol.Invalid if a value is nested too deep or has too many items."""
    level, count = [value], 0
    for _ in range(MAX_RAW_DEPTH):
        nested: list[Any] = []
        for container in level:
            parts = container.values() if isinstance(container, dict) else container
            if isinstance(container, dict) and any(len(str(key)) > MAX_TEXT for key in container):
                raise ValueError
            nested += [part for part in parts if isinstance(part, (dict, list, tuple))]
            count += len(container)
            if count > MAX_RAW_ITEMS:
                raise vol.Invalid(f"expected at most {MAX_RAW_ITEMS} items in all, not {count} or more")
        level = nested
        if not level:
            return
    raise ValueError


@pyscript_compile
def as_json(value: Any) -> Any:
    """Return a value of YAML as JSON's types: a time, which YAML converts, becomes a text again."""
    if isinstance(value, str) and len(value) > MAX_RAW_TEXT:
        raise ValueError
    if isinstance(value, (int, float)) and abs(value) > quantities.MAX_NUMBER:
        raise ValueError
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, datetime):
        return moment(value).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if value is None or isinstance(value, (str, bool, int)) or math.isfinite(value):
        return value
    raise ValueError


@pyscript_compile
def duration(value: Any) -> timedelta:
    """Return a positive timedelta of ISO 8601 ("PT24H"), "HH:MM:SS", or {hours: 24}."""
    if isinstance(value, str) and len(value) > MAX_TIME:
        raise ValueError
    if isinstance(value, str) and "P" in value.upper():
        period = isodate.parse_duration(value.strip().upper())
    else:
        try:
            period = cv.time_period(value)
        except vol.Invalid as error:
            raise ValueError from error
    if not isinstance(period, timedelta) or period <= timedelta(0):
        raise ValueError
    return period


@pyscript_compile
def resolution(value: Any) -> timedelta:
    """Return a duration of whole minutes, the finest resolution of FlexMeasures, up to a day."""
    if (period := duration(value)) % timedelta(minutes=1) or period > MAX_RESOLUTION:
        raise ValueError
    return period


@pyscript_compile
def schedule_duration(value: Any) -> timedelta:
    """Return a duration that a server can plan: a longer one would occupy its worker for hours."""
    if (period := duration(value)) > MAX_SCHEDULE or period % timedelta(minutes=1):
        raise ValueError
    return period


@pyscript_compile
def data_duration(value: Any) -> timedelta:
    """Return a timedelta of at most a year; zero, however written, is for a value at a moment."""
    if isinstance(value, (str, int)) and str(value)[:MAX_TIME].strip().upper() in ZEROS:
        return timedelta(0)
    if (period := duration(value)) > MAX_DATA:
        raise ValueError
    return period


@pyscript_compile
def moment(value: Any) -> datetime:
    """Return a moment in UTC; without an offset it is in Home Assistant's time zone."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and len(value) <= MAX_TIME):
        raise ValueError
    moment = value if isinstance(value, datetime) else dt_util.parse_datetime(str(value))
    if moment is None:
        raise ValueError
    if not MIN_YEAR <= moment.year <= MAX_YEAR:
        raise ValueError
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt_util.get_default_time_zone())
    return moment.astimezone(UTC)


@pyscript_compile
def number(value: Any) -> float:
    """Return a finite number; a text such as "3.5" will do."""
    parsed, unit = quantities.parse(value)
    if unit:
        raise ValueError
    return parsed


@pyscript_compile
def number_or_gap(value: Any) -> float | None:
    """Return a finite number, or None for a gap."""
    return None if value is None else number(value)


@pyscript_compile
def values(value: Any) -> list[float | None]:
    """Return a list of numbers, None for a gap; one number needs no list."""
    if not isinstance(value, (list, tuple)):
        return [NUMBER(value)]
    if not 0 < len(value) <= MAX_VALUES:
        raise vol.Invalid(f"expected 1 to {MAX_VALUES} numbers in the list, but got {len(value)}")
    numbers: list[float | None] = vol.Schema([NUMBER_OR_GAP])(list(value))
    if all(number is None for number in numbers):
        raise vol.Invalid("expected at least one number in the list")
    return numbers


@pyscript_compile
def boolean(value: Any) -> bool:
    """Return true or false, as YAML has them, or as a text."""
    try:
        return cv.boolean(value)
    except vol.Invalid as error:
        raise ValueError from error


@pyscript_compile
def within(minimum: int, maximum: int) -> Validator:
    """Return a conversion to a whole number within bounds; a digit string will do."""

    def convert(value: Any) -> int:
        if not minimum <= (number := whole_number(value)) <= maximum:
            raise ValueError
        return number

    return convert


@pyscript_compile
def seconds(value: Any) -> float:
    """Return seconds from one up to a day, of a number, "30 s", or a duration."""
    if isinstance(value, str) and value.strip().endswith("s"):
        value = value.strip().removesuffix("s")
    try:
        seconds = number(value)
    except ValueError:
        seconds = duration(value).total_seconds()
    if not 1 <= seconds <= MAX_SECONDS:
        raise ValueError
    return seconds


@pyscript_compile
def instruction_lead(value: Any) -> float:
    """Return how long before its time an instruction is sent (s): math.inf for all as soon as planned."""
    return math.inf if value == "all" else seconds(value)


@pyscript_compile
def size(value: Any) -> int:
    """Return a number of bytes, of a whole number or a text such as "1 MiB"."""
    number, unit = quantities.parse(value)
    size_bytes = number * {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20}[unit]
    if not size_bytes.is_integer() or not MIN_FRAME_BYTES <= size_bytes <= MAX_FRAME_BYTES:
        raise ValueError
    return int(size_bytes)


@pyscript_compile
def factor(value: Any) -> float:
    """Return a number from 0 to 1."""
    if not 0 <= (parsed := number(value)) <= 1:
        raise ValueError
    return parsed


@pyscript_compile
def s2_id(value: Any) -> str:
    """Return a UUID in its canonical form.

    The official schema allows any text as an id; s2-python only accepts UUIDs, and repeats them in this form.
    """
    return str(uuid.UUID(text(value)))


@pyscript_compile
def entity(value: Any) -> str:
    """Return "sensor.x", or "sensor.x.attribute"."""
    parts = (name := text(value)).split(".")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError
    return name


@pyscript_compile
def target(energy: Validator) -> Validator:
    """Return a validator of a target, which becomes a SocEvent: {value, datetime}, or {value, start, end}.

    A duration may replace start or end. `energy` validates the value.
    """
    schema = vol.Schema(
        {
            vol.Required("value"): energy,
            vol.Optional("datetime"): MOMENT,
            vol.Optional("start"): MOMENT,
            vol.Optional("end"): MOMENT,
            vol.Optional("duration"): DURATION,
        }
    )

    def validate(value: Any) -> Any:
        if not isinstance(value, dict):
            raise vol.Invalid("expected items such as {value: 8, datetime: '2026-01-15 07:00'}")
        given = schema(value)
        start, end, length = given.get("start"), given.get("end"), given.get("duration")
        if given.keys() == {"value", "datetime"}:
            start = end = given["datetime"]
        elif "datetime" in given or [start, end, length].count(None) != 1:
            raise vol.Invalid("expected datetime, or two of start, end and duration, beside value")
        try:
            start = start or end - length
            end = end or start + length
        except OverflowError as error:
            raise vol.Invalid("expected times and a duration within the calendar") from error
        if end < start:
            raise vol.Invalid("expected an end that is not before the start")
        return storages.SocEvent(start, end, given["value"])

    return validate


@pyscript_compile
def many(validate: Validator) -> Validator:
    """Return a validator of a list; one item needs no list."""

    def validate_all(value: Any) -> list[Any]:
        if isinstance(value, list) and len(value) > MAX_TARGETS:
            raise vol.Invalid(f"expected at most {MAX_TARGETS} items in the list, but got {len(value)}")
        if not isinstance(value, list):
            return [validate(value)]
        items: list[Any] = vol.Schema([validate])(value)
        return items

    return validate_all


@pyscript_compile
def energy(unit: str, full_wh: float, max_percent: float | None = 100) -> Validator:
    """Return a validator of a state of charge as Wh: a number in `unit`, "5 kWh", or "80 %" of `full_wh`."""

    def convert(value: Any) -> float:
        if (watt_hours := quantities.energy(value, unit, full_wh)) < 0:
            raise ValueError
        percent, given_unit = quantities.parse(value)
        if given_unit == "%" and max_percent is not None and percent > max_percent:
            raise vol.Invalid(f"expected at most {max_percent} %")
        return watt_hours

    return expects(convert, f"a number in {unit}, or text such as '5.2 kWh' or '80 %', not below 0")


@pyscript_compile
def energy_or_entity(energy: Validator) -> Validator:
    """Return a validator of a state of charge (Wh), or of the name of an entity, which is not converted."""

    def validate_either(value: Any) -> Any:
        return value if isinstance(value, str) and IS_ENTITY.fullmatch(value) else energy(value)

    return validate_either


@pyscript_compile
def time_of_day(value: Any) -> time:
    """Return a time of the day, of "07:00" or "07:00:00"; YAML reads 17:00 without quotes as a number."""
    if type(value) is int:
        seconds = value * 60 if value < MINUTES_OF_A_DAY else value
        value = str(timedelta(seconds=seconds))
    try:
        return cv.time(value)
    except vol.Invalid as error:
        raise ValueError from error


@pyscript_compile
def weekdays(value: Any) -> list[int]:
    """Return the numbers of days of the week, Monday being 0, of a list such as [mon, tue]."""
    names = value if isinstance(value, list) else [value]
    return [WEEKDAYS.index(str(name).lower()[:3]) for name in names]


@pyscript_compile
def mistakes(
    invalid: vol.Invalid, given: Any, names: list[str], noun: str, max_count: int = MAX_MISTAKES
) -> list[str]:
    """Return a sentence for each mistake, in the order of the fields `names`: what is expected, and given.

    `noun` is what a field is called, such as "field of this service".
    """
    errors = invalid.errors if isinstance(invalid, vol.MultipleInvalid) else [invalid]
    places = {name: place for place, name in enumerate(names)}
    in_order = sorted(errors, key=lambda error: places.get(str(error.path[0]), len(names)))
    sentences = [mistake(error, given, names, noun) for error in in_order[:max_count]]
    return listed(sentences, max_count, len(errors))


@pyscript_compile
def listed(sentences: list[str], max_count: int = MAX_MISTAKES, count: int | None = None) -> list[str]:
    """Return the first sentences, and how many more mistakes of `count` there are."""
    more = (len(sentences) if count is None else count) - max_count
    return [*sentences[:max_count], f"and {more} more mistakes"] if more > 0 else sentences


@pyscript_compile
def is_unknown_key(error: vol.Invalid) -> bool:
    """Tell whether the schema does not know the key, under voluptuous and under probatio, its successor."""
    code = getattr(error, "code", None)
    return code == "extra_keys_not_allowed" or error.error_message == "extra keys not allowed"


@pyscript_compile
def mistake(error: vol.Invalid, given: Any, names: list[str], noun: str) -> str:
    """Return the sentence for one mistake."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.path)
    name = short(name.lstrip("."))
    if isinstance(error, vol.RequiredFieldInvalid):
        return f"{name} is missing"
    if is_unknown_key(error):
        is_near = len(error.path) == 1 and len(str(error.path[-1])) <= MAX_QUOTED
        near = difflib.get_close_matches(str(error.path[-1]), names if is_near else [], 1)
        return f"{name} is not a {noun}" + (f": did you mean {near[0]}?" if near else "")
    value = given
    for part in error.path:
        value = value[part]
    if str(error.path[-1]) in SECRETS or name in HOLD_SECRETS or (name == "host" and "@" in str(value)):
        return f"{name}: {error.error_message}"
    return f"{name}: {error.error_message}, but got {quoted(value)}"


QUOTE = reprlib.Repr(maxstring=MAX_QUOTED, maxother=MAX_QUOTED, maxlevel=3)
SENSOR = expects(whole_number, "the number of a FlexMeasures sensor, such as 12")
ASSET = expects(whole_number, "the number of a FlexMeasures asset, such as 3")
SOURCE = expects(whole_number, "the number of a FlexMeasures data source, such as 7")
DURATION = expects(duration, "an ISO 8601 duration above zero, such as PT24H")
RESOLUTION = expects(resolution, "an ISO 8601 duration of whole minutes up to a day, such as PT15M")
SCHEDULE_DURATION = expects(
    schedule_duration, "an ISO 8601 duration of whole minutes above zero and at most P31D, such as PT24H"
)
MOMENT = expects(moment, "a date and time, such as 2026-01-15T07:00:00+01:00")
PRICE = expects(price, "a price such as 1.35, without a unit")
ENERGY_PRICE = expects(energy_price, "a price per kWh such as '0.04 EUR/kWh', not below zero")
POWER_PRICE = expects(power_price, "a price per kW above zero, such as '3.5 EUR/kW'")
POWER = expects(positive(quantities.power), "a power above zero, such as '10 kW'")
CAPACITY = expects(not_negative(quantities.power), "a power such as '10 kW', or '0 kW'")
RAW_FIELDS = expects(
    raw_fields,
    f"FlexMeasures' own fields as keys and values, at most {MAX_RAW_DEPTH} levels deep and of sensible sizes",
)
DATA_DURATION = expects(
    data_duration, "an ISO 8601 duration up to a year, such as PT1H, or PT0M for a moment"
)
NUMBER = expects(number, "a number")
NUMBER_OR_GAP = expects(number_or_gap, "a number, or null for a gap")
TEXT = expects(text, "a text that is not empty")
UNIT = expects(unit, f"a text that is not empty, of at most {MAX_UNIT} characters, such as kW")
BOOLEAN = expects(boolean, "true or false")
SECONDS = expects(seconds, "seconds from 1 up to a day, such as 30")
INSTRUCTION_LEAD = expects(instruction_lead, "seconds from 1 up to a day, such as 60 s, or all")
SIZE = expects(size, "a size from 4 KiB to 64 MiB, such as 1 MiB")
PORT = expects(within(1, 65535), "a port from 1 to 65535")
SIGN = vol.Any("consumption", "production", msg="expected consumption or production")
COUNT = expects(within(1, 100_000), "a whole number from 1 to 100000")
FACTOR = expects(factor, "a factor from 0 to 1")
S2_ID = expects(s2_id, "a UUID such as 2fbe2bc1-c7b8-4c24-8d0b-9b969f01700d, or nothing for a new one")
CONTROL_TYPE = expects(control_types.parse, f"one of {', '.join(control_types.ALL_NAMES)}")
TIME = expects(time_of_day, "a time of the day, such as '07:00'")
WEEKDAY_NUMBERS = expects(weekdays, "days of the week, such as [mon, tue]")
ENTITY = expects(entity, "an entity such as sensor.battery, or sensor.battery.attribute")
