"""Many devices send messages at once; and the scripts are reloaded meanwhile."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor

from tests.bench import ignore_interrupt
from tests.torture import fleet
from tests.torture.house import S2_TOKEN, House, percentile
from tests.torture.report import Outcome

LOAD, RELOAD = "Load", "A reload"
WHAT_LOAD = (
    "Devices under fill rate based control each send two messages a second and do what they are told; "
    "FlexMeasures makes their assets and sensors, and they are planned. The event loop's lag is "
    "measured inside Home Assistant: how much later than asked for a sleep of 10 ms ends. FlexMeasures, "
    "its database and the devices share the cores."
)
WHAT_RELOAD = (
    "`pyscript.reload` with devices connected that send two messages a second, and come back by "
    "themselves. All must be back, and what was accepted must be on the server once."
)
SPAWN = multiprocessing.get_context("spawn")
PAUSE_SECONDS = 0.5
MAX_LAG_MS, MAX_GROWTH_SHARE = 50.0, 0.1
SETTLING_SECONDS = 60
RELOADS = 3
MAX_RELOAD_SECONDS = 60


@contextlib.asynccontextmanager
async def devices(
    house: House, number: int, seconds: float, connecting: float, pause: float = PAUSE_SECONDS
) -> AsyncIterator[asyncio.Future[fleet.Record]]:
    """Have devices send messages for some seconds once all are connected; give their future record.

    Every device sends a message every `pause` seconds.
    """
    await house.home_assistant.wait_for_s2()
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, ignore_interrupt)
        given = house.home_assistant.s2_port, S2_TOKEN, number, pause, seconds, connecting
        yield loop.run_in_executor(pool, fleet.fleet, *given)


async def load(house: House, number: int, seconds: float, max_lag_ms: float = MAX_LAG_MS) -> list[Outcome]:
    """Measure Home Assistant while devices send messages."""
    failures: list[str] = []
    connecting, settling = number / 20, min(SETTLING_SECONDS, seconds)
    async with devices(house, number, settling + seconds, connecting) as talking:
        await asyncio.sleep(connecting + settling)
        began, memories = time.time(), []
        while time.time() < began + seconds:
            memories.append(house.memory())
            await asyncio.sleep(1)
        lags, collection = house.lags(began, time.time()), house.longest_collection(began, time.time())
        planned = await planned_devices(house)
        record = await talking
    third = max(1, len(memories) // 3)
    first, last = sum(memories[:third]) / third, sum(memories[-third:]) / third
    p99 = percentile(lags, 99)
    if p99 > max_lag_ms:
        failures.append(f"the loop's lag is {p99:.0f} ms at p99")
    if last > first * (1 + MAX_GROWTH_SHARE):
        failures.append(f"memory grew from {first:.0f} to {last:.0f} MiB")
    failures += [f"a device was cut off: {error}" for error in record.errors]
    failures += house.log_faults()
    happened = (
        f"{len(record.round_trips):,} messages were confirmed, none was refused, nobody was cut off; "
        f"{planned} of {number} had a plan by FlexMeasures, and {record.instructions:,} instructions came"
    )
    figure = (
        f"lag p50 {percentile(lags, 50):.1f} ms, p99 {p99:.1f} ms, at most {max(lags, default=0):.0f} ms "
        f"(Python's garbage collection {collection:.0f} ms); a "
        f"confirmation p99 {percentile(record.round_trips, 99):.0f} ms; memory {first:.0f} MiB, "
        f"then {last:.0f} MiB {seconds:.0f} s later"
    )
    return [Outcome(f"{number} devices, two messages a second each", happened, figure, failures)]


async def planned_devices(house: House) -> int:
    """Return the number of devices with a plan."""
    states = await house.home_assistant.states()
    return sum(
        state["attributes"].get("has_schedule") is True
        for state in states
        if state["entity_id"].startswith("sensor.flexmeasures_s2_fleet")
    )


async def reload(house: House, number: int, reloads: int = RELOADS, apart: float = 15) -> list[Outcome]:
    """Reload the scripts repeatedly, some seconds apart, while devices send messages."""
    connecting = number / 20
    settling = min(SETTLING_SECONDS, number / 8)
    seconds = settling + reloads * (settling + apart)
    async with devices(house, number, seconds, connecting) as talking:
        await asyncio.sleep(connecting + settling)
        began = []
        for _ in range(reloads):
            began.append(await one_reload(house))
            await house.ledger.post(house.home_assistant)
            await asyncio.sleep(settling)
        record = await talking
    outcomes = []
    for count, (since, listening_after, failures) in enumerate(began, start=1):
        until = began[count][0] if count < len(began) else time.time()
        lags = house.lags(since, min(until, since + MAX_RELOAD_SECONDS))
        back = [moment - since for moment in record.back if since <= moment < until]
        if len(back) < number:
            failures.append(f"{len(back)} of {number} devices came back")
        happened = f"all {number} devices were back after {max(back, default=0):.1f} s"
        stall = max(lags, default=0) / 1000
        collection = house.longest_collection(since, min(until, since + MAX_RELOAD_SECONDS)) / 1000
        figure = (
            f"the loop stalled {stall:.2f} s (Python's garbage collection {collection:.2f} s); the port "
            f"listened after {listening_after:.2f} s"
        )
        if count == len(began):
            failures += await house.ledger_faults_in_the_end() + house.log_faults()
        outcomes.append(Outcome(f"reload {count} with {number} devices", happened, figure, failures))
    return outcomes


async def one_reload(house: House) -> tuple[float, float, list[str]]:
    """Reload; return the begin (s since 1970), the seconds until the port listened, and failures."""
    began = time.time()
    failures: list[str] = []
    was_closed, listening_after = False, 0.0
    reloading = asyncio.create_task(house.home_assistant.reload_scripts(global_ctx="*"))
    while time.time() < began + MAX_RELOAD_SECONDS:
        try:
            _reader, writer = await asyncio.open_connection("127.0.0.1", house.home_assistant.s2_port)
            writer.close()
            if was_closed:
                listening_after = time.time() - began
                break
        except OSError:
            was_closed = True
        await asyncio.sleep(0.01)
    else:
        failures.append(f"the port did not close and listen again within {MAX_RELOAD_SECONDS} s")
    await reloading
    return began, listening_after, failures
