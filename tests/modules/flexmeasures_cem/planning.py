"""A device that is planned by itself, as the site model plans it beside others."""

from typing import Any

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.site.alone as alone

STORAGE_EFFORT = search.Effort(seconds=10.0, gap=1e-4, relative_gap=1e-4)
"""How well a storage is planned: to a hundredth of a cent, or of a percent."""


def plan_alone(
    control_type: base.ControlType,
    device: Any,
    state: Any,
    wanted: list | None,
    market: list,
    tariffs: dict[str, float],
) -> Any:
    """Return the Plan of a device under a control type; `wanted` has the powers of a schedule to follow."""
    effort = STORAGE_EFFORT if control_type.energy_per_fill_level else None
    return alone.planned(control_type, device, state, wanted, market, tariffs, effort)
