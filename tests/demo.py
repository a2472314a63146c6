"""The main jobs in a terminal, with a real Home Assistant and a real FlexMeasures.

Home Assistant asks FlexMeasures for a battery's schedule; a meter connects to it over S2, and FlexMeasures
gets to know what the meter forecasts and measures; a battery and a car connect over S2, are planned, and
follow the instructions that come of it. `make demo` runs it. Everything is started here, on the loopback
address, and ends with Ctrl-C.
"""

import asyncio
import contextlib
import logging
import math
import random
import signal
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import aiohttp
import plotext
from flexmeasures_client import FlexMeasuresClient
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.home_assistant import NAME, PASSWORD, HomeAssistant, install
from tests.parts.s2_devices import ElectricVehicle, HomeBattery, Meter, StorageDevice

COLUMNS = 100
SOC_AT_START, SOC_MIN, SOC_MAX = 2, 1, 10
METER, METER_ENTITY = "Kitchen meter", "sensor.flexmeasures_s2_kitchen_meter"
BATTERY, CAR = "Home battery", "Electric vehicle"
ENTITIES = {
    BATTERY: "sensor.flexmeasures_s2_home_battery",
    CAR: "sensor.flexmeasures_s2_electric_vehicle",
}
SECONDS_BETWEEN_MEASUREMENTS = 1
SETTLED_SECONDS = 4
"""How long no instruction comes until the plan is there: who connects makes for another plan of all."""
MOST_ROWS = 12
"""How many instructions a table shows."""
TRANSITION = timedelta(seconds=10)
"""How long after an instruction its power is there."""
QUARTER, QUARTERS = timedelta(minutes=15), 96
"""The steps of the forecast, and how many it has."""
AMSTERDAM = ZoneInfo("Europe/Amsterdam")
console = Console(width=COLUMNS, highlight=False)


