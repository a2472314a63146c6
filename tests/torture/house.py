"""The home under test: its parts, the values accepted from its users, and what must never be shown."""

import asyncio
import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.demo import battery
from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.home_assistant import REPOSITORY, HomeAssistant, ServiceFailed, install
from tests.parts.misbehaving_proxy import MisbehavingProxy
from tests.parts.s2_devices import HomeBattery

COMPONENT = Path(__file__).parents[1] / "parts" / "torture_component"
STATUS, SCHEDULE = "sensor.flexmeasures_status", "sensor.flexmeasures_schedule"
DEVICE, DEVICE_ENTITY = "Home battery", "sensor.flexmeasures_s2_home_battery"
DEVICE_ID = "5f0a6e0e-1f0d-4f6b-9d7f-6f1f4d1b2c3a"
S2_TOKEN, OWN_TOKEN = "guess-me-if-you-can", "only-for-the-battery"
FIRST, QUARTER = datetime(2026, 1, 1, tzinfo=UTC), timedelta(minutes=15)
DISCONNECTED = (aiohttp.ClientError, OSError, TypeError, PermissionError)
"""The errors of a call while Home Assistant is killed: the websocket has no JSON to read (TypeError)."""
LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ [A-Z]+ \(.*?\) \[(?P<logger>[^\]]+)\] (?P<text>.*)$")
COLOUR = re.compile(r"\x1b\[\d*(;\d+)*m")
OURS = re.compile(r"pyscript|flexmeasures")
MAX_ERROR = 1000
"""The maximum number of characters of an error for the user."""


@dataclass
class Ledger:
    """Values posted to a sensor, one every quarter of an hour, and those whose call succeeded."""

    sensor: int
    tried: dict[datetime, float] = field(default_factory=dict)
    accepted: dict[datetime, float] = field(default_factory=dict)
    delivered: set[datetime] = field(default_factory=set)

    async def post(self, home_assistant: HomeAssistant) -> dict[str, Any]:
        """Post a new value, and return the response."""
        number = len(self.tried)
        start = FIRST + number * QUARTER
        self.tried[start] = float(number)
        call = {
            "sensor_id": self.sensor,
            "values": number,
            "start": start.isoformat(),
            "duration": "PT15M",
        }
        response = await home_assistant.call("flexmeasures", "post_measurements", call, return_response=True)
        self.accepted[start] = float(number)
        if response["delivered"]:
            self.delivered.add(start)
        return response

    def lost_and_doubled(self, stored: list[tuple[datetime, float]]) -> tuple[int, int]:
        """Return the number of accepted values that are not stored, and of values stored more than once."""
        times = Counter(start for start, _value in stored)
        lost = sum(start not in times for start in self.accepted)
        return lost, sum(count > 1 for count in times.values())

    def faults(self, stored: list[tuple[datetime, float]]) -> list[str]:
        """Return what is lost, stored twice, or not as it was posted."""
        times = Counter(start for start, _value in stored)
        lost = [start for start in self.accepted if start not in times]
        twice = [start for start, count in times.items() if count > 1]
        wrong = [start for start, value in stored if self.tried.get(start) != value]
        faults = {"lost": lost, "stored twice": twice, "stored with another value": wrong}
        return [
            f"{len(starts)} values {what}, the first of {min(starts):%Y-%m-%d %H:%M}"
            for what, starts in faults.items()
            if starts
        ]


