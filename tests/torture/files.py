"""Damage our files in Home Assistant's storage folder while it is down."""

import asyncio
import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.parts.misbehaving_proxy import FAULTS
from tests.torture.house import FIRST, QUARTER, SCHEDULE, House, unclear
from tests.torture.report import Outcome, guarded

TITLE = "Files"
WHAT = (
    "Each file of ours in `.storage` is damaged while Home Assistant is down, two at a time, each in "
    "another way. It must start, tell of each in its status and in a notification, and keep the damaged "
    "file beside it; what is in the other files must go on, and so must planning, posting and S2. The "
    "figure is how long the start took."
)
REPORTED_WITHIN_SECONDS = 20
PREFIX = "flexmeasures_for_pyscript."
NAMES = ("schedule", "measurements", "resources", "outbox.db")
REFUSED = next(fault for fault in FAULTS if fault.answer is None)
NOTIFICATION = "flexmeasures_file_set_aside"
FILLER = "filler"
TRIES_TO_MOUNT = 40
"""The number of attempts: a disk stays writable as long as one of its files is open for writing."""


def empty(path: Path) -> None:
    """Empty a file, as a power failure does on some file systems."""
    path.write_bytes(b"")


def cut(path: Path) -> None:
    """Remove the second half of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def random_bytes(path: Path) -> None:
    """Replace a file by random bytes."""
    path.write_bytes(random.Random(1).randbytes(4096))


def null(path: Path) -> None:
    """Replace a file by JSON's null."""
    path.write_text("null")


def a_list(path: Path) -> None:
    """Replace a file by a list in JSON."""
    path.write_text("[]")


def version_99(path: Path) -> None:
    """Set a future version."""
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 99")
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


def another_shape(path: Path) -> None:
    """Change the types of all values."""
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("DROP TABLE runs")
    else:
        content = json.loads(path.read_text())
        content["data"] = {key: bent(value) for key, value in content["data"].items()}
        path.write_text(json.dumps(content))


def bent(value: object) -> object:
    """Return an object or list with another content; texts and numbers stay, since they identify the file."""
    if isinstance(value, dict):
        return {"unknown": [1, 2], **dict.fromkeys(value, 5)} if value else [1]
    return {"unknown": 1} if isinstance(value, list) else value


def a_folder(path: Path) -> None:
    """Replace a file by a folder that is not empty."""
    path.unlink()
    path.mkdir()
    (path / "something").write_text("else")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": empty,
    "cut in half": cut,
    "random bytes": random_bytes,
    "`null`": null,
    "`[]`": a_list,
    "version 99": version_99,
    "another shape": another_shape,
    "a folder in its place": a_folder,
}


@dataclass(frozen=True)
class Case:
    """Files that are damaged together, with the kind of damage."""

    ways: dict[str, str]

    def __str__(self) -> str:
        return " and ".join(f"`{name}`: {way}" for name, way in self.ways.items())


def cases(short: bool) -> Iterator[Case]:
    """Yield two files at a time, until all files have been damaged in all ways."""
    ways = list(DAMAGES)
    if short:
        yield Case({"schedule": "another shape", "outbox.db": "cut in half"})
        return
    for number, way in enumerate(ways):
        second_way = ways[(number + 3) % len(ways)]
        yield Case({"schedule": way, "outbox.db": second_way})
        yield Case({"measurements": way, "resources": second_way})


async def run(house: House, short: bool) -> list[Outcome]:
    """Try all cases, and return the outcomes."""
    outcomes = [await guarded(str(case), one(house, case)) for case in cases(short)]
    if not short:
        outcomes += [await guarded(way.name, small_disk(house, way)) for way in WAYS]
    return outcomes


async def one(house: House, case: Case) -> Outcome:
    """Damage files, start, and check what still works."""
    home_assistant, failures = house.home_assistant, []
    await house.plan()
    await house.device_planned()
    await house.until_none_waits(60)
    await house.proxy.begin(REFUSED)
    first = set(house.ledger.accepted)
    for _ in range(3):
        await house.ledger.post(home_assistant)
    waiting = set(house.ledger.accepted) - first
    shown = (await house.state(SCHEDULE))["attributes"]
    await home_assistant.stop()
    for name, way in case.ways.items():
        await asyncio.to_thread(DAMAGES[way], house.storage / f"{PREFIX}{name}")
    asides = set(house.storage.glob(f"{PREFIX}*.corrupt.*"))
    began = asyncio.get_running_loop().time()
    await home_assistant.start()
    took = asyncio.get_running_loop().time() - began
    failures += await reporting_faults_in_time(house, case)
    if "schedule" not in case.ways:
        restored = (await house.state(SCHEDULE))["attributes"]
        if restored.get("schedule") != shown.get("schedule"):
            failures.append("the schedule was not restored")
    if "outbox.db" in case.ways:
        for start in waiting:
            del house.ledger.accepted[start]
    await house.proxy.end()
    failures += await goes_on(house)
    new = set(house.storage.glob(f"{PREFIX}*.corrupt.*")) - asides
    for name in case.ways:
        if not any(path.name.startswith(f"{PREFIX}{name}.corrupt.") for path in new):
            failures.append(f"{name}: the damaged file was not kept")
    failures += house.log_faults()
    for path in new:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    happened = "both were told of and set aside, the rest went on"
    return Outcome(str(case), happened, f"{took:.1f} s", failures)


async def reporting_faults_in_time(
    house: House, case: Case, within: float = REPORTED_WITHIN_SECONDS
) -> list[str]:
    """Return the faults of the reports of damage, once the app has had the time to read all its files."""
    deadline = time.monotonic() + within
    while (failures := await reporting_faults(house, case)) and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return failures


