"""Files that cannot be read or written are told, and stop nothing."""

import asyncio
import json
import random
from types import SimpleNamespace

import pytest

import flexmeasures_home.kept as kept
import flexmeasures_home.measurements as measurements
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.schedule_store as schedule_store
import flexmeasures_home.status as statuses

WHOLE = json.dumps({"version": 1, "minor_version": 1, "key": "x", "data": {"a": 1}}).encode()
SCHEDULE = {
    "start": "2026-01-15T12:00:00+00:00",
    "resolution": 900,
    "unit": "kW",
    "values": [1.5, None],
    "soc_unit": "kWh",
    "soc": [4.0, 4.3, 4.3],
    "missed_targets": [],
    "cost": None,
    "updated_at": "2026-01-15T11:59:00+00:00",
}


@pytest.fixture
def folder(hass, tmp_path):
    """Return the storage folder of a Home Assistant."""
    hass.config.config_dir = str(tmp_path)
    (tmp_path / ".storage").mkdir()
    return tmp_path / ".storage"


@pytest.fixture
def status(hass):
    """Return a status."""
    return statuses.Status(hass)


@pytest.fixture
def file(hass, folder, status):
    """Return a kept file."""
    return kept.KeptFile(hass, status, "schedule", "the schedule")


def notification(hass, cause):
    """Return the text of the notification of a cause, or None."""
    found = hass.data.get("persistent_notification", {}).get(f"flexmeasures_{cause}")
    return found and found["message"]


def aside(folder):
    """Return the files that were set aside."""
    return list(folder.glob("*.corrupt.*"))


UNUSABLE = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"17",
    "nothing": b"{}",
    "a later version": b'{"version": 99, "minor_version": 1, "data": {}}',
    "no data": b'{"version": 1}',
    "data that are a list": b'{"version": 1, "data": []}',
    "cut": WHOLE[:-9],
    "random": random.Random(1).randbytes(500),
    "nested deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
async def test_a_file_of_another_form_is_set_aside_and_told(hass, folder, status, file, content):
    file.path.write_bytes(content)
    assert await file.async_load() == {}
    [kept_aside] = aside(folder)
    assert kept_aside.read_bytes() == content
    assert not file.path.exists()
    told = hass.states.get(statuses.ENTITY_ID).attributes["last_error"]
    assert "schedule with the schedule cannot be read" in told
    assert kept_aside.name in told
    assert notification(hass, "file_set_aside") == told
    assert await file.async_save({"a": 2})
    assert await kept.KeptFile(hass, status, "schedule", "the schedule").async_load() == {"a": 2}


async def test_a_folder_in_its_place_is_set_aside(hass, folder, file):
    file.path.mkdir()
    (file.path / "x").write_text("y")
    assert await file.async_load() == {}
    assert [path.is_dir() for path in aside(folder)] == [True]
    assert await file.async_save({"a": 2})


async def test_a_file_that_cannot_be_renamed_stops_nothing(hass, folder, file, monkeypatch):
    file.path.write_bytes(b"null")

    def refuse(_path, _target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file.path), "rename", refuse)
    assert await file.async_load() == {}
    assert "It could not be renamed (PermissionError: Permission denied)" in notification(
        hass, "file_set_aside"
    )


async def test_what_is_not_written_over_is_told_for_as_long_as_it_keeps_anything_from_being_saved(
    hass, folder, status, file, monkeypatch, freezer
):
    file.path.write_bytes(b"null")

    def refuse(_path, _target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file.path), "rename", refuse)
    await file.async_load()
    assert not await file.async_save({"a": 1})
    assert file.path.read_bytes() == b"null"
    freezer.tick(90_000)
    status.expire_notices()
    assert notification(hass, "file_set_aside") is None
    told = notification(hass, "file_not_saved")
    assert "is not written, since the present file can be neither read nor renamed" in told
    assert file.why_unsaved == told


async def test_a_file_that_is_not_there_is_no_matter(hass, file):
    assert await file.async_load() == {}
    assert hass.states.get(statuses.ENTITY_ID) is None


async def test_a_part_that_cannot_be_read_is_told_and_the_file_copied(hass, folder, file):
    await file.async_save({"items": [1, "x"], "names": 7})
    before = file.path.read_bytes()
    found = await file.async_load()
    assert [file.convert_or_report(kept.number, each) for each in file.part(found, "items", list)] == [
        1.0,
        None,
    ]
    assert file.part(found, "names", dict) == {}
    assert aside(folder) == []
    for _ in range(2):
        assert await file.async_save({"items": [1]})
    [kept_aside] = aside(folder)
    assert kept_aside.read_bytes() == before
    assert kept_aside.name in notification(hass, "file_set_aside")


