"""The outbox's file: an SQLite database with a row for each SensorData that waits, for all users.

A change writes only the rows that it concerns, in one transaction.
"""

import hashlib
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from homeassistant.core import HomeAssistant

import flexmeasures_home.kept as kept
from flexmeasures_api.sensor_data import CONSUMPTION, PRODUCTION, SensorData
from flexmeasures_home.status import Status

NAME, WHAT = "outbox.db", "the values that wait for FlexMeasures"
NAME_AS_JSON = "outbox"
"""The file of earlier versions, before there was the database: it is imported once."""
VERSION = 1
OWNER_ONLY = 0o600
"""The permissions of Home Assistant's own private files."""
MIN_FREE_BYTES = 2**20
"""The file is compacted if more than this, and more than half of it, is free."""
LOCK_TIMEOUT_SECONDS = 5
"""How long another program, such as a backup, may lock the database before a try fails."""
LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
TABLES = (
    "CREATE TABLE IF NOT EXISTS runs (key INTEGER PRIMARY KEY, user TEXT NOT NULL, run TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dropped (user TEXT PRIMARY KEY, count INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS taken_over (digest TEXT PRIMARY KEY)",
    f"PRAGMA user_version = {VERSION}",
)


INSERT_RUN = (
    "INSERT INTO runs VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET run = excluded.run WHERE user = excluded.user"
)


@pyscript_compile
@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for a transaction, which is rolled back if it fails. Blocks."""
    database = sqlite3.connect(path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)
    try:
        yield database
    finally:
        database.close()


@pyscript_compile
def read_rows(path: Path, user: str) -> "Content | None":
    """Return the content of a database for a user, or None without a database. Blocks.

    Raise OSError, ValueError or sqlite3.Error where it cannot be read.
    """
    if not path.exists():
        return None
    if path.is_dir():
        raise IsADirectoryError(f"{path.name} is a folder")
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    with opened(path) as database:
        [version] = database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise ValueError(f"its version is {version}, not {VERSION}")
        [check] = database.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise ValueError(f"it is damaged: {check}")
        rows = database.execute("SELECT key, run FROM runs WHERE user = ? ORDER BY key", [user]).fetchall()
        dropped = database.execute("SELECT count FROM dropped WHERE user = ?", [user]).fetchone() or [0]
        has_digests = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'taken_over'").fetchone()
        digests = database.execute("SELECT digest FROM taken_over").fetchall() if has_digests else []
    return Content(
        rows=[(key, data_or_error(text)) for key, text in rows],
        dropped=dropped[0],
        digests={digest for [digest] in digests},
    )


@pyscript_compile
def data_or_error(text: str) -> SensorData | Exception:
    """Return the SensorData of a text, or what is wrong with it."""
    try:
        return from_text(text)
    except Exception as error:
        return error


@pyscript_compile
def is_lost(error: Exception) -> bool:
    """Tell whether an error means that the database was lost since it was written."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, FileNotFoundError) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@pyscript_compile
def is_unusable(error: Exception) -> bool:
    """Tell whether an error means that a database is not ours, not just that it cannot be read now."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, (ValueError, IsADirectoryError))
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


@pyscript_compile
def write_rows(path: Path, aside: Path | None, changes: "Changes") -> None:
    """Write all changes or none; the previous file is copied to `aside`, if that is given. Blocks.

    Raise OSError or sqlite3.Error; FileNotFoundError where the file should exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not changes.is_all:
        path.stat()
    if aside and path.exists() and not aside.exists():
        shutil.copy(path, aside)
    with opened(path) as database:
        database.execute("BEGIN IMMEDIATE")
        if changes.is_all:
            path.chmod(OWNER_ONLY)
        for statement in TABLES:
            database.execute(statement)
        if database.executemany(INSERT_RUN, changes.rows).rowcount not in (len(changes.rows), -1):
            raise sqlite3.IntegrityError("a key is that of another user's values")
        database.executemany("DELETE FROM runs WHERE key = ?", [(key,) for key in changes.gone])
        database.executemany("INSERT OR REPLACE INTO dropped VALUES (?, ?)", changes.dropped)
        database.executemany(
            "INSERT OR REPLACE INTO taken_over VALUES (?)", [(digest,) for digest in changes.digests]
        )
        database.execute("COMMIT")


@pyscript_compile
def maintain_file(path: Path) -> None:
    """Check a database, and compact it if it is mostly free. Blocks.

    Raise ValueError or sqlite3.Error where it is damaged, FileNotFoundError where it is gone.
    """
    path.stat()
    with opened(path) as database:
        [check] = database.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise ValueError(f"it is damaged: {check}")
        free, pages, size = [
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("freelist_count", "page_count", "page_size")
        ]
        if 2 * free > pages and free * size > MIN_FREE_BYTES:
            database.execute("VACUUM")


