"""Devices that FlexMeasures schedules, as entries of a trigger's `flex-model`, and its `flex-context`.

The fields carry FlexMeasures' names. Energy is in Wh, power in W, and an efficiency is a ratio.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import flexmeasures_api.quantities as quantities

FAR_OUTSIDE = 0.05
"""A state of charge this far outside its range (part of soc_max) is brought back at once, at any price."""
RETURN_TIME = timedelta(hours=4)
RETURN_MARGIN = 0.02
"""A smaller deviation is corrected at the best prices within RETURN_TIME, and this far into the range (part
of soc_max): what is missing up to the bound alone may be less than the device can charge."""


@dataclass(frozen=True)
class _SocEvent:
    """A state of charge (Wh) to reach, or not to leave, from `start` to `end`; equal times are a moment."""

    start: datetime
    end: datetime
    value: float


SocEvent = _SocEvent


@dataclass(frozen=True)
class _PowerSpan:
    """A mean power (W) from `start` to `end`."""

    start: datetime
    end: datetime
    value: float


PowerSpan = _PowerSpan


@dataclass(frozen=True, kw_only=True)
class _Storage:
    """The state and limits of a battery (or the like) at the start of a schedule.

    A capacity is a power or a list of PowerSpans. `storage_efficiency` is that of one step. The device
    consumes nothing, or at least `minimum_power`. `operation_modes` are ranges (lowest, highest) of power,
    consumption positive. `flex_model` holds raw FlexMeasures fields, which prevail over the others.
    """

    power_sensor: int
    soc_at_start: float
    soc_min: float
    soc_max: float
    soc_sensor: int | None = None
    soc_targets: Sequence[SocEvent] = ()
    soc_minima: Sequence[SocEvent] = ()
    soc_maxima: Sequence[SocEvent] = ()
    soc_at_end: float | None = None
    power_capacity: float | None = None
    roundtrip_efficiency: float | None = None
    charging_efficiency: float | None = None
    discharging_efficiency: float | None = None
    storage_efficiency: float | None = None
    consumption_capacity: float | list[PowerSpan] | None = None
    production_capacity: float | list[PowerSpan] | None = None
    minimum_power: float | None = None
    soc_usage: Sequence[PowerSpan] = ()
    operation_modes: Sequence[tuple[float, float]] = ()
    flex_model: Mapping[str, Any] | None = None


Storage = _Storage


@dataclass(frozen=True)
class _Flow:
    """A device that stores nothing, such as solar panels, by the most it may consume and produce.

    A capacity is a power, or a list of PowerSpans that cover all of the schedule.
    """

    power_sensor: int
    consumption_capacity: float | list[PowerSpan]
    production_capacity: float | list[PowerSpan]


Flow = _Flow


@pyscript_compile
def as_spans(powers_w: Sequence[float], start: float, step_seconds: float) -> list[PowerSpan]:
    """Return the mean powers of steps from `start` (s since 1970) on, equal neighbours as one PowerSpan."""
    spans: list[PowerSpan] = []
    for place, power_w in enumerate(powers_w):
        end = datetime.fromtimestamp(start + (place + 1) * step_seconds, UTC)
        if spans and spans[-1].value == power_w:
            spans[-1] = replace(spans[-1], end=end)
        else:
            spans.append(PowerSpan(datetime.fromtimestamp(start + place * step_seconds, UTC), end, power_w))
    return spans


@pyscript_compile
def flex_model_entry(device: Storage | Flow, start: datetime, end: datetime) -> dict[str, Any]:
    """Return the entry of a device for a trigger's `flex-model` list."""
    if isinstance(device, Flow):
        return {
            "sensor": device.power_sensor,
            "consumption-capacity": power_field(device.consumption_capacity),
            "production-capacity": power_field(device.production_capacity),
        }
    return storage_entry(device, start, end)


