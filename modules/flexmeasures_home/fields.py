"""Values as users give them in the configuration and in service calls, each checked in one place."""

import difflib
import math
import re
import reprlib
import uuid
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

LONGEST_SCHEDULE = timedelta(days=31)
LONGEST_DATA = timedelta(days=366)
LONGEST_RESOLUTION = timedelta(days=1)
EARLIEST_YEAR, LATEST_YEAR = 1970, 2200
ZEROS = ("0", "PT0S", "PT0M", "PT0H", "P0D", "0:00", "00:00", "0:00:00", "00:00:00")
MOST_VALUES = 10_000
MAX_TEXT, MAX_UNIT, MAX_TIME, MAX_WISHES = 255, 40, 64, 3_000
"""How long a text, a unit and the text of a time may be, and how many wishes a list may have: enough for one
in each quarter of 31 days."""
MAX_QUOTED, MAX_MISTAKES, MAX_MISTAKES_OF_CONFIGURATION = 80, 5, 20
"""How much of what was given is told, and how many mistakes at once; a list of its own may have more."""
MAX_RAW_DEPTH, MAX_RAW_ITEMS, MAX_RAW_TEXT = 20, 200_000, 1_000
"""How deep raw fields may be nested, how many items they may have (31 days of minutes with a value, start and
end each fit), and how long a text in them may be."""
MAX_ID = 2**31 - 1
"""The greatest id that FlexMeasures' database has."""
SMALLEST_FRAME, LARGEST_FRAME = 2**12, 2**26
IS_ENTITY = re.compile(r"[a-z_]+\.[a-z0-9_]+(\.\w+)?")
MINUTES_OF_A_DAY = 1440
SECRETS = ("password", "token")
HOLD_SECRETS = ("s2", "username")
"""Fields that are not quoted: a token may be in them, or the password in place of the username."""


@pyscript_compile
def expects(convert, expected):
    """Return a validator that converts a value, or says what was expected."""

    def validate(value):
        try:
            return convert(value)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise vol.Invalid(f"expected {expected}") from error

    return validate


@pyscript_compile
def whole_number(value):
    """Return a sensor's or asset's id; a digit string will do."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    if not 1 <= (number := int(value)) <= MAX_ID:
        raise ValueError
    return number


@pyscript_compile
def text(value):
    """Return a text that is not empty, and not too long."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    if len(value) > MAX_TEXT:
        raise vol.Invalid(f"expected a text of at most {MAX_TEXT} characters")
    return value


@pyscript_compile
def unit(value: Any) -> str:
    """Return a text that a unit may be."""
    if len(text(value)) > MAX_UNIT:
        raise ValueError
    return value


@pyscript_compile
def short(value: str, most: int = MAX_QUOTED) -> str:
    """Return the beginning of a text."""
    return value if len(value) <= most else f"{value[: most - 1]}…"


@pyscript_compile
def quoted(value: Any) -> str:
    """Return what a value is, in short, for whoever gave it."""
    if isinstance(value, str):
        return repr(short(value))
    if isinstance(value, int) and abs(value) > quantities.MAX_NUMBER:
        return "a number of many digits"
    return short(QUOTE.repr(value))


@pyscript_compile
def positive(convert):
    """Return a conversion that refuses what is not above zero."""

    def checked(value):
        number = convert(value)
        if number <= 0:
            raise ValueError
        return number

    return checked


@pyscript_compile
def not_negative(convert):
    """Return a conversion that refuses what is below zero."""

    def checked(value):
        number = convert(value)
        if number < 0:
            raise ValueError
        return number

    return checked


@pyscript_compile
def price(value):
    """Return a price as a number: its unit is fixed."""
    number, unit = quantities.parse(value)
    if unit:
        raise ValueError
    return number


@pyscript_compile
def power_price(value: Any) -> quantities.PowerPrice:
    """Return the PowerPrice of a text such as "3.5 EUR/kW", above zero."""
    found = quantities.power_price(value)
    if found.per_kilowatt <= 0:
        raise ValueError
    return found


@pyscript_compile
def energy_price(value: Any) -> float:
    """Return a price per kWh, of a text such as "0.04 EUR/kWh" or a number, not below zero."""
    try:
        found = number(value)
    except ValueError:
        found, _currency = quantities.energy_price(value)
    if found < 0:
        raise ValueError
    return found


@pyscript_compile
def raw_fields(value):
    """Return raw FlexMeasures fields as JSON's types: a dict with text keys."""
    if not isinstance(value, dict):
        raise ValueError
    refuse_huge(value)
    return as_json(value)


