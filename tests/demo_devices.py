"""The S2 devices of the demo: what they are told, what is expected of that, and what they do."""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import singledispatch
from itertools import batched, cycle, groupby
from typing import NamedTuple

from rich.columns import Columns
from rich.markup import escape
from rich.table import Table

from tests.demo_terminal import console, draw, step
from tests.parts.home_assistant import HomeAssistant
from tests.parts.s2_catalogue import DEVICES
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
from tests.parts.s2_mode_devices import OMBC
from tests.parts.s2_profile_devices import CONTINUE, INTERRUPT, SCHEDULE, ProfileDevice

QUARTERS = 96
"""How many quarters of an hour the charts have."""
SECONDS_BETWEEN_MEASUREMENTS = 1
SECONDS_BETWEEN_LOOKS = 0.5
SETTLED_SECONDS = 4
"""How long no instruction comes until the plan is there: who connects makes for another plan of all."""
PLANNED_SECONDS = 300
"""How long the first plan of all devices may take."""
MOST_ROWS = 12
"""How many instructions a table shows."""
MOST_CHARTS = 3
"""How many devices are drawn under one chart of the prices."""
TRANSITION = timedelta(seconds=45)
"""How long after an instruction its power is there."""
LEAST_WATTS = 1
"""What is as good as no power, and as no difference."""
CONNECTION = ("active", "_new_medium", "_details", "_telling", "_medium", "_connection", "_running", "_turn")
"""A device's attributes that its copy shares."""
WORDS = {SCHEDULE: "start", INTERRUPT: "pause", CONTINUE: "go on"}

Devices = dict[str, ControlledDevice]
"""Devices by their names."""


def entity_of(name: str) -> str:
    """Return the entity that Home Assistant has for a device."""
    return f"sensor.flexmeasures_s2_{name.lower().replace(' ', '_')}"


def local(text: str) -> datetime:
    """Return a moment of a message, or of a state's attributes."""
    return datetime.fromisoformat(text).astimezone(AMSTERDAM)


# Connections


@contextlib.asynccontextmanager
async def connected(home_assistant: HomeAssistant, choice: list[str]) -> AsyncIterator[Devices]:
    """Connect devices of the catalogue over S2; give them by name, and say at the end what each did."""
    url, every = home_assistant.s2_url, SECONDS_BETWEEN_MEASUREMENTS
    devices = {DEVICES[each].name: DEVICES[each](url, every=every) for each in choice}
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
    """Print a line whenever a device got or rejected instructions, and whenever it does something else."""
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
    """Say what a device does now: in its own words, with its power and level."""
    within = "within " if isinstance(device, EnvelopeDevice) else ""
    words = f"{within}{device.doing}, {device.power:.0f} W"
    if isinstance(device, StorageDevice):
        unit = device.description["storage"]["fill_level_label"].rpartition(", ")[2]
        words += f", level {device.fill_level:.2f} {unit}"
    return words


# What is to come


async def show_plans(
    home_assistant: HomeAssistant, devices: Devices, moments: list[datetime], prices: list[float]
) -> None:
    """Show what the devices were told, what is expected of it, and what Home Assistant tells of them.

    `moments` are the quarters of an hour from now on, `prices` (EUR/kWh) those in them.
    """
    with step("Waiting for their plan"):
        await settled(home_assistant, devices)
    dreams = {name: copy_of(device) for name, device in devices.items()}
    for dream in dreams.values():
        await asyncio.to_thread(dream.advance, moments[-1] + QUARTER)
    console.print(
        Columns([table(name, device, dreams[name]) for name, device in devices.items()], padding=(0, 2))
    )
    for name, device in devices.items():
        tell_now(name, device, dreams[name])
    draw_powers(dreams, moments, prices)
    for name in devices:
        tell_state(await home_assistant.state(entity_of(name)))


async def settled(home_assistant: HomeAssistant, devices: Devices) -> None:
    """Wait until all devices have a schedule, and for some seconds no more instructions came."""
    for name in devices:
        await home_assistant.wait_for_state(
            entity_of(name), lambda state: state["attributes"].get("has_schedule"), PLANNED_SECONDS
        )
    count, since = None, time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        if (now := [len(device.instructions) for device in devices.values()]) != count:
            count, since = now, time.monotonic()
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def copy_of(device: ControlledDevice) -> ControlledDevice:
    """Return a device as it is now, with all that it was told: it can live on without the other."""
    device.advance(datetime.now(UTC))
    found = object.__new__(type(device))
    kept = {name: value for name, value in vars(device).items() if name in CONNECTION}
    vars(found).update(
        deepcopy({name: value for name, value in vars(device).items() if name not in kept}) | kept
    )
    return found


