"""A well-behaved device in a separate process, whatever else happens."""

import asyncio
import contextlib
import multiprocessing
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import ignore_interrupt
from tests.parts.home_assistant import HomeAssistant
from tests.torture import fleet

SPAWN = multiprocessing.get_context("spawn")
PAUSE_SECONDS = 0.05


@dataclass
class Neighbour:
    """A device, and its record once it has disconnected."""

    record: fleet.Record = field(default_factory=fleet.Record)


@contextlib.asynccontextmanager
async def talking(home_assistant: HomeAssistant, name: str, token: str) -> AsyncIterator[Neighbour]:
    """Have a device send a message every 50 ms meanwhile."""
    neighbour, loop = Neighbour(), asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        await loop.run_in_executor(pool, ignore_interrupt)
        stop = Path(folder) / "stop"
        device = loop.run_in_executor(pool, run_device, home_assistant.s2_port, token, name, str(stop))
        try:
            await asyncio.sleep(2 * PAUSE_SECONDS)
            yield neighbour
        finally:
            stop.touch()
            neighbour.record = await device


def run_device(port: int, token: str, name: str, stop: str) -> fleet.Record:
    """Run a device until a file exists."""
    return fleet.live(port, token, name, PAUSE_SECONDS, Path(stop).exists)
