"""A schedule knows its intervals, its values by the clock, and where the state of charge goes."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

import flexmeasures_api.planning as planning
import flexmeasures_api.schedule as schedules
from flexmeasures_api.storage import Storage, Wish

AMSTERDAM = "Europe/Amsterdam"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def at(text, zone=AMSTERDAM, fold=0):
    """Return a wall-clock time of a zone."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


def reply(values, duration, unit="kW", start="2026-06-01T14:00:00+02:00", **more):
    """Return what FlexMeasures answers for a schedule."""
    return {"values": values, "duration": duration, "unit": unit, "start": start, **more}


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
    shifted = schedules.shift_up(at(moment, zone), timedelta(minutes=minutes), zone)
    assert shifted == at(expected, zone)


def test_shifts_up_within_the_repeated_hour():
    second_time = at("2026-10-25T02:50:00", fold=1)
    shifted = schedules.shift_up(second_time, QUARTER, AMSTERDAM)
    assert shifted.astimezone(UTC) == datetime(2026, 10, 25, 2, tzinfo=UTC)
    first_time = at("2026-10-25T02:50:00", fold=0)
    assert schedules.shift_up(first_time, QUARTER, AMSTERDAM) == datetime(2026, 10, 25, 1, tzinfo=UTC)


@pytest.mark.parametrize("minutes", [5, 15, 60])
def test_the_replys_start_and_duration_count(minutes):
    step = timedelta(minutes=minutes)
    schedule = schedules.from_reply(reply([1, 2, 3], f"PT{3 * minutes}M"), "kW", NOON, "kWh")
    assert schedule.start == NOON
    assert schedule.resolution == step
    assert schedules.end(schedule) == NOON + 3 * step
    assert [schedules.value_at(schedule, NOON + n * step) for n in range(-1, 4)] == [None, 1, 2, 3, None]
    assert schedules.value_at(schedule, NOON + step - timedelta(microseconds=1)) == 1


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("kW", 2.0), ("W", 2000.0), ("MW", 0.002), ("kWh", 0.5), ("MWh", 0.0005), ("Wh", 500.0)],
)
def test_converts_to_the_users_unit(unit, expected):
    schedule = schedules.from_reply(reply([2.0], "PT15M"), unit, NOON, "kWh")
    assert schedule.values == [pytest.approx(expected)]
    assert schedules.watts(schedule) == [pytest.approx(2000)]


def test_an_interval_without_a_value_is_none():
    schedule = schedules.from_reply(reply([1.0, float("nan"), None], "PT45M"), "W", NOON, "kWh")
    assert schedule.values == [1000.0, None, None]
    assert schedules.watts(schedule) == [1000.0, 0.0, 0.0]


def test_boundaries_are_the_intervals_starts_and_the_end():
    schedule = schedules.from_reply(reply([1, 2], "PT30M"), "kW", NOON, "kWh")
    moments = [NOON - QUARTER, NOON, NOON + timedelta(minutes=20), NOON + timedelta(minutes=30)]
    assert [schedules.next_boundary(schedule, moment) for moment in moments] == [
        NOON,
        NOON + QUARTER,
        NOON + timedelta(minutes=30),
        None,
    ]


@pytest.mark.parametrize(
    ("start", "hours"),
    [("2026-03-28T12:00:00+01:00", 23), ("2026-10-24T12:00:00+02:00", 25)],
)
def test_a_day_over_a_clock_change_has_its_true_length(start, hours):
    schedule = schedules.from_reply(reply([0] * hours, f"PT{hours}H", start=start), "kW", NOON, "kWh")
    assert schedules.end(schedule) == (
        datetime.fromisoformat(start).replace(tzinfo=None) + timedelta(days=1)
    ).replace(tzinfo=ZoneInfo(AMSTERDAM))
    assert len(set(schedules.starts(schedule))) == hours


def test_expected_soc_counts_the_efficiencies():
    schedule = schedules.from_reply(reply([4, -4], "PT30M"), "kW", NOON, "kWh")
    assert schedules.expected_soc(schedule, {"soc-at-start": "5 kWh"}) == [5000, 6000, 5000]
    assert schedules.expected_soc(
        schedule, {"soc-at-start": "5 kWh", "charging-efficiency": "99 %", "roundtrip-efficiency": "81 %"}
    ) == pytest.approx([5000, 5900, 5900 - 1000 / 0.9])
    model = {
        "soc-at-start": "0 kWh",
        "charging-efficiency": "300 %",
        "soc-usage": ["1 kW"],
        "storage-efficiency": "100 %",
    }
    assert schedules.expected_soc(schedule, model) == [0, 2750, 1500]


def test_expected_soc_decays_with_the_storage_efficiency():
    schedule = schedules.from_reply(reply([0, 0], "PT30M"), "kW", NOON, "kWh")
    assert schedules.expected_soc(
        schedule, {"soc-at-start": "1 kWh", "storage-efficiency": "90 %"}
    ) == pytest.approx([1000, 900, 810])