def power_after(dream: ControlledDevice, moment: datetime, following: datetime | None) -> str:
    """Return the power that comes of an instruction, up to the following one."""
    at = min(moment + TRANSITION, following or moment + TRANSITION)
    place = bisect_left(dream.log, at, key=lambda entry: entry[0])
    return f"{dream.log[place][2]:.0f} W" if place < len(dream.log) else ""


class Row(NamedTuple):
    """What a device is told for a moment, in cells."""

    moment: datetime
    cells: tuple[str, ...]


@singledispatch
def told(device: ControlledDevice) -> tuple[tuple[str, ...], list[Row]]:
    """Return the titles of the cells, and what a device is told: what is in force, and what comes next."""
    raise TypeError(f"the demo cannot show what a {type(device).__name__} is told")


@told.register
def _(device: ModeDevice) -> tuple[tuple[str, ...], list[Row]]:
    """Return the mode, with the actuator if there are several, and the factor where a device has such."""
    has_several, has_factor = len(device.actuators) > 1, OMBC not in device.offers
    titles = ("Actuator",) * has_several + ("Mode",) + ("Factor",) * has_factor
    rows = []
    for each in standing(device):
        machine = device.actuator_of(each)
        cells = (machine.description.get("diagnostic_label", ""),) * has_several
        cells += (machine.label(each[device.mode_field]),)
        cells += (f"{each['operation_mode_factor']:.2f}",) * has_factor
        rows.append(Row(executed_at(each), cells))
    return titles, rows


@told.register
def _(device: EnvelopeDevice) -> tuple[tuple[str, ...], list[Row]]:
    """Return the limits, where they change."""
    rows = []
    for (lower, upper), each in groupby(limits(device), lambda limit: (limit.lower, limit.upper)):
        rows.append(Row(next(each).start, (f"{lower:.0f} W", f"{upper:.0f} W")))
    return ("Lower limit", "Upper limit"), rows


@told.register
def _(device: ProfileDevice) -> tuple[tuple[str, ...], list[Row]]:
    """Return what is to start, pause or go on, and by which sequence."""
    rows = []
    for each in standing(device):
        container = device.profiles[each["power_profile_id"]].containers[each["sequence_container_id"]]
        sequence = container.sequences[each["power_sequence_id"]]
        rows.append(
            Row(executed_at(each), (f"{container.label}: {sequence.label}", WORDS[each["message_type"]]))
        )
    return ("Programme", "Instruction"), rows


def standing(device: ControlledDevice) -> list[dict]:
    """Return the instructions in force, the last of each actuator, and those that come next."""
    dropped = device.revoked | {instruction for instruction, _ in device.rejected}
    coming = [each["id"] for each in device.pending]
    done = [each for each in device.instructions if each["id"] not in dropped and each["id"] not in coming]
    last = {each.get("actuator_id"): each for each in sorted(done, key=executed_at)}
    return sorted([*last.values(), *device.pending], key=executed_at)


def limits(device: EnvelopeDevice) -> Iterator[Limits]:
    """Return the limits in force and those to come, each up to where another instruction replaces it."""
    starts = [executed_at(each) for each in device.pending]
    yield from cut(device.envelope.elements, starts[0] if starts else None)
    for number, each in enumerate(device.pending, start=1):
        yield from cut(elements(each), starts[number] if number < len(starts) else None)


def elements(instruction: dict) -> Iterator[Limits]:
    """Return the limits of a PEBC.Instruction with one envelope."""
    moment = executed_at(instruction)
    for each in instruction["power_envelopes"][0]["power_envelope_elements"]:
        end = moment + each["duration"] * MILLISECOND
        yield Limits(moment, end, each["lower_limit"], each["upper_limit"])
        moment = end


def cut(found: Iterable[Limits], end: datetime | None) -> list[Limits]:
    """Return the limits that begin before an end."""
    return [each for each in found if end is None or each.start < end]


