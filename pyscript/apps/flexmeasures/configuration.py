"""The configuration under `pyscript: apps: flexmeasures:`, checked once."""

import ipaddress
import math
from dataclasses import dataclass, field
from datetime import timedelta
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


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Configuration:
        """One device as configured: power in W, energy in Wh, efficiency as a ratio.

        `soc_targets` are those of each day or some days: a `value`, a `time`, and the `weekdays` by number.
        """

        host: str
        username: str
        password: str = field(repr=False)
        power_sensor: int
        consumption_price_sensor: int
        production_price_sensor: int
        soc_sensor: int | None
        rm_discharge_sensor: int | None
        schedule_duration: timedelta
        soc_unit: str
        soc_min: float
        soc_max: float
        soc_at_end: float | None
        soc_targets: list
        power_capacity: float | None
        consumption_capacity: float | None
        production_capacity: float | None
        minimum_power: float | None
        roundtrip_efficiency: float | None
        schedule_unit: str
        soc_entity: str | None
        soc_entity_unit: str | None
        soc_max_age: timedelta
        cron: str | None
        measurements: list
        site: int | None
        site_power_capacity: float | None
        site_consumption_capacity: float | None
        site_production_capacity: float | None
        site_peak_consumption: float | None
        site_peak_consumption_price: quantities.PowerPrice | None
        flex_model: Any
        flex_context: Any
        s2: Any

    @dataclass
    class S2:
        """Where and for whom the CEM listens; `resources` maps a resource_id or name to its sensors.

        `prices` are those of commodities other than electricity: GAS per m3, HEAT per kWh, OIL per litre,
        HYDROGEN per kg. `instruction_lead` is how long before its time an instruction is sent (s).
        `is_configured` tells whether there is a section s2 at all.
        """

        enabled: bool
        host: str
        port: int
        path: str
        token: str | None = field(repr=False)
        allow_anonymous: bool
        certificate: str | None
        key: str | None
        control_type: str | None
        auto_provision: bool
        instruction_lead: float
        resources: dict = field(repr=False)
        prices: dict
        limits: Any
        is_configured: bool = False

    return Configuration, S2


Configuration, S2 = records()


@pyscript_compile
def host(value):
    """Return the host as given, if flexmeasures-client can use it."""
    connection.parse_host(fields.text(value))
    return value


@pyscript_compile
def username(value):
    """Return the e-mail address that FlexMeasures takes as the user's name."""
    name, _at, domain = fields.text(value).partition("@")
    if not name or "." not in domain:
        raise ValueError
    return value


@pyscript_compile
def roundtrip_efficiency(value):
    """Return a ratio; above 1 a bare number is a percentage."""
    number, unit = quantities.parse(value)
    share = quantities.ratio(value) if unit or number <= 1 else number / 100
    if not 0 < share <= 1:
        raise ValueError
    return share


@pyscript_compile
def cron_expression(value):
    """Return a cron expression that means some time."""
    cron.following(fields.text(value), dt_util.utcnow())
    return value


@pyscript_compile
def each_once(items):
    """Return the measurements, no sensor of which gets values from two."""
    sensors = [item["sensor"] for item in items]
    if twice := [sensor for sensor in sensors if sensors.count(sensor) > 1]:
        raise vol.Invalid(f"expected each sensor once, but sensor {twice[0]} is there more often")
    return items


@pyscript_compile
def path(value):
    """Return the path of a websocket's address."""
    if not fields.text(value).startswith("/") or set(value) & set("?#{} "):
        raise ValueError
    return value


@pyscript_compile
def name_or_id(value):
    """Return a name or resource_id as text; YAML reads one of digits as a number."""
    return fields.text(str(value) if type(value) is int else value)


@pyscript_compile
def energy_per_fill_level(value):
    """Return what one unit of fill level is worth, in Wh."""
    if (watt_hours := quantities.energy(value)) <= 0:
        raise ValueError
    return watt_hours


@pyscript_compile
def prices(value):
    """Return prices by the commodity's name in S2."""
    return {name.upper(): price for name, price in PRICES_SCHEMA(value).items()}


