"""The S2 devices of the demo: their instructions, the effects expected of these, and what they do."""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import singledispatch
from itertools import batched, cycle, groupby
from typing import Any, NamedTuple

from rich.columns import Columns
from rich.markup import escape
from rich.table import Table

from tests.demo_terminal import console, draw, step
from tests.parts.home_assistant import HomeAssistant
from tests.parts.s2_catalogue import DEVICES, controlled
from tests.parts.s2_device import (
    AMSTERDAM,
    MILLISECOND,
    QUARTER,
    SECOND,
    ControlledDevice,
    ModeDevice,
    executed_at,
    floor,
)
from tests.parts.s2_devices import StorageDevice
from tests.parts.s2_envelope_devices import EnvelopeDevice, Limits
from tests.parts.s2_messages import Message
from tests.parts.s2_mode_devices import OMBC
from tests.parts.s2_profile_devices import CONTINUE, INTERRUPT, SCHEDULE, ProfileDevice

QUARTERS = 96
"""The number of quarters of an hour in the charts."""
SECONDS_BETWEEN_MEASUREMENTS = 1
SECONDS_BETWEEN_LOOKS = 0.5
SETTLED_SECONDS = 4
"""The time without instructions after which the plan is complete: every new device causes another one."""
PLANNED_SECONDS = 300
"""The longest time that the first plan of all devices may take."""
MAX_ROWS = 12
"""The number of instructions in a table."""
MAX_CHARTS = 3
"""The number of devices drawn under one chart of the prices."""
TRANSITION = timedelta(seconds=45)
"""The time after an instruction by which its power is reached."""
MIN_WATTS = 1
"""Smaller powers, and differences of power, count as none (W)."""
CONNECTION = ("active", "_new_medium", "_details", "_telling", "_medium", "_connection", "_running", "_turn")
"""The attributes of a device that its copy shares."""
WORDS = {SCHEDULE: "start", INTERRUPT: "pause", CONTINUE: "go on"}

type Devices = dict[str, ControlledDevice]
"""Devices by name."""


def entity_of(name: str) -> str:
    """Return the entity of a device in Home Assistant."""
    return f"sensor.flexmeasures_s2_{name.lower().replace(' ', '_')}"


def local(text: str) -> datetime:
    """Return a moment of a message or of a state's attributes, in Amsterdam's time."""
    return datetime.fromisoformat(text).astimezone(AMSTERDAM)


# Connections


@contextlib.asynccontextmanager
async def connected(home_assistant: HomeAssistant, choice: list[str]) -> AsyncIterator[Devices]:
    """Connect devices of the catalogue over S2; give them by name, and print at the end what they did."""
    url, every = home_assistant.s2_url, SECONDS_BETWEEN_MEASUREMENTS
    devices = {DEVICES[key].name: controlled(key, url, every=every) for key in choice}
    async with contextlib.AsyncExitStack() as stack:
        with step(f"Connecting {len(devices)} devices over S2 to {url}"):
            for device in devices.values():
                await stack.enter_async_context(device)
                await asyncio.wait_for(device.active.wait(), 30)
        for name, device in devices.items():
            console.print(f"  {name} is connected. Home Assistant selected {device.control_type}.")
        watching = asyncio.create_task(watch(devices))
        try:
            yield devices
        finally:
            watching.cancel()
            for name, device in devices.items():
                console.print(
                    f"{name} received {len(device.instructions)} instructions ({len(device.revoked)} revoked "
                    f"since), rejected {len(device.rejected)}; at last: {now_of(device)}.",
                )


async def watch(devices: Devices) -> None:
    """Print a line whenever a device receives or rejects instructions, or changes what it does."""
    received = {name: len(device.instructions) for name, device in devices.items()}
    rejected = {name: len(device.rejected) for name, device in devices.items()}
    does = {name: device.doing for name, device in devices.items()}
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        for name, device in devices.items():
            now = f"  [dim]{datetime.now(AMSTERDAM):%H:%M:%S}[/] {name}"
            if more := len(device.instructions) - received[name]:
                console.print(f"{now}: {more} instructions came")
            for _, reason in device.rejected[rejected[name] :]:
                console.print(f"{now} rejected one: {escape(reason)}")
            if device.doing != does[name]:
                console.print(f"{now}: {now_of(device)}")
            received[name], rejected[name] = len(device.instructions), len(device.rejected)
            does[name] = device.doing


def now_of(device: ControlledDevice) -> str:
    """Return what a device does now in words, with its power and level."""
    within = "within " if isinstance(device, EnvelopeDevice) else ""
    words = f"{within}{device.doing}, {device.power:.0f} W"
    if isinstance(device, StorageDevice):
        unit = device.description["storage"]["fill_level_label"].rpartition(", ")[2]
        words += f", level {device.fill_level:.2f} {unit}"
    return words


# Plans