def table(name: str, device: ControlledDevice, dream: ControlledDevice) -> Table:
    """Return a table of what a device is told next, with the power that comes of it."""
    titles, rows = told(device)
    shown = rows[:MOST_ROWS]
    what = "limits" if isinstance(device, EnvelopeDevice) else "instructions"
    found = Table("When", title=f"{name}: {len(shown)} of {len(rows)} {what}", title_justify="left")
    for title in titles:
        found.add_column(
            title, justify="right" if title in ("Factor", "Lower limit", "Upper limit") else "left"
        )
    found.add_column("Power", justify="right")
    for row in shown:
        following = next((each.moment for each in rows if each.moment > row.moment), None)
        power = power_after(dream, row.moment, following)
        moment = floor(row.moment + SECOND / 2, SECOND).astimezone(AMSTERDAM)
        found.add_row(f"{moment:%a %H:%M:%S}", *row.cells, power)
    return found


def tell_now(name: str, device: ControlledDevice, dream: ControlledDevice) -> None:
    """Say what a device does now, and plainly, if its plan is to do nothing; and when all is done."""
    _, rows = told(device)
    coming = [each.moment for each in rows if each.moment > device.moment]
    until = f" until {coming[0].astimezone(AMSTERDAM):%a %H:%M}" if coming else ""
    is_idle = abs(device.power) < LEAST_WATTS and not is_changing(device)
    does = "does nothing now" if is_idle else "is at work now"
    done = ""
    if isinstance(dream, ProfileDevice) and dream.runs and dream.profile:
        end, deadline = (
            moment.astimezone(AMSTERDAM) for moment in (dream.runs[-1].end, dream.profile.deadline)
        )
        done = f"; it is done at {end:%a %H:%M}, in time for {deadline:%a %H:%M}"
    console.print(f"By its plan {name} {does}{until}: {now_of(device)}{done}.")


def is_changing(device: ControlledDevice) -> bool:
    """Say whether a device is on its way from one operation mode to another."""
    return isinstance(device, ModeDevice) and any(each.ready for each in device.actuators.values())


def draw_powers(dreams: Devices, moments: list[datetime], prices: list[float]) -> None:
    """Draw what power is expected of devices, some at a time under the prices; say where it never changes."""
    colours, charts = cycle(("blue", "cyan", "green")), []
    for name, dream in dreams.items():
        powers = [dream.energy(moment, moment + QUARTER) * 4 / 1000 for moment in moments]
        if max(powers) - min(powers) < LEAST_WATTS / 1000:
            console.print(f"{name} is expected to stay at {powers[0]:.2f} kW: there is nothing to draw.")
        else:
            charts.append((f"{name}: planned power, kW", powers, next(colours)))
    for some in batched(charts, MOST_CHARTS, strict=False):
        draw(moments, [("Price, EUR/kWh", prices, "orange"), *some])


# What Home Assistant tells


def tell_state(state: dict) -> None:
    """Say what Home Assistant tells of a device."""
    found = state["attributes"]
    current, coming, worth = found["instruction"], found["plan"], found["energy_per_fill_level"]
    in_force = described(current) + f" ({current['status']})" if current else "none yet"
    missed = ", ".join(
        f"{each['reached']:g} instead of {each['asked']:g} at {local(each['datetime']):%a %H:%M}"
        for each in found["missed_targets"]
    )
    console.print(
        f"{state['entity_id']} is {state['state']}.\n"
        f"  Instruction in force: {in_force}\n"
        f"  Next instruction: {described(coming[0]) if coming else 'none'}\n"
        f"  Planned until {local(found['planned_until']):%a %H:%M}, missed targets: {missed or 'none'}"
        + (f"; 1 unit of its level is {worth:g} kWh" if worth else ""),
    )


def described(instruction: dict) -> str:
    """Return an instruction of a state's attributes in words."""
    words = [instruction["label"]]
    if "operation_mode_factor" in instruction:
        words.append(f"factor {instruction['operation_mode_factor']:.2f}")
    if "upper_limit" in instruction:
        words.append(f"{instruction['lower_limit']:.0f} to {instruction['upper_limit']:.0f} W allowed")
    words += [f"{instruction['power']} W", f"from {local(instruction['execution_time']):%a %H:%M:%S}"]
    return ", ".join(words)
