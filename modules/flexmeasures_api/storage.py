"""A device as FlexMeasures' problem: its flex-model and the site's flex-context."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import flexmeasures_api.quantities as quantities

BACK_AT_ONCE = 0.05
"""How far outside its range, as a part of soc_max, a state of charge is brought back as soon as possible."""
BACK_WITHIN = timedelta(hours=4)
"""By when one that is less far outside its range is brought back, at the best prices until then."""
MARGIN = 0.02
"""How far into its range it is brought back, as a part of soc_max, so that a device really charges."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Wish:
        """A state of charge (Wh) that is wanted from `start` to `end`; the two are equal for a moment."""

        start: datetime
        end: datetime
        value: float

    @dataclass
    class Span:
        """A mean power (W) from `start` to `end`."""

        start: datetime
        end: datetime
        value: float

    @dataclass
    class Storage:
        """A battery (or the like) now: energies in Wh, power in W, efficiencies as ratios.

        A capacity is a power, or a list of Spans; `soc_usage` is a list of Spans. `storage_efficiency` is
        that of one step. It consumes nothing, or at least `minimum_power`. `operation_modes` are ranges
        (lowest, highest) of power, consumption positive. `flex_model` holds raw FlexMeasures fields, which
        prevail over ours.
        """

        power_sensor: int
        soc_at_start: float
        soc_min: float
        soc_max: float
        soc_sensor: int | None = None
        soc_targets: list = field(default_factory=list)
        soc_minima: list = field(default_factory=list)
        soc_maxima: list = field(default_factory=list)
        soc_at_end: float | None = None
        power_capacity: float | None = None
        roundtrip_efficiency: float | None = None
        charging_efficiency: float | None = None
        discharging_efficiency: float | None = None
        storage_efficiency: float | None = None
        consumption_capacity: Any = None
        production_capacity: Any = None
        minimum_power: float | None = None
        soc_usage: list = field(default_factory=list)
        operation_modes: list = field(default_factory=list)
        flex_model: Any = None

    @dataclass
    class Flow:
        """A device that stores nothing, such as solar panels: what it may consume and produce at most (W).

        A capacity is a power, or a list of Spans that cover all of the time.
        """

        power_sensor: int
        consumption_capacity: Any
        production_capacity: Any

    return Wish, Span, Storage, Flow


Wish, Span, Storage, Flow = records()


@pyscript_compile
def as_spans(powers, start, step):
    """Return mean powers (W) of steps (s) from a moment on as Spans, one for as long as it stays the same."""
    spans = []
    for place, value in enumerate(powers):
        end = datetime.fromtimestamp(start + (place + 1) * step, UTC)
        if spans and spans[-1].value == value:
            spans[-1].end = end
        else:
            spans.append(Span(datetime.fromtimestamp(start + place * step, UTC), end, value))
    return spans


@pyscript_compile
def model_of(device, start, end):
    """Return the entry of a Storage or a Flow for a trigger's `flex-model` list."""
    if isinstance(device, Flow):
        return {
            "sensor": device.power_sensor,
            "consumption-capacity": as_powers(device.consumption_capacity),
            "production-capacity": as_powers(device.production_capacity),
        }
    return flex_model(device, start, end)


