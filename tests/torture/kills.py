"""Kill Home Assistant while values are posted and a device sends messages."""

import asyncio
import contextlib
import random
import time

from tests.parts.home_assistant import ServiceFailed
from tests.torture.house import DISCONNECTED, House, posting
from tests.torture.report import Outcome

TITLE = "Kills"
WHAT = (
    "Home Assistant gets SIGKILL while calls of `flexmeasures.post_measurements` come and an S2 device "
    "talks: mostly at work, at times as it starts, at times with FlexMeasures away. Each value for "
    "which a call returned success must be on the server once in the end, and the device must be told "
    "its plan after each start."
)
WRITERS = 4
SERVER_AWAY_EVERY, KILLED_AT_START_EVERY = 5, 4
"""One in this many kills is with FlexMeasures away, or during a start."""


async def run(house: House, number: int) -> list[Outcome]:
    """Kill Home Assistant a number of times, and return the outcome."""
    choose = random.Random(number)
    await house.plan()
    await house.device_planned()
    starts: list[float] = []
    instructed_after: list[float] = []
    failures: list[str] = []
    waited = 0
    for kill in range(number):
        is_away = kill % SERVER_AWAY_EVERY == 1
        if is_away:
            await asyncio.to_thread(house.server.stop_web)
        async with posting(house, WRITERS):
            with contextlib.suppress(*DISCONNECTED, ServiceFailed, TimeoutError):
                async with house.device():
                    await asyncio.sleep(choose.uniform(0.3, 2))
            failures += house.log_faults()
            house.home_assistant.kill()
        if is_away:
            await asyncio.to_thread(house.server.start_web)
        if kill % KILLED_AT_START_EVERY == 2:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(house.home_assistant.start(), choose.uniform(1, 5))
            house.home_assistant.kill()
        began = time.monotonic()
        await house.home_assistant.start()
        starts.append(time.monotonic() - began)
        waited = max(waited, (await house.status())["attributes"]["outbox"])
        try:
            instructed_after.append(await house.device_instructed())
        except (TimeoutError, OSError) as error:
            failures.append(f"after kill {kill + 1}: {error}")
    try:
        await house.until_delivered(120)
    except TimeoutError as error:
        failures.append(str(error))
    failures += await house.ledger_faults() + house.log_faults()
    ledger = house.ledger
    stored = await asyncio.to_thread(house.server.beliefs, ledger.sensor)
    lost, doubled = ledger.lost_and_doubled(stored)
    happened = (
        f"{len(ledger.tried)} values were posted, {len(ledger.accepted)} of them accepted, each of which is "
        f"on the server once. Up to {waited} waited over a kill. The device was told its plan each time"
    )
    slowest = max(instructed_after, default=0)
    figure = (
        f"{lost} of {len(ledger.accepted)} lost, {doubled} twice; told {slowest:.1f} s "
        f"after connecting at most; a start took {max(starts):.1f} s at most"
    )
    return [Outcome(f"{number} × SIGKILL", happened, figure, failures)]