async def reporting_faults(house: House, case: Case) -> list[str]:
    """Return which damage is not reported, or not well."""
    failures, last_error = [], (await house.status())["attributes"]["last_error"] or ""
    if "cannot be read" not in last_error and "cannot be reached" not in last_error:
        failures.append(f"the status does not report it: {last_error}")
    shown = await house.home_assistant.notifications()
    notifications = {notification["notification_id"]: notification for notification in shown}
    text = notifications.get(NOTIFICATION, {}).get("message", "")
    for name in case.ways:
        if f"{PREFIX}{name} with" not in text:
            failures.append(f"{name}: no notification reports it ({text[:200]})")
    for part in text.split("\n\n"):
        failures += unclear(part, house.secrets) if part else []
    return failures


async def goes_on(house: House) -> list[str]:
    """Return what does not work: planning, posting, S2, and the values that waited."""
    try:
        await house.plan()
        await house.ledger.post(house.home_assistant)
        await house.device_instructed(60)
        await house.until_none_waits(90)
    except Exception as error:
        return [f"it does not go on: {type(error).__name__} {error}"]
    return await house.ledger_faults()


@dataclass(frozen=True)
class Way:
    """A way to make a disk not writable for a while, with its begin and end."""

    name: str
    begin: Callable[[Path], Awaitable[object]]
    end: Callable[[Path], Awaitable[object]]


async def small_disk(house: House, way: Way) -> Outcome:
    """Make the disk of the storage folder not writable for a while, if a small one can be mounted."""
    what = way.name
    if os.geteuid():
        return Outcome(what, "left out: it needs root, to mount a small disk", "")
    await house.home_assistant.stop()
    kept = house.storage.with_name("storage-before")
    house.storage.rename(kept)
    house.storage.mkdir()
    try:
        if await mount(house.storage):
            return Outcome(what, "left out: a small disk could not be mounted here", "")
        await asyncio.to_thread(shutil.copytree, kept, house.storage, dirs_exist_ok=True)
        return await on_a_bad_disk(house, way)
    finally:
        await house.home_assistant.stop()
        await asyncio.to_thread(shutil.copytree, house.storage, kept, dirs_exist_ok=True)
        await unmount(house.storage)
        house.storage.rmdir()
        kept.rename(house.storage)
        await house.home_assistant.start()


async def on_a_bad_disk(house: House, way: Way) -> Outcome:
    """Post a value while the disk is not writable, and check that it is delivered."""
    await house.home_assistant.start()
    failures: list[str] = []
    await house.proxy.begin(REFUSED)
    await way.begin(house.storage)
    text, in_memory = None, FIRST + len(house.ledger.tried) * QUARTER
    try:
        await house.ledger.post(house.home_assistant)
        failures.append("a value that could not be written was accepted")
    except Exception as error:
        text = getattr(error, "message", repr(error)).replace(f"{house.home_assistant.config}/", "")
        failures += unclear(text, house.secrets)
        if "only in memory" not in text:
            failures.append(f"the call does not report it: {text[:200]}")
    shown = await house.home_assistant.notifications()
    if "flexmeasures_file_not_saved" not in [notification["notification_id"] for notification in shown]:
        failures.append("no notification reports it")
    await way.end(house.storage)
    began = asyncio.get_running_loop().time()
    outbox = house.storage / f"{PREFIX}outbox.db"
    before = outbox.stat().st_mtime_ns if outbox.exists() else None
    async with asyncio.timeout(120):
        while not outbox.exists() or outbox.stat().st_mtime_ns == before:
            await asyncio.sleep(0.2)
    took = asyncio.get_running_loop().time() - began
    house.home_assistant.kill()
    await house.home_assistant.start()
    await house.proxy.end()
    failures += await goes_on(house)
    stored = await asyncio.to_thread(house.server.beliefs, house.ledger.sensor)
    if [start for start, _value in stored].count(in_memory) != 1:
        failures.append("the value that was in memory alone is not on the server once")
    happened = f"the call failed: “{text}”; once that was over, it was written, and outlived a kill"
    return Outcome(way.name, happened, f"written {took:.0f} s after that was over", failures)


async def mount(path: Path) -> int:
    """Mount a disk of 8 MiB in memory; return 0 if that succeeded."""
    process = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path)
    return await process.wait()


async def unmount(path: Path) -> None:
    """Unmount the disk."""
    process = await asyncio.create_subprocess_exec("umount", path)
    await process.wait()


async def mount_again(path: Path, mode: str) -> None:
    """Mount the disk read-only (ro), as after a fault of a disk, or writable again (rw)."""
    for _ in range(TRIES_TO_MOUNT):
        process = await asyncio.create_subprocess_exec("mount", "-o", f"remount,{mode}", path)
        if not await process.wait():
            return
        await asyncio.sleep(0.25)
    raise OSError(f"the small disk could not be mounted {mode}")


def fill(folder: Path) -> None:
    """Write until the disk is full."""
    with (folder / FILLER).open("wb", buffering=0) as file:
        for size in (65_536, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


WAYS = (
    Way(
        "the disk of `.storage` is full",
        lambda folder: asyncio.to_thread(fill, folder),
        lambda folder: asyncio.to_thread((folder / FILLER).unlink),
    ),
    Way(
        "the disk of `.storage` is read-only",
        lambda folder: mount_again(folder, "ro"),
        lambda folder: mount_again(folder, "rw"),
    ),
)