@pyscript_compile
def or_nothing(schema):
    """Return a validator of a section, of which nothing at all means the defaults."""

    def validate(value):
        if not isinstance(value, (dict, type(None))):
            raise vol.Invalid("expected keys and values")
        return schema(value or {})

    return validate


@pyscript_compile
def limits(value):
    """Return the Limits of a section that gives some of them."""
    return listener.Limits(**LIMITS_SCHEMA(value))


@pyscript_compile
def one_of(units):
    """Return a validator of a unit."""
    return vol.Any(*units, msg=f"expected one of {', '.join(units)}")


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
        vol.Optional("resources", default=dict): or_nothing(vol.Schema({NAME_OR_ID: RESOURCE})),
        vol.Optional("prices", default=dict): or_nothing(prices),
        vol.Optional("limits", default=dict): or_nothing(limits),
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
        vol.Optional("measurements", default=list): vol.All([MEASUREMENT], each_once),
        vol.Optional("site"): fields.ASSET,
        vol.Optional("site_power_capacity"): fields.POWER,
        vol.Optional("site_consumption_capacity"): fields.POWER,
        vol.Optional("site_production_capacity"): fields.CAPACITY,
        vol.Optional("site_peak_consumption"): fields.CAPACITY,
        vol.Optional("site_peak_consumption_price"): fields.POWER_PRICE,
        vol.Optional("flex_model"): fields.RAW_FIELDS,
        vol.Optional("flex_context"): fields.RAW_FIELDS,
        vol.Optional("s2", default=dict): or_nothing(S2_SCHEMA),
    }
)


@pyscript_compile
def read(section):
    """Return (Configuration, []), or (None, a sentence for each mistake, without secrets)."""
    given, mistakes = read_as_it_is(section)
    secrets = redaction.secrets_in(section)
    redact = redaction.redactor(lambda: secrets)
    return given, [redact(mistake) for mistake in mistakes]


@pyscript_compile
def read_as_it_is(section):
    """Return (Configuration, []), or (None, a sentence for each mistake)."""
    section = {} if section is None else section
    if not isinstance(section, dict):
        return None, ["expected keys and values under apps: flexmeasures:"]
    known = [str(key) for key in SCHEMA.schema]
    mistakes = []
    try:
        given = SCHEMA(section)
    except vol.Invalid as invalid:
        most = fields.MAX_MISTAKES_OF_CONFIGURATION
        mistakes = fields.mistakes(invalid, section, known, "key of this app", most)
    soc, mistake = soc_limits(section)
    mistakes += mistake
    if not mistakes:
        wanted, mistakes = wanted_levels(given, soc)
    if not mistakes:
        mistakes = contradictions(given) + unlikely_powers(given, soc["soc_max"])
    if mistakes:
        return None, mistakes
    given = {"production_price_sensor": given["consumption_price_sensor"]} | given | soc | wanted
    s2 = dict.fromkeys(S2.__dataclass_fields__) | given["s2"] | {"is_configured": "s2" in section}
    given["s2"] = S2(**s2)
    return Configuration(**(dict.fromkeys(Configuration.__dataclass_fields__) | given)), []


@pyscript_compile
def soc_limits(section):
    """Return soc_min and soc_max in Wh and no mistake, or the mistake that they make together."""
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
def wanted_levels(given: dict[str, Any], soc: dict[str, float]) -> tuple[dict[str, Any], list[str]]:
    """Return soc_at_end and soc_targets in Wh, and the mistakes in them."""
    unit, full, mistakes = given["soc_unit"], soc["soc_max"], []

    def energy(name: str, parsed: tuple[float, str | None]) -> float | None:
        number, own_unit = parsed
        quantity = f"{number:g} {own_unit or unit}"
        try:
            found = quantities.energy(quantity, unit, full)
        except ValueError as error:
            mistakes.append(f"{name}: {error}, but got {quantity}")
            return None
        if not 0 <= found <= full:
            mistakes.append(f"{name}: expected at most soc_max, and not below 0, but got {quantity}")
        return found

    targets = [
        target | {"value": energy(f"soc_targets[{number}].value", target["value"])}
        for number, target in enumerate(given["soc_targets"])
    ]
    at_end = energy("soc_at_end", given["soc_at_end"]) if "soc_at_end" in given else None
    return {"soc_targets": targets, "soc_at_end": at_end}, mistakes