async def show_plans(
    home_assistant: HomeAssistant, devices: Devices, moments: list[datetime], prices: list[float]
) -> None:
    """Show the devices' instructions, the expected powers, and their states in Home Assistant.

    `moments` are the quarters of an hour from now on, `prices` (EUR/kWh) theirs.
    """
    with step("Waiting for their plan"):
        await settled(home_assistant, devices)
    forecasts = {name: copy_of(device) for name, device in devices.items()}
    for forecast in forecasts.values():
        await asyncio.to_thread(forecast.advance, moments[-1] + QUARTER)
    console.print(
        Columns([table(name, device, forecasts[name]) for name, device in devices.items()], padding=(0, 2))
    )
    for name, device in devices.items():
        tell_now(name, device, forecasts[name])
    draw_powers(forecasts, moments, prices)
    for name in devices:
        tell_state(await home_assistant.wait_for_state(entity_of(name), lambda _state: True))


async def settled(home_assistant: HomeAssistant, devices: Devices) -> None:
    """Wait until all devices have a schedule, and no instruction has come for some seconds."""
    for name in devices:
        await home_assistant.wait_for_state(
            entity_of(name), lambda state: bool(state["attributes"].get("has_schedule")), PLANNED_SECONDS
        )
    count: list[int] = []
    since = time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        if (now := [len(device.instructions) for device in devices.values()]) != count:
            count, since = now, time.monotonic()
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def copy_of(device: ControlledDevice) -> ControlledDevice:
    """Return a copy of a device with its instructions, which can be simulated independently."""
    device.advance(datetime.now(UTC))
    copy = object.__new__(type(device))
    shared = {name: value for name, value in vars(device).items() if name in CONNECTION}
    vars(copy).update(
        deepcopy({name: value for name, value in vars(device).items() if name not in shared}) | shared
    )
    return copy


def power_after(forecast: ControlledDevice, moment: datetime, following: datetime | None) -> str:
    """Return the power that an instruction leads to, before the following one."""
    at = min(moment + TRANSITION, following or moment + TRANSITION)
    place = bisect_left(forecast.log, at, key=lambda entry: entry[0])
    return f"{forecast.log[place][2]:.0f} W" if place < len(forecast.log) else ""


class Row(NamedTuple):
    """An instruction for a moment, in cells."""

    moment: datetime
    cells: tuple[str, ...]


@singledispatch
def instructions(device: ControlledDevice) -> tuple[tuple[str, ...], list[Row]]:
    """Return the titles of the cells, and a device's instructions: those in force, and the next ones."""
    raise TypeError(f"the demo cannot show the instructions of a {type(device).__name__}")


@instructions.register(ModeDevice)
def _(device: ModeDevice[Any]) -> tuple[tuple[str, ...], list[Row]]:
    """Return the modes, with the actuator if there are several, and the factor where a device has one."""
    has_several, has_factor = len(device.actuators) > 1, OMBC not in device.offers
    titles = ("Actuator",) * has_several + ("Mode",) + ("Factor",) * has_factor
    rows = []
    for instruction in current(device):
        machine = device.actuator_of(instruction)
        assert machine is not None, instruction
        cells = (machine.description.get("diagnostic_label", ""),) * has_several
        cells += (machine.label(instruction[device.mode_field]),)
        cells += (f"{instruction['operation_mode_factor']:.2f}",) * has_factor
        rows.append(Row(executed_at(instruction), cells))
    return titles, rows


@instructions.register
def _(device: EnvelopeDevice) -> tuple[tuple[str, ...], list[Row]]:
    """Return the limits where they change."""
    rows = []
    for (lower, upper), group in groupby(limits(device), lambda limit: (limit.lower, limit.upper)):
        rows.append(Row(next(group).start, (f"{lower:.0f} W", f"{upper:.0f} W")))
    return ("Lower limit", "Upper limit"), rows


@instructions.register
def _(device: ProfileDevice) -> tuple[tuple[str, ...], list[Row]]:
    """Return the containers and sequences that start, pause or go on."""
    rows = []
    for instruction in current(device):
        profile = device.profiles[instruction["power_profile_id"]]
        container = profile.containers[instruction["sequence_container_id"]]
        sequence = container.sequences[instruction["power_sequence_id"]]
        cells = (f"{container.label}: {sequence.label}", WORDS[instruction["message_type"]])
        rows.append(Row(executed_at(instruction), cells))
    return ("Programme", "Instruction"), rows


def current(device: ControlledDevice) -> list[Message]:
    """Return the instructions in force, the last of every actuator, and the pending ones."""
    dropped = device.revoked | {instruction_id for instruction_id, _ in device.rejected}
    left_out = dropped | {instruction["id"] for instruction in device.pending}
    done = [instruction for instruction in device.instructions if instruction["id"] not in left_out]
    last = {instruction.get("actuator_id"): instruction for instruction in sorted(done, key=executed_at)}
    return sorted([*last.values(), *device.pending], key=executed_at)


def limits(device: EnvelopeDevice) -> Iterator[Limits]:
    """Return the limits in force and the pending ones, each up to the next instruction."""
    starts = [executed_at(instruction) for instruction in device.pending]
    yield from cut(device.envelope.elements, starts[0] if starts else None)
    for number, instruction in enumerate(device.pending, start=1):
        yield from cut(elements(instruction), starts[number] if number < len(starts) else None)


