"""Home Assistant is killed while measurements flow and a device talks."""

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
SERVER_AWAY_EACH, KILLED_AT_START_EACH = 5, 4


async def run(house: House, number: int) -> list[Outcome]:
    """Kill so often; return what came of it."""
    choose = random.Random(number)
    await house.plan()
    await house.device_planned()
    starts, told, failures, waited = [], [], [], 0
    for kill in range(number):
        is_away = kill % SERVER_AWAY_EACH == 1
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
        if kill % KILLED_AT_START_EACH == 2:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(house.home_assistant.start(), choose.uniform(1, 5))
            house.home_assistant.kill()
        began = time.monotonic()
        await house.home_assistant.start()
        starts.append(time.monotonic() - began)
        waited = max(waited, (await house.status())["attributes"]["outbox"])
        try:
            told.append(await house.device_told())
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
    figure = (
        f"{lost} of {len(ledger.accepted)} lost, {doubled} twice; told {max(told, default=0):.1f} s "
        f"after connecting at most; a start took {max(starts):.1f} s at most"
    )
    return [Outcome(f"{number} × SIGKILL", happened, figure, failures)]
