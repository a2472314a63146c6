"""A site's prices over some time: those of FlexMeasures, and those assumed where it has none.

FlexMeasures takes an hour without a price as free. So both the plans made here and those of the server use
these prices: the known one, else that of the same hour of the day before, else the mean of all known ones.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from statistics import fmean
from typing import Any
from zoneinfo import ZoneInfo

import flexmeasures_api.errors as errors
import flexmeasures_api.quantities as quantities
import flexmeasures_api.sensor_data as sensor_data
from flexmeasures_api.connection import Connection, Sensor

CONSUMPTION, PRODUCTION = "consumption-price", "production-price"
"""The flex-context's fields."""
DAY = timedelta(days=1)
MIN_LOOK_AHEAD = timedelta(days=2)
"""How far ahead known prices are looked for, also for a shorter plan."""
MIN_SHARE_KNOWN = 0.5
"""There is a warning if prices are known for less than this part of a plan."""
MAX_LISTED_SPANS = 3
"""How many spans of time a warning lists."""


@dataclass(frozen=True, kw_only=True)
class _PriceSource:
    """The source of a price: a sensor, with a `default` (currency per kWh) or without, or a fixed price.

    `field` is its form in the flex-context, and `currency` that of `default`, else None.
    """

    field: Any
    sensor: int | None = None
    default: float | None = None
    currency: str | None = None


PriceSource = _PriceSource


@dataclass(frozen=True, kw_only=True)
class _SourcePrice:
    """A price (currency per kWh) of one source from `start` to `end` (s since 1970), known or assumed."""

    start: float
    end: float
    value: float
    is_known: bool = True


SourcePrice = _SourcePrice


@dataclass(frozen=True, kw_only=True)
class _PriceInterval:
    """Prices (currency per kWh) from `start` to `end` (s since 1970); `is_known`: both of them are."""

    start: float
    end: float
    consumption: float
    production: float
    is_known: bool = True


PriceInterval = _PriceInterval


@dataclass(frozen=True, kw_only=True)
class _Tariff:
    """Prices in order and without a gap, and their currency (such as EUR).

    `known_until` (s since 1970) is the end of the last known price, also beyond the intervals; None without
    any.
    """

    intervals: list[PriceInterval]
    currency: str
    known_until: float | None = None

    @property
    @pyscript_compile
    def share_known(self) -> float:
        """Return the part of the time for which prices are known."""
        seconds = sum([interval.end - interval.start for interval in self.intervals])
        seconds_known = sum(
            [interval.end - interval.start for interval in self.intervals if interval.is_known]
        )
        return seconds_known / seconds

    @property
    @pyscript_compile
    def assumed_spans(self) -> list[list[float]]:
        """Return the [start, end] (s since 1970) of each time for which a price is assumed."""
        return joined_spans([interval for interval in self.intervals if not interval.is_known])

    @property
    @pyscript_compile
    def feasible(self) -> "_Tariff":
        """Return the Tariff with a production price that is nowhere above the consumption price.

        Where feeding in pays more than consuming costs, energy that goes round through the meter would gain
        without end: FlexMeasures then finds no schedule.
        """
        return replace(
            self,
            intervals=[
                replace(interval, production=min(interval.production, interval.consumption))
                for interval in self.intervals
            ],
        )


Tariff = _Tariff


@pyscript_compile
async def for_plan(
    connection: Connection,
    *,
    consumption_sensor: int,
    production_sensor: int,
    flex_context: Mapping[str, Any],
    start: datetime,
    end: datetime,
) -> tuple[Tariff | None, dict[str, Any]]:
    """Return the Tariff from `start` to `end`, and the flex-context's prices; raise a FlexMeasuresError.

    Raw fields of the `flex_context` prevail over the sensors. Where one of them has prices that only
    FlexMeasures can read, the Tariff has the other's for both; where both have, there is none (None).
    """
    consumption = price_source(CONSUMPTION, consumption_sensor, flex_context)
    production = price_source(PRODUCTION, production_sensor, flex_context)
    raw = {name: flex_context[name] for name in (CONSUMPTION, PRODUCTION) if name in flex_context}
    readable = consumption or production
    if readable is None:
        return None, raw
    sources = consumption or readable, production or readable
    tariff = await read(connection, *sources, start=start, end=end)
    fields = as_fields(tariff, *sources)
    if consumption is None:
        return tariff, fields | {CONSUMPTION: raw[CONSUMPTION]}
    return tariff, fields if production else fields | {PRODUCTION: raw[PRODUCTION]}