@contextlib.contextmanager
def step(doing: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    began = time.monotonic()
    with console.status(doing):
        yield
    console.print(f"[green]✓[/] {doing} [dim]{time.monotonic() - began:.1f} s[/]")


async def main() -> None:
    """Show everything, until Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    logging.getLogger("s2python").setLevel(logging.ERROR)  # Ctrl-C reaches Home Assistant too
    console.rule("[bold]FlexMeasures for pyscript[/]")
    demo = asyncio.create_task(show())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([demo, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not demo.done():
        demo.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await demo
    console.print("Everything is stopped.")


async def show() -> None:
    """Show the main jobs, then leave Home Assistant to the user until this is cancelled."""
    with step("Fetching pyscript"):
        source = await asyncio.to_thread(pyscript_source.source)
    console.print(f"  Scripts run on {source.description}")
    with contextlib.ExitStack() as stack:
        with step("Starting FlexMeasures on PostgreSQL and Redis, with prices from today on"):
            server = await asyncio.to_thread(stack.enter_context, FlexMeasuresServer())
        config = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="home-assistant-")))
        install(config, source)
        home_assistant = HomeAssistant(config, battery(server))
        try:
            with step("Starting Home Assistant with the scripts"):
                await home_assistant.start()
            await plan(home_assistant, server)
            async with client(server) as flexmeasures, meter(home_assistant) as measured:
                await show_meter(home_assistant, flexmeasures)
                async with storages(home_assistant) as devices:
                    await show_plans(home_assistant, server, devices)
                    tell_addresses(home_assistant, server)
                    await follow(measured, devices)
        finally:
            console.print("Stopping")
            await home_assistant.stop()


def tell_addresses(home_assistant: HomeAssistant, server: FlexMeasuresServer) -> None:
    """Say where to look, and how to log in."""
    console.print(
        f"\nHome Assistant: [bold]{home_assistant.url}/dashboard-flexmeasures/schedule[/] "
        f"(user {NAME}, password {PASSWORD})\n"
        f"FlexMeasures:   [bold]{server.url}[/] "
        f"(user {server.username}, password {server.password})\n"
        f"Sensors there: power {server.ids.power_sensor}, state of charge {server.ids.soc_sensor}, "
        f"price {server.ids.price_sensor}\n"
        f"S2 devices connect to [bold]{home_assistant.s2_url}[/]\n"
        "Press Ctrl-C to stop.",
        soft_wrap=True,
    )


def battery(server: FlexMeasuresServer) -> dict:
    """Return the app's configuration: a battery of 10 kWh and 5 kW."""
    return {
        "host": server.url,
        "username": server.username,
        "password": server.password,
        "power_sensor": server.ids.power_sensor,
        "soc_sensor": server.ids.soc_sensor,
        "consumption_price_sensor": server.ids.price_sensor,
        "soc_min": SOC_MIN,
        "soc_max": SOC_MAX,
        "power_capacity": "5 kW",
        "roundtrip_efficiency": 0.9,
    }


def tomorrow_morning() -> datetime:
    """Return when all is to be full: tomorrow at seven."""
    return (datetime.now(AMSTERDAM) + timedelta(days=1)).replace(hour=7, minute=0, second=0, microsecond=0)


async def plan(home_assistant: HomeAssistant, server: FlexMeasuresServer) -> None:
    """Call the service as a user does, and draw what the sensor then says."""
    morning = tomorrow_morning()
    call = {"soc_at_start": SOC_AT_START, "soc_targets": [{"value": 9, "datetime": morning.isoformat()}]}
    with step("Calling flexmeasures.trigger_and_get_schedule"):
        response = await home_assistant.call(
            "flexmeasures", "trigger_and_get_schedule", call, return_response=True
        )
        state = await home_assistant.state("sensor.flexmeasures_schedule")
    schedule = state["attributes"]
    powers = [entry["value"] for entry in schedule["schedule"]]
    prices = await ask_prices(server, schedule["start"], len(powers))
    starts = [datetime.fromisoformat(entry["start"]) for entry in schedule["schedule"]]
    draw(
        starts,
        [
            ("Price, EUR/kWh", prices, "orange"),
            ("Power, kW: charging is positive", powers, "blue"),
            ("State of charge, kWh", schedule["soc"][:-1], "green"),
        ],
    )
    cost = sum(power / 4 * price for power, price in zip(powers, prices, strict=True))
    console.print(
        f"From {SOC_AT_START} kWh now to 9 kWh at {morning:%a %H:%M}, as cheap as can be: bought and sold, "
        f"the day comes to\nEUR {cost:.2f} (minus is earned). "
        f"Missed targets: {response['missed_targets'] or 'none'}.",
        soft_wrap=True,
    )
    begins = datetime.fromisoformat(schedule["start"])
    console.print(
        f"sensor.flexmeasures_schedule is {state['state']} now; its first value is due at {begins:%H:%M}."
    )


async def ask_prices(server: FlexMeasuresServer, start: str, quarters: int) -> list[float]:
    """Return the prices (EUR/kWh) of the schedule's quarters."""
    async with client(server) as flexmeasures:
        found = await flexmeasures.get_sensor_data(
            server.ids.price_sensor,
            start=start,
            duration=timedelta(minutes=15 * quarters),
            unit="EUR/kWh",
            resolution="PT15M",
        )
    return found["values"]


@contextlib.asynccontextmanager
async def client(server: FlexMeasuresServer) -> AsyncIterator[FlexMeasuresClient]:
    """Give a client of the server."""
    async with aiohttp.ClientSession() as session:
        host = server.url.removeprefix("http://")
        yield FlexMeasuresClient(server.password, server.username, host, session=session)


def usual_power(moment: datetime) -> float:
    """Return a kitchen's usual power (W): a refrigerator, and three meals."""
    local = moment.astimezone(AMSTERDAM)
    hour = local.hour + local.minute / 60 + local.second / 3600
    meals = [(7.5, 0.4, 900), (12.5, 0.3, 600), (18, 0.7, 2300)]
    return 90 + sum(watts * math.exp(-(((hour - at) / width) ** 2) / 2) for at, width, watts in meals)


@contextlib.asynccontextmanager
async def meter(home_assistant: HomeAssistant) -> AsyncIterator[list[float]]:
    """Connect a meter over S2; give what it has measured (W), and say at the end how much that was."""
    measured = []

    def measure(moment: datetime) -> float:
        measured.append(usual_power(moment) * random.uniform(0.9, 1.1))
        return measured[-1]

    url = home_assistant.s2_url
    device = Meter(url, name=METER, power=measure, forecast=usual_power, every=SECONDS_BETWEEN_MEASUREMENTS)
    async with device:
        with step(f"Connecting a {METER.lower()} over S2 to {url}"):
            await asyncio.wait_for(device.active.wait(), 30)
        console.print(f"  {METER} is connected. Home Assistant selected {device.control_type}.")
        try:
            yield measured
        finally:
            console.print(f"{METER} measured {len(measured)} times; it disconnects.")


async def show_meter(home_assistant: HomeAssistant, flexmeasures: FlexMeasuresClient) -> None:
    """Say what the meter is here and there, and draw the forecast that got there."""
    with step("Waiting for its asset and its sensor on FlexMeasures"):
        state = await home_assistant.wait_for_state(
            METER_ENTITY, lambda state: state["attributes"].get("power_sensor"), 60
        )
        number = state["attributes"]["power_sensor"]
        sensor = await flexmeasures.get_sensor(number, parse_json_fields=True)
        asset = await flexmeasures.get_asset(sensor["generic_asset_id"], parse_json_fields=True)
    console.print(
        f"  {METER_ENTITY} is {state['state']}.\n"
        f"  On FlexMeasures it got asset {asset['id']} ({asset['name']}) "
        f"with sensor {number} ({sensor['name']}, {sensor['unit']})."
    )
    with step("Waiting for its forecast to arrive there"):
        start, powers = await forecast(flexmeasures, number)
    starts = [start + number * QUARTER for number in range(len(powers))]
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plotsize(COLUMNS, 12)
    plot(f"Forecast of {METER} on FlexMeasures, W", starts, powers, "magenta")
    plotext.show()
    console.print(
        f"FlexMeasures has {len(powers)} values of the forecast, from {starts[0]:%H:%M} on. The mean of what "
        f"{METER}\nmeasures follows whenever a quarter has ended.",
        soft_wrap=True,
    )


async def forecast(flexmeasures: FlexMeasuresClient, sensor: int) -> tuple[datetime, list[float]]:
    """Wait until all of the forecast is on the server, and return its start and values (W)."""
    async with asyncio.timeout(60):
        while True:
            now = datetime.now(AMSTERDAM)
            start = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
            found = await flexmeasures.get_sensor_data(
                sensor, start=start, duration=QUARTERS * QUARTER, unit="W", resolution="PT15M"
            )
            powers = [value for value in found["values"] if value is not None]
            if len(powers) >= QUARTERS - 1:  # the first quarter may have ended in the meantime
                return start, powers
            await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def storages(home_assistant: HomeAssistant) -> AsyncIterator[dict[str, StorageDevice]]:
    """Connect a battery and a car over S2; give them by name, and say at the end what each did."""
    url, every = home_assistant.s2_url, SECONDS_BETWEEN_MEASUREMENTS
    devices = {
        BATTERY: HomeBattery(url, name=BATTERY, every=every),
        CAR: ElectricVehicle(url, name=CAR, departure=tomorrow_morning(), every=every),
    }
    async with contextlib.AsyncExitStack() as stack:
        with step(
            f"Connecting a {BATTERY.lower().removesuffix(' s2')} and an {CAR.lower()} over S2 to {url}"
        ):
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
                    f"since), rejected {len(device.rejected)}; its level is {device.fill_level:.1f} %."
                )


