"""A device under operation mode based control, as a part of the site model."""

from collections.abc import Sequence

import flexmeasures_cem.control_types.operation_modes.model as operation_modes
import flexmeasures_cem.control_types.operation_modes.modes as modes
import flexmeasures_cem.control_types.operation_modes.site_part as site_parts
import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.site as sites


@pyscript_compile
def grid_edges(device: modes.Actuator, state: modes.State) -> list[float]:
    """Return moments (s since 1970) at which an edge of the grid helps: when the device can go on."""
    edges = operation_modes.cuts([device], [state.actuators[device.id]])
    return edges[: operation_modes.MAX_CUTS]


@pyscript_compile
def add_to_site(
    site: sites.Site,
    device: modes.Actuator,
    state: modes.State,
    _schedule: Sequence[tuple[float, float, float]] | None,
    tariffs: markets.Tariffs,
    _storage_terms: markets.StorageTerms = markets.AS_DESCRIBED,
) -> site_parts.SitePart:
    """Add a device to a Site; it follows no schedule, and has no storage."""
    return site_parts.SitePart(site, [device], state, tariffs)
