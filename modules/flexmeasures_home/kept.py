"""Our files in Home Assistant's storage folder: their content is validated, and failures are shown.

They have the form of Home Assistant's own Store. That one raises where a file has another form or version,
and only logs that a file cannot be read or written.
"""

import asyncio
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as fields_of
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import CALLBACK_TYPE, HassJob, HomeAssistant, callback
from homeassistant.helpers.event import async_call_later
from homeassistant.helpers.json import json_bytes
from homeassistant.helpers.storage import STORAGE_DIR
from homeassistant.util.json import json_loads

import flexmeasures_home.fields as fields
from flexmeasures_home.status import NOT_SAVED, SET_ASIDE, Status

PREFIX = "flexmeasures_for_pyscript."
VERSION = 1
MAX_QUOTED = 80
"""How much of an error's text is shown."""
PAUSES_BETWEEN_TRIES = (0.1, 0.5, 1.0)
"""The pauses (s) after a file that exists could not be read."""


@pyscript_compile
def path_of(hass: HomeAssistant, name: str) -> Path:
    """Return the path of one of our files."""
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
def content_of(path: Path) -> dict[str, Any] | None:
    """Return the content of a file, or None without one; raise OSError or ValueError. Blocks."""
    try:
        content = json_loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not keys and values")
    if content.get("version") != VERSION:
        raise ValueError(f"its version is {content.get('version')!r}, not {VERSION}"[:MAX_QUOTED])
    data = content.get("data")
    if not isinstance(data, dict):
        raise ValueError(f"its data are a {type(data).__name__}, not keys and values")
    return data


@pyscript_compile
def write(path: Path, name: str, data: dict[str, Any], aside: Path | None) -> None:
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
def save_again(status: Status) -> None:
    """Write files in the background that could not be written before; to be called each minute."""
    for name, write_again in list(status.unsaved.items()):
        status.hass.async_create_background_task(write_again(), f"flexmeasures saving {name}")