@pyscript_compile
def refuse_huge(value: Any) -> None:
    """Raise ValueError or vol.Invalid for what is nested too deep or has too much in it."""
    level, count = [value], 0
    for _ in range(MAX_RAW_DEPTH):
        nested = []
        for each in level:
            parts = each.values() if isinstance(each, dict) else each
            if isinstance(each, dict) and any(len(str(key)) > MAX_TEXT for key in each):
                raise ValueError
            nested += [part for part in parts if isinstance(part, (dict, list, tuple))]
            count += len(each)
            if count > MAX_RAW_ITEMS:
                raise vol.Invalid(f"expected at most {MAX_RAW_ITEMS} items in all, not {count} or more")
        level = nested
        if not level:
            return
    raise ValueError


@pyscript_compile
def as_json(value):
    """Return a value of YAML as JSON's types: a time, which YAML reads by itself, is written as a text."""
    if isinstance(value, str) and len(value) > MAX_RAW_TEXT:
        raise ValueError
    if isinstance(value, (int, float)) and abs(value) > quantities.MAX_NUMBER:
        raise ValueError
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, datetime):
        return moment(value).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if value is None or isinstance(value, (str, bool, int)) or math.isfinite(value):
        return value
    raise ValueError


@pyscript_compile
def duration(value):
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
def resolution(value):
    """Return a duration of whole minutes, the finest that FlexMeasures knows, up to a day."""
    if (period := duration(value)) % timedelta(minutes=1) or period > LONGEST_RESOLUTION:
        raise ValueError
    return period


@pyscript_compile
def schedule_duration(value):
    """Return a duration that a server can plan: a longer one would keep its worker busy for hours."""
    if (period := duration(value)) > LONGEST_SCHEDULE or period % timedelta(minutes=1):
        raise ValueError
    return period


@pyscript_compile
def data_duration(value):
    """Return a timedelta of at most a year; zero, however written, is for a value at a moment."""
    if isinstance(value, (str, int)) and str(value)[:MAX_TIME].strip().upper() in ZEROS:
        return timedelta(0)
    if (period := duration(value)) > LONGEST_DATA:
        raise ValueError
    return period


@pyscript_compile
def moment(value):
    """Return a moment in UTC; without an offset it is in Home Assistant's time zone."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and len(value) <= MAX_TIME):
        raise ValueError
    found = value if isinstance(value, datetime) else dt_util.parse_datetime(str(value))
    if found is None:
        raise ValueError
    if not EARLIEST_YEAR <= found.year <= LATEST_YEAR:
        raise ValueError
    if found.tzinfo is None:
        found = found.replace(tzinfo=dt_util.get_default_time_zone())
    return found.astimezone(UTC)


@pyscript_compile
def number(value):
    """Return a finite number; a text such as "3.5" will do."""
    found, unit = quantities.parse(value)
    if unit:
        raise ValueError
    return found


@pyscript_compile
def number_or_gap(value):
    """Return a finite number, or None for a gap."""
    return None if value is None else number(value)


@pyscript_compile
def values(value):
    """Return a list of numbers, None for a gap; one number needs no list."""
    if not isinstance(value, (list, tuple)):
        return [NUMBER(value)]
    if not 0 < len(value) <= MOST_VALUES:
        raise vol.Invalid(f"expected 1 to {MOST_VALUES} numbers in the list, but got {len(value)}")
    found = vol.Schema([NUMBER_OR_GAP])(list(value))
    if all(each is None for each in found):
        raise vol.Invalid("expected at least one number in the list")
    return found


@pyscript_compile
def boolean(value):
    """Return true or false, as YAML has them, or as a text."""
    try:
        return cv.boolean(value)
    except vol.Invalid as error:
        raise ValueError from error


@pyscript_compile
def within(least, most):
    """Return a conversion to a whole number within bounds; a digit string will do."""

    def convert(value):
        if not least <= (found := whole_number(value)) <= most:
            raise ValueError
        return found

    return convert


@pyscript_compile
def seconds(value):
    """Return seconds from one up to a day, of a number, "30 s", or a duration."""
    if isinstance(value, str) and value.strip().endswith("s"):
        value = value.strip().removesuffix("s")
    try:
        found = number(value)
    except ValueError:
        found = duration(value).total_seconds()
    if not 1 <= found <= LONGEST_RESOLUTION.total_seconds():
        raise ValueError
    return found


@pyscript_compile
def instruction_lead(value: Any) -> float:
    """Return how long before its time an instruction is sent (s): math.inf for all as soon as planned."""
    return math.inf if value == "all" else seconds(value)


@pyscript_compile
def size(value):
    """Return a number of bytes, of a whole number or a text such as "1 MiB"."""
    found, unit = quantities.parse(value)
    found *= {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20}[unit]
    if not found.is_integer() or not SMALLEST_FRAME <= found <= LARGEST_FRAME:
        raise ValueError
    return int(found)


@pyscript_compile
def factor(value):
    """Return a number from 0 to 1."""
    if not 0 <= (found := number(value)) <= 1:
        raise ValueError
    return found


@pyscript_compile
def s2_id(value: Any) -> str:
    """Return a UUID in the one way in which all write it.

    The official schema takes any letters as an id; devices on s2-python take UUIDs alone, and refer to them
    as they write them themselves.
    """
    return str(uuid.UUID(text(value)))


@pyscript_compile
def entity(value):
    """Return "sensor.x", or "sensor.x.attribute"."""
    if len(text(value).split(".")) not in (2, 3) or not all(value.split(".")):
        raise ValueError
    return value


@pyscript_compile
def wish(energy):
    """Return a validator of {value, datetime}, or {value, start, end} with a duration for one of the two.

    `energy` validates the value.
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

    def validate(value):
        if not isinstance(value, dict):
            raise vol.Invalid("expected items such as {value: 8, datetime: '2026-01-15 07:00'}")
        given = schema(value)
        start, end, length = given.get("start"), given.get("end"), given.get("duration")
        if given.keys() == {"value", "datetime"}:
            start = end = given["datetime"]
        elif "datetime" in given or len([each for each in (start, end, length) if each]) != 2:
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
def many(validate):
    """Return a validator of a list; one item needs no list."""

    def each(value):
        if isinstance(value, list) and len(value) > MAX_WISHES:
            raise vol.Invalid(f"expected at most {MAX_WISHES} items in the list, but got {len(value)}")
        return vol.Schema([validate])(value) if isinstance(value, list) else [validate(value)]

    return each


