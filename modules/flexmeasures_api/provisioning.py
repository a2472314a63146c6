"""Assets and sensors on FlexMeasures for devices that bring none: made once, and found again."""

from dataclasses import dataclass

import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors

RESOURCE_ID = "resource_id"
"""The asset's attribute that says whose it is."""
LONGEST_NAME = 80
POWER, STATE_OF_CHARGE = "power", "state of charge"
POWER_SENSOR = {"event_resolution": "PT15M", "unit": "kW", "attributes": {"consumption_is_positive": True}}
SOC_SENSOR = {"event_resolution": "PT0M", "unit": "%"}
ASSET_TYPES = {"ENERGY_STORAGE": "battery", "ENERGY_PRODUCER": "solar", "ENERGY_CONSUMER": "process"}
"""FlexMeasures' generic asset type for each S2 role."""


@pyscript_compile
def record():
    """Define the record: natively, so that compiled code can make it."""

    @dataclass
    class Provision:
        """The numbers of a device's asset and sensors on FlexMeasures; None where it has none."""

        asset: int | None = None
        power_sensor: int | None = None
        soc_sensor: int | None = None

    return Provision


Provision = record()


@pyscript_compile
async def site_of(link, power_sensor):
    """Return the asset that a power sensor's device belongs to: the device's parent, else itself."""
    asset_id = (await connection.sensor(link, power_sensor)).asset
    return (await connection.asset(link, asset_id)).get("parent_asset_id") or asset_id


@pyscript_compile
async def provide(link, site_id, resource_id, name, role, with_soc):
    """Return the Provision of a device under a site, found there or made now; raise a FlexMeasuresError.

    The asset is known by its attribute `resource_id`, the sensors by their names in it, so that what
    was left unfinished is completed.
    """
    client = link.client
    found = await connection.ask(
        link,
        client.get_assets(
            all_accessible=True,
            root=site_id,
            depth=1,
            fields=["id", "name", "attributes"],
            parse_json_fields=True,
        ),
    )
    with connection.understood(link):
        own = [each for each in found if (each.get("attributes") or {}).get(RESOURCE_ID) == resource_id]
    if own:
        asset_id = min(each["id"] for each in own)
    else:
        taken = {each["name"] for each in found}
        asset_id = await new_asset(link, site_id, resource_id, free_name(name, resource_id, taken), role)
    sensors = await connection.ask(link, client.get_sensors(asset_id, parse_json_fields=True))
    known = {each["name"]: each["id"] for each in sensors}
    return Provision(
        asset_id,
        known.get(POWER) or await new_sensor(link, asset_id, POWER, POWER_SENSOR),
        (known.get(STATE_OF_CHARGE) or await new_sensor(link, asset_id, STATE_OF_CHARGE, SOC_SENSOR))
        if with_soc
        else known.get(STATE_OF_CHARGE),
    )


@pyscript_compile
def free_name(name, resource_id, taken):
    """Return the name, with the resource_id where another asset has it."""
    suffix = f" ({resource_id})" if name in taken else ""
    return name[: LONGEST_NAME - len(suffix)] + suffix


@pyscript_compile
async def new_asset(link, site_id, resource_id, name, role):
    """Make an asset under the site, and return its number."""
    site = await connection.asset(link, site_id)
    types = {each["name"]: each["id"] for each in await connection.ask(link, link.client.get_asset_types())}
    with connection.understood(link):
        asset_type = types.get(ASSET_TYPES.get(role)) or site["generic_asset_type_id"]
        place = {name: site[name] for name in ("latitude", "longitude")}
    if site.get("account_id") is None:
        raise errors.NoAccess(
            f"site: asset {site_id} is public, so nothing can be made under it: give an asset of your account"
        )
    made = await connection.ask(
        link,
        link.client.add_asset(
            name=name,
            account_id=site["account_id"],
            **place,
            generic_asset_type_id=asset_type,
            parent_asset_id=site_id,
            attributes={RESOURCE_ID: resource_id},
        ),
    )
    return made["id"]


@pyscript_compile
async def new_sensor(link, asset_id, name, fields):
    """Make a sensor, and return its number."""
    made = await connection.ask(link, link.client.add_sensor(name=name, generic_asset_id=asset_id, **fields))
    return made["id"]