@dataclass(eq=False, repr=False)
class _KeptFile:
    """A file in Home Assistant's storage folder: its `name`, and `what` it holds, as a user calls it.

    `waiting` is the data still to be written. `aside` is the path of a copy of the file as it was, if a part
    of it could not be read. `is_blocked` is why the present file must not be overwritten.
    """

    hass: HomeAssistant
    status: Status
    name: str
    what: str
    waiting: dict[str, Any] | None = None
    aside: Path | None = None
    is_blocked: str | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    cancel_timer: CALLBACK_TYPE | None = None

    @property
    @pyscript_compile
    def _saving(self) -> str:
        """Return the problem key of a failure to write it."""
        return f"saving {self.name}"

    @property
    @pyscript_compile
    def path(self) -> Path:
        """Return its path."""
        return path_of(self.hass, self.name)

    @pyscript_compile
    async def async_load(self) -> dict[str, Any]:
        """Return its content, which is empty without a file.

        A file with another content than ours is renamed. A file that cannot be read, after some tries, stays
        as it is, and is not overwritten.
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
        self.report_unread(problem)
        return {}

    @pyscript_compile
    def convert_or_report(self, convert: Callable[[Any], Any], value: Any, default: Any = None) -> Any:
        """Return a part of its content, converted; a part that cannot be read is reported, and left out.

        The whole file is copied before it is written next.
        """
        try:
            return convert(value)
        except Exception as error:
            self.report_part(reason(error), str(value)[:MAX_QUOTED])
            return default

    @pyscript_compile
    def report_part(self, why: str, where: str) -> None:
        """Report that a part of it cannot be read, and keep a copy of the file as it was."""
        self.aside = self.aside or name_aside(self.path)
        text = f"{why} in {where}"
        self._report_aside(text, f"The file as it was is kept as {self.aside.name} beside it")

    @pyscript_compile
    def part(self, data: dict[str, Any], key: str, kind: type) -> Any:
        """Return the value of a key; an empty one of the `kind` where it is missing, or of another kind."""
        value = data.get(key)
        return kind() if value is None else self.convert_or_report(partial(of_kind, kind), value, kind())

    @pyscript_compile
    async def async_save(self, data: dict[str, Any]) -> bool:
        """Write data, and return whether that succeeded; a failure is reported, and retried each minute."""
        self._cancel_timer()
        self.waiting = data
        return await self.write_waiting()

    @pyscript_compile
    def async_delay_save(self, data: Callable[[], dict[str, Any]], seconds: float) -> None:
        """Write in some seconds what `data()` returns then, unless data are written before."""
        self._cancel_timer()

        @callback
        def save(_now: datetime) -> None:
            self.cancel_timer = None
            work = self.async_save(data())
            self.hass.async_create_background_task(work, f"flexmeasures saving {self.name}")

        job = HassJob(save, cancel_on_shutdown=True)
        self.cancel_timer = async_call_later(self.hass, seconds, job)

    @pyscript_compile
    async def write_waiting(self) -> bool:
        """Write the data still to be written; return whether none are left."""
        async with self.lock:
            data = self.waiting
            if data is None:
                return True
            if self.is_blocked:
                self.status.unsaved[self.name] = self.write_waiting
                self.report_blocked()
                return False
            try:
                await self.hass.async_add_executor_job(write, self.path, self.name, data, self.aside)
            except Exception as error:
                self.status.unsaved[self.name] = self.write_waiting
                self.report_unsaved(error)
                return False
            if self.waiting is data:
                self.waiting = None
                self.status.unsaved.pop(self.name, None)
            self.report_saved()
            return True

    @pyscript_compile
    async def set_aside(self, why: str) -> Path | None:
        """Rename a file or folder that cannot be used, and report it; return the new path.

        One that cannot be renamed is not overwritten.
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
            self._report_aside(why, done)
            return None
        self.is_blocked = None
        self._report_aside(why, f"It was renamed to {aside.name}, and the app goes on without what it held")
        return aside

    @pyscript_compile
    def _report_aside(self, why: str, done: str) -> None:
        """Report that it cannot be read, or a part of it, and what was done about it."""
        text = f"{self.path} with {self.what} cannot be read ({why}). {done}"
        self.status.fail(f"file {self.name}", text, cause=SET_ASIDE)

    @pyscript_compile
    def report_unread(self, error: BaseException) -> None:
        """Report that it cannot be read now."""
        text = (
            f"{self.path} with {self.what} cannot be read ({reason(error)}), and stays as it is: check that "
            f"no other program locks it, and its permissions; then reload the scripts"
        )
        self.status.fail(self._saving, text, cause=NOT_SAVED)

    @pyscript_compile
    def report_unsaved(self, error: BaseException) -> None:
        """Report that it cannot be written."""
        text = (
            f"{self.path} with {self.what} cannot be written ({reason(error)}): check that the disk has "
            f"room, and the permissions of the folder. It is retried each minute; until then a restart loses "
            f"what is new"
        )
        self.status.fail(self._saving, text, cause=NOT_SAVED)

    @pyscript_compile
    def report_blocked(self) -> None:
        """Report, once, that it is not written, since the present file must not be overwritten."""
        if not self.why_unsaved:
            text = (
                f"{self.path} with {self.what} is not written, since the present file can be neither "
                f"read nor renamed ({self.is_blocked}): move it away, and reload the scripts. Until then "
                f"a restart loses what is new"
            )
            self.status.fail(self._saving, text, cause=NOT_SAVED)

    @property
    @pyscript_compile
    def why_unsaved(self) -> str | None:
        """Return what was reported of a failure to write it, or None."""
        problem = self.status.problems.get(self._saving)
        return problem.text if problem else None

    @pyscript_compile
    def report_saved(self) -> None:
        """Resolve a failure to write it."""
        if self.why_unsaved:
            self.status.resolve(self._saving)

    @pyscript_compile
    def _cancel_timer(self) -> None:
        if self.cancel_timer:
            self.cancel_timer()
            self.cancel_timer = None


KeptFile = _KeptFile


@pyscript_compile
def as_json(value: Any) -> Any:
    """Return a value as JSON's types: records become dicts, moments ISO 8601 texts, and durations seconds."""
    if is_dataclass(value):
        return {item.name: as_json(getattr(value, item.name)) for item in fields_of(value)}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else value


@pyscript_compile
def of_kind(kind: type | tuple[type, ...], value: Any) -> Any:
    """Return a value if it is of a kind, else raise TypeError."""
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
    return str(of_kind(str, value))


@pyscript_compile
def whole_number(value: Any) -> int:
    """Return an id, which is above zero; else raise TypeError or ValueError."""
    number: int = of_kind(int, value)
    if not 1 <= number <= fields.MAX_ID:
        raise ValueError("expected an id")
    return number


@pyscript_compile
def number(value: Any) -> float:
    """Return a finite number; else raise TypeError or ValueError."""
    if not math.isfinite(of_kind((int, float), value)):
        raise ValueError("expected a finite number")
    return float(value)


@pyscript_compile
def numbers(values: Any) -> list[float | None]:
    """Return a list of finite numbers, None for a gap, that is not empty."""
    if not of_kind(list, values):
        raise ValueError("expected values")
    return [optional(number, value) for value in values]


@pyscript_compile
def moment(value: Any) -> datetime:
    """Return a moment with its offset, else raise TypeError or ValueError."""
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("expected a time with an offset")
    return moment


@pyscript_compile
def length(seconds: Any) -> timedelta:
    """Return a duration above zero; else raise OverflowError, TypeError or ValueError."""
    if (duration := timedelta(seconds=number(seconds))) <= timedelta(0):
        raise ValueError("expected a duration")
    return duration
