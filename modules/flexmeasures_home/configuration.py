"""What the user has configured, once it is checked: the app's `configuration.py` has the schema."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from flexmeasures_api.quantities import PowerPrice
from flexmeasures_s2.listener import Limits


@dataclass(kw_only=True)
class _S2Configuration:
    """The section `s2`: where the CEM listens, for whom, and with which sensors.

    `resources` maps a resource_id or name to its sensors and other settings. `prices` are those of
    commodities other than electricity: GAS per m3, HEAT per kWh, OIL per litre, HYDROGEN per kg.
    `instruction_lead` is how long before its time an instruction is sent (s). `is_configured` tells whether
    the user has a section `s2` at all.
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
    resources: dict[str, dict[str, Any]] = field(repr=False)
    prices: dict[str, float]
    limits: Limits
    is_configured: bool = False


S2Configuration = _S2Configuration


@dataclass(kw_only=True)
class _Configuration:
    """The section `flexmeasures`: powers in W, energies in Wh, efficiencies as ratios.

    `soc_targets` are those of each day or some days: a `value`, a `time`, and the `weekdays` by number.
    `measurements` have an `entity` and a `sensor`, and may have a `resolution`, `unit` and `positive`.
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
    soc_targets: list[dict[str, Any]]
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
    measurements: list[dict[str, Any]]
    site: int | None
    site_power_capacity: float | None
    site_consumption_capacity: float | None
    site_production_capacity: float | None
    site_peak_consumption: float | None
    site_peak_consumption_price: PowerPrice | None
    flex_model: dict[str, Any] | None
    flex_context: dict[str, Any] | None
    s2: S2Configuration


Configuration = _Configuration
