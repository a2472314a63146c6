"""Files of ours in Home Assistant's storage folder, read without trust and written with notice.

They have the form of Home Assistant's own Store. That one stops whoever loads a file of another form or
version, and tells of a file that cannot be read, or written, in the log alone.
"""

import asyncio
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import HassJob, callback
from homeassistant.helpers.event import async_call_later
from homeassistant.helpers.json import json_bytes
from homeassistant.helpers.storage import STORAGE_DIR
from homeassistant.util.json import json_loads

import flexmeasures_home.fields as fields
import flexmeasures_home.status as statuses

PREFIX = "flexmeasures_for_pyscript."
VERSION = 1
MAX_QUOTED = 80
"""How much of an error's text is told."""
PAUSES_BETWEEN_TRIES = (0.1, 0.5, 1.0)
"""Seconds after each time that a file cannot be read, though it is there."""


@pyscript_compile
def path_of(hass: Any, name: str) -> Path:
    """Return where a file of ours is."""
    return Path(hass.config.path(STORAGE_DIR, f"{PREFIX}{name}"))


@pyscript_compile
def name_aside(path: Path) -> Path:
    """Return the name under which a file that cannot be read is kept for the user."""
    return path.with_name(f"{path.name}.corrupt.{dt_util.utcnow():%Y-%m-%dT%H-%M-%S.%f}")


@pyscript_compile
def reason(error: BaseException) -> str:
    """Return why something failed, in short."""
    text = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:MAX_QUOTED]


@pyscript_compile
def content_of(path: Path) -> dict | None:
    """Return what a file holds, or None where there is none; raise OSError or ValueError. Blocks."""
    try:
        found = json_loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not keys and values")
    if found.get("version") != VERSION:
        raise ValueError(f"its version is {found.get('version')!r}, not {VERSION}"[:MAX_QUOTED])
    if not isinstance(found.get("data"), dict):
        raise ValueError(f"its data are a {type(found.get('data')).__name__}, not keys and values")
    return found["data"]


@pyscript_compile
def write(path: Path, name: str, data: dict, aside: Path | None) -> None:
    """Replace a file by one with new data, whole or not at all; raise OSError, TypeError or ValueError.

    The file before is copied to `aside`, if that is given. Blocks.
    """
    content = json_bytes({"version": VERSION, "minor_version": 1, "key": f"{PREFIX}{name}", "data": data})
    path.parent.mkdir(parents=True, exist_ok=True)
    if aside and path.exists() and not aside.exists():
        shutil.copy(path, aside)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        new = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink()
            raise


@pyscript_compile
def save_again(status: Any) -> None:
    """Write in the background what could not be written before; to be called each minute."""
    for name, write_again in list(status.unsaved.items()):
        status.hass.async_create_background_task(write_again(), f"flexmeasures saving {name}")


