"""Between Home Assistant and FlexMeasures, things go wrong."""

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from typing import Any

from tests.parts.home_assistant import ServiceFailed
from tests.parts.misbehaving_proxy import FAULTS, Fault
from tests.torture.house import FIRST, QUARTER, SCHEDULE, House, failure_of, log_faults, unclear
from tests.torture.report import Outcome, guarded

TITLE = "The server, and the network before it"
WHAT = (
    "A proxy between Home Assistant and FlexMeasures misbehaves while values are posted, a schedule is "
    "asked for and data are read. While it lasts, each call must return, or fail with one plain "
    "sentence, and the schedule in force stays. When it is over, what was accepted must be on the "
    "server once, and planning must work again. The figure is how long that takes: by itself, or with "
    "the next call of a user."
)
MIN_FAULT_SECONDS, MAX_FAULT_SECONDS = 5, 45
"""The bounds of a fault's duration, which lasts until all calls have returned."""
CALL_SECONDS = 180
BY_ITSELF_SECONDS = 45
AFTER_A_CALL_SECONDS = 60
SHORT = ("connections refused", "200 with `[]`")


async def run(house: House, short: bool) -> list[Outcome]:
    """Try every fault, and return the outcomes."""
    faults = [fault for fault in FAULTS if not short or fault.name in SHORT]
    await house.plan()
    lasting = 1 if short else MIN_FAULT_SECONDS
    return [await guarded(fault.name, one(house, fault, lasting)) for fault in faults]


async def one(house: House, fault: Fault, lasting: float) -> Outcome:
    """Try a fault for some seconds, or until all calls have returned."""
    failures: list[str] = []
    events: list[str] = []
    logged = len(house.home_assistant.log)
    first = len(house.ledger.tried)
    await house.proxy.begin(fault)
    began = time.monotonic()
    calls: dict[str, Coroutine[Any, Any, object]] = {
        "post_measurements": posted(house, 3),
        "trigger_and_get_schedule": house.plan(),
        "get_measurements": read(house),
    }
    tasks = {name: asyncio.create_task(timed(call)) for name, call in calls.items()}
    await asyncio.sleep(lasting)
    await asyncio.wait(tasks.values(), timeout=MAX_FAULT_SECONDS - lasting)
    shown = await house.state(SCHEDULE)
    if not shown["attributes"].get("schedule"):
        failures.append("the schedule in force is gone")
    status = await house.status()
    if error := status["attributes"]["last_error"]:
        failures += unclear(error, house.secrets)
    lasted = time.monotonic() - began
    await house.proxy.end()
    try:
        figure = await recovery(house, fault)
    except TimeoutError as error:
        figure = "none"
        failures.append(f"it did not recover: {error}")
    for name, task in tasks.items():
        try:
            answer, seconds = await asyncio.wait_for(task, CALL_SECONDS)
        except TimeoutError:
            failures.append(f"{name} did not return within {CALL_SECONDS} s")
            continue
        events.append(f"{name} {'returned' if answer is None else 'failed'} after {seconds:.0f} s")
        if answer:
            failures += [f"{name}: {flaw}" for flaw in unclear(answer, house.secrets)]
    waited = house.ledger.tried.keys() - house.ledger.delivered
    of_these = [FIRST + number * QUARTER for number in range(first, len(house.ledger.tried))]
    events.append(f"{sum(start in waited for start in of_these)} of {len(of_these)} values waited")
    failures += await house.ledger_faults()
    failures += log_faults_since(house, logged)
    return Outcome(f"{fault.name}, for {lasted:.0f} s", "; ".join(events), figure, failures)


def log_faults_since(house: House, logged: int) -> list[str]:
    """Return what must not be in the log after its first `logged` characters."""
    return log_faults(house.home_assistant.log[logged:], house.secrets)


async def posted(house: House, number: int) -> None:
    """Post some values, one after the other."""
    for _ in range(number):
        await house.ledger.post(house.home_assistant)


async def read(house: House) -> None:
    """Read a sensor's data."""
    call = {"sensor_id": house.ledger.sensor, "start": FIRST.isoformat(), "duration": "PT4H"}
    await house.home_assistant.call("flexmeasures", "get_measurements", call, return_response=True)


async def timed(call: Awaitable[object]) -> tuple[str | None, float]:
    """Return the text of a call's error, or None, and its duration (s)."""
    began = time.monotonic()
    failure = await failure_of(call)
    return failure, time.monotonic() - began


async def recovery(house: House, fault: Fault) -> str:
    """Return how long it takes until all values are delivered and planning works; raise TimeoutError."""
    began = time.monotonic()
    by_itself = not fault.asks_to_wait
    if by_itself:
        try:
            await house.until_none_waits(BY_ITSELF_SECONDS)
        except TimeoutError:
            by_itself = False
    delivered = time.monotonic() - began
    asked = time.monotonic()
    async with asyncio.timeout(AFTER_A_CALL_SECONDS):
        while True:
            try:
                await house.plan()
                break
            except ServiceFailed:
                await asyncio.sleep(1)
    await house.until_delivered(AFTER_A_CALL_SECONDS)
    if by_itself:
        return f"delivered {delivered:.0f} s later, by itself"
    return f"delivered {time.monotonic() - asked:.0f} s after the next call"
