"""Attack the port for S2 devices, while a well-behaved device is connected."""

import asyncio
import functools
import json
import multiprocessing
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.bench import ignore_interrupt
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_messages import example
from tests.torture import fleet
from tests.torture.house import DEVICE, DEVICE_ENTITY, DEVICE_ID, OWN_TOKEN, S2_TOKEN, House, percentile
from tests.torture.neighbour import talking
from tests.torture.report import Outcome, guarded

TITLE = "Attacks on the S2 port"
WHAT = (
    "The port that S2 devices connect to is attacked while a device that behaves well sends a message "
    "each 50 ms: it must stay connected, and be answered. Nothing may stand in the log, in states or "
    "notifications that breaks a line, and Home Assistant's memory may not grow by more than 64 MiB. "
    "The figure is the device's round trip; attacks and Home Assistant share the machine's cores."
)
SPAWN = multiprocessing.get_context("spawn")
MAX_ROUND_TRIP_SECONDS = 10
"""The time after which a device without a confirmation assumes that its connection is lost."""
MAX_GROWTH_MIB = 64
HEAD = "GET /s2 HTTP/1.1\r\nHost: localhost\r\n"
EVIL = "Heater\r\n2026-01-01 00:00:00.000 ERROR (MainThread) [root] forged\x1b[31m\x00\u202e **bold** " + (
    "<img src=x onerror=alert(1)> [here](http://127.0.0.1/)"
)
type Attack = Callable[["Target"], Awaitable[str]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """The house to attack, the duration of an attack, and the share of its full strength."""

    house: House
    seconds: float
    share: float
    run: Callable[..., Awaitable[Any]]

    @property
    def port(self) -> int:
        """Return the port."""
        return self.house.home_assistant.s2_port

    @property
    def url(self) -> str:
        """Return the address."""
        return self.house.home_assistant.s2_url

    def several(self, number: int) -> int:
        """Return this run's share of a number of connections or messages, at least 10."""
        return max(10, int(number * self.share))


async def nothing(target: Target) -> str:
    """Do nothing, for comparison."""
    await asyncio.sleep(target.seconds)
    return "no attack, for comparison"


async def half_open(target: Target) -> str:
    """Connect, and send nothing."""
    number = target.several(2000)
    async with AsyncExitStack() as stack:
        for _ in range(number):
            _reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
            stack.callback(writer.close)
        await asyncio.sleep(target.seconds)
    return f"{number:,} connections that ask for nothing"


async def slow_headers(target: Target) -> str:
    """Send a request's header a byte at a time."""
    number, until = target.several(500), time.monotonic() + target.seconds
    async with AsyncExitStack() as stack:
        writers = []
        for _ in range(number):
            _reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
            stack.callback(writer.close)
            writer.write(HEAD.encode())
            writers.append(writer)
        while time.monotonic() < until:
            for writer in writers:
                if not writer.is_closing():
                    writer.write(b"X")
            await asyncio.sleep(0.5)
    return f"{number:,} requests whose header comes a byte at a time"


async def guessed_tokens(target: Target) -> str:
    """Guess tokens."""
    number, statuses = target.several(1000), set()
    async with aiohttp.ClientSession() as session:
        for guess in range(number):
            headers = {"Authorization": f"Bearer {guess}"}
            async with session.get(target.url.replace("ws", "http", 1), headers=headers) as answer:
                statuses.add(answer.status)
    if statuses != {401}:
        raise AssertionError(f"guesses got {statuses}")
    return f"{number:,} guessed tokens: each got 401"


async def long_headers(target: Target) -> str:
    """Send headers that are far too long."""
    number, statuses = target.several(200), set()
    for count in range(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        with suppress(OSError):
            writer.write(f"{HEAD}X-{count}: {'x' * 1_000_000}\r\n\r\n".encode())
            await writer.drain()
            statuses.add((await asyncio.wait_for(reader.read(12), 10))[9:12].decode())
        writer.close()
    return (
        f"{number:,} headers of 1 MB: refused with {', '.join(sorted(filter(None, statuses))) or 'a reset'}"
    )


async def frames(target: Target, frame: str | bytes, what: str, number: int) -> str:
    """Send an invalid frame repeatedly, as a device with the token."""
    codes, answers = set(), set()
    for _ in range(number):
        async with ResourceManager(target.url, S2_TOKEN, name="Attacker") as attacker:
            await attacker.next("Handshake")
            await attacker.send(frame)
            with suppress(AssertionError):
                answers.add((await attacker.next("ReceptionStatus", within=1))["status"])
                continue
            codes.add(await attacker.closed())
    return f"{number:,} {what}: " + " or ".join(
        [*[f"answered {status}" for status in sorted(answers)], *[f"closed with {code}" for code in codes]]
    )


async def large_frames(target: Target) -> str:
    """Send frames that are too large."""
    return await frames(target, " " * 2**21, "frames of 2 MiB", target.several(50))


async def binary_frames(target: Target) -> str:
    """Send binary frames."""
    return await frames(target, bytes(1000), "binary frames", target.several(100))


async def deep_frames(target: Target) -> str:
    """Send JSON of endless depth."""
    deep = '{"message_type": ' + "[" * 400_000 + "]" * 400_000 + "}"
    return await frames(target, deep, "messages nested 400,000 deep", target.several(20))


async def flooded(target: Target) -> str:
    """Send at full speed."""
    rate = await target.run(fleet.flood, target.port, S2_TOKEN, target.seconds)
    return f"a device that sends as fast as it is confirmed: {rate:,.0f} messages/s"


async def names(target: Target) -> str:
    """Send names and labels that try to inject text."""
    home_assistant = target.house.home_assistant
    details = {"manufacturer": EVIL, "model": EVIL, "serial_number": EVIL, "firmware_version": EVIL}
    description = json.loads(json.dumps(example("FRBC.SystemDescription")))
    for actuator in description["actuators"]:
        actuator["diagnostic_label"] = EVIL
        for mode in actuator["operation_modes"]:
            mode["diagnostic_label"] = EVIL
            for element in mode["elements"]:
                element["fill_rate"] = {"start_of_range": 0, "end_of_range": 0}
    description["storage"] |= {"diagnostic_label": EVIL, "fill_level_label": EVIL}
    async with ResourceManager(target.url, S2_TOKEN, name=EVIL, details=details) as evil:
        await evil.establish()
        await evil.ask(description)
        await evil.send(json.dumps({"message_type": EVIL, "message_id": EVIL, EVIL: EVIL}))
        await asyncio.sleep(target.seconds)
        states = await home_assistant.states()
        shown = [state for state in states if state["entity_id"].startswith("sensor.flexmeasures_s2_")]
        notifications = await home_assistant.notifications()
    faults = [text for state in shown for text in texts_of(state) if not text.isprintable()]
    faults += [
        notification["message"]
        for notification in notifications
        for text in notification["message"].split("\n\n")
        if not text.isprintable()
    ]
    if faults:
        raise AssertionError(f"shown to users: {faults[0][:300]!r}")
    return "names and labels with line breaks, ESC, NUL, Markdown and HTML: each is shown on one line"


def texts_of(value: object) -> list[str]:
    """Return all texts in a value."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in [*texts_of(key), *texts_of(item)]]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    return [value] if isinstance(value, str) else []


async def impostors(target: Target) -> str:
    """Claim the resource_id and the name of a device that has its own token, without that token."""
    number, ends = target.several(50), set()
    for _ in range(number):
        async with ResourceManager(
            target.url, S2_TOKEN, resource_id=DEVICE_ID, name=DEVICE, confirm=True
        ) as impostor:
            try:
                await impostor.establish()
                ends.add("was let in")
            except AssertionError:
                ends.add(f"was refused ({[message.get('status') for message in impostor.received][-1:]})")
    state = await target.house.state(DEVICE_ENTITY)
    if "was let in" in ends or state["state"] == "disconnected":
        raise AssertionError(f"an impostor {ends}; the device is {state['state']}")
    return f"{number} devices claim the resource_id of one with a token of its own, without it: refused"


async def namesakes(target: Target) -> str:
    """Claim the name of a device that has its own token, with another resource_id."""
    home_assistant, number = target.house.home_assistant, target.several(50)
    before = await target.house.device_entity()
    for _ in range(number):
        async with ResourceManager(target.url, S2_TOKEN, name=DEVICE, confirm=True) as namesake:
            await namesake.establish()
            call = {"resource_id": DEVICE, "control_type": "FRBC"}
            answer = await home_assistant.call(
                "flexmeasures", "change_control_type", call, return_response=True
            )
            if answer["resource_id"] != DEVICE_ID:
                raise AssertionError(f"a call by the name went to {answer['resource_id']}")
    after = await target.house.device_entity()
    if after != before:
        raise AssertionError(f"the device's entity was {before}, and is {after}")
    return (
        f"{number} devices take the name of one with a token of its own: its entity, sensors and calls stay"
    )


async def successor(target: Target) -> str:
    """Connect as the device with its own token, as when it has lost its connection."""
    async with ResourceManager(
        target.url, OWN_TOKEN, resource_id=DEVICE_ID, name=DEVICE, control_types=["NOT_CONTROLABLE"]
    ) as second:
        await second.establish()
        await asyncio.sleep(min(target.seconds, 2))
    return "a second connection with the resource_id and its token takes its place"


ATTACKS: dict[str, Attack] = {
    "nothing": nothing,
    "half-open connections": half_open,
    "slow headers": slow_headers,
    "guessed tokens": guessed_tokens,
    "long headers": long_headers,
    "large frames": large_frames,
    "binary frames": binary_frames,
    "deep JSON": deep_frames,
    "flood": flooded,
    "names and labels": names,
    "impostors": impostors,
    "namesakes": namesakes,
    "successor": successor,
}
SHORT = ("half-open connections", "deep JSON", "names and labels", "impostors", "namesakes")


async def run(house: House, names: Sequence[str] = tuple(ATTACKS)) -> list[Outcome]:
    """Try all attacks at length, or some in short, and return the outcomes."""
    short = len(names) < len(ATTACKS)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    loop = asyncio.get_running_loop()
    await house.home_assistant.wait_for_s2()
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        await loop.run_in_executor(pool, ignore_interrupt)
        target = Target(
            house=house,
            seconds=1 if short else 10,
            share=0.02 if short else 1,
            run=functools.partial(loop.run_in_executor, pool),
        )
        return [await guarded(name, one(target, name)) for name in names]


async def one(target: Target, name: str) -> Outcome:
    """Try an attack, while two devices are connected."""
    house, failures, what = target.house, [], name
    before, log_before = house.memory(), len(house.home_assistant.log)
    async with talking(house.home_assistant, "Well-behaved", S2_TOKEN) as device, house.device() as battery:
        await asyncio.sleep(0.5)
        try:
            what = await ATTACKS[name](target)
        except (AssertionError, TimeoutError, OSError, aiohttp.ClientError) as error:
            failures.append(f"{type(error).__name__}: {error}"[:400])
        await asyncio.sleep(0.5)
        is_there = battery.active.is_set()
    record = device.record
    if not is_there and name != "successor":
        failures.append("the battery was cut off")
    failures += [f"the device was cut off: {error}" for error in record.errors]
    slowest = max(record.round_trips, default=0)
    if slowest > 1000 * MAX_ROUND_TRIP_SECONDS:
        failures.append(f"the device waited {slowest:.0f} ms")
    growth = house.memory() - before
    if growth > MAX_GROWTH_MIB:
        failures.append(f"Home Assistant's memory grew by {growth:.0f} MiB")
    failures += house.log_faults()
    lines = house.home_assistant.log[log_before:].count("\n")
    figure = (
        f"p50 {percentile(record.round_trips, 50):.1f} ms, p99 {percentile(record.round_trips, 99):.0f} ms, "
        f"at most {slowest:.0f} ms"
    )
    happened = f"the device stayed and was answered; memory {growth:+.0f} MiB, {lines} lines in the log"
    return Outcome(what, happened, figure, failures)