async def watch(devices: dict[str, StorageDevice]) -> None:
    """Print a line whenever a device got instructions, and whenever it does something else."""
    shown = {name: (len(device.instructions), doing(device)) for name, device in devices.items()}
    while True:
        await asyncio.sleep(0.5)
        for name, device in devices.items():
            count, did = shown[name]
            shown[name] = received, does = len(device.instructions), doing(device)
            now = f"  [dim]{datetime.now(AMSTERDAM):%H:%M:%S}[/] {name}"
            if received > count:
                console.print(f"{now}: {received - count} instructions came")
            if does != did:
                console.print(f"{now}: {does}, level {device.fill_level:.2f} %")


def valid(device: StorageDevice) -> list[dict]:
    """Return the instructions that a device received, without those revoked or rejected, in order."""
    dropped = device.revoked | {instruction for instruction, _ in device.rejected}
    found = [each for each in device.instructions if each["id"] not in dropped]
    return sorted(found, key=executed_at)


def executed_at(instruction: dict) -> datetime:
    """Return when an instruction is executed."""
    return datetime.fromisoformat(instruction["execution_time"]).astimezone(AMSTERDAM)


def carried_out(device: StorageDevice) -> dict | None:
    """Return the instruction that a device carried out last."""
    due = [each for each in valid(device) if executed_at(each) <= device.moment]
    return due[-1] if due else None