class House:
    """A Home Assistant with the scripts, the app's own battery, and one that speaks S2.

    It reaches FlexMeasures through a proxy, unless the fields of the `app` have another host. The scripts are
    those of a `repository`.
    """

    def __init__(
        self,
        server: FlexMeasuresServer,
        source: pyscript_source.Source,
        *,
        repository: Path = REPOSITORY,
        app: dict[str, Any] | None = None,
    ) -> None:
        self.server = server
        self.source = source
        self.repository = repository
        self.app = app or {}
        self.proxy = MisbehavingProxy(server.port)
        self.ledger: Ledger
        self.home_assistant: HomeAssistant
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.proxy)
        folder = tempfile.TemporaryDirectory(prefix="home-assistant-", ignore_cleanup_errors=True)
        config = Path(self._stack.enter_context(folder))
        await asyncio.to_thread(install, config, self.source, repository=self.repository)
        shutil.copytree(COMPONENT, config / "custom_components" / "torture")
        self.ledger = Ledger(await asyncio.to_thread(self.server.add_sensor, "kW", 15))
        s2 = {"token": S2_TOKEN, "resources": {DEVICE_ID: {"token": OWN_TOKEN}}}
        given = {"host": self.proxy.url, "schedule_duration": "PT4H", "s2": s2}
        app = battery(self.server) | given | self.app
        self.home_assistant = HomeAssistant(config, app, sections={"torture": {}})
        self._stack.push_async_callback(self._stop)
        await self.home_assistant.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    async def _stop(self) -> None:
        try:
            await self.home_assistant.stop()
        except RuntimeError:
            self.home_assistant.kill()

    @property
    def storage(self) -> Path:
        """Return the folder with Home Assistant's files, and ours."""
        return self.home_assistant.config / ".storage"

    @property
    def secrets(self) -> list[str]:
        """Return the secrets, which no text may contain."""
        return [self.server.password, S2_TOKEN, OWN_TOKEN]

    def device(self, **options: Any) -> HomeBattery:
        """Return the battery that speaks S2."""
        own: dict[str, Any] = {"name": DEVICE, "resource_id": DEVICE_ID, "every": 0.2, "token": OWN_TOKEN}
        return HomeBattery(self.home_assistant.s2_url, **own | options)

    async def plan(self, **fields: object) -> dict[str, Any]:
        """Plan the app's own battery."""
        call = {"soc_at_start": 4} | fields
        return await self.home_assistant.call(
            "flexmeasures", "trigger_and_get_schedule", call, return_response=True
        )

    async def state(self, entity_id: str) -> dict[str, Any]:
        """Return the state of an entity that must exist."""
        state = await self.home_assistant.state(entity_id)
        if state is None:
            raise AssertionError(f"{entity_id} does not exist")
        return state

    async def status(self) -> dict[str, Any]:
        """Return the state of the app's status."""
        return await self.state(STATUS)

    async def until_delivered(self, within: float) -> None:
        """Wait until no value waits for the server, and the status is ok."""
        await self.home_assistant.wait_for_state(
            STATUS, lambda state: state["state"] == "ok" and state["attributes"]["outbox"] == 0, within
        )

    async def until_none_waits(self, within: float) -> None:
        """Wait until no value waits for the server, whatever the status."""
        await self.home_assistant.wait_for_state(
            STATUS, lambda state: state["attributes"]["outbox"] == 0, within
        )

    async def ledger_faults(self) -> list[str]:
        """Return the differences between the server's data and the accepted values."""
        stored = await asyncio.to_thread(self.server.beliefs, self.ledger.sensor)
        return self.ledger.faults(stored)

    async def ledger_faults_in_the_end(self, within: float = 90) -> list[str]:
        """Return the same once there are none, or after some seconds: values may still be waiting."""
        until = time.monotonic() + within
        while (faults := await self.ledger_faults()) and time.monotonic() < until:
            await asyncio.sleep(1)
        return faults

    async def device_entity(self) -> dict[str, Any]:
        """Return the resource id and sensors of the battery's entity, once it is controlled and has them."""
        state = await self.home_assistant.wait_for_state(
            DEVICE_ENTITY,
            lambda state: bool(
                state["state"] == "FILL_RATE_BASED_CONTROL" and state["attributes"]["power_sensor"]
            ),
            60,
        )
        return {name: state["attributes"][name] for name in ("resource_id", "power_sensor", "soc_sensor")}

    async def device_instructed(self, within: float = 30) -> float:
        """Connect the battery, and return the seconds until its first instruction."""
        await self.home_assistant.wait_for_s2()
        began = time.monotonic()
        async with self.device() as device:
            while not device.instructions:
                if time.monotonic() > began + within:
                    raise TimeoutError(f"the device got no instruction within {within:g} s")
                await asyncio.sleep(0.05)
            seconds = time.monotonic() - began
            await self.home_assistant.wait_for_state(
                DEVICE_ENTITY, lambda state: state["attributes"].get("has_schedule") is True, within
            )
        return seconds

    async def device_planned(self) -> None:
        """Have the battery planned for the first time, and wait until its plan is in the file."""
        await self.device_instructed(60)
        file = self.storage / "flexmeasures_for_pyscript.resources"
        async with asyncio.timeout(30):
            while '"described"' not in await asyncio.to_thread(read_text, file):
                await asyncio.sleep(0.2)

    def log_faults(self) -> list[str]:
        """Return what must not be in the log: faults of ours, tracebacks, secrets, and more than one line."""
        return log_faults(self.home_assistant.log, self.secrets)

    def memory(self) -> float:
        """Return the memory that Home Assistant uses (MiB)."""
        process = self.home_assistant.process
        assert process is not None, "Home Assistant does not run"
        ps = ["ps", "-o", "rss=", "-p", str(process.pid)]
        return int(subprocess.run(ps, capture_output=True, text=True, check=True).stdout) / 1024

    def lags(self, since: float, until: float) -> list[float]:
        """Return the lags of the event loop (ms) between two moments (s since 1970)."""
        return [lag for _pause, lags in self._watched(since, until) for lag in lags]

    def longest_collection(self, since: float, until: float) -> float:
        """Return the duration (ms) of the longest garbage collection between two moments (s since 1970)."""
        return max([pause for pause, _lags in self._watched(since, until)], default=0.0)

    def _watched(self, since: float, until: float) -> Iterator[tuple[float, list[float]]]:
        for line in (self.home_assistant.config / "loop_lag.log").read_text().splitlines():
            ended, pause, *lags = map(float, line.split())
            if since < ended <= until + 1:
                yield pause, lags


