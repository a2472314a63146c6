"""A schedule knows its intervals, its values by the clock, and where the state of charge goes."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

import flexmeasures_api.schedule as schedules
import flexmeasures_api.schedule_requests as schedule_requests
from flexmeasures_api.flexible_devices import SocEvent, Storage

AMSTERDAM = "Europe/Amsterdam"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def answer(values, duration, unit="kW", start="2026-06-01T14:00:00+02:00", **more):
    """Return what FlexMeasures answers for a schedule."""
    return {"values": values, "duration": duration, "unit": unit, "start": start, **more}


@pytest.mark.parametrize("minutes", [5, 15, 60])
def test_the_answers_start_and_duration_count(minutes):
    step = timedelta(minutes=minutes)
    schedule = schedules.from_answer(
        answer([1, 2, 3], f"PT{3 * minutes}M"), unit="kW", now=NOON, soc_unit="kWh"
    )
    assert schedule.start == NOON
    assert schedule.resolution == step
    assert schedule.end == NOON + 3 * step
    assert [schedule.value_at(NOON + n * step) for n in range(-1, 4)] == [None, 1, 2, 3, None]
    assert schedule.value_at(NOON + step - timedelta(microseconds=1)) == 1


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("kW", 2.0), ("W", 2000.0), ("MW", 0.002), ("kWh", 0.5), ("MWh", 0.0005), ("Wh", 500.0)],
)
def test_converts_to_the_users_unit(unit, expected):
    schedule = schedules.from_answer(answer([2.0], "PT15M"), unit=unit, now=NOON, soc_unit="kWh")
    assert schedule.values == [pytest.approx(expected)]
    assert schedule.powers_w == [pytest.approx(2000)]


def test_an_interval_without_a_value_is_none():
    schedule = schedules.from_answer(
        answer([1.0, float("nan"), None], "PT45M"), unit="W", now=NOON, soc_unit="kWh"
    )
    assert schedule.values == [1000.0, None, None]
    assert schedule.powers_w == [1000.0, 0.0, 0.0]


def test_boundaries_are_the_intervals_starts_and_the_end():
    schedule = schedules.from_answer(answer([1, 2], "PT30M"), unit="kW", now=NOON, soc_unit="kWh")
    moments = [NOON - QUARTER, NOON, NOON + timedelta(minutes=20), NOON + timedelta(minutes=30)]
    assert [schedule.next_boundary(moment) for moment in moments] == [
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
    schedule = schedules.from_answer(
        answer([0] * hours, f"PT{hours}H", start=start), unit="kW", now=NOON, soc_unit="kWh"
    )
    assert schedule.end == (datetime.fromisoformat(start).replace(tzinfo=None) + timedelta(days=1)).replace(
        tzinfo=ZoneInfo(AMSTERDAM)
    )
    assert len(set(schedule.starts)) == hours


def test_expected_soc_counts_the_efficiencies():
    schedule = schedules.from_answer(answer([4, -4], "PT30M"), unit="kW", now=NOON, soc_unit="kWh")
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
    schedule = schedules.from_answer(answer([0, 0], "PT30M"), unit="kW", now=NOON, soc_unit="kWh")
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
    schedule = schedules.from_answer(answer([1], "PT15M"), unit="kW", now=NOON, soc_unit="kWh")
    assert schedules.expected_soc(schedule, {"soc-at-start": "1 kWh"} | model) is None


def test_a_missed_target_tells_when_what_was_asked_and_what_is_reached():
    storage = Storage(
        power_sensor=1,
        soc_at_start=1000,
        soc_min=0,
        soc_max=9000,
        soc_targets=[
            SocEvent(NOON + QUARTER, NOON + QUARTER, 1500),
            SocEvent(NOON + 2 * QUARTER, NOON + 2 * QUARTER, 5000),
        ],
        soc_minima=[SocEvent(NOON, NOON + 2 * QUARTER, 1200)],
        soc_maxima=[
            SocEvent(NOON, NOON + 2 * QUARTER, 1900),
            SocEvent(NOON + timedelta(days=2), NOON + timedelta(days=3), 1),
        ],
    )
    schedule = schedules.from_answer(answer([2, 2], "PT30M"), unit="kW", now=NOON, soc_unit="kWh")
    soc = schedules.expected_soc(schedule, {"soc-at-start": "1 kWh"})
    assert schedule_requests.missed_targets(schedule, soc, storage) == [
        {"field": "soc_targets", "datetime": NOON + 2 * QUARTER, "asked": 5000, "reached": 2000},
        {"field": "soc_minima", "datetime": NOON, "asked": 1200, "reached": 1000},
        {"field": "soc_maxima", "datetime": NOON + 2 * QUARTER, "asked": 1900, "reached": 2000},
    ]


def test_cost_is_what_the_server_tells():
    told = answer([1], "PT15M", scheduler_info={"commitment_costs": {"energy": 1.5, "peak": 0.25}})
    assert schedules.from_answer(told, unit="kW", now=NOON, soc_unit="kWh").cost == 1.75
    assert schedules.from_answer(answer([1], "PT15M"), unit="kW", now=NOON, soc_unit="kWh").cost is None


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
    assert schedules.cost(answer([1.0], "PT15M", scheduler_info={"commitment_costs": costs})) == 2.25
    assert schedules.cost(answer([1.0], "PT15M")) is None


def test_a_target_that_is_exceeded_is_not_missed():
    schedule = planned([4.0, 4.0], soc=[5.0, 6.0, 7.0])
    storage = reaching(5500)
    assert schedule_requests.missed_targets(schedule, [5000.0, 6000.0, 7000.0], storage) == []
    [missed] = schedule_requests.missed_targets(schedule, [5000.0, 6000.0, 7000.0], reaching(6500))
    assert (missed["asked"], missed["reached"]) == (6500, 6000)


def reaching(target):
    """Return a storage of 5 kWh that is to have a state of charge (Wh) at the end of the first quarter."""
    event = SocEvent(NOON + QUARTER, NOON + QUARTER, target)
    return Storage(power_sensor=7, soc_at_start=5000, soc_min=1000, soc_max=10_000, soc_targets=[event])


def planned(values, soc=None, start=NOON):
    """Return a schedule of quarters in kW, and kWh."""
    return schedules.Schedule(
        start=start,
        resolution=QUARTER,
        unit="kW",
        values=values,
        soc_unit="kWh",
        soc=soc,
        missed_targets=[],
        cost=None,
        updated_at=start,
    )


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