@pyscript_compile
def energy(unit, full, max_percent: float | None = 100):
    """Return a validator of a state of charge as Wh: a number in `unit`, "5 kWh", or "80 %" of `full`."""

    def convert(value):
        if (watt_hours := quantities.energy(value, unit, full)) < 0:
            raise ValueError
        percent, given_unit = quantities.parse(value)
        if given_unit == "%" and max_percent is not None and percent > max_percent:
            raise vol.Invalid(f"expected at most {max_percent} %")
        return watt_hours

    return expects(convert, f"a number in {unit}, or text such as '5.2 kWh' or '80 %', not below 0")


@pyscript_compile
def energy_or_entity(energy: Any) -> Any:
    """Return a validator of a state of charge (Wh), or of an entity that tells it, which stays a text."""

    def validate(value: Any) -> float | str:
        return value if isinstance(value, str) and IS_ENTITY.fullmatch(value) else energy(value)

    return validate


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
    invalid: vol.Invalid, given: Any, known: list[str], noun: str, most: int = MAX_MISTAKES
) -> list[str]:
    """Return a sentence for each mistake found, by the order of the fields: what is expected and given."""
    errors = invalid.errors if isinstance(invalid, vol.MultipleInvalid) else [invalid]
    places = {name: place for place, name in enumerate(known)}
    in_order = sorted(errors, key=lambda error: places.get(str(error.path[0]), len(known)))
    found = [mistake(error, given, known, noun) for error in in_order[:most]]
    return listed(found, most, len(errors))


@pyscript_compile
def listed(sentences: list[str], most: int = MAX_MISTAKES, count: int | None = None) -> list[str]:
    """Return the first sentences, and how many more of `count` there are."""
    more = (len(sentences) if count is None else count) - most
    return [*sentences[:most], f"and {more} mistakes more"] if more > 0 else sentences


@pyscript_compile
def is_unknown_key(error: vol.Invalid) -> bool:
    """Tell whether the schema does not know the key, under voluptuous and under probatio, its successor."""
    code = getattr(error, "code", None)
    return code == "extra_keys_not_allowed" or error.error_message == "extra keys not allowed"


@pyscript_compile
def mistake(error, given, known, noun):
    """Return the sentence for one mistake."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.path)
    name = short(name.lstrip("."))
    if isinstance(error, vol.RequiredFieldInvalid):
        return f"{name} is missing"
    if is_unknown_key(error):
        is_near = len(error.path) == 1 and len(str(error.path[-1])) <= MAX_QUOTED
        near = difflib.get_close_matches(str(error.path[-1]), known if is_near else [], 1)
        return f"{name} is no {noun}" + (f": did you mean {near[0]}?" if near else "")
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
