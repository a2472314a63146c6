"""A site's prices over some time: what FlexMeasures knows, and what is assumed where it knows none.

FlexMeasures takes an hour without a price as free. So whoever plans at the site, here or on the server, has
these prices: the known one, else the price of the same hour of the day before, else the mean of all known
ones.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import fmean
from typing import Any
from zoneinfo import ZoneInfo

import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors
import flexmeasures_api.quantities as quantities
import flexmeasures_api.sensor_data as sensor_data

CONSUMPTION, PRODUCTION = "consumption-price", "production-price"
"""The flex-context's fields."""
DAY = timedelta(days=1)
LOOK_AHEAD = timedelta(days=2)
"""How far is looked for known prices at least."""
MAX_SPANS = 3
"""How many times a warning lists."""
ENOUGH_KNOWN = 0.5
"""The part of a plan's time for which prices must be known, without which there is a warning."""


@pyscript_compile
def records() -> tuple[type, type, type]:
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(frozen=True, kw_only=True)
    class Source:
        """Where a price is from: a sensor, with a `default` (currency per kWh) or without, or a fixed one.

        `field` is how the flex-context says so, and `unit` is that of `default`, else None.
        """

        field: Any
        sensor: int | None = None
        default: float | None = None
        unit: str | None = None

    @dataclass(frozen=True, kw_only=True)
    class PriceInterval:
        """Prices (currency per kWh) from `start` to `end` (s since 1970); `is_known`: both of them are."""

        start: float
        end: float
        consumption: float
        production: float
        is_known: bool = True

    @dataclass(frozen=True, kw_only=True)
    class Tariff:
        """Prices without a gap, in order, and their currency (such as EUR).

        `known_until` is until when (s since 1970) prices are known, but for gaps, also beyond the intervals;
        None where none is.
        """

        intervals: list
        currency: str
        known_until: float | None = None

    return Source, PriceInterval, Tariff


Source, PriceInterval, Tariff = records()


@pyscript_compile
async def for_plan(
    link: Any,
    consumption_sensor: int,
    production_sensor: int,
    flex_context: dict[str, Any],
    start: datetime,
    end: datetime,
) -> tuple[Any, dict[str, Any]]:
    """Return the Tariff from `start` to `end`, and the flex-context's prices; raise a FlexMeasuresError.

    Raw fields of the `flex_context` prevail over the sensors. Where one of them has prices that only
    FlexMeasures reads, the Tariff has the other's for both; where both have, there is none (None).
    """
    consumption = source(CONSUMPTION, consumption_sensor, flex_context)
    production = source(PRODUCTION, production_sensor, flex_context)
    unread = {name: flex_context[name] for name in (CONSUMPTION, PRODUCTION) if name in flex_context}
    if consumption is None and production is None:
        return None, unread
    tariff = await read(link, consumption or production, production or consumption, start, end)
    fields = as_fields(tariff, consumption or production, production or consumption)
    if consumption is None:
        return tariff, fields | {CONSUMPTION: unread[CONSUMPTION]}
    return tariff, fields if production else fields | {PRODUCTION: unread[PRODUCTION]}


@pyscript_compile
def source(name: str, sensor_id: int, flex_context: dict[str, Any]) -> Any:
    """Return the Source of a price: the raw field of this name, else the sensor.

    None for a field that we do not read, such as a time series: FlexMeasures gets it as it is.
    """
    raw = flex_context.get(name)
    if raw is None:
        return Source(field={"sensor": sensor_id}, sensor=sensor_id)
    if isinstance(raw, str) and (parsed := parse(raw)):
        return Source(field=raw, default=parsed[0], unit=parsed[1])
    if isinstance(raw, dict) and raw.keys() <= {"sensor", "default"} and isinstance(raw.get("sensor"), int):
        if "default" not in raw:
            return Source(field=raw, sensor=raw["sensor"])
        if isinstance(raw["default"], str) and (parsed := parse(raw["default"])):
            return Source(field=raw, sensor=raw["sensor"], default=parsed[0], unit=parsed[1])
    return None


@pyscript_compile
def parse(text: str) -> tuple[float, str] | None:
    """Return (price per kWh, currency) of a text such as "0.3 EUR/kWh", or None."""
    try:
        return quantities.energy_price(text)
    except ValueError:
        return None


