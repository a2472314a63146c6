"""Runs are kept in order, merged where they continue one another, and bounded."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest
from flexmeasures_client.exceptions import JobTimeoutError

import flexmeasures_api.errors as errors
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.outbox_store as outbox_store
from flexmeasures_api.connection import Connection, Sensor
from flexmeasures_api.sensor_data import SensorData
from flexmeasures_home.outbox import Outbox
from flexmeasures_home.status import Status

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def run(sensor, quarter, values, **fields):
    """Return a run of a sensor from a quarter on."""
    start = NOON + quarter * QUARTER
    return SensorData(
        sensor=sensor, start=start, values=list(values), **{"unit": "kW", "step": QUARTER} | fields
    )


@pytest.fixture
def box(hass):
    """Return an empty outbox."""
    status = Status(hass)
    return Outbox(hass, SimpleNamespace(host="http://x"), status, SimpleNamespace(new_key=lambda: 0), "me")


def held(box):
    """Return what waits: sensor, quarter, values."""
    return [(item.data.sensor, (item.data.start - NOON) / QUARTER, item.data.values) for item in box.items]


def test_what_continues_is_one_run_and_a_gap_is_a_gap(box):
    for sensor, quarter, values in [(1, 0, [1.0]), (2, 0, [5.0]), (1, 1, [2.0]), (1, 4, [3.0, 4.0])]:
        box.add(run(sensor, quarter, values))
    assert held(box) == [(1, 0, [1.0, 2.0, None, None, 3.0, 4.0]), (2, 0, [5.0])]
    box.show()
    assert box.hass.states.get("sensor.flexmeasures_status").attributes["outbox"] == 5


@pytest.mark.parametrize(
    ("quarter", "fields"),
    [
        (0, {}),
        (-1, {}),
        (1.5, {}),
        (2, {"unit": "W"}),
        (2, {"step": 2 * QUARTER}),
        (2, {"step": None}),
        (2, {"prior": NOON}),
        (2000, {}),
    ],
)
def test_what_does_not_continue_is_a_run_of_its_own(box, quarter, fields):
    box.add(run(1, 0, [1.0, 2.0]))
    box.add(run(1, quarter, [3.0], **fields))
    assert [values for _, _, values in held(box)] == [[1.0, 2.0], [3.0]]


def test_a_run_under_way_is_not_added_to(box):
    box.add(run(1, 0, [1.0])).is_being_sent = True
    box.add(run(1, 1, [2.0]))
    assert held(box) == [(1, 0, [1.0]), (1, 1, [2.0])]


def test_the_oldest_is_dropped_first_and_counted(box, monkeypatch):
    monkeypatch.setattr(outboxes, "MAX_WAITING_VALUES", 5)
    box.add(run(1, 0, [1.0, 2.0, 3.0]))
    box.add(run(2, 0, [4.0, 5.0]))
    box.add(run(3, 0, [6.0]))
    assert held(box) == [(1, 1, [2.0, 3.0]), (2, 0, [4.0, 5.0]), (3, 0, [6.0])]
    box.add(run(3, 1, [7.0, 8.0, 9.0]))
    assert held(box) == [(1, 1, [2.0, 3.0]), (3, 1, [7.0, 8.0, 9.0])]
    box.show()
    attributes = box.hass.states.get("sensor.flexmeasures_status").attributes
    assert (attributes["outbox"], attributes["outbox_dropped"]) == (5, 4)
    assert attributes["last_error"].startswith("The outbox is full")


def test_a_gap_takes_room_too(box, monkeypatch):
    monkeypatch.setattr(outboxes, "MAX_WAITING_VALUES", 5)
    box.add(run(1, 0, [1.0]))
    box.add(run(1, 5, [2.0]))
    assert held(box) == [(1, 1, [None, None, None, None, 2.0])]


def test_what_waits_is_counted_only_where_it_may_be_too_much(box, monkeypatch):
    real, counted = Outbox.drop_oldest, []
    monkeypatch.setattr(outboxes, "MAX_WAITING_VALUES", 50)
    monkeypatch.setattr(Outbox, "drop_oldest", lambda full: (counted.append(len(full.items)), real(full)))
    for number in range(52):
        box.add(run(number, 0, [1.0]))
    assert counted == [1, 51, 51]
    assert len(box.items) == 50


def test_forecasts_are_dropped_before_measurements(box, monkeypatch):
    monkeypatch.setattr(outboxes, "MAX_WAITING_VALUES", 4)
    box.add(run(1, 0, [1.0, 2.0]))
    box.add(run(2, 50, [5.0, 6.0], prior=NOON))
    box.add(run(3, 1, [3.0]))
    assert held(box) == [(1, 0, [1.0, 2.0]), (2, 51, [6.0]), (3, 1, [3.0])]


def test_a_parcel_can_be_withdrawn_until_it_is_on_its_way(box):
    first, second = box.add(run(1, 0, [1.0])), box.add(run(2, 0, [2.0]))
    second.is_being_sent = True
    for each in (first, second, None, first):
        box.withdraw(each)
    assert held(box) == [(2, 0, [2.0])]


def test_a_run_under_way_is_not_dropped(box, monkeypatch):
    monkeypatch.setattr(outboxes, "MAX_WAITING_VALUES", 2)
    box.add(run(1, 0, [1.0])).is_being_sent = True
    box.add(run(2, 0, [2.0, 3.0]))
    assert held(box) == [(1, 0, [1.0]), (2, 1, [3.0])]


@pytest.mark.parametrize(
    "fields",
    [{}, {"step": None}, {"step": timedelta(0)}, {"unit": None, "prior": NOON}, {"stored_until": NOON}],
)
def test_a_run_is_the_same_after_a_restart(fields):
    before = run(1, 3, [1.5, None, -2.0], **fields)
    assert outbox_store.from_text(outbox_store.as_text(before)) == before


async def test_each_part_that_is_stored_is_remembered(box, monkeypatch):
    sensor = Sensor(id=1, unit="kW", resolution=QUARTER, timezone="UTC", asset=3)
    posted, waited = [], []

    class Client:
        async def post_sensor_data(self, _sensor, *, start, values, **_named):
            posted.append(((start - NOON) / QUARTER, len(values)))
            return {"job": str(len(posted))}, 202

        async def wait_for_job(self, job, **_named):
            waited.append(job)
            if waited == ["1", "2"]:
                raise JobTimeoutError("it takes long")

    box.link = Connection(host="http://x", client=Client(), sensors={1: sensor})
    item = box.add(run(1, 0, [float(number) for number in range(2_500)]))
    assert await box.deliver_all() is None
    assert held(box) == [(1, 1_000, [float(number) for number in range(1_000, 2_500)])]
    assert (item.data.stored_until, item.is_saved) == (NOON + 1_000 * QUARTER, False)
    assert box.hass.states.get("sensor.flexmeasures_status").state == "error"
    box.hold_ups.clear()
    assert await box.deliver_all() is None
    assert box.items == []
    assert posted == [(0, 1_000), (1_000, 1_000), (2_000, 500)]
    assert waited == ["1", "2", "2", "3"]


@pytest.fixture
async def delivering(box, clock, monkeypatch):
    """Return a function that has the outbox deliver, while the server answers with errors first."""
    tries, running = [], []

    def deliver_with(*failures):
        failing = list(failures)

        async def deliver(_outbox, _item):
            tries.append(clock.time())
            if failing:
                raise failing.pop(0)

        monkeypatch.setattr(Outbox, "deliver", deliver)
        running.append(asyncio.create_task(box.keep_delivering()))
        return tries

    yield deliver_with
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize("asked", [900, 86_400, 10**400])
async def test_a_server_that_asks_for_a_long_pause_is_asked_again_in_a_quarter_of_an_hour(
    box, delivering, asked
):
    box.add(run(1, 0, [1.0]))
    tries = delivering(errors.Unreachable("busy", asked))
    await asyncio.sleep(899)
    assert len(tries) == 1
    assert await box.delivered(box.items[0]) is False
    box.add(run(2, 0, [1.0]))
    await asyncio.sleep(2)
    assert len(tries) == 3
    assert box.items == []


@pytest.mark.parametrize("failure", [errors.Unreachable("busy", 900), errors.Unauthorized("no")])
async def test_a_pause_ends_with_any_success(box, delivering, failure):
    box.status.when_answered = lambda: box.retry_now()
    box.add(run(1, 0, [1.0]))
    tries = delivering(failure)
    await asyncio.sleep(60)
    assert len(tries) == 1
    assert box.status.problems
    box.status.succeed("plan")
    await asyncio.sleep(1)
    assert len(tries) == 2
    assert box.items == []
    assert box.status.problems == {}


@pytest.mark.parametrize("asked", [None, 0, 3])
@pytest.mark.parametrize("kind", [errors.Unreachable, errors.RateLimited])
async def test_pauses_grow_however_short_the_server_asks_for(box, delivering, kind, asked):
    box.add(run(1, 0, [1.0]))
    tries = delivering(*[kind("busy", asked)] * 100)
    await asyncio.sleep(2_000)
    pauses = [round(after - before) for before, after in pairwise(tries)]
    assert pauses[:8] == [5, 10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize("asked", [None, 60])
async def test_a_limit_of_requests_is_waited_out(box, delivering, asked):
    box.status.when_answered = lambda: box.retry_now()
    box.add(run(1, 0, [1.0]))
    tries = delivering(errors.RateLimited("busy", asked))
    await asyncio.sleep(1)
    box.status.succeed("plan")
    assert await box.delivered(box.items[0]) is False
    await asyncio.sleep((asked or 5) - 2)
    assert len(tries) == 1
    await asyncio.sleep(2)
    assert len(tries) == 2
    assert box.items == []


async def test_a_fault_over_values_is_over_once_they_do_not_wait_any_more(box, monkeypatch):
    outcomes = [errors.ServerFault("500"), errors.InvalidData("refused")]

    async def deliver(_outbox, _item):
        raise outcomes.pop(0)

    monkeypatch.setattr(Outbox, "deliver", deliver)
    item = box.add(run(1, 0, [1.0], prior=NOON))
    await box.deliver_all()
    assert "measurements of sensor 1" in box.status.problems
    box.hold_ups.clear()
    waiting = asyncio.create_task(box.delivered(item))
    await asyncio.sleep(0)
    await box.deliver_all()
    with pytest.raises(errors.InvalidData):
        await waiting
    assert box.status.problems == {}


async def test_a_fault_over_a_forecast_is_over_once_that_is_withdrawn(box, monkeypatch):
    async def deliver(_outbox, _item):
        raise errors.ServerFault("500")

    monkeypatch.setattr(Outbox, "deliver", deliver)
    item = box.add(run(1, 0, [1.0], prior=NOON))
    await box.deliver_all()
    box.withdraw(item)
    assert box.status.problems == {}
