"""What is on its way to FlexMeasures: kept in a file until the server has stored it.

Everything that is posted goes through here, so that it arrives in order. Posting a run twice stores
it once, since FlexMeasures skips a value that it holds already: whatever was under way when Home
Assistant ended is posted again.
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import homeassistant.util.dt as dt_util

import flexmeasures_api.errors as errors
import flexmeasures_api.sensor_data as sensor_data
import flexmeasures_home.fields as fields
import flexmeasures_home.outbox_store as outbox_store
import flexmeasures_home.status as statuses
import flexmeasures_home.tasks as tasks

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
MATTER, FULL = "measurements", "outbox"
HANDED_OVER = "flexmeasures_for_pyscript.outbox"
"""Where in `hass.data` an outbox leaves what it could not write, by its user."""
MOST_WAITING = 100_000
MOST_OF_A_RUN = 1_000
PART_TO_DROP = 100
PATIENCE_WITH_A_RUN = timedelta(days=1)
PAUSE_BEFORE_A_CORRECTION = 2
FIRST_PAUSE_SECONDS = 5
LONGEST_PAUSE_SECONDS = 300
PATIENCE_SECONDS = 20
SECONDS_BETWEEN_CHECKS = 3600
"""How often the file is looked after while it is in use."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass(eq=False, repr=False)
    class Parcel:
        """A run on its way: since when it fails, the job that stores a `part` of it, and who waits for it.

        `key` is its own in the file; `is_saved` tells whether it is there as it is now.
        """

        run: sensor_data.SensorData
        key: int = 0
        is_saved: bool = False
        failing_since: datetime | None = None
        job: str | None = None
        part: Any = None
        sending: bool = False
        waiting: list = field(default_factory=list)

    @dataclass(repr=False)
    class Outbox:
        """The parcels for one user of one server, oldest first.

        `dropped` counts the values that were ever given up because there were too many. `held_up` has
        the sensors whose values failed: the next try, by the loop's clock, and the pause before it (s).
        `left_alone` tells that the server asked to be, by its Retry-After. `gone` has the keys of parcels
        that are to be deleted from the file. At least `room` values more may wait, as of the last count.
        """

        hass: Any
        link: Any
        status: statuses.Status
        store: Any
        user: str
        parcels: list = field(default_factory=list)
        dropped: int = 0
        room: int = 0
        gone: set = field(default_factory=set)
        saving: Any = field(default_factory=asyncio.Lock)
        changed: Any = field(default_factory=asyncio.Event)
        urged: Any = field(default_factory=asyncio.Event)
        held_up: dict = field(default_factory=dict)
        server_away: bool = False
        left_alone: bool = False
        tasks: list = field(default_factory=list)
        stopped: bool = False

    return Parcel, Outbox


Parcel, Outbox = records()
OF_THE_SERVER = (errors.Unreachable, errors.RateLimited, errors.Unauthorized)


@pyscript_compile
async def start(hass, link, status, user):
    """Return an outbox with what its file holds, and deliver it in the background."""
    store = outbox_store.new(hass, status, user)
    outbox = Outbox(hass, link, status, store, user)
    rows, outbox.dropped = await store.load()
    runs, dropped = await store.take_over()
    outbox.parcels = [Parcel(run, key, is_saved=True) for key, run in rows]
    outbox.parcels += [Parcel(run, store.new_key()) for run in runs]
    outbox.dropped += dropped
    take_from_before(outbox)
    await save(outbox)
    show(outbox)
    outbox.tasks = [
        tasks.supervise(status, "writing of what waits", partial(keep_saving, outbox)),
        tasks.supervise(status, "delivery of what waits", partial(keep_delivering, outbox)),
        tasks.supervise(status, "check of the outbox's file", partial(keep_checking, outbox)),
    ]
    return outbox


