"""Assets and sensors on FlexMeasures for devices that bring none: created once, and reused afterwards."""

from dataclasses import dataclass
from typing import Any

import flexmeasures_api.error_mapping as error_mapping
import flexmeasures_api.errors as errors
from flexmeasures_api.connection import Connection

RESOURCE_ID = "resource_id"
"""The attribute of an asset that holds the S2 resource_id of its device."""
MAX_NAME_CHARACTERS = 80
"""FlexMeasures' own limit."""
POWER, STATE_OF_CHARGE = "power", "state of charge"
POWER_SENSOR = {"event_resolution": "PT15M", "unit": "kW", "attributes": {"consumption_is_positive": True}}
SOC_SENSOR = {"event_resolution": "PT0M", "unit": "%"}
ASSET_TYPES = {"ENERGY_STORAGE": "battery", "ENERGY_PRODUCER": "solar", "ENERGY_CONSUMER": "process"}
"""FlexMeasures' generic asset type for each S2 role."""


@dataclass(frozen=True)
class _DeviceIds:
    """The ids of a device's asset and sensors on FlexMeasures; None where it has none."""

    asset: int | None = None
    power_sensor: int | None = None
    soc_sensor: int | None = None


DeviceIds = _DeviceIds


@pyscript_compile
async def site_of(connection: Connection, power_sensor_id: int) -> int:
    """Return the id of the site's asset: the parent of the power sensor's asset, else that asset."""
    asset_id = (await connection.sensor(power_sensor_id)).asset
    return (await connection.asset(asset_id)).get("parent_asset_id") or asset_id


@pyscript_compile
async def provide(
    connection: Connection, site_id: int, *, resource_id: str, name: str, role: str, has_soc: bool
) -> DeviceIds:
    """Return the ids of a device under a site, and create what is missing; raise a FlexMeasuresError.

    The asset is recognised by its attribute `resource_id`, the sensors by their names in it, so that a
    creation that was interrupted is completed.
    """
    client = connection.client
    assets = await connection.request(
        client.get_assets(
            all_accessible=True,
            root=site_id,
            depth=1,
            fields=["id", "name", "attributes"],
            parse_json_fields=True,
        )
    )
    with error_mapping.reading_answer(connection.host):
        own_ids = [
            asset["id"] for asset in assets if (asset.get("attributes") or {}).get(RESOURCE_ID) == resource_id
        ]
    if own_ids:
        asset_id = min(own_ids)
    else:
        taken = {asset["name"] for asset in assets}
        asset_id = await new_asset(
            connection, site_id, resource_id=resource_id, name=free_name(name, resource_id, taken), role=role
        )
    sensors = await connection.request(client.get_sensors(asset_id, parse_json_fields=True))
    ids = {sensor["name"]: sensor["id"] for sensor in sensors}
    power_sensor = ids.get(POWER) or await new_sensor(connection, asset_id, POWER, POWER_SENSOR)
    soc_sensor = ids.get(STATE_OF_CHARGE)
    if has_soc and not soc_sensor:
        soc_sensor = await new_sensor(connection, asset_id, STATE_OF_CHARGE, SOC_SENSOR)
    return DeviceIds(asset_id, power_sensor, soc_sensor)


@pyscript_compile
def free_name(name: str, resource_id: str, taken: set[str]) -> str:
    """Return the name, followed by the resource_id if another asset has the same."""
    suffix = f" ({resource_id})" if name in taken else ""
    return name[: MAX_NAME_CHARACTERS - len(suffix)] + suffix


@pyscript_compile
async def new_asset(connection: Connection, site_id: int, *, resource_id: str, name: str, role: str) -> int:
    """Create an asset under the site, and return its id."""
    client = connection.client
    site = await connection.asset(site_id)
    asset_types = await connection.request(client.get_asset_types())
    with error_mapping.reading_answer(connection.host):
        type_ids = {asset_type["name"]: asset_type["id"] for asset_type in asset_types}
        type_id = type_ids.get(ASSET_TYPES.get(role)) or site["generic_asset_type_id"]
        location = {key: site[key] for key in ("latitude", "longitude")}
    if site.get("account_id") is None:
        raise errors.NoAccess(
            f"site: asset {site_id} is public, so nothing can be created under it: "
            f"give an asset of your account"
        )
    asset = await connection.request(
        client.add_asset(
            name=name,
            account_id=site["account_id"],
            **location,
            generic_asset_type_id=type_id,
            parent_asset_id=site_id,
            attributes={RESOURCE_ID: resource_id},
        )
    )
    return int(asset["id"])


@pyscript_compile
async def new_sensor(connection: Connection, asset_id: int, name: str, fields: dict[str, Any]) -> int:
    """Create a sensor, and return its id."""
    sensor = await connection.request(
        connection.client.add_sensor(name=name, generic_asset_id=asset_id, **fields)
    )
    return int(sensor["id"])