@pyscript_compile
def remove_all(paths: list[Path]) -> None:
    """Remove obsolete files, as far as possible. Blocks."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            LOGGER.warning("%s is obsolete, and cannot be removed (%s): delete it", path, error.strerror)


@pyscript_compile
def set_journal_aside(path: Path, aside: Path) -> None:
    """Rename the journal of a renamed database, if it has one. Blocks."""
    journal = path.with_name(f"{path.name}-journal")
    try:
        journal.rename(aside.with_name(f"{aside.name}-journal"))
    except FileNotFoundError:
        return
    except OSError:
        remove_all([journal])


@pyscript_compile
def digest_of(path: Path) -> str | None:
    """Return a digest of a file, or None if it cannot be read. Blocks."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


@dataclass(repr=False, kw_only=True)
class _Content:
    """What a database holds for a user: rows of (key, data or what is wrong with it).

    `dropped` is the number of values that were dropped, `digests` are those of files that were imported.
    """

    rows: list[tuple[int, SensorData | Exception]]
    dropped: int
    digests: set[str]


Content = _Content


@dataclass(repr=False, kw_only=True)
class _Changes:
    """What is to be written: `rows` of (key, user, data as text), and the keys that are `gone`.

    `dropped` has the number of dropped values by user, `digests` are those of files that are imported.
    `is_all` tells that there need not be a file yet.
    """

    rows: list[tuple[int, str, str]]
    gone: set[int]
    dropped: list[tuple[str, int]]
    digests: list[str]
    is_all: bool


Changes = _Changes


