"""The outbox's file: a database with a row for each run that waits, of all users of all servers.

A change writes the rows that it is about, in one transaction, however much else waits.
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

import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.kept as kept

NAME, WHAT = "outbox.db", "the values that wait for FlexMeasures"
NAME_AS_JSON = "outbox"
"""The file that had all runs until there was the database: it is taken over once."""
VERSION = 1
OWNER_ONLY = 0o600
"""Who may read it: as with Home Assistant's own files that are private."""
WORTH_SHRINKING_BYTES = 2**20
"""How much of the file must be free, beside half of it, before it is made shorter."""
LOCKED_SECONDS = 5
"""How long is waited for another program, such as a backup, that holds the database, before the next try."""
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
    """Open a database for a transaction, which is rolled back where it fails. Blocks."""
    database = sqlite3.connect(path, timeout=LOCKED_SECONDS, isolation_level=None)
    try:
        yield database
    finally:
        database.close()


@pyscript_compile
def read_rows(path: Path, user: str) -> tuple[list[tuple[int, Any]], int, set[str], bool]:
    """Return a user's (key, Run or what is wrong with it), how many values were dropped, and more. Blocks.

    That is the digests of the files that were taken over, and whether there is a database. Raise OSError,
    ValueError or sqlite3.Error where it cannot be read.
    """
    if not path.exists():
        return [], 0, set(), False
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
    return [(key, run_or_error(text)) for key, text in rows], dropped[0], {each for [each] in digests}, True


@pyscript_compile
def run_or_error(text: str) -> Any:
    """Return the run that a text is, or what is wrong with it."""
    try:
        return from_text(text)
    except Exception as error:
        return error


@pyscript_compile
def is_lost(error: Exception) -> bool:
    """Tell whether an error means that what was written before is there no more."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, FileNotFoundError) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@pyscript_compile
def is_unusable(error: Exception) -> bool:
    """Tell whether an error means that a database is none of ours, not only that it cannot be read now."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, (ValueError, IsADirectoryError))
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


@pyscript_compile
def write_rows(path: Path, aside: Path | None, changes: Any) -> None:
    """Write Changes, all of them or none; the file before is copied to `aside`, if that is given. Blocks.

    Raise OSError or sqlite3.Error; FileNotFoundError where the file was to be there.
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
            "INSERT OR REPLACE INTO taken_over VALUES (?)", [(each,) for each in changes.digests]
        )
        database.execute("COMMIT")


@pyscript_compile
def look_after_file(path: Path) -> None:
    """Make a database shorter that is mostly free. Blocks.

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
        if 2 * free > pages and free * size > WORTH_SHRINKING_BYTES:
            database.execute("VACUUM")


@pyscript_compile
def remove_all(paths: list[Path]) -> None:
    """Remove files that have no purpose any more, as far as that can be done. Blocks."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            LOGGER.warning("%s cannot be removed (%s): it has no purpose any more", path, error.strerror)


@pyscript_compile
def set_journal_aside(path: Path, aside: Path) -> None:
    """Rename the journal of a database that was renamed, if it has one. Blocks."""
    journal = path.with_name(f"{path.name}-journal")
    try:
        journal.rename(aside.with_name(f"{aside.name}-journal"))
    except FileNotFoundError:
        return
    except OSError:
        remove_all([journal])


@pyscript_compile
def digest_of(path: Path) -> str | None:
    """Return a digest of a file, or None where there is none that can be read. Blocks."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


@dataclass(repr=False)
class _Changes:
    """What is to be written: `rows` of (key, user, run as text), keys that are `gone`, and `dropped` values.

    Those are counted by user. `digests` are those of files that are taken over by this. `is_all` tells that
    there need not be a file yet.
    """

    rows: list
    gone: set
    dropped: list
    digests: list
    is_all: bool


Changes = _Changes


