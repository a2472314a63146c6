"""No hour without a price is free: what is assumed, what FlexMeasures is given, and what the user is told."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

import flexmeasures_api.errors as errors
import flexmeasures_api.prices as prices
import flexmeasures_api.sensor_data as sensor_data
from flexmeasures_api.connection import Connection, Sensor

AMSTERDAM = "Europe/Amsterdam"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SENSORS = {1: "EUR/MWh", 2: "EUR/kWh", 3: "kW"}


@pytest.fixture
def server(monkeypatch):
    """Return a link to a server that knows prices by (sensor, start); it has none of other times."""
    known = {}

    async def read(_link, sensor_id, start, duration, unit=None, resolution=None, source=None):
        values = [known.get((sensor_id, start + hour * HOUR)) for hour in range(duration // HOUR)]
        return {"values": values, "start": start, "resolution": HOUR, "unit": unit}

    async def spans(_link, sensor_id):
        starts = [start for sensor, start in known if sensor == sensor_id]
        return [(min(starts), max(starts) + HOUR)] if starts else []

    monkeypatch.setattr(sensor_data, "read", read)
    monkeypatch.setattr(sensor_data, "recorded_spans", spans)
    sensors = {
        number: Sensor(id=number, unit=unit, resolution=HOUR, timezone=AMSTERDAM, asset=9)
        for number, unit in SENSORS.items()
    }
    return SimpleNamespace(link=Connection(host="http://x", client=None, sensors=sensors), known=known)


def post(server, sensor, start, *values):
    """Have a server know hourly prices from a start on; None is a gap."""
    for hour, value in enumerate(values):
        server.known[sensor, start + hour * HOUR] = value


async def for_plan(server, hours=4, sensor=1, **raw):
    """Return the Tariff of some hours from noon on, and the flex-context's fields."""
    return await prices.for_plan(
        server.link,
        consumption_sensor=sensor,
        production_sensor=2,
        flex_context=raw,
        start=NOON,
        end=NOON + hours * HOUR,
    )


def consumption(tariff):
    """Return the consumption price of each interval."""
    return [interval.consumption for interval in tariff.intervals]


async def test_known_prices_are_the_sensors(server):
    post(server, 1, NOON, 300, 200, 100, 400)
    post(server, 2, NOON, 0.1, 0.1, 0.1, 0.1)
    tariff, fields = await for_plan(server)
    assert fields == {"consumption-price": {"sensor": 1}, "production-price": {"sensor": 2}}
    assert consumption(tariff) == [0.3, 0.2, 0.1, 0.4]
    assert tariff.known_until == (NOON + 4 * HOUR).timestamp()
    assert tariff.intervals[-1].end == (NOON + 4 * HOUR).timestamp()
    assert tariff.assumed_spans == []
    assert prices.warnings(tariff, UTC) == []


async def test_an_hour_without_a_price_has_that_of_the_day_before(server):
    post(server, 1, NOON - DAY, 510, 520, 530, 540)
    post(server, 1, NOON, 300, None, 100)
    post(server, 2, NOON - DAY, *[0.1] * 28)
    tariff, fields = await for_plan(server)
    assert consumption(tariff) == [0.3, 0.52, 0.1, 0.54]
    assert [interval.is_known for interval in tariff.intervals] == [True, False, True, False]
    assert [item["value"] for item in fields["consumption-price"]] == [
        "0.3 EUR/kWh",
        "0.52 EUR/kWh",
        "0.1 EUR/kWh",
        "0.54 EUR/kWh",
    ]
    assert fields["consumption-price"][0]["start"] == "2026-06-01T12:00:00+00:00"
    assert fields["consumption-price"][-1]["end"] == "2026-06-01T16:00:00+00:00"
    assert fields["production-price"] == [
        {"start": "2026-06-01T12:00:00+00:00", "end": "2026-06-01T16:00:00+00:00", "value": "0.1 EUR/kWh"}
    ]
    assert tariff.known_until == (NOON + 3 * HOUR).timestamp()
    assert prices.warnings(tariff, UTC) == [
        "No price is known from 2026-06-01T13:00+00:00 to 2026-06-01T14:00+00:00: that of the day before, or "
        "the mean, is assumed"
    ]


async def test_without_the_day_before_the_mean_is_assumed(server):
    post(server, 1, NOON, 100, 300)
    post(server, 2, NOON, 0.1, 0.1, 0.1, 0.1)
    assert consumption((await for_plan(server))[0]) == pytest.approx([0.1, 0.3, 0.2, 0.2])


async def test_two_unknown_days_repeat_the_last_known_one(server):
    post(server, 1, NOON, *[100 + hour for hour in range(24)])
    post(server, 2, NOON, *[0.0] * 72)
    found = consumption((await for_plan(server, hours=72))[0])
    assert found[:24] == found[24:48] == found[48:]


def test_the_day_before_is_by_the_clock_on_the_wall():
    start = datetime(2026, 3, 28, tzinfo=ZoneInfo(AMSTERDAM)).astimezone(UTC)
    known = [float(hour) for hour in range(24)]
    found = prices.with_assumed(known + [None] * 23, start, HOUR, AMSTERDAM)
    assert found[24:] == [0.0, 1.0, *known[3:]]


