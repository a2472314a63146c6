"""The main jobs in a terminal, with a real Home Assistant and a real FlexMeasures.

Home Assistant requests a battery's schedule from FlexMeasures; a meter connects over S2, and its forecast and
measurements are sent to FlexMeasures; other devices connect over S2, by default a battery and a car, are
planned, and execute their instructions. `make demo` runs it. Everything is started here, on the loopback
address, and ends with Ctrl-C.
"""

import asyncio
import contextlib
import logging
import math
import random
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from flexmeasures_client import FlexMeasuresClient

from tests.demo_devices import (
    QUARTERS,
    SECONDS_BETWEEN_MEASUREMENTS,
    Devices,
    connected,
    entity_of,
    now_of,
    show_plans,
)
from tests.demo_terminal import console, draw, draw_one, step
from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.home_assistant import NAME, PASSWORD, HomeAssistant, install
from tests.parts.s2_catalogue import DEVICES
from tests.parts.s2_device import AMSTERDAM, QUARTER, floor
from tests.parts.s2_devices import Meter

ALL, LIST = "all", "list"
ONLY_MEASURED = "meter"
USUALLY = ["battery", "ev", ONLY_MEASURED]
METER = DEVICES[ONLY_MEASURED].name
OTHER_PRICES = {"gas": 1.35, "heat": 0.11}
"""The prices of gas per m3, and of heat per kWh (EUR)."""
SOC_AT_START, SOC_MIN, SOC_MAX = 2, 1, 10


def chosen(given: list[str]) -> list[str]:
    """Return the devices that are given by name, or the usual ones; exit after `list` and unknown names."""
    names = list(dict.fromkeys(re.findall(r"[^\s,]+", " ".join(given))))
    if unknown := [name for name in names if name not in (*DEVICES, ALL, LIST)]:
        print(f"DEVICES: there is no {' or '.join(unknown)}; choose of\n{listed()}", file=sys.stderr)
        sys.exit(2)
    if LIST in names:
        print(listed())
        sys.exit()
    return list(DEVICES) if ALL in names else names or USUALLY


def listed() -> str:
    """Return the names that can be chosen, with their descriptions."""
    entries = {name: entry.what for name, entry in DEVICES.items()} | {ALL: "all of these"}
    return "\n".join(f"  {name:<18}{what}" for name, what in entries.items())


async def main(choice: list[str]) -> None:
    """Show everything, until Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    logging.getLogger("s2python").setLevel(logging.ERROR)  # Ctrl-C reaches Home Assistant too
    console.rule("[bold]FlexMeasures for pyscript[/]")
    demo = asyncio.create_task(show(choice))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([demo, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not demo.done():
        demo.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await demo
    console.print("Everything is stopped.")


async def show(choice: list[str]) -> None:
    """Show the main jobs with the chosen devices, then keep them running until this is cancelled."""
    with step("Fetching pyscript"):
        source = await asyncio.to_thread(pyscript_source.source)
    console.print(f"  Scripts run on {source.description}")
    with contextlib.ExitStack() as stack:
        with step("Starting FlexMeasures on PostgreSQL and Redis, with prices from today on"):
            server = await asyncio.to_thread(stack.enter_context, FlexMeasuresServer())
        config = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="home-assistant-")))
        install(config, source)
        # A copy of every device is simulated for the day, and needs all instructions for that.
        s2 = {"prices": OTHER_PRICES, "instruction_lead": "all"}
        home_assistant = HomeAssistant(config, battery(server) | {"s2": s2})
        try:
            with step("Starting Home Assistant with the scripts"):
                await home_assistant.start()
            await plan(home_assistant, server)
            async with contextlib.AsyncExitStack() as connections:
                measured: list[float] = []
                if ONLY_MEASURED in choice:
                    measured = await connections.enter_async_context(meter(home_assistant))
                    await show_meter(home_assistant, server)
                others = [name for name in choice if name != ONLY_MEASURED]
                devices: Devices = {}
                if others:
                    devices = await connections.enter_async_context(connected(home_assistant, others))
                    await show_devices(home_assistant, server, devices)
                tell_addresses(home_assistant, server)
                await follow(measured, devices)
        finally:
            console.print("Stopping")
            await home_assistant.stop()


def tell_addresses(home_assistant: HomeAssistant, server: FlexMeasuresServer) -> None:
    """Print the addresses, and how to log in."""
    console.print(
        f"\nHome Assistant: [bold]{home_assistant.url}/dashboard-flexmeasures/schedule[/] "
        f"(user {NAME}, password {PASSWORD})\n"
        f"its S2 devices: [bold]{home_assistant.url}/dashboard-flexmeasures/s2[/]\n"
        f"FlexMeasures:   [bold]{server.url}[/] "
        f"(user {server.username}, password {server.password})\n"
        f"Sensors there: power {server.ids.power_sensor}, state of charge {server.ids.soc_sensor}, "
        f"price {server.ids.price_sensor}\n"
        f"S2 devices connect to [bold]{home_assistant.s2_url}[/]\n"
        "Press Ctrl-C to stop.",
        soft_wrap=True,
    )


def battery(server: FlexMeasuresServer) -> dict[str, Any]:
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
    """Return when the battery has to be full: tomorrow at seven."""
    return (datetime.now(AMSTERDAM) + timedelta(days=1)).replace(hour=7, minute=0, second=0, microsecond=0)


async def plan(home_assistant: HomeAssistant, server: FlexMeasuresServer) -> None:
    """Call the service as a user does, and draw the sensor's schedule."""
    morning = tomorrow_morning()
    call = {"soc_at_start": SOC_AT_START, "soc_targets": [{"value": 9, "datetime": morning.isoformat()}]}
    with step("Calling flexmeasures.trigger_and_get_schedule"):
        response = await home_assistant.call(
            "flexmeasures", "trigger_and_get_schedule", call, return_response=True
        )
        state = await home_assistant.state("sensor.flexmeasures_schedule")
    assert state is not None
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
        data = await flexmeasures.get_sensor_data(
            server.ids.price_sensor,
            start=start,
            duration=timedelta(minutes=15 * quarters),
            unit="EUR/kWh",
            resolution="PT15M",
        )
    prices: list[float] = data["values"]
    return prices


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
    """Connect a meter over S2; give its measurements so far (W), and print their number at the end."""
    measured: list[float] = []

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


