"""The configuration under `pyscript: apps: flexmeasures:`, checked once."""

import ipaddress
import math
from collections.abc import Sequence
from typing import Any

import homeassistant.util.dt as dt_util
import voluptuous as vol
from homeassistant.const import WEEKDAYS

import flexmeasures_api.connection as connection
import flexmeasures_api.quantities as quantities
import flexmeasures_api.redaction as redaction
import flexmeasures_cem.site.site as sites
import flexmeasures_home.cron as cron
import flexmeasures_home.fields as fields
import flexmeasures_s2.listener as listener
from flexmeasures_home.configuration import Configuration, S2Configuration


@pyscript_compile
def host(value: Any) -> str:
    """Return a host that flexmeasures-client can use, as given."""
    text = fields.text(value)
    connection.parse_host(text)
    return text


@pyscript_compile
def username(value: Any) -> str:
    """Return an e-mail address, which is the username on FlexMeasures."""
    address = fields.text(value)
    name, _at, domain = address.partition("@")
    if not name or "." not in domain:
        raise ValueError
    return address


@pyscript_compile
def roundtrip_efficiency(value: Any) -> float:
    """Return a ratio; above 1 a bare number is a percentage."""
    number, unit = quantities.parse(value)
    share = quantities.ratio(value) if unit or number <= 1 else number / 100
    if not 0 < share <= 1:
        raise ValueError
    return share


@pyscript_compile
def cron_expression(value: Any) -> str:
    """Return a cron expression that has a next time."""
    expression = fields.text(value)
    cron.following(expression, dt_util.utcnow())
    return expression