def read_text(path: Path) -> str:
    """Return the text of a file, empty if it does not exist."""
    return path.read_text(errors="replace") if path.exists() else ""


def log_faults(log: str, secrets: list[str]) -> list[str]:
    """Return what must not be in a log."""
    faults, is_ours = [], False
    for line in log.splitlines():
        plain = COLOUR.sub("", line)
        match = LINE.match(plain)
        if match:
            is_ours = bool(OURS.search(match["logger"]))
        if not is_ours:
            continue
        if match is None:
            faults.append(f"more than one line in the log: {plain[:120]!r}")
        elif " ERROR " in plain[:40] or "please report" in plain:
            faults.append(f"in the log: {match['text'][:200]}")
        if not plain.isprintable():
            faults.append(f"not printable in the log: {plain[:120]!r}")
    faults += ["a secret is in the log" for secret in secrets if secret in log]
    return faults


def unclear(text: str, secrets: list[str]) -> list[str]:
    """Return the faults of the text of an error for the user."""
    faults = []
    if "please report" in text.lower():
        faults.append(f"it is told as a fault of ours: {text[:200]}")
    if any(secret in text for secret in secrets):
        faults.append("it has a secret")
    if not text.strip() or len(text) > MAX_ERROR or not text.isprintable():
        faults.append(f"it is no short line: {text[:200]!r} ({len(text)} characters)")
    return faults


async def failure_of(call: Awaitable[object]) -> str | None:
    """Return the text of a call's error, or None."""
    try:
        await call
    except ServiceFailed as failed:
        return failed.message
    return None


@contextlib.asynccontextmanager
async def posting(house: House, writers: int, pause: float = 0.05) -> AsyncIterator[None]:
    """Post values all the time, by several writers at once."""

    async def write() -> None:
        while True:
            with contextlib.suppress(ServiceFailed, *DISCONNECTED):
                await house.ledger.post(house.home_assistant)
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(write()) for _ in range(writers)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile of values, 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
