"""What waits for FlexMeasures is in a file, over kills, failures and files of another form."""

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from homeassistant.exceptions import HomeAssistantError

import flexmeasures_home.kept as kept
import flexmeasures_home.measurement_calls as measurement_calls
import flexmeasures_home.outbox as outboxes
import flexmeasures_home.outbox_store as outbox_store
import flexmeasures_home.services as services
import flexmeasures_home.status as statuses
from flexmeasures_api.sensor_data import SensorData
from flexmeasures_home.outbox import Outbox

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
NOBODY = 65_534
"""The id of a user who owns nothing."""


def run(sensor, quarter, values, **fields):
    """Return a run of a sensor from a quarter on."""
    start = NOON + quarter * QUARTER
    return SensorData(
        sensor=sensor, start=start, values=list(values), **{"unit": "kW", "step": QUARTER} | fields
    )


@pytest.fixture
def folder(hass, tmp_path, monkeypatch):
    """Return the storage folder of a Home Assistant whose outbox does nothing by itself."""

    async def rest(_outbox):
        await asyncio.sleep(3600)

    for task in ("keep_delivering", "keep_saving"):
        monkeypatch.setattr(Outbox, task, rest)
    hass.config.config_dir = str(tmp_path)
    (tmp_path / ".storage").mkdir()
    return tmp_path / ".storage"


@pytest.fixture
async def opened(hass, folder):
    """Return a function that starts the outbox of a user, as after a kill of the one before."""
    boxes = []

    async def opened(user="me"):
        link = SimpleNamespace(host="http://x", sensors={})
        boxes.append(await outboxes.start(hass, link, statuses.Status(hass), user))
        return boxes[-1]

    yield opened
    for box in boxes:
        box.stopped = True
        await box.stop()


def held(box):
    """Return what waits: sensor, quarter, values."""
    return [(item.data.sensor, (item.data.start - NOON) / QUARTER, item.data.values) for item in box.items]


def notification(hass, cause):
    """Return the text of the notification of a cause, or None."""
    found = hass.data.get("persistent_notification", {}).get(f"flexmeasures_{cause}")
    return found and found["message"]


def device(hass, box):
    """Return what a call needs of a device."""
    return SimpleNamespace(
        refuse_if_stopped=lambda: None,
        hass=hass,
        outbox=box,
        link=box.link,
        measurements=SimpleNamespace(sensors={}),
    )


@pytest.fixture
def full(monkeypatch):
    """Return a function that has the disk full, or free again."""
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def executemany(self, *_given):
            raise sqlite3.OperationalError("database or disk is full")

    def set_full(is_full):
        def open_database(*given, **named):
            return connect(*given, **named, **({"factory": Full} if is_full else {}))

        monkeypatch.setattr(sqlite3, "connect", open_database)

    return set_full


async def test_what_is_saved_outlasts_a_kill(opened):
    box = await opened()
    box.add(run(1, 0, [1.0, None, 2.0]))
    box.add(run(2, 0, [5.0], prior=NOON))
    box.add(run(1, 3, [3.0]))
    box.dropped = 7
    assert await box.save() == []
    again = await opened()
    assert held(again) == [(1, 0, [1.0, None, 2.0, 3.0]), (2, 0, [5.0])]
    assert again.items[1].data == run(2, 0, [5.0], prior=NOON)
    assert again.dropped == 7
    again.withdraw(again.items[0])
    again.add(run(3, 0, [6.0]))
    await again.save()
    assert held(await opened()) == [(2, 0, [5.0]), (3, 0, [6.0])]


async def test_only_home_assistants_own_user_may_read_it(folder, opened):
    box = await opened()
    box.add(run(1, 0, [1]))
    await box.save()
    assert stat.filemode((folder / f"{kept.PREFIX}{outbox_store.NAME}").stat().st_mode) == "-rw-------"


async def test_a_change_writes_what_has_changed_alone(opened, monkeypatch):
    box = await opened()
    for sensor in range(1, 500):
        box.add(run(sensor, 0, [1.0]))
    await box.save()
    written = []
    original = outbox_store.write_rows

    def write(path, aside, changes):
        written.append((changes.rows, changes.gone))
        return original(path, aside, changes)

    monkeypatch.setitem(outbox_store.OutboxStore.write.__globals__, "write_rows", write)
    first, seventh = box.items[0].key, box.items[6].key
    box.add(run(7, 1, [2.0]))
    box.remove(box.items[0])
    for _ in range(2):
        await box.save()
    [(rows, gone)] = written
    assert ([key for key, _user, _run in rows], gone) == ([seventh], {first})