@pytest.mark.parametrize("data", [{}, [], None, 7, "x", {"runs": 1}, {"version": 1}])
@pytest.mark.parametrize("name", ["schedule", "outbox", "measurements"])
async def test_whatever_a_file_holds_its_reader_goes_on(hass, folder, status, name, data):
    found = {"me": data, "user": "me", "sensors": data, "intervals": data}
    found |= {"power_sensor": 1, "schedule": data, "previous": data}
    content = {"version": 1, "minor_version": 1, "key": name, "data": found}
    kept.path_of(hass, name).write_text(json.dumps(content))
    box = await outboxes.start(hass, SimpleNamespace(host="http://x", sensors={}), status, "me")
    assert box.items == []
    assert (await measurements.load(hass, box)).sensors == {}
    assert await schedule_store.load(schedule_store.new(hass, status), 1) == (None, None)
    await box.stop()


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": "2026-01-15T12:00:00"},
        {"start": 7},
        {"resolution": 0},
        {"resolution": 1e300},
        {"unit": "furlongs"},
        {"values": []},
        {"values": {"0": 1}},
        {"values": ["1", 2]},
        {"values": [True, 2]},
        {"soc": [4.0]},
        {"soc": [None, None, None]},
        {"missed_targets": [7]},
        {"cost": "much"},
        {"assumed_prices": [[1]]},
        {"warnings": [None]},
    ],
)
async def test_a_schedule_with_anything_wrong_is_left_out(hass, folder, status, wrong):
    store = schedule_store.new(hass, status)
    await store.async_save({"power_sensor": 1, "schedule": SCHEDULE, "previous": SCHEDULE | wrong})
    schedule, previous = await schedule_store.load(store, 1)
    assert kept.as_json(schedule)["values"] == [1.5, None]
    assert previous is None
    assert "cannot be read" in notification(hass, "file_set_aside")


async def test_a_write_that_fails_is_told_and_tried_again(hass, folder, status, file, monkeypatch):
    names = kept.write.__globals__

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(names, "os", SimpleNamespace(fsync=full))
    assert not await file.async_save({"a": 1})
    assert not await file.async_save({"a": 2})
    told = notification(hass, "file_not_saved")
    assert "schedule cannot be written (OSError: No space left on device)" in told
    assert hass.states.get(statuses.ENTITY_ID).attributes["last_error"] == told
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    kept.save_again(status)
    while status.unsaved:
        await asyncio.sleep(0)
        await hass.async_block_till_done(wait_background_tasks=True)
    assert await file.async_load() == {"a": 2}
    assert notification(hass, "file_not_saved") is None
    assert hass.states.get(statuses.ENTITY_ID).state == "ok"


async def test_what_cannot_be_written_as_json_is_told(hass, folder, file):
    assert not await file.async_save({"a": 10**30})
    assert "cannot be written (TypeError" in notification(hass, "file_not_saved")


async def test_a_notice_of_a_file_goes_away_after_a_day(hass, folder, status, file, freezer):
    file.path.write_bytes(b"null")
    await file.async_load()
    freezer.tick(86_000)
    status.expire_notices()
    assert notification(hass, "file_set_aside")
    freezer.tick(1_000)
    status.expire_notices()
    assert notification(hass, "file_set_aside") is None


async def test_a_file_that_cannot_be_read_stays_as_it_is_and_is_not_written_over(hass, tmp_path, monkeypatch):
    hass.config.config_dir = str(tmp_path)
    file = kept.KeptFile(hass, statuses.Status(hass), "x", "what it holds")
    assert await file.async_save({"a": 1})
    before = file.path.read_bytes()
    monkeypatch.setitem(kept.KeptFile.async_load.__globals__, "PAUSES_BETWEEN_TRIES", (0.0, 0.0))

    def fail(_path):
        raise OSError(24, "Too many open files")

    again = kept.KeptFile(hass, statuses.Status(hass), "x", "what it holds")
    monkeypatch.setitem(kept.KeptFile.async_load.__globals__, "content_of", fail)
    assert await again.async_load() == {}
    assert not await again.async_save({"b": 2})
    assert file.path.read_bytes() == before
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    assert "cannot be read (OSError: Too many open files), and stays as it is" in again.why_unsaved
