"""How soon S2 devices are told what to do by a real Home Assistant with a real FlexMeasures server.

Home Assistant, FlexMeasures and the devices are processes of their own, and only what a device sees is
measured, so that scripts of another version can be measured too. The devices cost the machine little.
"""

import asyncio
import contextlib
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.table import Table

from tests.bench import Sender, ignore_interrupt
from tests.demo_terminal import step
from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.s2_catalogue import DEVICES
from tests.torture import load
from tests.torture.house import S2_TOKEN, STATUS, House, percentile

SPAWN = multiprocessing.get_context("spawn")
BATTERY = "battery"
QUIET_SECONDS = 0.5
"""How long a device hears nothing before it looks whether all is over."""
PAUSE_SECONDS = 1.0
"""How long after a device has gone the next one comes, and how often each of the many sends a message."""
BUSY_JOBS = 4
"""How many schedules FlexMeasures is always to make for others while it is busy."""
IDLE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured: devices after one another, at once, and for long (with the seconds of that)."""

    samples: int = 7
    at_once: int = 50
    fleet: int = 200
    connecting: float = 10.0
    seconds: float = 20.0
    within: float = 60.0


SHORT = Extent(samples=3, at_once=10, fleet=20, connecting=1.0, seconds=5.0)


@dataclass(frozen=True)
class First:
    """After how many seconds a device got its first instruction: inf where it got none.

    They count from its description on, and from when the first of all devices began to connect.
    """

    after_description: float = math.inf
    after_start: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How late the event loop was (ms), and how long its longest garbage collection took (ms)."""

    lags: list[float]
    collection: float


@dataclass
class Figures:
    """What was measured: the first instructions by what FlexMeasures did, and the event loop under load.

    `memory` is that of Home Assistant (MiB) before the load and after it, `fleet` tells of the devices.
    """

    alone: dict[str, list[First]] = field(default_factory=dict)
    at_once: dict[str, list[First]] = field(default_factory=dict)
    loop: dict[str, Loop] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    fleet: str = ""


# The devices, in a process of their own


def first_instructions(port: int, names: list[str], within: float) -> list[First]:
    """Connect batteries at once, and stay until each has been instructed, or some seconds have passed."""
    introductions = [
        list(DEVICES[BATTERY]("ws://127.0.0.1:9/", every=None, name=name).introduction()) for name in names
    ]
    is_over, waiting = threading.Event(), threading.Semaphore(0)
    began = time.perf_counter()

    def live(name: str, introduction: list[dict]) -> First:
        """Be a battery."""
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
        """Let all go once each was instructed."""
        for _name in names:
            if not waiting.acquire(timeout=max(began + within - time.perf_counter(), 0.0)):
                break
        is_over.set()

    with ThreadPoolExecutor(len(names) + 1) as threads:
        ending = threads.submit(end)
        firsts = list(threads.map(live, names, introductions))
        ending.result()
    return firsts


# The home


@contextlib.asynccontextmanager
async def busy(server: FlexMeasuresServer) -> AsyncIterator[None]:
    """Have FlexMeasures always make schedules for others."""
    token, ids = await asyncio.to_thread(server.token), server.ids
    battery = {"sensor": ids.power_sensor, "soc-at-start": "4 kWh", "soc-min": "1 kWh", "soc-max": "10 kWh"}
    battery |= {"power-capacity": "5 kW", "roundtrip-efficiency": "90 %"}
    problem = {
        "start": datetime.now(UTC).isoformat(),
        "duration": "PT24H",
        "flex-model": [battery],
        "flex-context": {"consumption-price": {"sensor": ids.price_sensor}},
        "force-new-job-creation": True,
    }
    path = f"/api/v3_0/assets/{ids.site}/schedules/trigger"

    def make_one() -> None:
        """Have a schedule made, and wait for it."""
        _status, reply = server.request("POST", path, problem, token)
        job = f"/api/v3_0/jobs/{reply['schedule']}"
        while server.request("GET", job, token=token)[0] == 202:
            time.sleep(0.2)

    async def make() -> None:
        """Have one made after the other."""
        while True:
            await asyncio.to_thread(make_one)

    making = [asyncio.create_task(make()) for _ in range(BUSY_JOBS)]
    await asyncio.sleep(PAUSE_SECONDS)
    try:
        yield
    finally:
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)


@contextlib.asynccontextmanager
async def away(server: FlexMeasuresServer) -> AsyncIterator[None]:
    """Have FlexMeasures not answer."""
    await asyncio.to_thread(server.stop_web)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start_web)


async def one_by_one(pool: Executor, house: House, what: str, extent: Extent) -> list[First]:
    """Connect new batteries one after the other."""
    firsts, run = [], asyncio.get_running_loop().run_in_executor
    for number in range(extent.samples):
        arguments = house.home_assistant.s2_port, [f"{what} {number}"], extent.within
        firsts += await run(pool, first_instructions, *arguments)
        await asyncio.sleep(PAUSE_SECONDS)
    return firsts


async def under_load(house: House, extent: Extent, figures: Figures) -> None:
    """Have many devices talk, from when they begin to connect on, and measure the event loop's lag."""
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
        states = {
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


# What is shown


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


def is_ok(state: dict) -> bool:
    """Return whether the status is without any problem."""
    return state["state"] == "ok"


def summary(after: list[float]) -> list[str]:
    """Return how many there are, their median and the greatest (s), and how many have none."""
    had = [seconds for seconds in after if math.isfinite(seconds)]
    median = statistics.median(after)
    return [
        f"{len(after)}",
        f"{median:.2f} s" if math.isfinite(median) else "-",
        f"{max(had):.2f} s" if had else "-",
        f"{len(after) - len(had)}",
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
