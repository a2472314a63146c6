"""How soon S2 devices get instructions from a real Home Assistant with a real FlexMeasures server.

Home Assistant, FlexMeasures and the devices are separate processes. Everything is measured at the devices, so
that scripts of another version can be measured, too. The devices need little processor time.
"""

import asyncio
import contextlib
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench import Sender, ignore_interrupt
from tests.demo_terminal import step
from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.s2_catalogue import controlled
from tests.parts.s2_messages import Message
from tests.torture import load
from tests.torture.house import S2_TOKEN, STATUS, House, percentile

SPAWN = multiprocessing.get_context("spawn")
BATTERY = "battery"
QUIET_SECONDS = 0.5
"""The time without a message after which a device looks whether to disconnect."""
PAUSE_SECONDS = 1.0
"""The time between a disconnection and the next connection, and between messages of one of many devices."""
BUSY_JOBS = 4
"""The number of schedules that FlexMeasures computes for others at any time while it is busy."""
IDLE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured: devices one by one, at once, and for a long time (s)."""

    samples: int = 7
    at_once: int = 50
    fleet: int = 200
    connecting: float = 10.0
    seconds: float = 20.0
    within: float = 60.0


SHORT = Extent(samples=3, at_once=10, fleet=20, connecting=1.0, seconds=5.0)


@dataclass(frozen=True)
class First:
    """The time (s) until the first instruction of a device, inf without one.

    It counts from the device's description, and from the start of the first connection of all devices.
    """

    after_description: float = math.inf
    after_start: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The lags of the event loop (ms), and its longest garbage collection (ms)."""

    lags: list[float]
    collection: float


@dataclass
class Figures:
    """The results: the first instructions by FlexMeasures' state, and the event loop under load.

    `memory` is that of Home Assistant (MiB) before and after the load, `fleet` a summary of the devices.
    """

    alone: dict[str, list[First]] = field(default_factory=dict)
    at_once: dict[str, list[First]] = field(default_factory=dict)
    loop: dict[str, Loop] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    fleet: str = ""


# The devices, in a process of their own


def first_instructions(port: int, names: list[str], within: float) -> list[First]:
    """Connect batteries at once, until all have an instruction, or for some seconds."""
    introductions = [
        list(controlled(BATTERY, "ws://127.0.0.1:9/", every=None, name=name).introduction()) for name in names
    ]
    is_over, waiting = threading.Event(), threading.Semaphore(0)
    began = time.perf_counter()

    def run(name: str, introduction: list[Message]) -> First:
        """Run a battery."""
        first = First()
        with contextlib.suppress(ConnectionError), Sender(port, S2_TOKEN) as sender:
            sender.open_session(name)
            described = time.perf_counter()
            for message in introduction:
                sender.say(message)
            sender.socket.settimeout(QUIET_SECONDS)
            while not is_over.is_set():
                with contextlib.suppress(TimeoutError):
                    sender.hear("FRBC.Instruction")
                    if math.isinf(first.after_start):
                        now = time.perf_counter()
                        first = First(now - described, now - began)
                        waiting.release()
        return first

    def end() -> None:
        """Disconnect all batteries once all have an instruction."""
        for _name in names:
            if not waiting.acquire(timeout=max(began + within - time.perf_counter(), 0.0)):
                break
        is_over.set()

    with ThreadPoolExecutor(len(names) + 1) as threads:
        ending = threads.submit(end)
        firsts = list(threads.map(run, names, introductions))
        ending.result()
    return firsts


# The home


@contextlib.asynccontextmanager
async def busy(server: FlexMeasuresServer) -> AsyncIterator[None]:
    """Keep FlexMeasures busy with schedules for others."""
    token, ids = await asyncio.to_thread(server.token), server.ids
    battery = {"sensor": ids.power_sensor, "soc-at-start": "4 kWh", "soc-min": "1 kWh", "soc-max": "10 kWh"}
    battery |= {"power-capacity": "5 kW", "roundtrip-efficiency": "90 %"}
    body = {
        "start": datetime.now(UTC).isoformat(),
        "duration": "PT24H",
        "flex-model": [battery],
        "flex-context": {"consumption-price": {"sensor": ids.price_sensor}},
        "force-new-job-creation": True,
    }
    path = f"/api/v3_0/assets/{ids.site}/schedules/trigger"

    def request_schedule() -> None:
        """Request a schedule, and wait for it."""
        _status, reply = server.request("POST", path, body, token)
        job = f"/api/v3_0/jobs/{reply['schedule']}"
        while server.request("GET", job, token=token)[0] == 202:
            time.sleep(0.2)

    async def request_schedules() -> None:
        """Request one schedule after the other."""
        while True:
            await asyncio.to_thread(request_schedule)

    requesting = [asyncio.create_task(request_schedules()) for _ in range(BUSY_JOBS)]
    await asyncio.sleep(PAUSE_SECONDS)
    try:
        yield
    finally:
        for task in requesting:
            task.cancel()
        await asyncio.gather(*requesting, return_exceptions=True)


@contextlib.asynccontextmanager
async def away(server: FlexMeasuresServer) -> AsyncIterator[None]:
    """Stop FlexMeasures' web server meanwhile."""
    await asyncio.to_thread(server.stop_web)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start_web)


async def one_by_one(pool: Executor, house: House, what: str, extent: Extent) -> list[First]:
    """Connect new batteries one after the other."""
    firsts: list[First] = []
    run = asyncio.get_running_loop().run_in_executor
    for number in range(extent.samples):
        arguments = house.home_assistant.s2_port, [f"{what} {number}"], extent.within
        firsts += await run(pool, first_instructions, *arguments)
        await asyncio.sleep(PAUSE_SECONDS)
    return firsts