async def test_less_than_half_of_known_prices_is_warned_of(server):
    post(server, 1, NOON, 300)
    post(server, 2, NOON, 0.1)
    tariff, _fields = await for_plan(server)
    [warning] = prices.warnings(tariff, ZoneInfo(AMSTERDAM))
    assert "known for 25% of the schedule, until 2026-06-01T15:00+02:00" in warning


async def test_no_price_at_all_says_of_when_and_what_there_is(server):
    post(server, 1, NOON - 3 * DAY, 300, 300)
    with pytest.raises(errors.PricesMissing) as caught:
        await for_plan(server)
    said = str(caught.value)
    assert "no prices for the planning window on sensor 1, from 2026-06-01T14:00+02:00 to " in said
    assert "some from 2026-05-29T14:00+02:00 to 2026-05-29T16:00+02:00" in said


async def test_feeding_in_never_pays_more_than_consuming_costs(server):
    post(server, 1, NOON, 300, 300, -100, 300)
    post(server, 2, NOON, 0.3, 0.31, 0.08, 0.1)
    tariff, fields = await for_plan(server)
    assert fields["consumption-price"] == {"sensor": 1}
    assert [item["value"] for item in fields["production-price"]] == [
        "0.3 EUR/kWh",
        "-0.1 EUR/kWh",
        "0.1 EUR/kWh",
    ]
    [warning] = prices.warnings(tariff, UTC)
    assert "costs from 2026-06-01T13:00+00:00 to 2026-06-01T15:00+00:00: there" in warning


async def test_a_fixed_feed_in_tariff_is_a_price_too(server):
    post(server, 1, NOON, 300, 50, 300, 300)
    raw = {"production-price": "80 EUR/MWh"}
    tariff, fields = await for_plan(server, **raw)
    assert [interval.production for interval in tariff.intervals] == [0.08] * 4
    assert [item["value"] for item in fields["production-price"]] == [
        "0.08 EUR/kWh",
        "0.05 EUR/kWh",
        "0.08 EUR/kWh",
    ]
    post(server, 1, NOON, 300, 300, 300, 300)
    assert (await for_plan(server, **raw))[1] == {"consumption-price": {"sensor": 1}, **raw}


async def test_a_default_beside_a_sensor_is_what_is_assumed(server):
    post(server, 2, NOON, 0.3, None, 0.3, None)
    raw = {name: {"sensor": 2, "default": "0.5 EUR/kWh"} for name in (prices.CONSUMPTION, prices.PRODUCTION)}
    tariff, fields = await for_plan(server, **raw)
    assert consumption(tariff) == [0.3, 0.5, 0.3, 0.5]
    assert [item["value"] for item in fields["consumption-price"]] == [
        f"{price} EUR/kWh" for price in (0.3, 0.5, 0.3, 0.5)
    ]
    assert len(tariff.assumed_spans) == 2


SERIES = [{"start": NOON.isoformat(), "duration": "PT4H", "value": "0.2 EUR/kWh"}]


@pytest.mark.parametrize("unread", [SERIES, 0.08, {"sensor": 2, "default": 0.3}, {"sensor": 2, "source": 7}])
async def test_what_only_flexmeasures_reads_is_left_as_it_is_and_the_other_price_is_not(server, unread):
    post(server, 1, NOON, 300, 300)
    tariff, fields = await for_plan(server, **{"production-price": unread})
    assert consumption(tariff) == [0.3] * 4
    assert fields["production-price"] == unread
    assert [item["value"] for item in fields["consumption-price"]] == ["0.3 EUR/kWh"]
    raw = {"consumption-price": unread, "production-price": unread}
    assert await for_plan(server, **raw) == (None, raw)


async def test_prices_beyond_the_schedule_are_known_too(server):
    post(server, 1, NOON, *[300] * 10)
    post(server, 2, NOON, *[0.1] * 8)
    tariff, fields = await for_plan(server)
    assert fields == {"consumption-price": {"sensor": 1}, "production-price": {"sensor": 2}}
    assert tariff.known_until == (NOON + 8 * HOUR).timestamp()
    assert len(tariff.intervals) == 4


async def test_currencies_are_not_mixed(server):
    post(server, 1, NOON, 300, 300, 300, 300)
    with pytest.raises(errors.InvalidProblem, match="give one currency"):
        await for_plan(server, **{"production-price": "0.08 USD/kWh"})


async def test_a_sensor_of_power_is_not_a_price_sensor(server):
    with pytest.raises(errors.UnknownSensor, match="Sensor 3 is not a price sensor"):
        await for_plan(server, hours=1, sensor=3)


async def test_a_finer_clock_of_one_price_holds_for_both():
    consumed = source_prices((0.0, 3600.0, 0.2, True), (3600.0, 7200.0, 0.3, False))
    produced = source_prices((0.0, 1800.0, 0.1, True), (1800.0, 7200.0, 0.0, True))
    found = prices.side_by_side(consumed, produced, 900.0, 7200.0)
    assert [(each.start, each.end, each.consumption, each.production, each.is_known) for each in found] == [
        (900.0, 1800.0, 0.2, 0.1, True),
        (1800.0, 3600.0, 0.2, 0.0, True),
        (3600.0, 7200.0, 0.3, 0.0, False),
    ]


def source_prices(*rows):
    """Return the prices of a source, by (start, end, value, is_known)."""
    return [
        prices.SourcePrice(start=start, end=end, value=value, is_known=is_known)
        for start, end, value, is_known in rows
    ]