@dataclass(eq=False, repr=False)
class _OutboxStore:
    """The database for one user of one server.

    `last_key` is the greatest key that has been used. `unreadable` are keys of rows that cannot be read, and
    `others` the rows of other users, to be written next. `imported` are files that are obsolete after that,
    and `digests` those of files that were imported. `exists` tells whether the database exists, `dropped` is
    the number of dropped values in it, and `is_unread` tells that it could not be read yet: it is not written
    before that.
    """

    file: kept.KeptFile
    user: str
    last_key: int = 0
    unreadable: set[int] = field(default_factory=set)
    others: list[tuple[int, str, str]] = field(default_factory=list)
    others_dropped: list[tuple[str, int]] = field(default_factory=list)
    imported: list[Path] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    new_digests: list[str] = field(default_factory=list)
    exists: bool = False
    is_unread: bool = False
    dropped: int = 0

    @pyscript_compile
    def new_key(self) -> int:
        """Return a key that is greater than all before, even those of a database that could not be read."""
        self.last_key = max(self.last_key + 1, time.time_ns() // 1000)
        return self.last_key

    @pyscript_compile
    async def load(self) -> tuple[list[tuple[int, SensorData]], int]:
        """Return the user's (key, data), oldest first, and the number of values that were dropped.

        A file that is not our database is renamed, and reported. One that cannot be read now, for example
        since it is locked, stays as it is (`is_unread`): call again later.
        """
        self.is_unread = False
        run_blocking = self.file.hass.async_add_executor_job
        try:
            content = await run_blocking(read_rows, self.file.path, self.user)
        except Exception as error:
            if is_unusable(error):
                await self.set_aside(kept.reason(error))
            else:
                self.is_unread = True
                self.file.report_unread(error)
            return [], 0
        self.exists = content is not None
        if content is None:
            self.dropped, self.digests, self.unreadable = 0, set(), set()
            return [], 0
        self.dropped, self.digests = content.dropped, content.digests
        self.last_key = max([self.last_key, *[key for key, _data in content.rows]])
        wrong = {key: data for key, data in content.rows if isinstance(data, Exception)}
        for key, fault in wrong.items():
            self.file.report_part(kept.reason(fault), f"row {key}")
        self.unreadable = set(wrong)
        return [(key, data) for key, data in content.rows if isinstance(data, SensorData)], self.dropped

    @pyscript_compile
    async def import_json(self) -> tuple[list[SensorData], int]:
        """Return the user's data of an earlier version's JSON file, and the number of dropped values.

        Those of other users are written next, and then the file is removed; if that fails, it is not imported
        again.
        """
        path = kept.path_of(self.file.hass, NAME_AS_JSON)
        digest = await self.file.hass.async_add_executor_job(digest_of, path)
        if digest is None:
            return [], 0
        if digest in self.digests:
            self.imported = [path]
            return [], 0
        old = kept.KeptFile(self.file.hass, self.file.status, NAME_AS_JSON, WHAT)
        users = await old.async_load()
        own_data: list[SensorData] = []
        own_dropped = 0
        for user in users:
            content = old.part(users, user, dict)
            items = [old.convert_or_report(from_json, item) for item in old.part(content, "runs", list)]
            data, dropped = [item for item in items if item], old.part(content, "dropped", int)
            if user == self.user:
                own_data, own_dropped = data, dropped
            else:
                self.others += [(self.new_key(), user, as_text(item)) for item in data]
                self.others_dropped += [(user, dropped)]
        try:
            if users and old.aside:
                await self.file.hass.async_add_executor_job(shutil.copy, old.path, old.aside)
        except OSError as error:
            self.file.report_unsaved(error)
        else:
            self.imported = [old.path] if users else []
        self.new_digests = [digest]
        return own_data, own_dropped

    @pyscript_compile
    def has_more(self, dropped: int) -> bool:
        """Tell whether there is something to write besides rows."""
        return (
            bool(self.unreadable or self.others or self.imported or self.new_digests)
            or dropped != self.dropped
        )

    @pyscript_compile
    async def write(self, rows: list[tuple[int, str]], gone: set[int], dropped: int) -> bool:
        """Write rows of (key, data as text), delete those that are gone; return whether that succeeded.

        A failure is reported, and the caller tries again. Where the database does not exist, it writes all
        that waits: a damaged database is renamed.
        """
        changes = Changes(
            rows=[*self.others, *[(key, self.user, text) for key, text in rows]],
            gone=gone | self.unreadable,
            dropped=[*self.others_dropped, (self.user, dropped)],
            digests=self.new_digests,
            is_all=not self.exists,
        )
        run_blocking = self.file.hass.async_add_executor_job
        if self.file.is_blocked and not await self.set_aside(self.file.is_blocked):
            self.file.report_blocked()
            return False
        try:
            await run_blocking(write_rows, self.file.path, self.file.aside, changes)
            await run_blocking(remove_all, self.imported)
        except Exception as error:
            self.file.report_unsaved(error)
            if is_lost(error):
                self.exists = False
                if not isinstance(error, FileNotFoundError):
                    await self.set_aside(kept.reason(error))
            return False
        self.exists, self.dropped = True, dropped
        self.others, self.others_dropped, self.imported, self.unreadable = [], [], [], set()
        self.new_digests = []
        return True

    @pyscript_compile
    async def maintain(self) -> None:
        """Check the database, and compact it if it is mostly free.

        A damaged one is renamed and reported, and does not exist any more: all that waits has to be written.
        Other errors, such as a lock of another program, are ignored.
        """
        try:
            await self.file.hass.async_add_executor_job(maintain_file, self.file.path)
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                self.exists = False
            elif is_unusable(error) and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
                self.exists = False
                await self.set_aside(kept.reason(error))
            else:
                LOGGER.debug("%s cannot be checked: %s", self.file.path, kept.reason(error))

    @pyscript_compile
    async def set_aside(self, why: str) -> bool:
        """Rename the database and its journal, so that SQLite uses neither; return whether that succeeded."""
        aside = await self.file.set_aside(why)
        if aside:
            await self.file.hass.async_add_executor_job(set_journal_aside, self.file.path, aside)
        return aside is not None


OutboxStore = _OutboxStore


@pyscript_compile
def new(hass: HomeAssistant, status: Status, user: str) -> OutboxStore:
    """Return the store for one user of one server."""
    return OutboxStore(kept.KeptFile(hass, status, NAME, WHAT), user)


@pyscript_compile
def as_text(data: SensorData) -> str:
    """Return data as text; raise TypeError or ValueError if they cannot be written as JSON."""
    return json.dumps(kept.as_json(data), allow_nan=False)


@pyscript_compile
def from_text(text: str) -> SensorData:
    """Return the data that `as_text` wrote; raise what is wrong with them."""
    return from_json(json.loads(text))


@pyscript_compile
def from_json(item: dict[str, Any]) -> SensorData:
    """Return the data that `kept.as_json` wrote; raise KeyError, OverflowError, TypeError or ValueError."""
    step, sign = item["step"], item["sign"]
    if sign not in (None, CONSUMPTION, PRODUCTION):
        raise ValueError("expected a sign of 1 or -1, or none")
    return SensorData(
        sensor=kept.whole_number(item["sensor"]),
        start=kept.moment(item["start"]),
        values=kept.numbers(item["values"]),
        unit=kept.optional(kept.text, item["unit"]),
        step=None if step is None else timedelta(seconds=kept.number(step)),
        prior=kept.optional(kept.moment, item["prior"]),
        sign=sign,
        stored_until=kept.optional(kept.moment, item.get("stored_until")),
    )