def as_json_file(folder, data):
    """Write the file in which all runs were before there was the database."""
    path = folder / "flexmeasures_for_pyscript.outbox"
    path.write_text(json.dumps({"version": 1, "minor_version": 1, "key": "outbox", "data": data}))
    return path


async def test_the_file_from_before_is_taken_over_once(folder, opened):
    runs = [kept.as_json(run(sensor, 0, [sensor])) for sensor in (1, 2, 3)]
    old = as_json_file(
        folder, {"me": {"runs": runs[:2], "dropped": 4}, "you": {"runs": [runs[2], 7], "dropped": 5}}
    )
    before = old.read_bytes()
    box = await opened()
    assert (held(box), box.dropped) == ([(1, 0, [1.0]), (2, 0, [2.0])], 4)
    assert not old.exists()
    assert [path.read_bytes() for path in folder.glob("*.outbox.corrupt.*")] == [before]
    box.remove(box.items[0])
    await box.save()
    assert held(await opened()) == [(2, 0, [2.0])]
    other = await opened("you")
    assert (held(other), other.dropped) == ([(3, 0, [3.0])], 5)


async def test_the_file_from_before_stays_until_what_it_holds_is_written(folder, opened, full):
    old = as_json_file(folder, {"me": {"runs": [kept.as_json(run(1, 0, [1.0]))], "dropped": 0}})
    full(True)
    box = await opened()
    assert held(box) == [(1, 0, [1.0])]
    assert old.exists()
    full(False)
    assert await box.save() == []
    assert not old.exists()
    assert held(await opened()) == [(1, 0, [1.0])]


async def test_a_full_disk_is_told_to_the_caller_and_the_user_and_tried_again(
    hass, opened, full, monkeypatch
):
    box = await opened()
    monkeypatch.setattr(outboxes, "MAX_CALL_SECONDS", 0)
    full(True)
    call = services.checked(services.post_measurements(None), {"sensor_id": 1, "values": 2})
    with pytest.raises(HomeAssistantError, match=r"only in memory: .*outbox\.db .*database or disk is full"):
        await measurement_calls.post_measurements(device(hass, box), call)
    told = notification(hass, "file_not_saved")
    assert "cannot be written (OperationalError: database or disk is full)" in told
    assert hass.states.get(statuses.ENTITY_ID).attributes["last_error"] == told
    assert len(box.items) == 1
    full(False)
    kept.save_again(box.status)
    while box.status.unsaved:
        await asyncio.sleep(0.01)
    assert notification(hass, "file_not_saved") is None
    assert len((await opened()).items) == 1
    answer = await measurement_calls.post_measurements(device(hass, box), call | {"sensor_id": 2})
    assert answer == {"delivered": False, "values": 1, "outbox": 2}


async def test_a_folder_that_cannot_be_written_to_is_told(hass, folder, opened):
    folder.rmdir()
    folder.write_text("a file in its place")
    box = await opened()
    box.add(run(1, 0, [1.0]))
    assert len(await box.save()) == 1
    assert "cannot be written" in notification(hass, "file_not_saved")
    folder.unlink()
    assert await box.save() == []
    assert held(await opened()) == [(1, 0, [1.0])]


async def test_a_value_that_cannot_be_written_holds_up_nothing_else(hass, opened):
    box = await opened()
    box.add(run(1, 0, [1.0]))
    odd = box.add(run(2, 0, [float("nan")]))
    box.add(run(3, 0, [3.0]))
    assert await box.save() == [odd]
    assert "cannot be written (ValueError" in notification(hass, "file_not_saved")
    assert [sensor for sensor, _quarter, _values in held(await opened())] == [1, 3]


@pytest.mark.parametrize(
    ("sensor", "says"),
    [
        (10**30, "sensor_id: expected the number of a FlexMeasures sensor"),
        (2**31, "sensor_id: expected the number"),
        ("9" * 5000, "sensor_id: expected the number"),
        (float("inf"), "sensor_id: expected the number"),
    ],
)
def test_an_id_beyond_all_databases_is_refused(sensor, says):
    with pytest.raises(HomeAssistantError, match=says):
        services.checked(services.post_measurements(None), {"sensor_id": sensor, "values": 1})
    services.checked(services.post_measurements(None), {"sensor_id": 2**31 - 1, "values": 1})


