"""The main job in a terminal: a real Home Assistant asks a real FlexMeasures for a battery's schedule.

`make demo` runs it. Everything is started here, on the loopback address, and ends with Ctrl-C.
"""

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import aiohttp
import plotext
from flexmeasures_client import FlexMeasuresClient
from rich.console import Console

from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.home_assistant import NAME, PASSWORD, HomeAssistant, install

COLUMNS = 100
SOC_AT_START, SOC_MIN, SOC_MAX = 2, 1, 10
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
    """Start the parts, plan, draw, and wait for Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console.rule("[bold]FlexMeasures for pyscript[/]")
    demo = asyncio.create_task(show(stop))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([demo, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not demo.done():
        demo.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await demo
    console.print("Everything is stopped.")


async def show(stop: asyncio.Event) -> None:
    """Show the main job, then leave Home Assistant to the user."""
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
            console.print(
                f"\nHome Assistant: [bold]{home_assistant.url}/dashboard-flexmeasures/schedule[/] "
                f"(user {NAME}, password {PASSWORD})\n"
                f"FlexMeasures:   [bold]{server.url}[/] "
                f"(user {server.username}, password {server.password})\n"
                f"Sensors there: power {server.ids.power_sensor}, state of charge {server.ids.soc_sensor}, "
                f"price {server.ids.price_sensor}\n"
                "Press Ctrl-C to stop.",
                soft_wrap=True,
            )
            await stop.wait()
        finally:
            console.print("Stopping")
            await home_assistant.stop()


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


async def plan(home_assistant: HomeAssistant, server: FlexMeasuresServer) -> None:
    """Call the service as a user does, and draw what the sensor then says."""
    morning = (datetime.now(AMSTERDAM) + timedelta(days=1)).replace(hour=7, minute=0, second=0, microsecond=0)
    call = {"soc_at_start": SOC_AT_START, "soc_targets": [{"value": 9, "datetime": morning.isoformat()}]}
    with step("Calling flexmeasures.trigger_and_get_schedule"):
        response = await home_assistant.call(
            "flexmeasures", "trigger_and_get_schedule", call, return_response=True
        )
        state = await home_assistant.state("sensor.flexmeasures_schedule")
    schedule = state["attributes"]
    powers = [entry["value"] for entry in schedule["schedule"]]
    prices = await ask_prices(server, schedule["start"], len(powers))
    draw(schedule, powers, prices)
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
    async with aiohttp.ClientSession() as session:
        client = FlexMeasuresClient(
            server.password, server.username, server.url.removeprefix("http://"), session=session
        )
        found = await client.get_sensor_data(
            server.ids.price_sensor,
            start=start,
            duration=timedelta(minutes=15 * quarters),
            unit="EUR/kWh",
            resolution="PT15M",
        )
    return found["values"]


def draw(schedule: dict, powers: list[float], prices: list[float]) -> None:
    """Draw price, power and state of charge over the day, one above the other."""
    starts = [datetime.fromisoformat(entry["start"]) for entry in schedule["schedule"]]
    hours = [number for number, start in enumerate(starts) if start.minute == 0 and start.hour % 3 == 0]
    steps = range(len(powers))
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.subplots(3, 1)
    plotext.plotsize(COLUMNS, 36)
    for row, (title, values, colour) in enumerate(
        [
            ("Price, EUR/kWh", prices, "orange"),
            ("Power, kW: charging is positive", powers, "blue"),
            ("State of charge, kWh", schedule["soc"][:-1], "green"),
        ],
        start=1,
    ):
        plotext.subplot(row, 1)
        plotext.theme("clear")
        plotext.title(title)
        if title.startswith("Power"):
            plotext.bar(steps, values, width=1, color=colour)
        else:
            plotext.plot(steps, values, color=colour)
        plotext.xlim(-0.5, len(powers) - 0.5)
        plotext.xticks(hours, [f"{starts[hour]:%H:%M}" for hour in hours])
    console.print(f"\n{starts[0]:%A %d %B %Y, %H:%M} to the next day", style="bold")
    plotext.show()


if __name__ == "__main__":
    asyncio.run(main())