@dataclass(eq=False, repr=False)
class _OutboxStore:
    """The database for one user of one server.

    `file` is where it is. `last_key` is the greatest key that has been used. `unread` are keys of rows that
    cannot be read, and `others` the rows of other users, to be written next. `taken_over` are files that have
    no purpose once that is done, and `digests` has those of files that were taken over. `is_there` tells
    whether what is not changed is in the database, `dropped` is what is in there, and `is_unread` tells that
    it could not be read yet: it is not written before that.
    """

    file: Any
    user: str
    last_key: int = 0
    unread: set = field(default_factory=set)
    others: list = field(default_factory=list)
    others_dropped: list = field(default_factory=list)
    taken_over: list = field(default_factory=list)
    digests: set = field(default_factory=set)
    new_digests: list = field(default_factory=list)
    is_there: bool = False
    is_unread: bool = False
    dropped: int = 0

    @pyscript_compile
    def new_key(self) -> int:
        """Return a key that is greater than all before, also those of a database that could not be read."""
        self.last_key = max(self.last_key + 1, time.time_ns() // 1000)
        return self.last_key

    @pyscript_compile
    async def load(self) -> tuple[list[tuple[int, Any]], int]:
        """Return the user's (key, Run), oldest first, and how many values were dropped.

        What is no database of ours is set aside, and told. One that cannot be read now, since it is locked
        for example, stays as it is (`is_unread`): call again later.
        """
        self.is_unread = False
        run_blocking = self.file.hass.async_add_executor_job
        try:
            found, self.dropped, self.digests, self.is_there = await run_blocking(
                read_rows, self.file.path, self.user
            )
        except Exception as error:
            if is_unusable(error):
                await self.set_aside(kept.reason(error))
            else:
                self.is_unread = True
                self.file.tell_unread(error)
            return [], 0
        self.last_key = max([self.last_key, *[key for key, _run in found]])
        wrong = {key: run for key, run in found if isinstance(run, Exception)}
        for key, error in wrong.items():
            self.file.tell_part(kept.reason(error), f"row {key}")
        self.unread = set(wrong)
        return [(key, run) for key, run in found if key not in wrong], self.dropped

    @pyscript_compile
    async def take_over(self) -> tuple[list[Any], int]:
        """Return the user's Runs of the JSON file that was before, and how many values were dropped.

        All others' are written next, and then the file is removed; one that is still there after that is not
        taken over again.
        """
        path = kept.path_of(self.file.hass, NAME_AS_JSON)
        digest = await self.file.hass.async_add_executor_job(digest_of, path)
        if digest is None:
            return [], 0
        if digest in self.digests:
            self.taken_over = [path]
            return [], 0
        old = kept.KeptFile(self.file.hass, self.file.status, NAME_AS_JSON, WHAT)
        found = await old.async_load()
        runs, dropped = [], 0
        for user in found:
            own = old.part(found, user, dict)
            recalled = [old.read(recall, each) for each in old.part(own, "runs", list)]
            count = old.part(own, "dropped", int)
            if user == self.user:
                runs, dropped = [run for run in recalled if run], count
            else:
                self.others += [(self.new_key(), user, as_text(run)) for run in recalled if run]
                self.others_dropped += [(user, count)]
        try:
            if found and old.aside:
                await self.file.hass.async_add_executor_job(shutil.copy, old.path, old.aside)
        except OSError as error:
            self.file.tell_unsaved(error)
        else:
            self.taken_over = [old.path] if found else []
        self.new_digests = [digest]
        return runs, dropped

    @pyscript_compile
    def has_more(self, dropped: int) -> bool:
        """Tell whether there is more to be written than runs."""
        return (
            bool(self.unread or self.others or self.taken_over or self.new_digests) or dropped != self.dropped
        )

    @pyscript_compile
    async def write(self, rows: list[tuple[int, str]], gone: set[int], dropped: int) -> bool:
        """Write rows of (key, run as text), delete those that are gone; return whether that was done.

        What could not be written is told; the caller tries it again. It writes all that waits where the
        database is not there: one that was damaged meanwhile is set aside.
        """
        changes = Changes(
            rows=[*self.others, *[(key, self.user, run) for key, run in rows]],
            gone=gone | self.unread,
            dropped=[*self.others_dropped, (self.user, dropped)],
            digests=self.new_digests,
            is_all=not self.is_there,
        )
        run_blocking = self.file.hass.async_add_executor_job
        if self.file.is_blocked and not await self.set_aside(self.file.is_blocked):
            self.file.tell_blocked()
            return False
        try:
            await run_blocking(write_rows, self.file.path, self.file.aside, changes)
            await run_blocking(remove_all, self.taken_over)
        except Exception as error:
            self.file.tell_unsaved(error)
            if is_lost(error):
                self.is_there = False
                if not isinstance(error, FileNotFoundError):
                    await self.set_aside(kept.reason(error))
            return False
        self.is_there, self.dropped = True, dropped
        self.others, self.others_dropped, self.taken_over, self.unread = [], [], [], set()
        self.new_digests = []
        return True

    @pyscript_compile
    async def look_after(self) -> None:
        """Check the database, and make it shorter where it is mostly free.

        One that is damaged is set aside and told, and is then not there: all that waits is to be written.
        What else keeps it from being looked at, as another program that holds it, is no matter.
        """
        try:
            await self.file.hass.async_add_executor_job(look_after_file, self.file.path)
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                self.is_there = False
            elif is_unusable(error) and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
                self.is_there = False
                await self.set_aside(kept.reason(error))
            else:
                LOGGER.debug("%s cannot be looked after: %s", self.file.path, kept.reason(error))

    @pyscript_compile
    async def set_aside(self, why: str) -> bool:
        """Rename the database, and its journal, which would be taken for a new one's; tell whether it was."""
        aside = await self.file.set_aside(why)
        if aside:
            await self.file.hass.async_add_executor_job(set_journal_aside, self.file.path, aside)
        return aside is not None


OutboxStore = _OutboxStore


@pyscript_compile
def new(hass: Any, status: Any, user: str) -> Any:
    """Return the store for one user of one server."""
    return OutboxStore(kept.KeptFile(hass, status, NAME, WHAT), user)


@pyscript_compile
def as_text(run: Any) -> str:
    """Return a run as text; raise TypeError or ValueError where it holds what JSON has not."""
    return json.dumps(as_json(run), allow_nan=False)


@pyscript_compile
def from_text(text: str) -> Any:
    """Return the run that `as_text` wrote; raise what is wrong with it."""
    return recall(json.loads(text))


@pyscript_compile
def as_json(run: Any) -> dict[str, Any]:
    """Return a run as JSON's types."""
    return {
        "sensor": run.sensor,
        "start": run.start.isoformat(),
        "values": run.values[:],
        "unit": run.unit,
        "step": None if run.step is None else run.step.total_seconds(),
        "prior": run.prior and run.prior.isoformat(),
        "sign": run.sign,
        "stored_until": run.stored_until and run.stored_until.isoformat(),
    }


@pyscript_compile
def recall(found: Any) -> Any:
    """Return the run that `as_json` wrote; raise KeyError, OverflowError, TypeError or ValueError."""
    step, sign = found["step"], found["sign"]
    if sign not in (None, sensor_data.CONSUMPTION, sensor_data.PRODUCTION):
        raise ValueError("expected a sign of 1 or -1, or none")
    return sensor_data.SensorData(
        sensor=kept.whole_number(found["sensor"]),
        start=kept.moment(found["start"]),
        values=kept.numbers(found["values"]),
        unit=kept.optional(kept.text, found["unit"]),
        step=None if step is None else timedelta(seconds=kept.number(step)),
        prior=kept.optional(kept.moment, found["prior"]),
        sign=sign,
        stored_until=kept.optional(kept.moment, found.get("stored_until")),
    )