def other_version(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


def without_tables(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE runs")


def folder_in_its_place(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "json": lambda path: path.write_text('{"version": 1}'),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:6000]),
    "scribbled over": lambda path: path.write_bytes(path.read_bytes()[:5000] + b"x" * 8000),
    "other version": other_version,
    "without tables": without_tables,
    "folder": folder_in_its_place,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_database_that_cannot_be_used_is_set_aside(hass, folder, opened, damage):
    box = await opened()
    box.add(run(1, 0, [float(number) for number in range(1000)]))
    await box.save()
    damage(folder / "flexmeasures_for_pyscript.outbox.db")
    again = await opened()
    assert held(again) == []
    [aside] = folder.glob("*.corrupt.*")
    assert aside.name in notification(hass, "file_set_aside")
    again.add(run(2, 0, [2.0]))
    assert await again.save() == []
    assert held(await opened()) == [(2, 0, [2.0])]


async def test_a_row_that_cannot_be_read_is_told_and_the_rest_goes_on(hass, folder, opened):
    box = await opened()
    for sensor in (1, 2, 3):
        box.add(run(sensor, 0, [1.0]))
    await box.save()
    path = folder / "flexmeasures_for_pyscript.outbox.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE runs SET run = '[7]' WHERE key = ?", [box.items[1].key])
    assert [sensor for sensor, _quarter, _values in held(await opened())] == [1, 3]
    [aside] = folder.glob("*.corrupt.*")
    assert aside.name in notification(hass, "file_set_aside")
    assert stat.filemode(aside.stat().st_mode) == "-rw-------"
    with closing(sqlite3.connect(aside)) as database:
        assert ("[7]",) in database.execute("SELECT run FROM runs").fetchall()
    statuses.dismiss(hass)
    await opened()
    assert notification(hass, "file_set_aside") is None


@pytest.mark.parametrize("damage", ["random", "removed"])
async def test_a_database_that_is_damaged_meanwhile_is_written_anew(folder, opened, damage):
    box = await opened()
    for sensor in (1, 2):
        box.add(run(sensor, 0, [1.0]))
    await box.save()
    path = folder / "flexmeasures_for_pyscript.outbox.db"
    DAMAGE.get(damage, lambda path: path.unlink())(path)
    box.add(run(3, 0, [3.0]))
    assert await box.save() == []
    assert [sensor for sensor, _quarter, _values in held(await opened())] == [1, 2, 3]


async def test_the_journal_of_a_database_that_was_set_aside_is_not_applied_to_the_next(folder, opened):
    box = await opened()
    box.add(run(1, 0, [1.0]))
    await box.save()
    path = folder / "flexmeasures_for_pyscript.outbox.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO runs VALUES (9, 'me', ?)", ["x" * 50_000])
        journal = path.with_name(f"{path.name}-journal")
        shutil.copyfile(journal, folder / "copy")
        database.execute("ROLLBACK")
    path.write_bytes(b"x" * 5000)
    shutil.copyfile(folder / "copy", journal)
    again = await opened()
    assert not journal.exists()
    again.add(run(2, 0, [2.0]))
    await again.save()
    assert held(await opened()) == [(2, 0, [2.0])]


@pytest.fixture
def database(folder):
    """Return where the database is."""
    return folder / "flexmeasures_for_pyscript.outbox.db"


async def test_a_database_that_another_program_holds_is_read_later(
    hass, folder, opened, database, monkeypatch
):
    monkeypatch.setitem(outbox_store.opened.__wrapped__.__globals__, "LOCKED_SECONDS", 0.05)
    box = await opened()
    box.add(run(1, 0, [1.0]))
    await box.save()
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        again = await opened()
        assert "cannot be read" in notification(hass, "file_not_saved")
        again.add(run(2, 0, [2.0]))
        assert len(await again.save()) == 1
        assert held(again) == [(2, 0, [2.0])]
    assert list(folder.glob("*.corrupt.*")) == []
    assert await again.save() == []
    assert held(again) == held(await opened()) == [(1, 0, [1.0]), (2, 0, [2.0])]
    assert notification(hass, "file_not_saved") is None


async def test_what_could_not_be_set_aside_is_not_written_over(hass, folder, opened, database, monkeypatch):
    for user in ("other", "me"):
        box = await opened(user)
        box.add(run(1, 0, [1.0]))
        await box.save()
    before = database.read_bytes()
    database.write_bytes(b"x" * 100)
    rename = type(database).rename

    def refuse(path, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(database), "rename", refuse)
    box = await opened()
    box.add(run(2, 0, [2.0]))
    assert len(await box.save()) == 1
    assert database.read_bytes() == b"x" * 100
    assert "could not be renamed" in notification(hass, "file_set_aside")
    monkeypatch.setattr(type(database), "rename", rename)
    assert await box.save() == []
    database.write_bytes(before)
    assert held(await opened("other")) == [(1, 0, [1.0])]