@pyscript_compile
def each_sensor_once(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the measurements; refuse two for the same sensor."""
    sensors = [item["sensor"] for item in items]
    if twice := [sensor for sensor in sensors if sensors.count(sensor) > 1]:
        raise vol.Invalid(f"expected each sensor once, but sensor {twice[0]} has more than one item")
    return items


@pyscript_compile
def path(value: Any) -> str:
    """Return the path of a websocket's address."""
    path = fields.text(value)
    if not path.startswith("/") or set(path) & set("?#{} "):
        raise ValueError
    return path


@pyscript_compile
def name_or_id(value: Any) -> str:
    """Return a name or resource_id as text; YAML reads one that consists of digits as a number."""
    return fields.text(str(value) if type(value) is int else value)


@pyscript_compile
def energy_per_fill_level(value: Any) -> float:
    """Return the energy of one unit of fill level (Wh)."""
    if (watt_hours := quantities.energy(value)) <= 0:
        raise ValueError
    return watt_hours


@pyscript_compile
def prices(value: Any) -> dict[str, float]:
    """Return prices by the commodity's name in S2."""
    return {name.upper(): price for name, price in PRICES_SCHEMA(value).items()}


@pyscript_compile
def section_or_none(schema: fields.Validator) -> fields.Validator:
    """Return a validator of a section; an empty one has the defaults."""

    def validate(value: Any) -> Any:
        if not isinstance(value, (dict, type(None))):
            raise vol.Invalid("expected keys and values")
        return schema(value or {})

    return validate


@pyscript_compile
def limits(value: Any) -> listener.Limits:
    """Return the Limits of a section, with defaults for those that it lacks."""
    return listener.Limits(**LIMITS_SCHEMA(value))


@pyscript_compile
def one_of(units: Sequence[str]) -> fields.Validator:
    """Return a validator of a unit."""
    validator: fields.Validator = vol.Any(*units, msg=f"expected one of {', '.join(units)}")
    return validator


STATE_OF_CHARGE = fields.expects(quantities.parse, "a number in soc_unit")
DAILY_TARGET = {
    vol.Required("value"): STATE_OF_CHARGE,
    vol.Required("time"): fields.TIME,
    vol.Optional("weekdays", default=WEEKDAYS): fields.WEEKDAY_NUMBERS,
}
MEASUREMENT = {
    vol.Required("entity"): fields.ENTITY,
    vol.Required("sensor"): fields.SENSOR,
    vol.Optional("resolution"): fields.RESOLUTION,
    vol.Optional("unit"): fields.UNIT,
    vol.Optional("positive"): fields.SIGN,
}
LIMITS_SCHEMA = vol.Schema(
    {
        vol.Optional("connections"): fields.COUNT,
        vol.Optional("message"): fields.SIZE,
        vol.Optional("depth"): fields.COUNT,
        vol.Optional("rate"): fields.COUNT,
        vol.Optional("heartbeat"): fields.SECONDS,
        vol.Optional("confirmation"): fields.SECONDS,
        vol.Optional("handshake"): fields.SECONDS,
        vol.Optional("reading"): fields.SECONDS,
    }
)
TOKEN = fields.expects(fields.text, "a text, in quotes where it is all digits")
NAME_OR_ID = fields.expects(name_or_id, "the resource_id or the name of a Resource Manager")
RESOURCE = {
    vol.Optional("power_sensor"): fields.SENSOR,
    vol.Optional("soc_sensor"): fields.SENSOR,
    vol.Optional("energy_per_fill_level"): fields.expects(
        energy_per_fill_level, "the energy of one unit of fill level, such as '0.1 kWh'"
    ),
    vol.Optional("instruction_lead"): fields.INSTRUCTION_LEAD,
    vol.Optional("cycle_cost"): fields.ENERGY_PRICE,
    vol.Optional("token"): TOKEN,
}
PRICES_SCHEMA = vol.Schema(
    {
        vol.Optional("gas"): fields.PRICE,
        vol.Optional("heat"): fields.PRICE,
        vol.Optional("oil"): fields.PRICE,
        vol.Optional("hydrogen"): fields.PRICE,
    }
)
S2_SCHEMA = vol.Schema(
    {
        vol.Optional("enabled", default=True): fields.BOOLEAN,
        vol.Optional("host", default="127.0.0.1"): fields.TEXT,
        vol.Optional("port", default=8765): fields.PORT,
        vol.Optional("path", default="/s2"): fields.expects(path, "a path such as /s2"),
        vol.Optional("token"): TOKEN,
        vol.Optional("allow_anonymous", default=False): fields.BOOLEAN,
        vol.Optional("certificate"): fields.TEXT,
        vol.Optional("key"): fields.TEXT,
        vol.Optional("control_type"): fields.CONTROL_TYPE,
        vol.Optional("auto_provision", default=True): fields.BOOLEAN,
        vol.Optional("instruction_lead", default=sites.LEAD_SECONDS): fields.INSTRUCTION_LEAD,
        vol.Optional("resources", default=dict): section_or_none(vol.Schema({NAME_OR_ID: RESOURCE})),
        vol.Optional("prices", default=dict): section_or_none(prices),
        vol.Optional("limits", default=dict): section_or_none(limits),
    }
)
SCHEMA = vol.Schema(
    {
        vol.Required("host"): fields.expects(
            host, "an address such as flexmeasures.io or http://localhost:5000, without a path"
        ),
        vol.Required("username"): fields.expects(username, "the e-mail address of a FlexMeasures user"),
        vol.Required("password"): fields.TEXT,
        vol.Required("power_sensor"): fields.SENSOR,
        vol.Required("consumption_price_sensor"): fields.SENSOR,
        vol.Optional("production_price_sensor"): fields.SENSOR,
        vol.Optional("soc_sensor"): fields.SENSOR,
        vol.Optional("rm_discharge_sensor"): fields.SENSOR,
        vol.Optional("schedule_duration", default="PT24H"): fields.SCHEDULE_DURATION,
        vol.Optional("soc_unit", default="kWh"): one_of(quantities.ENERGY_UNITS),
        vol.Required("soc_min"): STATE_OF_CHARGE,
        vol.Required("soc_max"): STATE_OF_CHARGE,
        vol.Optional("soc_at_end"): STATE_OF_CHARGE,
        vol.Optional("soc_targets", default=list): fields.many(vol.Schema(DAILY_TARGET)),
        vol.Optional("power_capacity"): fields.POWER,
        vol.Optional("consumption_capacity"): fields.CAPACITY,
        vol.Optional("production_capacity"): fields.CAPACITY,
        vol.Optional("minimum_power"): fields.POWER,
        vol.Optional("roundtrip_efficiency"): fields.expects(
            roundtrip_efficiency, "an efficiency such as 0.9 or '90 %'"
        ),
        vol.Optional("schedule_unit", default="kW"): one_of(
            (*quantities.POWER_UNITS, *quantities.ENERGY_UNITS)
        ),
        vol.Optional("soc_entity"): fields.ENTITY,
        vol.Optional("soc_entity_unit"): one_of((*quantities.ENERGY_UNITS, "%")),
        vol.Optional("soc_max_age", default="PT1H"): fields.DURATION,
        vol.Optional("cron"): fields.expects(cron_expression, "a cron expression such as '*/15 * * * *'"),
        vol.Optional("measurements", default=list): vol.All([MEASUREMENT], each_sensor_once),
        vol.Optional("site"): fields.ASSET,
        vol.Optional("site_power_capacity"): fields.POWER,
        vol.Optional("site_consumption_capacity"): fields.POWER,
        vol.Optional("site_production_capacity"): fields.CAPACITY,
        vol.Optional("site_peak_consumption"): fields.CAPACITY,
        vol.Optional("site_peak_consumption_price"): fields.POWER_PRICE,
        vol.Optional("flex_model"): fields.RAW_FIELDS,
        vol.Optional("flex_context"): fields.RAW_FIELDS,
        vol.Optional("s2", default=dict): section_or_none(S2_SCHEMA),
    }
)


@pyscript_compile
def read(section: Any) -> tuple[Configuration | None, list[str]]:
    """Return (Configuration, []), or (None, a sentence for each mistake, without secrets)."""
    given, mistakes = read_with_secrets(section)
    secrets = redaction.secrets_in(section)
    redact = redaction.redactor(lambda: secrets)
    return given, [redact(mistake) for mistake in mistakes]


@pyscript_compile
def read_with_secrets(section: Any) -> tuple[Configuration | None, list[str]]:
    """Return (Configuration, []), or (None, a sentence for each mistake)."""
    section = {} if section is None else section
    if not isinstance(section, dict):
        return None, ["expected keys and values under apps: flexmeasures:"]
    names = [str(key) for key in SCHEMA.schema]
    mistakes: list[str] = []
    given: dict[str, Any] = {}
    try:
        given = SCHEMA(section)
    except vol.Invalid as invalid:
        max_count = fields.MAX_MISTAKES_OF_CONFIGURATION
        mistakes = fields.mistakes(invalid, section, names, "key of this app", max_count)
    soc, soc_mistakes = soc_limits(section)
    mistakes += soc_mistakes
    targets: dict[str, Any] = {}
    if not mistakes:
        targets, mistakes = target_levels(given, soc["soc_max"])
    if not mistakes:
        mistakes = contradictions(given) + unlikely_powers(given, soc["soc_max"])
    if mistakes:
        return None, mistakes
    given = {"production_price_sensor": given["consumption_price_sensor"]} | given | soc | targets
    given["s2"] = S2Configuration(
        **with_none(S2Configuration, given["s2"] | {"is_configured": "s2" in section})
    )
    return Configuration(**with_none(Configuration, given)), []


@pyscript_compile
def with_none(record: type[Configuration | S2Configuration], given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record, with None for those that are not given."""
    return dict.fromkeys(record.__dataclass_fields__) | given


@pyscript_compile
def soc_limits(section: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Return soc_min and soc_max (Wh) and no mistake, or the mistake in their combination."""
    unit = section.get("soc_unit", "kWh")
    try:
        for name in ("soc_min", "soc_max"):
            quantities.parse(section[name])
    except (KeyError, ValueError):
        return {}, []
    if unit not in quantities.ENERGY_UNITS:
        return {}, []
    try:
        full = quantities.energy(section["soc_max"], unit)
        least = quantities.energy(section["soc_min"], unit, full)
    except ValueError as error:
        return {}, [f"soc_min, soc_max: {error}"]
    if not 0 <= least < full:
        given = f"{fields.quoted(section['soc_min'])} and {fields.quoted(section['soc_max'])}"
        return {}, [f"soc_min, soc_max: expected 0 <= soc_min < soc_max, but got {given}"]
    return {"soc_min": least, "soc_max": full}, []


@pyscript_compile
def target_levels(given: dict[str, Any], soc_max_wh: float) -> tuple[dict[str, Any], list[str]]:
    """Return soc_at_end and soc_targets (Wh), and the mistakes in them."""
    unit = given["soc_unit"]
    mistakes: list[str] = []

    def energy(name: str, parsed: tuple[float, str | None]) -> float | None:
        number, own_unit = parsed
        quantity = f"{number:g} {own_unit or unit}"
        try:
            energy_wh = quantities.energy(quantity, unit, soc_max_wh)
        except ValueError as error:
            mistakes.append(f"{name}: {error}, but got {quantity}")
            return None
        if not 0 <= energy_wh <= soc_max_wh:
            mistakes.append(f"{name}: expected at most soc_max, and not below 0, but got {quantity}")
        return energy_wh

    targets = [
        target | {"value": energy(f"soc_targets[{number}].value", target["value"])}
        for number, target in enumerate(given["soc_targets"])
    ]
    at_end = energy("soc_at_end", given["soc_at_end"]) if "soc_at_end" in given else None
    return {"soc_targets": targets, "soc_at_end": at_end}, mistakes


@pyscript_compile
def unlikely_powers(given: dict[str, Any], soc_max_wh: float) -> list[str]:
    """Return a mistake for each power (W) that would fill the device in a minute: W were given as kW."""
    return [
        f"{key}: {given[key] / 1000:g} kW would fill the device within a minute: give a unit, as in '5000 W'"
        for key in ("power_capacity", "consumption_capacity", "production_capacity", "minimum_power")
        if given.get(key, 0) > 60 * soc_max_wh
    ]


@pyscript_compile
def contradictions(given: dict[str, Any]) -> list[str]:
    """Return the mistakes in combinations of keys that are right by themselves."""
    mistakes: list[str] = []
    capacity: Any = given.get("consumption_capacity", given.get("power_capacity"))
    if "minimum_power" in given and capacity is None:
        mistakes.append("minimum_power: expected consumption_capacity or power_capacity too")
    elif "minimum_power" in given and given["minimum_power"] > capacity:
        mistakes.append(
            f"minimum_power: expected at most what the device can consume, {capacity / 1000:g} kW, but got "
            f"{given['minimum_power'] / 1000:g} kW"
        )
    if "consumption_capacity" in given and not {"production_capacity", "power_capacity"} & given.keys():
        mistakes.append(
            "consumption_capacity: expected production_capacity too ('0 kW': it never discharges)"
        )
    if "production_capacity" in given and not {"consumption_capacity", "power_capacity"} & given.keys():
        mistakes.append("production_capacity: expected consumption_capacity or power_capacity too")
    soc_entity = given.get("soc_entity", "")
    if soc_entity.count(".") == 2 and "soc_entity_unit" not in given:
        mistakes.append(
            f"soc_entity_unit is missing: {soc_entity} is an attribute, which has no unit ('%' or kWh)"
        )
    if "cron" in given and "soc_entity" not in given:
        mistakes.append("cron: expected soc_entity too, from which the state of charge is taken")
    sensors = [item["sensor"] for item in given["measurements"]]
    if "soc_entity" in given and given.get("soc_sensor") in sensors:
        mistakes.append(
            "measurements: expected no item for soc_sensor, which gets its values from soc_entity"
        )
    return mistakes + site_contradictions(given) + s2_contradictions(given["s2"])


@pyscript_compile
def site_contradictions(given: dict[str, Any]) -> list[str]:
    """Return the mistakes in combinations of keys of the site's connection to the grid."""
    mistakes: list[str] = []
    whole = given.get("site_power_capacity", math.inf)
    consumption = min(whole, given.get("site_consumption_capacity", math.inf))
    for key, maximum, name in (
        ("site_consumption_capacity", whole, "site_power_capacity"),
        ("site_production_capacity", whole, "site_power_capacity"),
        ("site_peak_consumption", consumption, "what the site can consume"),
    ):
        if given.get(key, 0.0) > maximum:
            mistakes.append(
                f"{key}: expected at most {name}, {maximum / 1000:g} kW, but got {given[key] / 1000:g} kW"
            )
    peak = "site_peak_consumption", "site_peak_consumption_price"
    for key, other in (peak, peak[::-1]):
        if key in given and other not in given:
            mistakes.append(f"{key}: expected {other} too")
    return mistakes


@pyscript_compile
def s2_contradictions(given: dict[str, Any]) -> list[str]:
    """Return the mistakes in combinations of keys under s2."""
    mistakes: list[str] = []
    if not (given.get("token") or given["allow_anonymous"] or is_loopback(given["host"])):
        mistakes.append(
            f"s2.token: expected a token, which Resource Managers send as a Bearer, to listen on "
            f"{given['host']}, beyond this machine (or allow_anonymous: true, to let in anyone)"
        )
    if "key" in given and "certificate" not in given:
        mistakes.append("s2.certificate: expected the certificate that belongs to s2.key")
    return mistakes


@pyscript_compile
def is_loopback(name: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