def modes(device: StorageDevice) -> dict[str, str]:
    """Return the labels of a device's operation modes by their ids, in its order."""
    [actuator] = device.description["actuators"]
    return {mode["id"]: mode["diagnostic_label"] for mode in actuator["operation_modes"]}


def doing(device: StorageDevice) -> str:
    """Say which operation mode a device is in, and its power; in a transition that is none."""
    labels, current = modes(device), carried_out(device)
    mode = labels[current["operation_mode"]] if current else next(iter(labels.values()))
    factor = current["operation_mode_factor"] if current else 0
    return f"{mode}, factor {factor:.2f}, {device.power:.0f} W"


async def show_plans(
    home_assistant: HomeAssistant, server: FlexMeasuresServer, devices: dict[str, StorageDevice]
) -> None:
    """Show what the devices were instructed, what comes of it, and what Home Assistant tells of them."""
    with step("Waiting for their plan"):
        await settled(home_assistant, devices)
    begin = next(iter(devices.values())).moment.astimezone(AMSTERDAM)
    begin = begin.replace(minute=begin.minute // 15 * 15, second=0, microsecond=0)
    tables, powers = [], {}
    for name, device in devices.items():
        dream = await asyncio.to_thread(foresee, device, begin + QUARTERS * QUARTER)
        tables.append(table(name, device, dream))
        powers[name] = [
            dream.energy(begin + number * QUARTER, begin + (number + 1) * QUARTER) * 4 / 1000
            for number in range(QUARTERS)
        ]
    console.print(Columns(tables, padding=(0, 2)))
    for name, device in devices.items():
        tell_now(name, device)
    prices = await ask_prices(server, begin.isoformat(), QUARTERS)
    charts = [
        (f"{name}: planned power, kW", values, colour)
        for (name, values), colour in zip(powers.items(), ("blue", "cyan"), strict=True)
    ]
    draw(
        [begin + number * QUARTER for number in range(QUARTERS)],
        [("Price, EUR/kWh", prices, "orange"), *charts],
    )
    for name in devices:
        tell_state(await home_assistant.state(ENTITIES[name]))


async def settled(home_assistant: HomeAssistant, devices: dict[str, StorageDevice]) -> None:
    """Wait until all devices have a schedule, and for some seconds no more instructions came."""
    for name in devices:
        await home_assistant.wait_for_state(
            ENTITIES[name], lambda state: state["attributes"].get("has_schedule"), 90
        )
    count, since = None, time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        if (now := [len(device.instructions) for device in devices.values()]) != count:
            count, since = now, time.monotonic()
        await asyncio.sleep(0.5)


def foresee(device: StorageDevice, until: datetime) -> StorageDevice:
    """Return a copy of a device that has carried out all of its instructions until a moment."""
    start, level, _power = device.log[0]
    dream = StorageDevice(
        "", name="", description=device.description, fill_level=level, start=start, every=None
    )
    for instruction in valid(device):
        dream.instruct(instruction)
    dream.advance(until)
    return dream


def table(name: str, device: StorageDevice, dream: StorageDevice) -> Table:
    """Return a table of the instructions that a device received, with the power that comes of each."""
    labels, received = modes(device), valid(device)
    rows = min(len(received), MOST_ROWS)
    ends = [moment for moment, _level, _power in dream.log]
    found = Table(
        "When", "Mode", title=f"{name}: {rows} of {len(received)} instructions", title_justify="left"
    )
    found.add_column("Factor", justify="right")
    found.add_column("Power", justify="right")
    for each in received[:rows]:
        moment = executed_at(each)
        place = bisect_left(ends, moment + TRANSITION)
        power = f"{dream.log[place][2]:.0f} W" if place < len(ends) else ""
        mode = labels[each["operation_mode"]]
        found.add_row(f"{moment:%a %H:%M:%S}", mode, f"{each['operation_mode_factor']:.2f}", power)
    return found


def tell_now(name: str, device: StorageDevice) -> None:
    """Say what a device does now; and plainly, if its plan is to do nothing."""
    coming = [each for each in valid(device) if executed_at(each) > device.moment]
    until = f" until {executed_at(coming[0]):%a %H:%M}" if coming else ""
    does = "does nothing now" if abs(device.power) < 1 else "is at work now"
    console.print(f"By its plan {name} {does}{until}: {doing(device)}, level {device.fill_level:.2f} %.")


def tell_state(state: dict) -> None:
    """Say what Home Assistant tells of a device."""
    found = state["attributes"]
    current, coming = found["instruction"], found["plan"]
    told = described(current) + f" ({current['status']})" if current else "none yet"
    missed = ", ".join(
        f"{each['reached']:g} instead of {each['asked']:g} at {local(each['datetime']):%a %H:%M}"
        for each in found["missed_targets"]
    )
    console.print(
        f"{state['entity_id']} is {state['state']}.\n"
        f"  Instruction in force: {told}\n"
        f"  Next instruction: {described(coming[0]) if coming else 'none'}\n"
        f"  Planned until {local(found['planned_until']):%a %H:%M}, missed targets: {missed or 'none'}; "
        f"1 % is {found['energy_per_fill_level']:g} kWh",
        soft_wrap=True,
    )


def described(instruction: dict) -> str:
    """Return an instruction of a state's attributes in words."""
    return (
        f"{instruction['label']}, factor {instruction['operation_mode_factor']:.2f}, "
        f"{instruction['power']} W, "
        f"from {local(instruction['execution_time']):%a %H:%M:%S}"
    )


def local(text: str) -> datetime:
    """Return a moment of a state's attributes."""
    return datetime.fromisoformat(text).astimezone(AMSTERDAM)


async def follow(measured: list[float], devices: dict[str, StorageDevice]) -> None:
    """Show what the meter measures and the devices do, until this is cancelled."""
    with console.status("") as line:
        while True:
            lines = [
                f"{name}: {doing(device)}, level {device.fill_level:.2f} %"
                for name, device in devices.items()
            ]
            line.update(
                "\n".join([f"{METER}: {measured[-1]:.0f} W ({len(measured)} measurements so far)", *lines])
            )
            await asyncio.sleep(SECONDS_BETWEEN_MEASUREMENTS)


def draw(starts: list[datetime], charts: list[tuple[str, list[float], str]]) -> None:
    """Draw each (title, values, colour) over the day, one above the other."""
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.subplots(len(charts), 1)
    plotext.plotsize(COLUMNS, 36)
    for row, (title, values, colour) in enumerate(charts, start=1):
        plotext.subplot(row, 1)
        plot(title, starts, values, colour)
    console.print(f"\n{starts[0]:%A %d %B %Y, %H:%M} to the next day", style="bold")
    plotext.show()


def plot(title: str, starts: list[datetime], values: list[float], colour: str) -> None:
    """Plot a day's values: a schedule's power as bars, all else as a line."""
    hours = [number for number, start in enumerate(starts) if start.minute == 0 and start.hour % 3 == 0]
    steps = range(len(values))
    plotext.theme("clear")
    plotext.title(title)
    if title.startswith("Power"):
        plotext.bar(steps, values, width=1, color=colour)
    else:
        plotext.plot(steps, values, color=colour)
    plotext.xlim(-0.5, len(values) - 0.5)
    plotext.xticks(hours, [f"{starts[hour]:%H:%M}" for hour in hours])


if __name__ == "__main__":
    asyncio.run(main())