async def show_meter(home_assistant: HomeAssistant, server: FlexMeasuresServer) -> None:
    """Print the meter's entity, asset and sensor, and draw its forecast on FlexMeasures."""
    entity = entity_of(METER)
    with step("Waiting for its asset and its sensor on FlexMeasures"):
        state = await home_assistant.wait_for_state(
            entity, lambda state: bool(state["attributes"].get("power_sensor")), 60
        )
        number = state["attributes"]["power_sensor"]
        async with client(server) as flexmeasures:
            sensor = await flexmeasures.get_sensor(number, parse_json_fields=True)
            asset = await flexmeasures.get_asset(sensor["generic_asset_id"], parse_json_fields=True)
    console.print(
        f"  {entity} is {state['state']}.\n"
        f"  On FlexMeasures it got asset {asset['id']} ({asset['name']}) "
        f"with sensor {number} ({sensor['name']}, {sensor['unit']})."
    )
    with step("Waiting for its forecast to arrive there"):
        start, powers = await forecast(server, number)
    starts = [start + number * QUARTER for number in range(len(powers))]
    draw_one(starts, (f"Forecast of {METER} on FlexMeasures, W", powers, "magenta"))
    console.print(
        f"FlexMeasures has {len(powers)} values of the forecast, from {starts[0]:%H:%M} on. The mean of what "
        f"{METER}\nmeasures follows whenever a quarter has ended.",
        soft_wrap=True,
    )


async def forecast(server: FlexMeasuresServer, sensor: int) -> tuple[datetime, list[float]]:
    """Wait until the whole forecast is on the server, and return its start and values (W)."""
    async with client(server) as flexmeasures, asyncio.timeout(60):
        while True:
            start = floor(datetime.now(AMSTERDAM), QUARTER)
            data = await flexmeasures.get_sensor_data(
                sensor, start=start, duration=QUARTERS * QUARTER, unit="W", resolution="PT15M"
            )
            powers = [value for value in data["values"] if value is not None]
            if len(powers) >= QUARTERS - 1:  # the first quarter may have ended in the meantime
                return start, powers
            await asyncio.sleep(0.5)


async def show_devices(home_assistant: HomeAssistant, server: FlexMeasuresServer, devices: Devices) -> None:
    """Show the devices' plans, with the prices of a day from this quarter of an hour on."""
    begin = floor(datetime.now(AMSTERDAM), QUARTER)
    prices = await ask_prices(server, begin.isoformat(), QUARTERS)
    await show_plans(
        home_assistant, devices, [begin + number * QUARTER for number in range(QUARTERS)], prices
    )


async def follow(measured: list[float], devices: Devices) -> None:
    """Show the meter's measurements and what the devices do, until this is cancelled."""
    with console.status("") as line:
        while True:
            lines = [f"{name}: {now_of(device)}" for name, device in devices.items()]
            if measured:
                lines.insert(0, f"{METER}: {measured[-1]:.0f} W ({len(measured)} measurements so far)")
            line.update("\n".join(lines))
            await asyncio.sleep(SECONDS_BETWEEN_MEASUREMENTS)


if __name__ == "__main__":
    asyncio.run(main(chosen(sys.argv[1:])))
