"""A schedule as a state: the value due now, and attributes that the recorder keeps."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from homeassistant.components.recorder.db_schema import MAX_STATE_ATTRS_BYTES
from homeassistant.helpers.json import json_bytes

import flexmeasures_home.kept as kept
import flexmeasures_home.schedule_state as schedule_state
import flexmeasures_home.schedule_store as store
from flexmeasures_api.schedule import Schedule

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def make(values, start=NOON, resolution=QUARTER, unit="kW", **more):
    """Return a schedule."""
    soc = more.pop("soc", [5.0 + n for n in range(len(values) + 1)])
    missed = more.pop("missed_targets", [])
    return Schedule(
        start=start,
        resolution=resolution,
        unit=unit,
        values=values,
        soc_unit="kWh",
        soc=soc,
        missed_targets=missed,
        cost=1.5,
        updated_at=NOON,
    )


def test_the_state_is_the_value_that_is_due():
    schedule = make([1.0, 0, -2.5, None])
    values = [schedule_state.due(schedule, None, NOON + n * QUARTER) for n in range(-1, 5)]
    assert values == ["unknown", 1.0, 0, -2.5, "unknown", "unknown"]


def test_without_a_schedule_the_state_is_unknown():
    assert schedule_state.due(None, None, NOON) == "unknown"
    assert schedule_state.next_change(None, None, NOON) is None


def test_before_its_start_the_previous_schedule_goes_on_where_it_covers_the_moment():
    previous = make([7.0, 8.0], start=NOON - 2 * QUARTER)
    schedule = make([1.0], start=NOON + QUARTER)
    moments = [NOON - QUARTER, NOON, NOON + QUARTER, NOON + 2 * QUARTER]
    assert [schedule_state.due(schedule, previous, moment) for moment in moments] == [
        8.0,
        "unknown",
        1.0,
        "unknown",
    ]
    assert [schedule_state.next_change(schedule, previous, moment) for moment in moments] == [
        NOON,
        NOON + QUARTER,
        NOON + 2 * QUARTER,
        None,
    ]


def test_attributes_are_those_of_the_contract():
    miss = {"field": "soc_targets", "datetime": NOON, "asked": 9.0, "reached": 7.5}
    assert schedule_state.attributes(make([1.0, -2.0], missed_targets=[miss]), AMSTERDAM) == {
        "schedule": [
            {"start": "2026-06-01T14:00:00+02:00", "value": 1.0},
            {"start": "2026-06-01T14:15:00+02:00", "value": -2.0},
        ],
        "start": "2026-06-01T14:00:00+02:00",
        "duration": "PT30M",
        "resolution": "PT15M",
        "unit_of_measurement": "kW",
        "device_class": "power",
        "state_class": "measurement",
        "friendly_name": "FlexMeasures Schedule",
        "soc": [5.0, 6.0, 7.0],
        "soc_unit": "kWh",
        "missed_targets": [miss | {"datetime": "2026-06-01T14:00:00+02:00"}],
        "updated_at": "2026-06-01T14:00:00+02:00",
        "prices_known_until": None,
        "warnings": [],
    }


def test_energy_per_interval_is_no_meter_to_the_statistics():
    named = schedule_state.naming("kWh")
    assert named["device_class"] == "energy"
    assert "state_class" not in named


@pytest.mark.parametrize(("minutes", "days"), [(5, 7), (15, 7), (60, 30), (1, 1)])
def test_attributes_fit_the_recorder_and_lose_the_far_end_first(minutes, days):
    values = [round(n / 7, 6) for n in range(days * 24 * 60 // minutes)]
    schedule = make(values, resolution=timedelta(minutes=minutes))
    attributes = schedule_state.attributes(schedule, AMSTERDAM)
    assert len(json_bytes(attributes)) < MAX_STATE_ATTRS_BYTES
    kept = [entry["value"] for entry in attributes["schedule"]]
    assert kept == values[: len(kept)]
    assert len(json_bytes(attributes)) > MAX_STATE_ATTRS_BYTES - 300
    whole = schedule_state.response(schedule, AMSTERDAM)
    assert [entry["value"] for entry in whole["schedule"]] == values


@pytest.mark.parametrize("intervals", [96, 192])
def test_two_days_of_quarters_are_kept_whole(intervals):
    schedule = make([n / 7 for n in range(intervals)])
    assert len(schedule_state.attributes(schedule, AMSTERDAM)["schedule"]) == intervals


@pytest.mark.parametrize(
    ("start", "offsets"),
    [
        (datetime(2026, 3, 29, 0, 30, tzinfo=UTC), ["01:30:00+01:00", "03:00:00+02:00", "03:30:00+02:00"]),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), ["02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00"]),
    ],
)
def test_times_go_on_over_a_clock_change(start, offsets):
    schedule = make([1, 2, 3], start=start, resolution=timedelta(minutes=30))
    entries = schedule_state.response(schedule, AMSTERDAM)["schedule"]
    assert [entry["start"].split("T")[1] for entry in entries] == offsets


def test_a_kept_schedule_is_the_same_after_a_restart():
    miss = {"field": "soc_targets", "datetime": NOON, "asked": 9.0, "reached": 7.5}
    schedule = make([1.0, None], missed_targets=[miss])
    content = json_bytes(kept.as_json(schedule))
    assert dataclasses.asdict(store.from_json(json.loads(content))) == dataclasses.asdict(schedule)
    assert kept.as_json(None) is None
    assert store.from_json(None) is None
