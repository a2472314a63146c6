"""What happens when things go wrong, tried on purpose: `make torture` runs it, and writes the page."""

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.demo_terminal import console
from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.torture import attacks, calls, files, kills, load, proxy, report
from tests.torture.house import House

MOSTLY_WAITING = ("kills", "proxy", "files")
"""Scenarios whose figures do not suffer from others that run at the same time."""
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


@dataclass(frozen=True)
class Scenario:
    """A part of the torture, in its own house."""

    title: str
    what: str
    run: Callable[[House], Awaitable[list[report.Outcome]]]


def scenarios(short: bool) -> dict[str, Scenario]:
    """Return all scenarios by name."""
    number, seconds = (20, 5) if short else (200, 120)
    runs = {
        "kills": (kills.TITLE, kills.WHAT, lambda house: kills.run(house, 2 if short else 50)),
        "proxy": (proxy.TITLE, proxy.WHAT, lambda house: proxy.run(house, short)),
        "files": (files.TITLE, files.WHAT, lambda house: files.run(house, short)),
        "attacks": (
            attacks.TITLE,
            attacks.WHAT,
            lambda house: attacks.run(house, attacks.SHORT if short else tuple(attacks.ATTACKS)),
        ),
        "calls": (calls.TITLE, calls.WHAT, lambda house: calls.run(house, 25 if short else 500)),
        "load": (load.LOAD, load.WHAT_LOAD, lambda house: load.load(house, number, seconds)),
        "reload": (load.RELOAD, load.WHAT_RELOAD, lambda house: load.reload(house, number)),
    }
    return {name: Scenario(*run) for name, run in runs.items()}


def machine() -> str:
    """Return the date, the machine and the versions of this run."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {memory:.0f} GiB, shared; Home Assistant "
        f"{version('homeassistant')}, {pyscript_source.source().description}, FlexMeasures 1.0.1, Python "
        f"{platform.python_version()}"
    )


async def outcomes_of(scenario: Scenario, source: pyscript_source.Source) -> list[report.Outcome]:
    """Run a scenario on its own server; an unexpected error is its outcome."""
    server = await asyncio.to_thread(FlexMeasuresServer)
    try:
        await asyncio.to_thread(server.start)
        async with House(server, source) as house:
            return await scenario.run(house)
    except Exception as error:
        console.print_exception()
        return [report.Outcome("the scenario itself", "", "", [f"{type(error).__name__}: {error}"[:400]])]
    finally:
        await asyncio.to_thread(server.close)


async def main(names: list[str], short: bool, page: Path | None) -> bool:
    """Run scenarios, and return whether there was no failure."""
    source = await asyncio.to_thread(pyscript_source.source)
    by_name = scenarios(short)
    failures: list[str] = []

    async def one(name: str) -> None:
        scenario, began = by_name[name], time.monotonic()
        section = report.Section(
            title=scenario.title,
            command=f"python -m tests.torture --only {name}{' --short' * short}",
            what=scenario.what,
            outcomes=await outcomes_of(scenario, source),
            run_on=machine(),
        )
        section.show(console)
        console.print(f"{scenario.title}: {(time.monotonic() - began) / 60:.1f} minutes")
        failures.extend(section.failures)
        if page:
            report.write(page, [section], [scenario.title for scenario in by_name.values()])

    await asyncio.gather(*[one(name) for name in names if name in MOSTLY_WAITING])
    for name in names:
        if name not in MOSTLY_WAITING:
            await one(name)
    for failure in failures:
        console.print(f"✗ {failure}", soft_wrap=True, style="red", markup=False)
    return not failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", choices=list(scenarios(False)), help="run these parts alone")
    parser.add_argument("--short", action="store_true", help="a few cases of each, and no page")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (docs/reliability.md)")
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        chosen = arguments.only or list(scenarios(False))
        if not asyncio.run(main(chosen, arguments.short, None if arguments.short else arguments.page)):
            sys.exit(1)