@dataclass(eq=False, repr=False)
class _KeptFile:
    """A file in Home Assistant's storage folder: its `name`, and `what` it holds, as a user calls it.

    `waiting` is what is still to be written. `aside` is where the file as it was is kept, if a part of it
    could not be read. `is_blocked` is why there is something in its place that is not to be written over.
    """

    hass: Any
    status: Any
    name: str
    what: str
    waiting: dict | None = None
    aside: Path | None = None
    is_blocked: str | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    forget_timer: Callable[[], None] | None = None

    @property
    @pyscript_compile
    def path(self) -> Path:
        """Return where it is."""
        return path_of(self.hass, self.name)

    @pyscript_compile
    async def async_load(self) -> dict:
        """Return what it holds, nothing where it is not there.

        One that holds what is not ours is set aside. One that cannot be read, after some tries, stays as it
        is, and is not written over.
        """
        for pause in PAUSES_BETWEEN_TRIES:
            try:
                return await self.hass.async_add_executor_job(content_of, self.path) or {}
            except OSError as error:
                if isinstance(error, IsADirectoryError):
                    await self.set_aside(reason(error))
                    return {}
                problem = error
                await asyncio.sleep(pause)
            except Exception as error:
                await self.set_aside(reason(error))
                return {}
        self.is_blocked = reason(problem)
        self.tell_unread(problem)
        return {}

    @pyscript_compile
    def read(self, convert: Callable[[Any], Any], value: Any, otherwise: Any = None) -> Any:
        """Return a part of it, converted; one that cannot be read is told, and left out.

        The whole file is copied before it is written next.
        """
        try:
            return convert(value)
        except Exception as error:
            self.tell_part(reason(error), str(value)[:MAX_QUOTED])
            return otherwise

    @pyscript_compile
    def tell_part(self, why: str, where: str) -> None:
        """Tell that a part of it cannot be read, and keep the file as it was beside it."""
        self.aside = self.aside or name_aside(self.path)
        text = f"{why} in {where}"
        self.tell_aside(text, f"The file as it was is kept as {self.aside.name} beside it")

    @pyscript_compile
    def part(self, found: Any, key: str, kind: type) -> Any:
        """Return what a key has, and an empty one of the `kind` where it has nothing, or something else."""
        value = found.get(key)
        return kind() if value is None else self.read(partial(of_kind, kind), value, kind())

    @pyscript_compile
    async def async_save(self, data: dict) -> bool:
        """Write it, and return whether that was done; what could not be written is told, and tried again."""
        self._forget_timer()
        self.waiting = data
        return await self.write_waiting()

    @pyscript_compile
    def async_delay_save(self, data: Callable[[], dict], seconds: float) -> None:
        """Write in some seconds what `data()` returns then, unless it is written before."""
        self._forget_timer()

        @callback
        def save(_now: Any) -> None:
            self.forget_timer = None
            work = self.async_save(data())
            self.hass.async_create_background_task(work, f"flexmeasures saving {self.name}")

        job = HassJob(save, cancel_on_shutdown=True)
        self.forget_timer = async_call_later(self.hass, seconds, job)

    @pyscript_compile
    async def write_waiting(self) -> bool:
        """Write what is still to be written; return whether that was done, or nothing was to be."""
        async with self.lock:
            data = self.waiting
            if data is None:
                return True
            if self.is_blocked:
                self.status.unsaved[self.name] = self.write_waiting
                self.tell_blocked()
                return False
            try:
                await self.hass.async_add_executor_job(write, self.path, self.name, data, self.aside)
            except Exception as error:
                self.status.unsaved[self.name] = self.write_waiting
                self.tell_unsaved(error)
                return False
            if self.waiting is data:
                self.waiting = None
                self.status.unsaved.pop(self.name, None)
            self.tell_saved()
            return True

    @pyscript_compile
    async def set_aside(self, why: str) -> Path | None:
        """Rename what cannot be used, a file or a folder in its place, and tell; return its new path.

        What cannot be renamed is not written over.
        """
        aside = name_aside(self.path)
        try:
            await self.hass.async_add_executor_job(self.path.rename, aside)
        except FileNotFoundError:
            self.is_blocked = None
            return aside
        except OSError as error:
            self.is_blocked = why
            done = f"It could not be renamed ({reason(error)}): move it away, and reload the scripts"
            self.tell_aside(why, done)
            return None
        self.is_blocked = None
        self.tell_aside(why, f"It was renamed to {aside.name}, and the app goes on without what it held")
        return aside

    @pyscript_compile
    def tell_aside(self, why: str, done: str) -> None:
        """Tell that it cannot be read, or a part of it, and what was done about it."""
        text = f"{self.path} with {self.what} cannot be read ({why}). {done}"
        statuses.fail(self.status, f"file {self.name}", text, cause=statuses.SET_ASIDE)

    @pyscript_compile
    def tell_unread(self, error: BaseException) -> None:
        """Tell that it cannot be read now."""
        text = (
            f"{self.path} with {self.what} cannot be read ({reason(error)}), and stays as it is: see that no "
            f"other program holds it, and that it can be read; then reload the scripts"
        )
        statuses.fail(self.status, f"saving {self.name}", text, cause=statuses.NOT_SAVED)

    @pyscript_compile
    def tell_unsaved(self, error: BaseException) -> None:
        """Tell that it cannot be written."""
        text = (
            f"{self.path} with {self.what} cannot be written ({reason(error)}): see that the disk has room, "
            f"and that the folder can be written to. It is tried again each minute; a restart would lose "
            f"what is new"
        )
        statuses.fail(self.status, f"saving {self.name}", text, cause=statuses.NOT_SAVED)

    @pyscript_compile
    def tell_blocked(self) -> None:
        """Tell, unless that is told, that it is not written, since what is in its place stays there."""
        if not self.why_unsaved:
            text = (
                f"{self.path} with {self.what} is not written, since what is in its place can be neither "
                f"read nor renamed ({self.is_blocked}): move it away, and reload the scripts. A restart "
                f"would lose what is new"
            )
            statuses.fail(self.status, f"saving {self.name}", text, cause=statuses.NOT_SAVED)

    @property
    @pyscript_compile
    def why_unsaved(self) -> str | None:
        """Return what was told of it where it could not be written, else None."""
        problem = self.status.problems.get(f"saving {self.name}")
        return problem and problem.text

    @pyscript_compile
    def tell_saved(self) -> None:
        """Take back that it cannot be written."""
        if self.why_unsaved:
            statuses.settle(self.status, f"saving {self.name}")

    @pyscript_compile
    def _forget_timer(self) -> None:
        if self.forget_timer:
            self.forget_timer()
            self.forget_timer = None


KeptFile = _KeptFile


@pyscript_compile
def of_kind(kind: type, value: Any) -> Any:
    """Return a value that is of a kind, else raise TypeError."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind}")
    return value


@pyscript_compile
def optional(convert: Callable[[Any], Any], value: Any) -> Any:
    """Return a value converted, and None as it is."""
    return None if value is None else convert(value)


@pyscript_compile
def text(value: Any) -> str:
    """Return a text, else raise TypeError."""
    return of_kind(str, value)


@pyscript_compile
def whole_number(value: Any) -> int:
    """Return a whole number above zero that an id may be; else raise TypeError or ValueError."""
    if not 1 <= of_kind(int, value) <= fields.MAX_ID:
        raise ValueError("expected an id")
    return value


@pyscript_compile
def number(value: Any) -> float:
    """Return a finite number; else raise TypeError or ValueError."""
    if not math.isfinite(of_kind((int, float), value)):
        raise ValueError("expected a finite number")
    return float(value)


@pyscript_compile
def numbers(values: Any) -> list[float | None]:
    """Return a list of finite numbers, of which some may be missing (None), but not all items."""
    if not of_kind(list, values):
        raise ValueError("expected values")
    return [optional(number, value) for value in values]


@pyscript_compile
def moment(value: Any) -> datetime:
    """Return a moment with its offset, else raise TypeError or ValueError."""
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError("expected a time with an offset")
    return found


@pyscript_compile
def length(seconds: Any) -> timedelta:
    """Return a duration above zero; else raise OverflowError, TypeError or ValueError."""
    if (found := timedelta(seconds=number(seconds))) <= timedelta(0):
        raise ValueError("expected a duration")
    return found