@pyscript_compile
def price_source(name: str, sensor_id: int, flex_context: Mapping[str, Any]) -> PriceSource | None:
    """Return the source of a price: the raw field of this name, else the sensor.

    None for a field that only FlexMeasures can read, such as a time series: it is sent as it is.
    """
    raw = flex_context.get(name)
    if raw is None:
        return PriceSource(field={"sensor": sensor_id}, sensor=sensor_id)
    if isinstance(raw, str) and (price := parse(raw)):
        return PriceSource(field=raw, default=price[0], currency=price[1])
    if isinstance(raw, dict) and raw.keys() <= {"sensor", "default"} and isinstance(raw.get("sensor"), int):
        if "default" not in raw:
            return PriceSource(field=raw, sensor=raw["sensor"])
        if isinstance(raw["default"], str) and (price := parse(raw["default"])):
            return PriceSource(field=raw, sensor=raw["sensor"], default=price[0], currency=price[1])
    return None


@pyscript_compile
def parse(text: str) -> tuple[float, str] | None:
    """Return (price per kWh, currency) of a text such as "0.3 EUR/kWh", or None."""
    try:
        return quantities.energy_price(text)
    except ValueError:
        return None


@pyscript_compile
async def read(
    connection: Connection,
    consumption: PriceSource,
    production: PriceSource,
    *,
    start: datetime,
    end: datetime,
) -> Tariff:
    """Return the Tariff of two sources from `start` to `end`; raise a FlexMeasuresError.

    Raise PricesMissing where no price is known from the day before `start` on.
    """
    last = max(end, start + MIN_LOOK_AHEAD)
    consumption_prices, currency = await read_source(connection, consumption, start=start, end=end, last=last)
    production_prices, production_currency = consumption_prices, currency
    if production != consumption:
        production_prices, production_currency = await read_source(
            connection, production, start=start, end=end, last=last
        )
    if currency != production_currency:
        raise errors.InvalidProblem(
            f"consumption-price is in {currency}, and production-price in {production_currency}: "
            f"give one currency"
        )
    ahead = side_by_side(consumption_prices, production_prices, start.timestamp(), last.timestamp())
    known_until = max([interval.end for interval in ahead if interval.is_known], default=None)
    return Tariff(
        intervals=between(ahead, start.timestamp(), end.timestamp()),
        currency=currency,
        known_until=known_until,
    )


