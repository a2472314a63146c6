"""A device that is planned by itself, as the site model plans it beside others."""

from typing import Any

import flexmeasures_cem.control_types as control_types
import flexmeasures_cem.models.alone as alone


def plan_alone(
    kind: Any, device: Any, state: Any, wanted: list | None, market: list, tariffs: dict[str, float]
) -> Any:
    """Return the Plan of a device under a control type; `wanted` has the powers of a schedule to follow."""
    return alone.planned(control_types.MODELS[kind.CONTROL_TYPE], device, state, wanted, market, tariffs)