@pyscript_compile
async def stop(outbox):
    """End the delivery and write the file; who waits is told that it is kept."""
    for task in outbox.tasks:
        task.cancel()
    await asyncio.gather(*outbox.tasks, return_exceptions=True)
    for parcel in outbox.parcels:
        answer(parcel, False)
    unsaved = await save(outbox)
    outbox.stopped = True
    hand_over(outbox, unsaved)


@pyscript_compile
def hand_over(outbox: Outbox, unsaved: list[Parcel]) -> None:
    """Leave what could not be written to the outbox after a reload, whose classes are others."""
    if unsaved or outbox.gone:
        outbox.hass.data.setdefault(HANDED_OVER, {})[outbox.user] = {
            "runs": [(parcel.key, outbox_store.as_json(parcel.run)) for parcel in unsaved],
            "gone": set(outbox.gone),
            "dropped": outbox.dropped,
        }


@pyscript_compile
def take_from_before(outbox: Outbox) -> None:
    """Take what the outbox before a reload could not write."""
    found = outbox.hass.data.get(HANDED_OVER, {}).pop(outbox.user, None)
    if found is None:
        return
    outbox.gone |= found["gone"]
    outbox.dropped = max(outbox.dropped, found["dropped"])
    runs = {key: outbox_store.recall(run) for key, run in found["runs"]}
    kept_parcels = [each for each in outbox.parcels if each.key not in runs.keys() | outbox.gone]
    outbox.parcels = sorted(
        [*kept_parcels, *[Parcel(run, key) for key, run in runs.items()]], key=lambda parcel: parcel.key
    )


@pyscript_compile
def urge(outbox):
    """Have what waits for a later try delivered now, since the server answers."""
    outbox.urged.set()


@pyscript_compile
def waiting(outbox):
    """Return how many values wait."""
    return sum(numbers(parcel.run.values) for parcel in outbox.parcels)


@pyscript_compile
def numbers(values):
    """Return how many of the values are no gaps."""
    return len(values) - values.count(None)


@pyscript_compile
def show(outbox):
    """Show what waits in the status."""
    statuses.show(outbox.status, outbox=waiting(outbox), outbox_dropped=outbox.dropped)


@pyscript_compile
def add(outbox, run):
    """Take a run over, to be delivered after all that came before for its sensor; return its parcel."""
    last = next((each for each in reversed(outbox.parcels) if each.run.sensor == run.sensor), None)
    gap = None if last is None or last.sending or last.job else gap_between(last.run, run)
    if gap is not None:
        last.run.values += [None] * gap + run.values
        last.is_saved = False
        parcel = last
        outbox.room -= gap
    else:
        key = outbox.store.new_key() if outbox.store else 0
        parcel = Parcel(replace(run, values=run.values[:]), key)
        outbox.parcels.append(parcel)
    outbox.room -= len(run.values)
    if outbox.room < 0:
        drop_oldest(outbox)
    outbox.changed.set()
    if not outbox.server_away:
        urge(outbox)
    return parcel


@pyscript_compile
def withdraw(outbox, parcel):
    """Take a parcel back that nobody waits for, unless it is being delivered, or was."""
    if parcel in outbox.parcels and not (parcel.sending or parcel.job or parcel.waiting):
        remove(outbox, parcel)
        settle_without_values(outbox, parcel.run)
        outbox.changed.set()


@pyscript_compile
def remove(outbox: Outbox, parcel: Parcel) -> None:
    """Have a parcel wait no longer."""
    outbox.parcels.remove(parcel)
    outbox.gone.add(parcel.key)


@pyscript_compile
def settle_without_values(outbox: Outbox, run: sensor_data.SensorData) -> None:
    """End what kept a sensor's values from being stored, where none of them wait any more."""
    problem = outbox.status.problems.get(refusals_of(run))
    is_over = problem and problem.cause != statuses.DROPPED
    if is_over and all(parcel.run.sensor != run.sensor for parcel in outbox.parcels):
        outbox.held_up.pop(run.sensor, None)
        statuses.settle(outbox.status, refusals_of(run))