@pyscript_compile
def unlikely_powers(given: dict[str, Any], full: float) -> list[str]:
    """Return a mistake for each power (W) that would fill the device (Wh) in a minute: W were taken as kW."""
    return [
        f"{key}: {given[key] / 1000:g} kW would fill the device within a minute: give a unit, as in '5000 W'"
        for key in ("power_capacity", "consumption_capacity", "production_capacity", "minimum_power")
        if given.get(key, 0) > 60 * full
    ]


@pyscript_compile
def contradictions(given):
    """Return the mistakes that keys make together, each of which is right."""
    found = []
    capacity = given.get("consumption_capacity", given.get("power_capacity"))
    if "minimum_power" in given and capacity is None:
        found.append("minimum_power: expected consumption_capacity or power_capacity too")
    elif "minimum_power" in given and given["minimum_power"] > capacity:
        found.append(
            f"minimum_power: expected at most what the device can consume, {capacity / 1000:g} kW, but got "
            f"{given['minimum_power'] / 1000:g} kW"
        )
    if "consumption_capacity" in given and not {"production_capacity", "power_capacity"} & given.keys():
        found.append("consumption_capacity: expected production_capacity too ('0 kW': it never discharges)")
    if "production_capacity" in given and not {"consumption_capacity", "power_capacity"} & given.keys():
        found.append("production_capacity: expected consumption_capacity or power_capacity too")
    soc_entity = given.get("soc_entity", "")
    if soc_entity.count(".") == 2 and "soc_entity_unit" not in given:
        found.append(
            f"soc_entity_unit is missing: {soc_entity} is an attribute, which has no unit ('%' or kWh)"
        )
    if "cron" in given and "soc_entity" not in given:
        found.append("cron: expected soc_entity too, from which the state of charge is taken")
    sensors = [item["sensor"] for item in given["measurements"]]
    if "soc_entity" in given and given.get("soc_sensor") in sensors:
        found.append("measurements: expected no item for soc_sensor, which gets its values from soc_entity")
    return found + site_contradictions(given) + s2_contradictions(given["s2"])


@pyscript_compile
def site_contradictions(given: dict[str, Any]) -> list[str]:
    """Return the mistakes that keys of the site's connection to the grid make together."""
    found, whole = [], given.get("site_power_capacity", math.inf)
    consumption = min(whole, given.get("site_consumption_capacity", math.inf))
    for key, most, name in (
        ("site_consumption_capacity", whole, "site_power_capacity"),
        ("site_production_capacity", whole, "site_power_capacity"),
        ("site_peak_consumption", consumption, "what the site can consume"),
    ):
        if given.get(key, 0.0) > most:
            found.append(
                f"{key}: expected at most {name}, {most / 1000:g} kW, but got {given[key] / 1000:g} kW"
            )
    peak = "site_peak_consumption", "site_peak_consumption_price"
    for key, other in (peak, peak[::-1]):
        if key in given and other not in given:
            found.append(f"{key}: expected {other} too")
    return found


@pyscript_compile
def s2_contradictions(given):
    """Return the mistakes that keys under s2 make together."""
    found = []
    if not (given.get("token") or given["allow_anonymous"] or is_loopback(given["host"])):
        found.append(
            f"s2.token: expected a token, which Resource Managers send as a Bearer, to listen on "
            f"{given['host']}, beyond this machine (or allow_anonymous: true, to let in anyone)"
        )
    if "key" in given and "certificate" not in given:
        found.append("s2.certificate: expected the certificate that belongs to s2.key")
    return found


@pyscript_compile
def is_loopback(name):
    """Tell whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
