"""What happens when things go wrong, tried on purpose: `make torture` runs it, and writes the page."""

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.demo import console, step
from tests.parts import pyscript_source
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.torture import attacks, calls, files, kills, load, proxy, report
from tests.torture.house import House

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


@dataclass(frozen=True)
class Scenario:
    """A part of the torture, in a house of its own."""

    title: str
    what: str
    run: Callable[[House], Awaitable[list[report.Outcome]]]


def scenarios(short: bool) -> dict[str, Scenario]:
    """Return all scenarios by their names."""
    number, seconds = (20, 5) if short else (200, 120)
    runs = {
        "kills": (kills.TITLE, kills.WHAT, lambda house: kills.run(house, 2 if short else 50)),
        "proxy": (proxy.TITLE, proxy.WHAT, lambda house: proxy.run(house, short)),
        "files": (files.TITLE, files.WHAT, lambda house: files.run(house, short)),
        "attacks": (attacks.TITLE, attacks.WHAT, lambda house: attacks.run(house, short)),
        "calls": (calls.TITLE, calls.WHAT, lambda house: calls.run(house, 25 if short else 500)),
        "load": (load.LOAD, load.WHAT_LOAD, lambda house: load.load(house, number, seconds)),
        "reload": (load.RELOAD, load.WHAT_RELOAD, lambda house: load.reload(house, number)),
    }
    return {name: Scenario(*run) for name, run in runs.items()}


def machine() -> str:
    """Return when, where and on what this is run."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {memory:.0f} GiB, shared; Home Assistant "
        f"{version('homeassistant')}, {pyscript_source.source().description}, FlexMeasures 1.0.1, Python "
        f"{platform.python_version()}"
    )


async def outcomes_of(
    scenario: Scenario, server: FlexMeasuresServer, source: pyscript_source.Source
) -> list[report.Outcome]:
    """Run a scenario; where it ends unexpectedly, that is its outcome."""
    try:
        async with House(server, source) as house:
            return await scenario.run(house)
    except Exception as error:
        console.print_exception()
        return [report.Outcome("the scenario itself", "", "", [f"{type(error).__name__}: {error}"[:400]])]


async def main(names: list[str], short: bool, page: Path | None) -> bool:
    """Run scenarios; return whether all that must hold did."""
    source = await asyncio.to_thread(pyscript_source.source)
    every = scenarios(short)
    with FlexMeasuresServer() as server:
        sections = []
        for name in names:
            scenario = every[name]
            with step(scenario.title):
                outcomes = await outcomes_of(scenario, server, source)
            command = f"python -m tests.torture --only {name}{' --short' * short}"
            section = report.Section(
                title=scenario.title,
                command=command,
                what=scenario.what,
                run_on=machine(),
                outcomes=outcomes,
            )
            section.show(console)
            sections.append(section)
            if page:
                report.write(page, [section], [each.title for each in every.values()])
    failures = [failure for section in sections for failure in section.failures]
    for failure in failures:
        console.print(f"[red]✗[/] {failure}", soft_wrap=True, markup=True)
    return not failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(scenarios(False)), help="run these parts alone")
    parser.add_argument("--short", action="store_true", help="a few cases of each, and no page")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (docs/reliability.md)")
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        chosen = arguments.only or list(scenarios(False))
        if not asyncio.run(main(chosen, arguments.short, None if arguments.short else arguments.page)):
            sys.exit(1)