async def under_load(house: House, extent: Extent, figures: Figures) -> None:
    """Measure the event loop's lag while many devices connect and send messages."""
    began = time.time()
    await asyncio.sleep(IDLE_SECONDS)
    moments = {"no device": (began, time.time())}
    figures.memory["before"] = house.memory()
    seconds, connecting = extent.seconds, extent.connecting
    async with load.devices(house, extent.fleet, 2 * seconds, connecting, PAUSE_SECONDS) as talking:
        began = time.time()
        await asyncio.sleep(connecting + seconds)
        moments["they connect, and are planned"] = began, time.time() - 1
        began = time.time()
        await asyncio.sleep(seconds - 1)
        moments["later"] = began, time.time() - 1
        figures.memory["after"] = house.memory()
        planned = await load.planned_devices(house)
        record = await talking
    figures.loop = {
        what: Loop(lags=house.lags(*span), collection=house.longest_collection(*span))
        for what, span in moments.items()
    }
    figures.fleet = (
        f"{record.instructed} of {extent.fleet} were instructed ({record.instructions:,} instructions came), "
        f"{planned} had a plan by FlexMeasures in the end, "
        f"{len(record.round_trips):,} messages were confirmed "
        f"(p99 after {percentile(record.round_trips, 99):.0f} ms), "
        f"{len(record.errors)} connections were cut off"
    )


async def measure(scripts: Path, extent: Extent) -> Figures:
    """Start everything, and measure."""
    figures = Figures()
    source = await asyncio.to_thread(pyscript_source.source)
    async with contextlib.AsyncExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=SPAWN))
        await asyncio.get_running_loop().run_in_executor(pool, ignore_interrupt)
        with step("Starting FlexMeasures"):
            server = FlexMeasuresServer()
            stack.push_async_callback(asyncio.to_thread, server.close)
            await asyncio.to_thread(server.start)
        with step(f"Starting Home Assistant with the scripts of {scripts}"):
            app = {"host": server.url, "schedule_duration": "PT24H"}
            house = await stack.enter_async_context(House(server, source, repository=scripts, app=app))
            await house.home_assistant.wait_for_s2()
        states: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[None]]] = {
            "answers": contextlib.nullcontext,
            "is busy": partial(busy, server),
            "is away": partial(away, server),
        }
        for what, state in states.items():
            with step(f"Connecting {extent.samples} batteries one by one, while FlexMeasures {what}"):
                async with state():
                    figures.alone[what] = await one_by_one(pool, house, f"FlexMeasures {what}", extent)
        for what in ("is away", "answers"):
            with step(f"Connecting {extent.at_once} batteries at once, while FlexMeasures {what}"):
                names = [f"At once {number}, FlexMeasures {what}" for number in range(extent.at_once)]
                arguments = house.home_assistant.s2_port, names, extent.within
                async with states[what]():
                    figures.at_once[what] = await asyncio.get_running_loop().run_in_executor(
                        pool, first_instructions, *arguments
                    )
            await house.home_assistant.wait_for_state(STATUS, is_ok, extent.within)
        with step(f"Having {extent.fleet} devices send a message a second, and planning them"):
            await under_load(house, extent, figures)
    return figures


# The tables


def instructions_table(figures: Figures, scripts: Path) -> Table:
    """Return the table of the first instructions."""
    table = Table(
        title=f"The first instruction by the scripts of {scripts}", caption=f"Load: {os.getloadavg()[0]:.1f}."
    )
    for name in ("", "batteries", "median", "last", "without"):
        table.add_column(name, justify="right" if name else "left")
    for what, firsts in figures.alone.items():
        after = [first.after_description for first in firsts]
        table.add_row(f"after the description, FlexMeasures {what}", *summary(after))
    table.add_section()
    for what, firsts in figures.at_once.items():
        for name, after in {
            "after the description": [first.after_description for first in firsts],
            "after the first begins to connect": [first.after_start for first in firsts],
        }.items():
            table.add_row(f"at once, {name}, FlexMeasures {what}", *summary(after))
    return table


def is_ok(state: dict[str, Any]) -> bool:
    """Return whether the status is ok."""
    return bool(state["state"] == "ok")


def summary(after: list[float]) -> list[str]:
    """Return the number of devices, the median and maximum (s), and the number without an instruction."""
    instructed = [seconds for seconds in after if math.isfinite(seconds)]
    median = statistics.median(after)
    return [
        f"{len(after)}",
        f"{median:.2f} s" if math.isfinite(median) else "-",
        f"{max(instructed):.2f} s" if instructed else "-",
        f"{len(after) - len(instructed)}",
    ]


def load_table(figures: Figures, extent: Extent) -> Table:
    """Return the table of the event loop's lag, and of memory."""
    table = Table(
        title=f"Home Assistant's event loop, and {extent.fleet} devices that send a message a second",
        caption=(
            f"{figures.fleet}. Memory: {figures.memory['before']:.0f} MiB before, "
            f"{figures.memory['after']:.0f} MiB after."
        ),
    )
    for name in ("lag while", "p50", "p99", "most", "longest garbage\ncollection"):
        table.add_column(name, justify="left" if name == "lag while" else "right")
    for what, loop in figures.loop.items():
        lags = [percentile(loop.lags, percent) for percent in (50, 99, 100)]
        table.add_row(what, *[f"{milliseconds:.1f} ms" for milliseconds in (*lags, loop.collection)])
    return table