@pyscript_compile
def storage_entry(storage: Storage, start: datetime, end: datetime) -> dict[str, Any]:
    """Return the entry of a Storage for a trigger's `flex-model` list.

    A state of charge outside [soc_min, soc_max] would be infeasible: the hard bound is widened to it, and the
    configured bound is a soft minimum or maximum. A bound in the raw fields is sent as it is.
    """
    soc, raw = storage.soc_at_start, storage.flex_model or {}
    minima, maxima = list(storage.soc_minima), list(storage.soc_maxima)
    if storage.soc_at_end is not None:
        minima.append(SocEvent(end, end, storage.soc_at_end))
    if soc < storage.soc_min and "soc-min" not in raw:
        minima += return_into_range(storage, storage.soc_min, 1, start, end)
    if soc > storage.soc_max and "soc-max" not in raw:
        maxima += return_into_range(storage, storage.soc_max, -1, start, end)
    model: dict[str, Any] = {
        "sensor": storage.power_sensor,
        "soc-at-start": quantities.as_energy(soc),
        "soc-min": quantities.as_energy(min(storage.soc_min, soc)),
        "soc-max": quantities.as_energy(max(storage.soc_max, soc)),
        "soc-targets": [soc_field(event) for event in storage.soc_targets],
        "soc-minima": [soc_field(event) for event in minima],
        "soc-maxima": [soc_field(event) for event in maxima],
        "power-capacity": storage.power_capacity and quantities.as_power(storage.power_capacity),
        "roundtrip-efficiency": ratio_field(storage.roundtrip_efficiency),
        "charging-efficiency": ratio_field(storage.charging_efficiency),
        "discharging-efficiency": ratio_field(storage.discharging_efficiency),
        "storage-efficiency": ratio_field(storage.storage_efficiency),
        "consumption-capacity": power_field(storage.consumption_capacity),
        "production-capacity": power_field(storage.production_capacity),
        "soc-usage": [power_field(list(storage.soc_usage))] if storage.soc_usage else None,
        "operation-modes": [
            operation_mode_field(lowest, highest) for lowest, highest in operation_modes(storage)
        ],
        "state-of-charge": storage.soc_sensor and {"sensor": storage.soc_sensor},
    }
    if {"charging-efficiency", "discharging-efficiency"} & raw.keys():
        model["roundtrip-efficiency"] = None
    return {name: value for name, value in model.items() if value or value == 0} | dict(raw)


@pyscript_compile
def return_into_range(
    storage: Storage, bound_wh: float, direction: int, start: datetime, end: datetime
) -> list[SocEvent]:
    """Return the events that bring a state of charge back over a bound, up (`direction` 1) or down (-1)."""
    if abs(bound_wh - storage.soc_at_start) > FAR_OUTSIDE * storage.soc_max:
        return [SocEvent(start, end, bound_wh)]
    margin_wh = min(RETURN_MARGIN * storage.soc_max, storage.soc_max - storage.soc_min)
    back_at = min(start + RETURN_TIME, end)
    return [
        SocEvent(back_at, back_at, bound_wh + direction * margin_wh),
        SocEvent(back_at, end, bound_wh),
    ]


@pyscript_compile
def operation_modes(storage: Storage) -> Sequence[tuple[float, float]]:
    """Return the ranges of power (W) that FlexMeasures is to choose from, consumption positive."""
    if storage.operation_modes or not storage.minimum_power:
        return storage.operation_modes
    capacity, consumption, production = (
        storage.power_capacity,
        storage.consumption_capacity,
        storage.production_capacity,
    )
    modes = [(0.0, 0.0), (storage.minimum_power, max_power(capacity if consumption is None else consumption))]
    if max_production := max_power(capacity if production is None else production):
        modes.append((-max_production, 0.0))
    return modes


@pyscript_compile
def max_power(capacity: float | list[PowerSpan] | None) -> float:
    """Return the greatest power (W) of a capacity, 0 without one."""
    if isinstance(capacity, list):
        return max([span.value for span in capacity], default=0.0)
    return capacity or 0.0


@pyscript_compile
def ratio_field(ratio: float | None) -> str | None:
    """Write a ratio as FlexMeasures reads it, or None."""
    return None if ratio is None else quantities.as_percentage(ratio)


@pyscript_compile
def power_field(power: float | list[PowerSpan] | None) -> str | list[dict[str, str]] | None:
    """Write a power (W), or PowerSpans, as FlexMeasures reads them, or None."""
    if isinstance(power, list):
        return [
            {
                "start": span.start.isoformat(),
                "end": span.end.isoformat(),
                "value": quantities.as_power(span.value),
            }
            for span in power
        ]
    return None if power is None else quantities.as_power(power)


@pyscript_compile
def operation_mode_field(lowest_w: float, highest_w: float) -> dict[str, list[str]]:
    """Write a range of power as an operation mode of FlexMeasures."""
    mode = {}
    if highest_w > 0 or lowest_w == highest_w == 0:
        mode["consumption-range"] = [quantities.as_power(max(lowest_w, 0)), quantities.as_power(highest_w)]
    if lowest_w < 0:
        mode["production-range"] = [quantities.as_power(max(-highest_w, 0)), quantities.as_power(-lowest_w)]
    return mode


@pyscript_compile
def soc_field(event: SocEvent) -> dict[str, str]:
    """Write a SocEvent as an item of FlexMeasures' time series."""
    value = quantities.as_energy(event.value)
    if event.start == event.end:
        return {"datetime": event.start.isoformat(), "value": value}
    return {"start": event.start.isoformat(), "end": event.end.isoformat(), "value": value}


@pyscript_compile
def flex_context(prices: Mapping[str, Any], *additions: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a trigger's `flex-context`: the additions, of which later ones prevail, and `prices`."""
    context: dict[str, Any] = {}
    for addition in additions:
        context |= addition or {}
    return context | dict(prices)


@pyscript_compile
def last_soc_event_end(storage: Storage) -> datetime | None:
    """Return when the last target, minimum or maximum ends, or None."""
    events = [*storage.soc_targets, *storage.soc_minima, *storage.soc_maxima]
    return max((event.end for event in events), default=None)