@pyscript_compile
def flex_model(storage, start, end):
    """Return the device's entry for a trigger's `flex-model` list.

    A state of charge outside [soc_min, soc_max] would be infeasible: the hard bound is widened to
    it, and the wanted bound is asked for softly. A bound of the raw fields is sent as it is.
    """
    soc, raw = storage.soc_at_start, storage.flex_model or {}
    minima, maxima = list(storage.soc_minima), list(storage.soc_maxima)
    if storage.soc_at_end is not None:
        minima.append(Wish(end, end, storage.soc_at_end))
    if soc < storage.soc_min and "soc-min" not in raw:
        minima += way_back(storage, storage.soc_min, 1, start, end)
    if soc > storage.soc_max and "soc-max" not in raw:
        maxima += way_back(storage, storage.soc_max, -1, start, end)
    model = {
        "sensor": storage.power_sensor,
        "soc-at-start": quantities.as_energy(soc),
        "soc-min": quantities.as_energy(min(storage.soc_min, soc)),
        "soc-max": quantities.as_energy(max(storage.soc_max, soc)),
        "soc-targets": [as_event(wish) for wish in storage.soc_targets],
        "soc-minima": [as_event(wish) for wish in minima],
        "soc-maxima": [as_event(wish) for wish in maxima],
        "power-capacity": storage.power_capacity and quantities.as_power(storage.power_capacity),
        "roundtrip-efficiency": as_share(storage.roundtrip_efficiency),
        "charging-efficiency": as_share(storage.charging_efficiency),
        "discharging-efficiency": as_share(storage.discharging_efficiency),
        "storage-efficiency": as_share(storage.storage_efficiency),
        "consumption-capacity": as_powers(storage.consumption_capacity),
        "production-capacity": as_powers(storage.production_capacity),
        "soc-usage": [as_powers(storage.soc_usage)] if storage.soc_usage else None,
        "operation-modes": [as_operation_mode(*each) for each in operation_modes(storage)],
        "state-of-charge": storage.soc_sensor and {"sensor": storage.soc_sensor},
    }
    if {"charging-efficiency", "discharging-efficiency"} & raw.keys():
        model["roundtrip-efficiency"] = None
    return {name: value for name, value in model.items() if value or value == 0} | raw


@pyscript_compile
def way_back(storage: Any, bound: float, inwards: int, start: datetime, end: datetime) -> list:
    """Return the wishes that bring a state of charge back over a bound (Wh); `inwards` is 1 or -1.

    One that is far outside comes back as soon as it can, at any price. Else it comes back at the best prices
    of the next hours, and a little further than to the bound: what is missing may be less than the device can
    do.
    """
    if abs(bound - storage.soc_at_start) > BACK_AT_ONCE * storage.soc_max:
        return [Wish(start, end, bound)]
    wanted = bound + inwards * min(MARGIN * storage.soc_max, storage.soc_max - storage.soc_min)
    back_at = min(start + BACK_WITHIN, end)
    return [Wish(back_at, back_at, wanted), Wish(back_at, end, bound)]


@pyscript_compile
def operation_modes(storage: Any) -> list[tuple[float, float]]:
    """Return the ranges of power (W) that FlexMeasures is to choose from, consumption positive."""
    if storage.operation_modes or not storage.minimum_power:
        return storage.operation_modes
    capacity, production = storage.power_capacity, storage.production_capacity
    consumption = capacity if storage.consumption_capacity is None else storage.consumption_capacity
    modes = [(0.0, 0.0), (storage.minimum_power, consumption)]
    if produced := capacity if production is None else production:
        modes.append((-produced, 0.0))
    return modes


@pyscript_compile
def as_share(ratio):
    """Write a ratio as FlexMeasures reads it, or None."""
    return None if ratio is None else quantities.as_percentage(ratio)


@pyscript_compile
def as_powers(power):
    """Write a power, or Spans of it, as FlexMeasures reads it, or None."""
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
def as_operation_mode(lowest, highest):
    """Write a range of power (W) as FlexMeasures reads it."""
    mode = {}
    if highest > 0 or lowest == highest == 0:
        mode["consumption-range"] = [quantities.as_power(max(lowest, 0)), quantities.as_power(highest)]
    if lowest < 0:
        mode["production-range"] = [quantities.as_power(max(-highest, 0)), quantities.as_power(-lowest)]
    return mode


@pyscript_compile
def as_event(wish):
    """Write a wish as FlexMeasures' time series item."""
    value = quantities.as_energy(wish.value)
    if wish.start == wish.end:
        return {"datetime": wish.start.isoformat(), "value": value}
    return {"start": wish.start.isoformat(), "end": wish.end.isoformat(), "value": value}


@pyscript_compile
def flex_context(price_fields, *additions):
    """Return the trigger's `flex-context`: some fields, of which the later prevail, and those of prices."""
    context = {}
    for addition in additions:
        context |= addition or {}
    return context | price_fields


@pyscript_compile
def last_wish(storage):
    """Return when the last target, minimum or maximum ends, or None."""
    wishes = [*storage.soc_targets, *storage.soc_minima, *storage.soc_maxima]
    return max((wish.end for wish in wishes), default=None)
