"""The outbox: everything that is posted to FlexMeasures is kept in a file until the server has stored it.

All values go through it, so that they arrive in order. Posting values twice stores them once, since
FlexMeasures skips values that it already has: whatever was under way when Home Assistant ended is posted
again.
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import homeassistant.util.dt as dt_util
from homeassistant.core import HomeAssistant

import flexmeasures_api.errors as errors
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.fields as fields
import flexmeasures_home.kept as kept
import flexmeasures_home.outbox_store as outbox_store
import flexmeasures_home.tasks as tasks
from flexmeasures_api.connection import Connection
from flexmeasures_api.sensor_data import Chunk, SensorData
from flexmeasures_home.backoff import Backoff
from flexmeasures_home.outbox_store import OutboxStore
from flexmeasures_home.status import DROPPED, Status

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
PROBLEM_KEY, FULL = "measurements", "outbox"
HANDED_OVER = "flexmeasures_for_pyscript.outbox"
"""Where in `hass.data` an outbox leaves what it could not write, by its user."""
MAX_WAITING_VALUES = 100_000
MAX_VALUES_PER_ITEM = 1_000
VALUES_DROPPED_AT_ONCE = 100
MAX_FAILING = timedelta(days=1)
"""Values that the server fails over for longer are dropped."""
CORRECTION_PAUSE_SECONDS = 2
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5, 300
MAX_CALL_SECONDS = 20
"""How long a service call waits for its values to be stored."""
SECONDS_BETWEEN_CHECKS = 3600
"""How often the file is checked while it is in use."""
OF_THE_SERVER = (errors.Unreachable, errors.RateLimited, errors.Unauthorized)
"""Errors for which the server takes no values at all."""


@dataclass(eq=False, repr=False, kw_only=True)
class _OutboxItem:
    """Data on their way: since when they fail, the job that stores a `chunk` of them, and who waits for them.

    `key` is their own in the file; `is_saved` tells whether the file has them as they are now.
    """

    data: SensorData
    key: int = 0
    is_saved: bool = False
    failing_since: datetime | None = None
    job: str | None = None
    chunk: Chunk | None = None
    is_being_sent: bool = False
    waiters: list[asyncio.Future[bool]] = field(default_factory=list)

    @pyscript_compile
    def answer(self, outcome: bool | Exception) -> None:
        """Resolve the waiters: True for stored, False for waiting, or an error."""
        for waiter in self.waiters:
            if not waiter.done():
                if isinstance(outcome, Exception):
                    waiter.set_exception(outcome)
                else:
                    waiter.set_result(outcome)
        self.waiters.clear()


OutboxItem = _OutboxItem


@dataclass(frozen=True, kw_only=True)
class _HoldUp:
    """When to try the values of a sensor again (s, by the loop's clock), and the pauses between tries."""

    next_try: float
    backoff: Backoff


HoldUp = _HoldUp


@dataclass(repr=False)
class _Outbox:
    """The items for one user of one server, oldest first.

    `dropped` counts the values that were ever dropped because there were too many. `hold_ups` has the sensors
    whose values failed. `server_away` tells that the last try failed over the server, and `is_asked_to_wait`
    that the server gave a Retry-After. `gone` has the keys of items that are to be deleted from the file. At
    least `room` more values may wait, as of the last count.
    """

    hass: HomeAssistant
    link: Connection
    status: Status
    store: OutboxStore
    user: str
    items: list[OutboxItem] = field(default_factory=list)
    dropped: int = 0
    room: int = 0
    gone: set[int] = field(default_factory=set)
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    retry: asyncio.Event = field(default_factory=asyncio.Event)
    hold_ups: dict[int, HoldUp] = field(default_factory=dict)
    server_away: bool = False
    is_asked_to_wait: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    stopped: bool = False

    @pyscript_compile
    async def start(self) -> None:
        """Read the file, and deliver its content in the background."""
        rows, self.dropped = await self.store.load()
        imported, dropped = await self.store.import_json()
        self.items = [OutboxItem(data=data, key=key, is_saved=True) for key, data in rows]
        self.items += [OutboxItem(data=data, key=self.store.new_key()) for data in imported]
        self.dropped += dropped
        self._receive_handed_over()
        await self.save()
        self.show()
        self.tasks = [
            tasks.supervise(self.status, "writing of what waits", self.keep_saving),
            tasks.supervise(self.status, "delivery of what waits", self.keep_delivering),
            tasks.supervise(self.status, "check of the outbox's file", self.keep_checking),
        ]

    @pyscript_compile
    async def stop(self) -> None:
        """End the delivery and write the file; callers are told that their values wait."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for item in self.items:
            item.answer(False)
        unsaved = await self.save()
        self.stopped = True
        self._hand_over(unsaved)

    @pyscript_compile
    def _hand_over(self, unsaved: list[OutboxItem]) -> None:
        """Leave what could not be written to the outbox after a reload, whose classes are different."""
        if unsaved or self.gone:
            self.hass.data.setdefault(HANDED_OVER, {})[self.user] = {
                "runs": [(item.key, kept.as_json(item.data)) for item in unsaved],
                "gone": set(self.gone),
                "dropped": self.dropped,
            }

    @pyscript_compile
    def _receive_handed_over(self) -> None:
        """Take what the outbox before a reload could not write."""
        content: dict[str, Any] | None = self.hass.data.get(HANDED_OVER, {}).pop(self.user, None)
        if content is None:
            return
        self.gone |= content["gone"]
        self.dropped = max(self.dropped, content["dropped"])
        unsaved = {key: outbox_store.from_json(data) for key, data in content["runs"]}
        saved = [item for item in self.items if item.key not in unsaved.keys() | self.gone]
        self.items = saved + [OutboxItem(data=data, key=key) for key, data in unsaved.items()]
        self.items.sort(key=lambda item: item.key)

    @pyscript_compile
    def retry_now(self) -> None:
        """Retry delivery immediately."""
        self.retry.set()

    @property
    @pyscript_compile
    def waiting_values(self) -> int:
        """Return how many values wait."""
        return sum(count_values(item.data.values) for item in self.items)

    @pyscript_compile
    def show(self) -> None:
        """Show in the status how many values wait."""
        self.status.show(outbox=self.waiting_values, outbox_dropped=self.dropped)

    @pyscript_compile
    def add(self, data: SensorData) -> OutboxItem:
        """Add data, to be delivered after all earlier data of the sensor; return their item."""
        last = next((item for item in reversed(self.items) if item.data.sensor == data.sensor), None)
        gap = None if last is None or last.is_being_sent or last.job else gap_between(last.data, data)
        if last is not None and gap is not None:
            last.data.values += [None] * gap + data.values
            last.is_saved = False
            item = last
            self.room -= gap
        else:
            item = OutboxItem(data=replace(data, values=data.values[:]), key=self.store.new_key())
            self.items.append(item)
        self.room -= len(data.values)
        if self.room < 0:
            self.drop_oldest()
        self.changed.set()
        if not self.server_away:
            self.retry_now()
        return item

    @pyscript_compile
    def withdraw(self, item: OutboxItem | None) -> None:
        """Remove an item that nobody waits for, unless it is being delivered, or was."""
        if item in self.items and not (item.is_being_sent or item.job or item.waiters):
            self.remove(item)
            self._resolve_without_values(item.data)
            self.changed.set()

    @pyscript_compile
    def remove(self, item: OutboxItem) -> None:
        """Remove an item, also from the file."""
        self.items.remove(item)
        self.gone.add(item.key)

    @pyscript_compile
    def _resolve_without_values(self, data: SensorData) -> None:
        """Resolve the problem of a sensor whose values could not be stored, once none of them wait."""
        problem = self.status.problems.get(refusal_key(data))
        is_over = problem is not None and problem.cause != DROPPED
        if is_over and all(item.data.sensor != data.sensor for item in self.items):
            self.hold_ups.pop(data.sensor, None)
            self.status.resolve(refusal_key(data))

    @pyscript_compile
    def drop_oldest(self) -> None:
        """Drop values while there are too many, forecasts and then the oldest; count and report them."""
        excess = sum(len(item.data.values) for item in self.items) - MAX_WAITING_VALUES
        self.room = max(-excess, 0)
        if excess <= 0:
            return
        while excess > 0 and (idle := [item for item in self.items if not item.is_being_sent]):
            oldest = min(idle, key=lambda item: (item.data.prior is None, item.data.start))
            excess -= self._drop_values(oldest, excess)
        text = (
            f"The outbox is full with {MAX_WAITING_VALUES} values that wait for FlexMeasures at "
            f"{self.link.host}: the oldest are dropped. The status's attribute outbox_dropped counts them"
        )
        self.status.fail(FULL, text, cause="outbox_full")

    @pyscript_compile
    def _drop_values(self, item: OutboxItem, excess: int) -> int:
        """Drop the first values of an item, or all of them; return how many."""
        data, count = item.data, len(item.data.values)
        dropped = min(count, excess, VALUES_DROPPED_AT_ONCE) if data.step else count
        self.dropped += count_values(data.values[:dropped])
        if data.step and dropped < count:
            del data.values[:dropped]
            data.start += dropped * data.step
            item.is_saved = False
        else:
            self.remove(item)
            item.answer(errors.InvalidData("The values were dropped, since too many others wait"))
            self._resolve_without_values(data)
        return dropped

    @pyscript_compile
    async def delivered(self, item: OutboxItem) -> bool:
        """Return True once an item is stored, False if it has to wait; raise the error that it met.

        It waits when the server is away or asked to wait, and when storing takes longer than 20 s.
        """
        if self.is_asked_to_wait:
            return False
        outcome: asyncio.Future[bool] = self.hass.loop.create_future()
        item.waiters.append(outcome)
        self.retry_now()
        done, _pending = await asyncio.wait([outcome], timeout=MAX_CALL_SECONDS)
        if not done and outcome in item.waiters:
            item.waiters.remove(outcome)
        return outcome.result() if done else False

    @pyscript_compile
    async def keep_saving(self) -> None:
        """Write the file after each change, and show then how many values wait."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            await self.save()
            self.show()

    @pyscript_compile
    async def keep_checking(self) -> None:
        """Check the file each hour."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
            await asyncio.shield(self.check_file())

    @pyscript_compile
    async def check_file(self) -> None:
        """Check the file; if it was lost or damaged, write all that waits to a new one."""
        async with self.saving:
            if not self.store.exists:
                return
            await self.store.maintain()
            if not self.store.exists:
                await self._write_once()

    @pyscript_compile
    async def keep_delivering(self) -> None:
        """Deliver all items; after a failure with growing pauses, or longer if the server asks for it.

        A pause ends when the server does something for us elsewhere, except after a 429: FlexMeasures limits
        each kind of request separately.
        """
        backoff = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        while True:
            self.server_away = self.is_asked_to_wait = False
            failure = await self.deliver_all()
            self.retry.clear()
            if failure is None:
                backoff.reset()
                self.status.resolve(PROBLEM_KEY)
                await self._retry_within(self._seconds_until_next_try())
                continue
            self.server_away = True
            self.status.fail_with(PROBLEM_KEY, failure)
            for item in self.items:
                item.answer(False)
            if isinstance(failure, errors.Unauthorized):
                backoff.seconds = MAX_PAUSE_SECONDS
            is_limited = isinstance(failure, errors.RateLimited)
            self.is_asked_to_wait = is_limited or failure.retry_after is not None
            pause_seconds = max(failure.retry_after or 0, backoff.seconds)
            if is_limited:
                await asyncio.sleep(pause_seconds)
            if is_limited or not await self._retry_within(pause_seconds):
                backoff.grow()

    @pyscript_compile
    def _seconds_until_next_try(self) -> float | None:
        """Return after how many seconds a sensor that is held up is due, or None without one."""
        sensors = {item.data.sensor for item in self.items}
        times = [hold_up.next_try for sensor, hold_up in self.hold_ups.items() if sensor in sensors]
        return max(0.0, min(times) - self.hass.loop.time()) if times else None

    @pyscript_compile
    async def _retry_within(self, seconds: float | None) -> bool:
        """Wait for some time; return whether a delivery was requested meanwhile."""
        try:
            await asyncio.wait_for(self.retry.wait(), seconds)
        except TimeoutError:
            return False
        return True

    @pyscript_compile
    def _next_item(self) -> OutboxItem | None:
        """Return the oldest item whose sensor is not held up, or None."""
        now = self.hass.loop.time()
        held_up = {sensor for sensor, hold_up in self.hold_ups.items() if hold_up.next_try > now}
        return next((item for item in self.items if item.data.sensor not in held_up), None)

    @pyscript_compile
    async def deliver_all(self) -> errors.FlexMeasuresError | None:
        """Deliver each sensor's items in order; return the error for which the server takes none, or None.

        Values that the server refuses for good are dropped, with a notice. A fault that may lie in the values
        holds up their sensor alone.
        """
        while item := self._next_item():
            item.is_being_sent = True
            try:
                await self.deliver(item)
            except OF_THE_SERVER as error:
                return error
            except errors.FlexMeasuresError as error:
                self._hold_up_or_drop(item, error)
            else:
                self.remove(item)
                self.hold_ups.pop(item.data.sensor, None)
                problem_key = refusal_key(item.data)
                self.status.succeed(None if self.status.is_fresh_notice(problem_key) else problem_key)
                item.answer(True)
            finally:
                item.is_being_sent = False
            self.changed.set()
            if not self.items:
                self.status.resolve(FULL)
        return None

    @pyscript_compile
    async def deliver(self, item: OutboxItem) -> None:
        """Post an item, chunk by chunk, and wait until each is stored; raise a FlexMeasuresError.

        A chunk that was posted already is only waited for.
        """
        try:
            while True:
                if item.job is None or item.chunk is None:
                    item.job, item.chunk = await sensor_data.post_chunk(self.link, item.data)
                if item.job is not None:
                    await sensor_data.wait_until_stored(self.link, item.job)
                item.job = item.failing_since = None
                if item.chunk.end is None:
                    return
                item.data, item.is_saved = sensor_data.without_stored(item.data, item.chunk), False
                self.changed.set()
        except (*OF_THE_SERVER, errors.JobTimedOut):
            raise
        except errors.FlexMeasuresError:
            item.job = None
            raise
        except Exception as error:
            LOGGER.exception("Delivering values of sensor %s failed unexpectedly", item.data.sensor)
            text = f"Delivering failed unexpectedly ({fields.short(repr(error))}): please report the log"
            raise errors.FlexMeasuresError(text) from error

    @pyscript_compile
    def _hold_up_or_drop(self, item: OutboxItem, error: errors.FlexMeasuresError) -> None:
        """Retry a failed item later; drop one that is refused for good, or has failed for a day.

        A correction in the same second as the value that it corrects is refused, but not a moment later.
        """
        now = dt_util.utcnow()
        item.failing_since = item.failing_since or now
        corrects = isinstance(error, errors.ConflictingValue) and item.data.prior is None
        if (error.final and not corrects) or now - item.failing_since > MAX_FAILING:
            self._drop(item, error)
            return
        if hold_up := self.hold_ups.get(item.data.sensor):
            backoff = hold_up.backoff
            backoff.grow()
        else:
            backoff = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        if corrects:
            backoff.seconds = CORRECTION_PAUSE_SECONDS
        next_try = self.hass.loop.time() + backoff.seconds
        self.hold_ups[item.data.sensor] = HoldUp(next_try=next_try, backoff=backoff)
        if not corrects:
            self.status.fail_with(refusal_key(item.data), error)
            item.answer(False)

    @pyscript_compile
    def _drop(self, item: OutboxItem, error: errors.FlexMeasuresError) -> None:
        """Drop an item: raise the error for its caller, or show a notice if nobody waits for it."""
        self.remove(item)
        self.hold_ups.pop(item.data.sensor, None)
        if item.waiters:
            item.answer(error)
            self._resolve_without_values(item.data)
            return
        first = dt_util.as_local(item.data.start).isoformat()
        text = (
            f"FlexMeasures refuses {count_values(item.data.values)} values for sensor {item.data.sensor} "
            f"from {first} on; they were dropped. {error}"
        )
        self.status.fail(refusal_key(item.data), text, state=error.status, cause=DROPPED)

    @pyscript_compile
    async def save(self) -> list[OutboxItem]:
        """Write all changes to the file; return the items that could not be written, which is reported.

        They are tried again with the next change, and each minute. After the stop the file is the
        successor's.
        """
        return [] if self.stopped else await asyncio.shield(self._write_changes())

    @pyscript_compile
    async def _write_changes(self) -> list[OutboxItem]:
        """Write all changes, and all items if the file was lost meanwhile; return those not written."""
        async with self.saving:
            did_exist = self.store.exists
            unsaved = await self._write_once()
            if did_exist and not self.store.exists:
                unsaved = await self._write_once()
            return unsaved

    @pyscript_compile
    async def _read_late(self) -> None:
        """Read the file, which could not be read before: its content is older than what waits by now."""
        rows, dropped = await self.store.load()
        self.items[:0] = [OutboxItem(data=data, key=key, is_saved=True) for key, data in rows]
        self.dropped += dropped
        self.room = 0

    @pyscript_compile
    async def _write_once(self) -> list[OutboxItem]:
        """Write what the file lacks; return the items that could not be written."""
        store, file = self.store, self.store.file
        if store.is_unread:
            await self._read_late()
        if store.is_unread:
            self.status.unsaved[file.name] = self.save
            return [item for item in self.items if not item.is_saved]
        unsaved = [item for item in self.items if not (item.is_saved and store.exists)]
        gone, self.gone = self.gone, set()
        rows: list[tuple[int, str]] = []
        not_writable: list[OutboxItem] = []
        for item in unsaved:
            try:
                rows.append((item.key, outbox_store.as_text(item.data)))
            except (TypeError, ValueError) as error:
                not_writable.append(item)
                file.report_unsaved(error)
            item.is_saved = True
        has_news = rows or gone or store.has_more(self.dropped)
        is_written = not has_news or await store.write(rows, gone, self.dropped)
        for item in not_writable if is_written else unsaved:
            item.is_saved = False
        if not is_written:
            self.gone |= gone
            self.status.unsaved[file.name] = self.save
            return unsaved
        self.status.unsaved.pop(file.name, None)
        if not not_writable:
            file.report_saved()
        return not_writable


Outbox = _Outbox


@pyscript_compile
async def start(hass: HomeAssistant, link: Connection, status: Status, user: str) -> Outbox:
    """Return the started outbox for one user of one server."""
    outbox = Outbox(hass, link, status, outbox_store.new(hass, status, user), user)
    await outbox.start()
    return outbox


@pyscript_compile
def count_values(values: list[float | None]) -> int:
    """Return how many of the values are not gaps."""
    return len(values) - values.count(None)


@pyscript_compile
def gap_between(before: SensorData, data: SensorData) -> int | None:
    """Return how many values are missing between two SensorData, or None where they cannot be joined."""
    fields_before = before.unit, before.step, before.sign, before.prior
    if fields_before != (data.unit, data.step, data.sign, None) or data.prior or not data.step:
        return None
    steps, rest = divmod(data.start - before.start, data.step)
    gap = steps - len(before.values)
    if rest or gap < 0 or steps + len(data.values) > MAX_VALUES_PER_ITEM:
        return None
    return gap


@pyscript_compile
def refusal_key(data: SensorData) -> str:
    """Return the problem key of values that the server does not take for a sensor."""
    return f"{PROBLEM_KEY} of sensor {data.sensor}"