async def test_what_could_not_be_written_is_there_after_a_reload(hass, opened, full):
    box = await opened()
    box.add(run(1, 0, [1.0]))
    box.add(run(2, 0, [2.0]))
    await box.save()
    full(True)
    box.add(run(1, 1, [1.5]))
    box.remove(box.items[1])
    box.add(run(3, 0, [3.0]))
    await box.stop()
    statuses.dismiss(hass)
    again = await opened()
    assert held(again) == [(1, 0, [1.0, 1.5]), (3, 0, [3.0])]
    assert "cannot be written" in notification(hass, "file_not_saved")
    full(False)
    assert await again.save() == []
    assert held(await opened()) == [(1, 0, [1.0, 1.5]), (3, 0, [3.0])]


async def test_the_file_from_before_that_cannot_be_removed_is_not_taken_over_again(
    folder, opened, monkeypatch
):
    old = as_json_file(folder, {"me": {"runs": [kept.as_json(run(1, 0, [1.0]))], "dropped": 2}})
    monkeypatch.setitem(outbox_store.OutboxStore.write.__globals__, "remove_all", lambda paths: None)
    box = await opened()
    assert old.exists()
    box.remove(box.items[0])
    await box.save()
    again = await opened()
    assert (held(again), again.dropped) == ([], 2)


def many(box, count=300):
    """Have many runs wait."""
    for sensor in range(1, count + 1):
        box.add(run(sensor, 0, [sensor + 0.25] * 400))


async def test_a_page_that_is_damaged_in_operation_is_found_by_the_hourly_check(hass, folder, opened):
    box = await opened()
    many(box)
    await box.save()
    path = folder / "flexmeasures_for_pyscript.outbox.db"
    whole = path.read_bytes()
    page = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:page] + b"\xff" * 4096 + whole[page + 4096 :])
    await box.check_file()
    [aside] = folder.glob("*.corrupt.*")
    assert f"It was renamed to {aside.name}" in notification(hass, "file_set_aside")
    assert held(await opened()) == held(box)


async def test_the_file_is_checked_each_hour(hass, folder, clock, monkeypatch):
    checks = []

    async def check(box):
        checks.append(clock.time())

    monkeypatch.setattr(Outbox, "check_file", check)
    box = await outboxes.start(hass, SimpleNamespace(host="x", sensors={}), statuses.Status(hass), "me")
    await asyncio.sleep(2.5 * 3600)
    assert len(checks) == 2
    await box.stop()
    await asyncio.sleep(3 * 3600)
    assert len(checks) == 2


async def test_a_file_that_is_mostly_free_is_made_shorter_and_keeps_what_waits(folder, opened):
    box = await opened()
    many(box)
    await box.save()
    path = folder / "flexmeasures_for_pyscript.outbox.db"
    before = path.stat().st_size
    await box.check_file()
    assert path.stat().st_size == before
    for item in box.items[:-10]:
        box.remove(item)
    await box.save()
    assert path.stat().st_size == before
    await box.check_file()
    assert path.stat().st_size < before / 10
    assert stat.filemode(path.stat().st_mode) == "-rw-------"
    assert held(await opened()) == held(box)
    assert len(box.items) == 10


@contextmanager
def read_only(folder):
    """Be a user who may not write to a folder meanwhile: root may, whatever its mode is."""
    is_root = os.geteuid() == 0
    folder.chmod(0o555)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def storage(hass):
    """Return the storage folder of a Home Assistant, below folders that anybody may pass through."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        hass.config.config_dir = place
        folder = Path(place) / ".storage"
        folder.mkdir()
        yield folder


@pytest.mark.parametrize("name", ["outbox.db", "resources"])
async def test_a_folder_that_is_read_only_is_told_and_written_to_later(hass, storage, name):
    status = statuses.Status(hass)
    if name == "outbox.db":
        store = outbox_store.new(hass, status, "me")
        save = partial(store.write, [(1, outbox_store.as_text(run(1, 0, [1.0])))], set(), 0)
    else:
        save = partial(kept.KeptFile(hass, status, name, "the S2 devices").async_save, {"a": 1})
    with read_only(storage):
        assert not await save()
    told = notification(hass, "file_not_saved")
    assert f"flexmeasures_for_pyscript.{name} with" in told
    assert "cannot be written (" in told
    assert await save()
    [written] = storage.iterdir()
    assert (written.name, written.stat().st_size > 0) == (f"flexmeasures_for_pyscript.{name}", True)