@pyscript_compile
def gap_between(before, run):
    """Return how many values are missing between two runs, or None where they cannot be one."""
    as_before = before.unit, before.step, before.sign, before.prior
    if as_before != (run.unit, run.step, run.sign, None) or run.prior or not run.step:
        return None
    steps, rest = divmod(run.start - before.start, run.step)
    gap = steps - len(before.values)
    if rest or gap < 0 or steps + len(run.values) > MOST_OF_A_RUN:
        return None
    return gap


@pyscript_compile
def drop_oldest(outbox):
    """Give up values while there are too many, forecasts and then the oldest; count them, and tell."""
    excess = sum(len(parcel.run.values) for parcel in outbox.parcels) - MOST_WAITING
    outbox.room = max(-excess, 0)
    if excess <= 0:
        return
    while excess > 0 and (idle := [each for each in outbox.parcels if not each.sending]):
        oldest = min(idle, key=lambda parcel: (parcel.run.prior is None, parcel.run.start))
        run, count = oldest.run, len(oldest.run.values)
        part = min(count, excess, PART_TO_DROP) if run.step else count
        outbox.dropped += numbers(run.values[:part])
        if part < count:
            del run.values[:part]
            run.start += part * run.step
            oldest.is_saved = False
        else:
            remove(outbox, oldest)
            answer(oldest, errors.InvalidData("The values were dropped, since too many others wait"))
            settle_without_values(outbox, oldest.run)
        excess -= part
    text = (
        f"The outbox is full with {MOST_WAITING} values that wait for FlexMeasures at {outbox.link.host}: "
        f"the oldest are dropped. The status's attribute outbox_dropped counts them"
    )
    statuses.fail(outbox.status, FULL, text, cause="outbox_full")


@pyscript_compile
async def delivered(outbox, parcel):
    """Return True once a parcel is stored, False if it has to wait; raise the error that it met.

    It waits when the server is away or asked to be left alone, and when storing takes longer than 20 s.
    """
    if outbox.left_alone:
        return False
    outcome = outbox.hass.loop.create_future()
    parcel.waiting.append(outcome)
    urge(outbox)
    done, _pending = await asyncio.wait([outcome], timeout=PATIENCE_SECONDS)
    if not done and outcome in parcel.waiting:
        parcel.waiting.remove(outcome)
    return outcome.result() if done else False


@pyscript_compile
def answer(parcel, outcome):
    """Tell those who wait for a parcel: True, False, or an error."""
    for future in parcel.waiting:
        if not future.done():
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
    parcel.waiting.clear()


@pyscript_compile
async def keep_saving(outbox):
    """Write the file after each change, and show then what waits."""
    while True:
        await outbox.changed.wait()
        outbox.changed.clear()
        await save(outbox)
        show(outbox)


@pyscript_compile
async def keep_checking(outbox: Outbox) -> None:
    """Look after the file each hour."""
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
        await asyncio.shield(check_file(outbox))


@pyscript_compile
async def check_file(outbox: Outbox) -> None:
    """Look after the file; where it was lost or damaged, write all that waits to a new one."""
    async with outbox.saving:
        if not outbox.store.is_there:
            return
        await outbox.store.look_after()
        if not outbox.store.is_there:
            await write_once(outbox)