def elements(instruction: Message) -> Iterator[Limits]:
    """Return the limits of a PEBC.Instruction with one envelope."""
    moment = executed_at(instruction)
    for element in instruction["power_envelopes"][0]["power_envelope_elements"]:
        end = moment + element["duration"] * MILLISECOND
        yield Limits(moment, end, element["lower_limit"], element["upper_limit"])
        moment = end


def cut(limits: Iterable[Limits], end: datetime | None) -> list[Limits]:
    """Return the limits that begin before an end."""
    return [limit for limit in limits if end is None or limit.start < end]


def table(name: str, device: ControlledDevice, forecast: ControlledDevice) -> Table:
    """Return a table of a device's next instructions, with the powers that they lead to."""
    titles, rows = instructions(device)
    shown = rows[:MAX_ROWS]
    what = "limits" if isinstance(device, EnvelopeDevice) else "instructions"
    table = Table("When", title=f"{name}: {len(shown)} of {len(rows)} {what}", title_justify="left")
    for title in titles:
        table.add_column(
            title, justify="right" if title in ("Factor", "Lower limit", "Upper limit") else "left"
        )
    table.add_column("Power", justify="right")
    for row in shown:
        following = next((later.moment for later in rows if later.moment > row.moment), None)
        power = power_after(forecast, row.moment, following)
        moment = floor(row.moment + SECOND / 2, SECOND).astimezone(AMSTERDAM)
        table.add_row(f"{moment:%a %H:%M:%S}", *row.cells, power)
    return table


def tell_now(name: str, device: ControlledDevice, forecast: ControlledDevice) -> None:
    """Print what a device does now, whether its plan is to do nothing, and when it is done."""
    _, rows = instructions(device)
    coming = [row.moment for row in rows if row.moment > device.moment]
    until = f" until {coming[0].astimezone(AMSTERDAM):%a %H:%M}" if coming else ""
    is_idle = abs(device.power) < MIN_WATTS and not is_changing(device)
    does = "does nothing now" if is_idle else "is at work now"
    done = ""
    if isinstance(forecast, ProfileDevice) and forecast.runs and forecast.profile:
        end, deadline = (
            moment.astimezone(AMSTERDAM) for moment in (forecast.runs[-1].end, forecast.profile.deadline)
        )
        done = f"; it is done at {end:%a %H:%M}, in time for {deadline:%a %H:%M}"
    console.print(f"By its plan {name} {does}{until}: {now_of(device)}{done}.")


def is_changing(device: ControlledDevice) -> bool:
    """Return whether a device is in a transition between operation modes."""
    return isinstance(device, ModeDevice) and any(machine.ready for machine in device.actuators.values())


def draw_powers(forecasts: Devices, moments: list[datetime], prices: list[float]) -> None:
    """Draw the expected powers, some at a time under the prices, but not those that never change."""
    colours, charts = cycle(("blue", "cyan", "green")), []
    for name, forecast in forecasts.items():
        powers = [forecast.energy(moment, moment + QUARTER) * 4 / 1000 for moment in moments]
        if max(powers) - min(powers) < MIN_WATTS / 1000:
            console.print(f"{name} is expected to stay at {powers[0]:.2f} kW: there is nothing to draw.")
        else:
            charts.append((f"{name}: planned power, kW", powers, next(colours)))
    for some in batched(charts, MAX_CHARTS, strict=False):
        draw(moments, [("Price, EUR/kWh", prices, "orange"), *some])


# States in Home Assistant


def tell_state(state: dict[str, Any]) -> None:
    """Print the state of a device in Home Assistant."""
    attributes = state["attributes"]
    instruction, coming, energy = (
        attributes[name] for name in ("instruction", "plan", "energy_per_fill_level")
    )
    in_force = described(instruction) + f" ({instruction['status']})" if instruction else "none yet"
    missed = ", ".join(
        f"{target['reached']:g} instead of {target['asked']:g} at {local(target['datetime']):%a %H:%M}"
        for target in attributes["missed_targets"]
    )
    console.print(
        f"{state['entity_id']} is {state['state']}.\n"
        f"  Instruction in force: {in_force}\n"
        f"  Next instruction: {described(coming[0]) if coming else 'none'}\n"
        f"  Planned until {local(attributes['planned_until']):%a %H:%M}, missed targets: {missed or 'none'}"
        + (f"; 1 unit of its level is {energy:g} kWh" if energy else ""),
    )


def described(instruction: dict[str, Any]) -> str:
    """Return an instruction in a state's attributes in words."""
    words = [instruction["label"]]
    if "operation_mode_factor" in instruction:
        words.append(f"factor {instruction['operation_mode_factor']:.2f}")
    if "upper_limit" in instruction:
        words.append(f"{instruction['lower_limit']:.0f} to {instruction['upper_limit']:.0f} W allowed")
    words += [f"{instruction['power']} W", f"from {local(instruction['execution_time']):%a %H:%M:%S}"]
    return ", ".join(words)