@pyscript_compile
async def read_source(
    connection: Connection, source: PriceSource, *, start: datetime, end: datetime, last: datetime
) -> tuple[list[SourcePrice], str]:
    """Return the prices of a source from a day before `start` to `last`, and their currency.

    Raise PricesMissing where none is known up to `end`.
    """
    if source.sensor is None:
        if source.default is None or source.currency is None:
            raise ValueError("a price has a sensor or a default")
        fixed = SourcePrice(start=(start - DAY).timestamp(), end=last.timestamp(), value=source.default)
        return [fixed], source.currency
    sensor = await connection.sensor(source.sensor)
    try:
        factor = quantities.per_kilowatt_hour(sensor.unit)
    except ValueError as error:
        raise errors.UnknownSensor(f"Sensor {sensor.id} is not a price sensor: {error}") from error
    data = await sensor_data.read(connection, sensor.id, start - DAY, last - start + DAY, unit=sensor.unit)
    first, step, held = data["start"], data["resolution"], data["values"]
    values = [source.default if value is None else value * factor for value in held]
    if all(value is None for value in values[: -((first - end) // step)]):
        raise await missing(connection, sensor, start, end)
    step_seconds = step.total_seconds()
    return [
        SourcePrice(
            start=first.timestamp() + place * step_seconds,
            end=first.timestamp() + (place + 1) * step_seconds,
            value=value,
            is_known=held[place] is not None,
        )
        for place, value in enumerate(with_assumed(values, first, step, sensor.timezone))
    ], sensor.unit.rpartition("/")[0]


@pyscript_compile
async def missing(
    connection: Connection, sensor: Sensor, start: datetime, end: datetime
) -> errors.PricesMissing:
    """Return the error for a sensor without prices, which says at what other times it has some."""
    zone = ZoneInfo(sensor.timezone)
    try:
        spans = await sensor_data.recorded_spans(connection, sensor.id)
    except errors.FlexMeasuresError:
        spans = []
    moments = start, end, *[moment for span in spans for moment in span]
    first, last, *recorded = [moment.astimezone(zone).isoformat(timespec="minutes") for moment in moments]
    available = f"it has some from {min(recorded)} to {max(recorded)}" if recorded else "it has none at all"
    return errors.PricesMissing(
        f"FlexMeasures has no prices for the planning window on sensor {sensor.id}, from {first} to {last}, "
        f"nor for the day before ({available}): see that its prices arrive, or plan another time"
    )


@pyscript_compile
def with_assumed(
    values: Sequence[float | None], first: datetime, step: timedelta, timezone: str
) -> list[float]:
    """Return a price for each step: the known one, else that of the hour a day before, else the mean.

    The hour is that of the local clock, also over clock changes.
    """
    zone = ZoneInfo(timezone)
    mean = fmean([value for value in values if value is not None])
    prices: list[float] = []
    for place, value in enumerate(values):
        if value is None:
            yesterday = (first + place * step).astimezone(zone) - DAY
            before = (yesterday.astimezone(UTC) - first) // step
            value = prices[before] if 0 <= before < place else mean
        prices.append(value)
    return prices


@pyscript_compile
def side_by_side(
    consumption: Sequence[SourcePrice], production: Sequence[SourcePrice], start: float, end: float
) -> list[PriceInterval]:
    """Return PriceIntervals from `start` to `end` of the two prices, on the finer one's clock."""
    moments = {
        start,
        end,
        *[price.start for price in (*consumption, *production) if start < price.start < end],
    }
    intervals = []
    for interval_start, interval_end in pairwise(sorted(moments)):
        consumed, produced = (
            prices[bisect_right(prices, interval_start, key=lambda price: price.start) - 1]
            for prices in (consumption, production)
        )
        intervals.append(
            PriceInterval(
                start=interval_start,
                end=interval_end,
                consumption=consumed.value,
                production=produced.value,
                is_known=consumed.is_known and produced.is_known,
            )
        )
    return intervals


@pyscript_compile
def between(intervals: Iterable[PriceInterval], start: float, end: float) -> list[PriceInterval]:
    """Return the PriceIntervals from `start` to `end` (s since 1970), cut to it."""
    return [
        replace(interval, start=max(interval.start, start), end=min(interval.end, end))
        for interval in intervals
        if interval.start < end and interval.end > start
    ]


@pyscript_compile
def joined_spans(intervals: Iterable[PriceInterval]) -> list[list[float]]:
    """Return the [start, end] of PriceIntervals, consecutive ones as one."""
    spans: list[list[float]] = []
    for interval in intervals:
        if spans and spans[-1][1] == interval.start:
            spans[-1][1] = interval.end
        else:
            spans.append([interval.start, interval.end])
    return spans


@pyscript_compile
def as_fields(tariff: Tariff, consumption: PriceSource, production: PriceSource) -> dict[str, Any]:
    """Return the flex-context's prices: the fields of the sources, or series where the Tariff differs."""
    planned = tariff.feasible
    is_known = all(interval.is_known for interval in tariff.intervals)
    return {
        CONSUMPTION: consumption.field if is_known else as_series(planned, "consumption"),
        PRODUCTION: production.field if is_known and planned == tariff else as_series(planned, "production"),
    }


@pyscript_compile
def as_series(tariff: Tariff, name: str) -> list[dict[str, str]]:
    """Write one of the prices as FlexMeasures' time series, equal neighbours as one item."""
    items: list[SourcePrice] = []
    for interval in tariff.intervals:
        price: float = getattr(interval, name)
        if items and items[-1].value == price:
            items[-1] = replace(items[-1], end=interval.end)
        else:
            items.append(SourcePrice(start=interval.start, end=interval.end, value=price))
    return [
        {
            "start": datetime.fromtimestamp(item.start, UTC).isoformat(),
            "end": datetime.fromtimestamp(item.end, UTC).isoformat(),
            "value": f"{quantities.rounded(item.value)} {tariff.currency}/kWh",
        }
        for item in items
    ]


@pyscript_compile
def warnings(tariff: Tariff, zone: tzinfo) -> list[str]:
    """Return sentences on what a user should know of the prices of a plan, with times in the given zone."""

    def at(moment: float) -> str:
        return datetime.fromtimestamp(moment, zone).isoformat(timespec="minutes")

    def listed(spans: Sequence[Sequence[float]]) -> str:
        texts = [f"from {at(start)} to {at(end)}" for start, end in spans[:MAX_LISTED_SPANS]]
        more = len(spans) - MAX_LISTED_SPANS
        return ", ".join(texts) + (f" and {more} times more" if more > 0 else "")

    sentences, until = [], tariff.known_until
    if tariff.share_known < MIN_SHARE_KNOWN:
        sentences.append(
            f"Prices are known for {tariff.share_known:.0%} of the schedule"
            + (f", until {at(until)}" if until else "")
            + ": those of the day before, or the mean, are assumed for the rest"
        )
    if gaps := [span for span in tariff.assumed_spans if until is not None and span[1] < until]:
        sentences.append(f"No price is known {listed(gaps)}: that of the day before, or the mean, is assumed")
    if dearer := [interval for interval in tariff.intervals if interval.production > interval.consumption]:
        sentences.append(
            f"Feeding in pays more than consuming costs {listed(joined_spans(dearer))}: there the "
            f"consumption price counts for both, since FlexMeasures finds no schedule otherwise"
        )
    return sentences