@pyscript_compile
async def read(link: Any, consumption: Any, production: Any, start: datetime, end: datetime) -> Any:
    """Return the Tariff of two Sources from `start` to `end`; raise a FlexMeasuresError.

    `PricesMissing` where no price is known from the day before `start` on.
    """
    last = max(end, start + LOOK_AHEAD)
    consumed, currency = await read_source(link, consumption, start, end, last)
    produced, other_currency = consumed, currency
    if production != consumption:
        produced, other_currency = await read_source(link, production, start, end, last)
    if currency != other_currency:
        raise errors.InvalidProblem(
            f"consumption-price is in {currency}, and production-price in {other_currency}: give one currency"
        )
    ahead = side_by_side(consumed, produced, start.timestamp(), last.timestamp())
    known_until = max([interval.end for interval in ahead if interval.is_known], default=None)
    return Tariff(
        intervals=between(ahead, start.timestamp(), end.timestamp()),
        currency=currency,
        known_until=known_until,
    )


@pyscript_compile
async def read_source(
    link: Any, price: Any, start: datetime, end: datetime, last: datetime
) -> tuple[list[tuple[float, float, float, bool]], str]:
    """Return (start, end, price per kWh, whether it is known) from a day before `start` to `last`.

    And the currency. Raise PricesMissing where none is known up to `end`.
    """
    if price.sensor is None:
        return [((start - DAY).timestamp(), last.timestamp(), price.default, True)], price.unit
    sensor_id = price.sensor
    sensor = await connection.sensor(link, sensor_id)
    try:
        factor = quantities.per_kilowatt_hour(sensor.unit)
    except ValueError as error:
        raise errors.UnknownSensor(f"Sensor {sensor_id} is no sensor of prices: {error}") from error
    found = await sensor_data.read(link, sensor_id, start - DAY, last - start + DAY, unit=sensor.unit)
    first, step, known = found["start"], found["resolution"], found["values"]
    values = [price.default if value is None else value * factor for value in known]
    if all(value is None for value in values[: -((first - end) // step)]):
        raise await missing(link, sensor, start, end)
    prices = with_assumed(values, first, step, sensor.timezone)
    begin, seconds = first.timestamp(), step.total_seconds()
    return [
        (begin + place * seconds, begin + (place + 1) * seconds, each, known[place] is not None)
        for place, each in enumerate(prices)
    ], sensor.unit.rpartition("/")[0]


@pyscript_compile
async def missing(link: Any, sensor: Any, start: datetime, end: datetime) -> Exception:
    """Return the error that no price at all is known, with what the sensor has at other times."""
    zone = ZoneInfo(sensor.timezone)
    try:
        spans = await sensor_data.spans(link, sensor.id)
    except errors.FlexMeasuresError:
        spans = []
    moments = start, end, *[moment for span in spans for moment in span]
    first, last, *others = [moment.astimezone(zone).isoformat(timespec="minutes") for moment in moments]
    there = f"it has some from {min(others)} to {max(others)}" if others else "it has none at all"
    return errors.PricesMissing(
        f"FlexMeasures has no prices for the planning window on sensor {sensor.id}, from {first} to {last}, "
        f"nor for the day before ({there}): see that its prices arrive, or plan another time"
    )


@pyscript_compile
def with_assumed(values: list[float | None], first: datetime, step: timedelta, timezone: str) -> list[float]:
    """Return a price for each step: the known one, else that of the hour a day before, else the mean.

    The hour is that of the clock on the wall, also over clock changes.
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
def side_by_side(consumption: list[tuple], production: list[tuple], start: float, end: float) -> list:
    """Return PriceIntervals from `start` to `end` of the two prices, on the finer one's clock."""
    moments = {start, end, *[price[0] for price in (*consumption, *production) if start < price[0] < end]}
    found = []
    for begin, until in pairwise(sorted(moments)):
        (_, _, consumed, is_known), (_, _, produced, is_other_known) = (
            prices[bisect_right(prices, begin, key=lambda price: price[0]) - 1]
            for prices in (consumption, production)
        )
        found.append(
            PriceInterval(
                start=begin,
                end=until,
                consumption=consumed,
                production=produced,
                is_known=is_known and is_other_known,
            )
        )
    return found


@pyscript_compile
def between(intervals: list, start: float, end: float) -> list:
    """Return the PriceIntervals of a time (s since 1970), cut to it."""
    return [
        replace(interval, start=max(interval.start, start), end=min(interval.end, end))
        for interval in intervals
        if interval.start < end and interval.end > start
    ]


@pyscript_compile
def assumed(tariff: Any) -> list[list[float]]:
    """Return the [start, end] (s since 1970) of each time for which a price is assumed."""
    return spans_of([interval for interval in tariff.intervals if not interval.is_known])


@pyscript_compile
def spans_of(intervals: list) -> list[list[float]]:
    """Return the [start, end] of PriceIntervals, those that follow one another together."""
    spans: list[list[float]] = []
    for interval in intervals:
        if spans and spans[-1][1] == interval.start:
            spans[-1][1] = interval.end
        else:
            spans.append([interval.start, interval.end])
    return spans


@pyscript_compile
def share_known(tariff: Any) -> float:
    """Return the part of the time for which prices are known."""
    seconds = [(interval.end - interval.start, interval.is_known) for interval in tariff.intervals]
    return sum([length for length, is_known in seconds if is_known]) / sum([length for length, _ in seconds])


@pyscript_compile
def feasible(tariff: Any) -> Any:
    """Return the Tariff with a production price that is nowhere above the consumption price.

    Where feeding in pays more than consuming costs, energy that goes round through the meter would gain
    without end: FlexMeasures then finds no schedule.
    """
    return replace(
        tariff,
        intervals=[
            replace(interval, production=min(interval.production, interval.consumption))
            for interval in tariff.intervals
        ],
    )


@pyscript_compile
def as_fields(tariff: Any, consumption: Any, production: Any) -> dict[str, Any]:
    """Return the flex-context's prices: as the Sources say, or as series where the Tariff has more."""
    planned = feasible(tariff)
    is_known = all(interval.is_known for interval in tariff.intervals)
    return {
        CONSUMPTION: consumption.field if is_known else as_series(planned, "consumption"),
        PRODUCTION: production.field if is_known and planned == tariff else as_series(planned, "production"),
    }


@pyscript_compile
def as_series(tariff: Any, name: str) -> list[dict[str, str]]:
    """Write one of the prices as FlexMeasures' time series, an item for as long as it stays the same."""
    spans: list[list] = []
    for interval in tariff.intervals:
        price = getattr(interval, name)
        if spans and spans[-1][2] == price:
            spans[-1][1] = interval.end
        else:
            spans.append([interval.start, interval.end, price])
    return [
        {
            "start": datetime.fromtimestamp(start, UTC).isoformat(),
            "end": datetime.fromtimestamp(end, UTC).isoformat(),
            "value": f"{quantities.tidy(price)} {tariff.currency}/kWh",
        }
        for start, end, price in spans
    ]


@pyscript_compile
def warnings(tariff: Any, zone: Any) -> list[str]:
    """Return a sentence for what a user should know of the prices of a plan, times in the given zone."""

    def at(moment: float | None) -> str:
        return "" if moment is None else datetime.fromtimestamp(moment, zone).isoformat(timespec="minutes")

    def in_words(spans: list[list[float]]) -> str:
        listed = [f"from {at(start)} to {at(end)}" for start, end in spans[:MAX_SPANS]]
        more = len(spans) - MAX_SPANS
        return ", ".join(listed) + (f" and {more} times more" if more > 0 else "")

    found, until = [], tariff.known_until
    if share_known(tariff) < ENOUGH_KNOWN:
        found.append(
            f"Prices are known for {share_known(tariff):.0%} of the schedule"
            + (f", until {at(until)}" if until else "")
            + ": those of the day before, or the mean, are assumed for the rest"
        )
    if gaps := [span for span in assumed(tariff) if until is not None and span[1] < until]:
        found.append(f"No price is known {in_words(gaps)}: that of the day before, or the mean, is assumed")
    if dearer := [interval for interval in tariff.intervals if interval.production > interval.consumption]:
        found.append(
            f"Feeding in pays more than consuming costs {in_words(spans_of(dearer))}: there the consumption "
            f"price counts for both, since FlexMeasures finds no schedule otherwise"
        )
    return found