@pytest.mark.parametrize(
    "model",
    [
        {"charging-efficiency": {"sensor": 3}},
        {"soc-usage": [{"sensor": 3}]},
        {"storage-efficiency": [{"start": "2026-06-01T00:00Z", "duration": "PT1H", "value": "99 %"}]},
        {"storage-efficiency": "0 %"},
    ],
)
def test_expected_soc_is_not_told_where_only_the_server_knows(model):
    schedule = schedules.from_reply(reply([1], "PT15M"), "kW", NOON, "kWh")
    assert schedules.expected_soc(schedule, {"soc-at-start": "1 kWh"} | model) is None


def test_a_missed_target_tells_when_what_was_asked_and_what_is_reached():
    storage = Storage(
        power_sensor=1,
        soc_at_start=1000,
        soc_min=0,
        soc_max=9000,
        soc_targets=[
            Wish(NOON + QUARTER, NOON + QUARTER, 1500),
            Wish(NOON + 2 * QUARTER, NOON + 2 * QUARTER, 5000),
        ],
        soc_minima=[Wish(NOON, NOON + 2 * QUARTER, 1200)],
        soc_maxima=[
            Wish(NOON, NOON + 2 * QUARTER, 1900),
            Wish(NOON + timedelta(days=2), NOON + timedelta(days=3), 1),
        ],
    )
    schedule = schedules.from_reply(reply([2, 2], "PT30M"), "kW", NOON, "kWh")
    soc = schedules.expected_soc(schedule, {"soc-at-start": "1 kWh"})
    assert planning.missed_targets(schedule, soc, storage) == [
        {"field": "soc_targets", "datetime": NOON + 2 * QUARTER, "asked": 5000, "reached": 2000},
        {"field": "soc_minima", "datetime": NOON, "asked": 1200, "reached": 1000},
        {"field": "soc_maxima", "datetime": NOON + 2 * QUARTER, "asked": 1900, "reached": 2000},
    ]


def test_cost_is_what_the_server_tells():
    told = reply([1], "PT15M", scheduler_info={"commitment_costs": {"energy": 1.5, "peak": 0.25}})
    assert schedules.from_reply(told, "kW", NOON, "kWh").cost == 1.75
    assert schedules.from_reply(reply([1], "PT15M"), "kW", NOON, "kWh").cost is None


def test_the_cost_is_money_without_penalties():
    costs = {
        "electricity net energy": 1.5,
        "electricity consumption peak": 0.5,
        "my commitment": 0.25,
        "any soc minima": 100.0,
        "all soc targets": 1909.0,
        "all soc maxima": 7.0,
        "electricity all consumption breaches": 9.0,
        "any production breach device 0": 9.0,
    }
    assert schedules.cost(reply([1.0], "PT15M", scheduler_info={"commitment_costs": costs})) == 2.25
    assert schedules.cost(reply([1.0], "PT15M")) is None


def test_a_target_that_is_exceeded_is_not_missed():
    schedule = planned([4.0, 4.0], soc=[5.0, 6.0, 7.0])
    storage = Storage(7, 5000, 1000, 10_000, soc_targets=[Wish(NOON + QUARTER, NOON + QUARTER, 5500)])
    assert planning.missed_targets(schedule, [5000.0, 6000.0, 7000.0], storage) == []
    storage.soc_targets[0].value = 6500
    [missed] = planning.missed_targets(schedule, [5000.0, 6000.0, 7000.0], storage)
    assert (missed["asked"], missed["reached"]) == (6500, 6000)


def planned(values, soc=None, start=NOON):
    """Return a schedule of quarters in kW, and kWh."""
    return schedules.Schedule(start, QUARTER, "kW", values, "kWh", soc, [], None, start)


@pytest.mark.parametrize(
    ("begin", "until", "change"),
    [(0, 15, 1000), (5, 10, 1000 / 3), (10, 20, 0), (15, 30, -1000), (30, 60, 0), (-10, 5, 1000 / 3)],
)
@pytest.mark.parametrize("soc", [None, [5.0, 6.0, 5.0]])
def test_the_change_that_is_planned_between_two_moments(soc, begin, until, change):
    schedule = planned([4.0, -4.0], soc)
    moments = [NOON + timedelta(minutes=minutes) for minutes in (begin, until)]
    assert schedules.change_planned(schedule, None, *moments) == pytest.approx(change)
    assert schedules.change_planned(None, None, *moments) == 0


def test_before_a_schedules_start_the_previous_one_counts():
    previous, schedule = planned([2.0, 2.0], start=NOON - QUARTER), planned([4.0, 4.0])
    begin, until = NOON - QUARTER / 3, NOON + QUARTER
    assert schedules.change_planned(schedule, previous, begin, until) == pytest.approx(500 / 3 + 1000)
