"""Moments are shifted to the clock of a sensor, in its own time zone."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

import flexmeasures_api.sensor_clock as sensor_clock

AMSTERDAM = "Europe/Amsterdam"
QUARTER = timedelta(minutes=15)


def at(text, zone=AMSTERDAM, fold=0):
    """Return a wall-clock time of a zone."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


@pytest.mark.parametrize(
    ("moment", "minutes", "zone", "expected"),
    [
        ("2026-06-01T14:00:00", 15, AMSTERDAM, "2026-06-01T14:00:00"),
        ("2026-06-01T14:00:01", 15, AMSTERDAM, "2026-06-01T14:15:00"),
        ("2026-06-01T14:00:01", 5, AMSTERDAM, "2026-06-01T14:05:00"),
        ("2026-06-01T14:00:01", 60, AMSTERDAM, "2026-06-01T15:00:00"),
        ("2026-06-01T23:59:59.999999", 60, AMSTERDAM, "2026-06-02T00:00:00"),
        ("2026-06-01T14:10:00", 60, "Asia/Kolkata", "2026-06-01T15:00:00"),
        ("2026-06-01T14:50:00", 30, "Asia/Kathmandu", "2026-06-01T15:00:00"),
        ("2026-03-29T01:50:00", 15, AMSTERDAM, "2026-03-29T03:00:00"),
        ("2026-03-29T01:50:00", 60, AMSTERDAM, "2026-03-29T03:00:00"),
    ],
)
def test_shifts_up_to_the_sensors_clock(moment, minutes, zone, expected):
    shifted = sensor_clock.ceil(at(moment, zone), timedelta(minutes=minutes), zone)
    assert shifted == at(expected, zone)


def test_shifts_up_within_the_repeated_hour():
    second_time = at("2026-10-25T02:50:00", fold=1)
    shifted = sensor_clock.ceil(second_time, QUARTER, AMSTERDAM)
    assert shifted.astimezone(UTC) == datetime(2026, 10, 25, 2, tzinfo=UTC)
    first_time = at("2026-10-25T02:50:00", fold=0)
    assert sensor_clock.ceil(first_time, QUARTER, AMSTERDAM) == datetime(2026, 10, 25, 1, tzinfo=UTC)