@pyscript_compile
async def keep_delivering(outbox):
    """Deliver what is there and what comes; after a failure with growing pauses, or longer where asked to.

    A pause ends when the server does something for us elsewhere, except after a 429: FlexMeasures limits
    each kind of request by itself.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        outbox.server_away = outbox.left_alone = False
        failure = await deliver_all(outbox)
        outbox.urged.clear()
        if failure is None:
            pause = FIRST_PAUSE_SECONDS
            statuses.settle(outbox.status, MATTER)
            await urged_within(outbox, until_next_try(outbox))
            continue
        outbox.server_away = True
        statuses.fail_with(outbox.status, MATTER, failure)
        for parcel in outbox.parcels:
            answer(parcel, False)
        if isinstance(failure, errors.Unauthorized):
            pause = LONGEST_PAUSE_SECONDS
        is_limited = isinstance(failure, errors.RateLimited)
        outbox.left_alone = is_limited or failure.retry_after is not None
        wait = max(failure.retry_after or 0, pause)
        if is_limited:
            await asyncio.sleep(wait)
        if is_limited or not await urged_within(outbox, wait):
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


@pyscript_compile
def until_next_try(outbox):
    """Return after how many seconds a sensor that is held up is due, or None where none is."""
    sensors = {parcel.run.sensor for parcel in outbox.parcels}
    times = [moment for sensor, (moment, _pause) in outbox.held_up.items() if sensor in sensors]
    return max(0.0, min(times) - outbox.hass.loop.time()) if times else None


@pyscript_compile
async def urged_within(outbox, seconds):
    """Wait for some time; tell whether the server answered elsewhere, or somebody asked for a delivery."""
    try:
        await asyncio.wait_for(outbox.urged.wait(), seconds)
    except TimeoutError:
        return False
    return True


@pyscript_compile
def next_parcel(outbox):
    """Return the oldest parcel whose sensor is not held up, or None."""
    now = outbox.hass.loop.time()
    held_up = {sensor for sensor, (moment, _pause) in outbox.held_up.items() if moment > now}
    return next((parcel for parcel in outbox.parcels if parcel.run.sensor not in held_up), None)


@pyscript_compile
async def deliver_all(outbox):
    """Deliver each sensor's parcels in order; return the error for which the server takes none, or None.

    What the server refuses for good is dropped, with a notice. A fault that may lie in the values
    holds up their sensor alone.
    """
    while parcel := next_parcel(outbox):
        parcel.sending = True
        try:
            await deliver(outbox, parcel)
        except OF_THE_SERVER as error:
            return error
        except errors.FlexMeasuresError as error:
            hold_up_or_drop(outbox, parcel, error)
        else:
            remove(outbox, parcel)
            outbox.held_up.pop(parcel.run.sensor, None)
            matter = refusals_of(parcel.run)
            seen = not statuses.is_fresh_notice(outbox.status, matter)
            statuses.succeed(outbox.status, matter if seen else None)
            answer(parcel, True)
        finally:
            parcel.sending = False
        outbox.changed.set()
        if not outbox.parcels:
            statuses.settle(outbox.status, FULL)
    return None


@pyscript_compile
async def deliver(outbox, parcel):
    """Post a parcel, part by part, and wait until each is stored; raise a FlexMeasuresError.

    A part that was posted already is waited for only.
    """
    try:
        while True:
            if parcel.job is None:
                parcel.job, parcel.part = await sensor_data.post_chunk(outbox.link, parcel.run)
            if parcel.job is not None:
                await sensor_data.wait_until_stored(outbox.link, parcel.job)
            parcel.job = parcel.failing_since = None
            if parcel.part.end is None:
                return
            parcel.run, parcel.is_saved = sensor_data.without_stored(parcel.run, parcel.part), False
            outbox.changed.set()
    except (*OF_THE_SERVER, errors.JobTimedOut):
        raise
    except errors.FlexMeasuresError:
        parcel.job = None
        raise
    except Exception as error:
        LOGGER.exception("Delivering values of sensor %s failed unexpectedly", parcel.run.sensor)
        text = f"Delivering failed unexpectedly ({fields.short(repr(error))}): please report the log"
        raise errors.FlexMeasuresError(text) from error


@pyscript_compile
def hold_up_or_drop(outbox, parcel, error):
    """Try a parcel that failed again later; drop what is refused for good, or fails for a day.

    A correction that comes in the same second as what it corrects is refused, but not a moment later.
    """
    now = dt_util.utcnow()
    parcel.failing_since = parcel.failing_since or now
    corrects = isinstance(error, errors.ConflictingValue) and parcel.run.prior is None
    if (error.final and not corrects) or now - parcel.failing_since > PATIENCE_WITH_A_RUN:
        drop(outbox, parcel, error)
        return
    _moment, pause = outbox.held_up.get(parcel.run.sensor, (0, FIRST_PAUSE_SECONDS / 2))
    pause = PAUSE_BEFORE_A_CORRECTION if corrects else min(2 * pause, LONGEST_PAUSE_SECONDS)
    outbox.held_up[parcel.run.sensor] = (outbox.hass.loop.time() + pause, pause)
    if not corrects:
        statuses.fail_with(outbox.status, refusals_of(parcel.run), error)
        answer(parcel, False)


@pyscript_compile
def drop(outbox, parcel, error):
    """Drop a parcel: tell who waits for it, else give notice."""
    remove(outbox, parcel)
    outbox.held_up.pop(parcel.run.sensor, None)
    if parcel.waiting:
        answer(parcel, error)
        settle_without_values(outbox, parcel.run)
        return
    first = dt_util.as_local(parcel.run.start).isoformat()
    text = (
        f"FlexMeasures refuses {numbers(parcel.run.values)} values for sensor {parcel.run.sensor} from "
        f"{first} on; they were dropped. {error}"
    )
    statuses.fail(outbox.status, refusals_of(parcel.run), text, error.status, statuses.DROPPED)


@pyscript_compile
def refusals_of(run):
    """Return the matter of what the server does not take for a sensor."""
    return f"{MATTER} of sensor {run.sensor}"


@pyscript_compile
async def save(outbox: Outbox) -> list[Parcel]:
    """Write what has changed to the file; return the parcels that it could not be, which was told.

    It is tried again with the next change, and each minute. After the stop the file is the successor's.
    """
    return [] if outbox.stopped else await asyncio.shield(write_changes(outbox))


@pyscript_compile
async def write_changes(outbox: Outbox) -> list[Parcel]:
    """Write what has changed, and all that waits where the file was lost meanwhile; return what was not."""
    async with outbox.saving:
        was_there = outbox.store.is_there
        unsaved = await write_once(outbox)
        if was_there and not outbox.store.is_there:
            unsaved = await write_once(outbox)
        return unsaved


@pyscript_compile
async def read_late(outbox: Outbox) -> None:
    """Read what the file holds, which could not be read before: it came before what waits by now."""
    rows, dropped = await outbox.store.load()
    outbox.parcels[:0] = [Parcel(run, key, is_saved=True) for key, run in rows]
    outbox.dropped += dropped
    outbox.room = 0


@pyscript_compile
async def write_once(outbox: Outbox) -> list[Parcel]:
    """Write what the file lacks; return the parcels that could not be written."""
    store, file = outbox.store, outbox.store.file
    if store.is_unread:
        await read_late(outbox)
    if store.is_unread:
        outbox.status.unsaved[file.name] = partial(save, outbox)
        return [parcel for parcel in outbox.parcels if not parcel.is_saved]
    unsaved = [parcel for parcel in outbox.parcels if not (parcel.is_saved and store.is_there)]
    gone, outbox.gone = outbox.gone, set()
    rows, unfit = [], []
    for parcel in unsaved:
        try:
            rows.append((parcel.key, outbox_store.as_text(parcel.run)))
        except (TypeError, ValueError) as error:
            unfit.append(parcel)
            file.tell_unsaved(error)
        parcel.is_saved = True
    has_news = rows or gone or store.has_more(outbox.dropped)
    is_written = not has_news or await store.write(rows, gone, outbox.dropped)
    for parcel in unfit if is_written else unsaved:
        parcel.is_saved = False
    if not is_written:
        outbox.gone |= gone
        outbox.status.unsaved[file.name] = partial(save, outbox)
        return unsaved
    outbox.status.unsaved.pop(file.name, None)
    if not unfit:
        file.tell_saved()
    return unfit
