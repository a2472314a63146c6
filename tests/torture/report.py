"""The outcomes of faults, in the terminal and on the page of the manual."""

import re
import textwrap
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
MAX_SHOWN_FAILURES = 5
MAX_CELL = 400
INTRODUCTION = """# Reliability

What happens when things go wrong, tried on purpose: Home Assistant as a process with pyscript and the
scripts, a FlexMeasures server with its database, and S2 devices over websockets, all on the loopback address.
`make torture` runs all of it in some half an hour and writes this page; the command under a heading runs that
part, and renews its table alone. A row that begins with **failed** tells of something that should not have
happened.

Times are those of the machine that is named, with all parts on it: they tell the order of magnitude.
"""


@dataclass
class Outcome:
    """The outcome of a fault: what happened, a figure, and what should not have happened."""

    fault: str
    happened: str
    figure: str
    failures: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Return the failures, or what happened if there are none."""
        if not self.failures:
            return self.happened
        shown = self.failures[:MAX_SHOWN_FAILURES]
        more = len(self.failures) - len(shown)
        return f"**failed**: {'; '.join(shown)}{f'; and {more} more' if more else ''}"


@dataclass(kw_only=True)
class Section:
    """A scenario's title, command, description and outcomes, and where and when it was run."""

    title: str
    command: str
    what: str
    run_on: str
    outcomes: list[Outcome]

    @property
    def failures(self) -> list[str]:
        """Return what should not have happened."""
        return [f"{outcome.fault}: {failure}" for outcome in self.outcomes for failure in outcome.failures]

    def markdown(self) -> str:
        """Return the section of the page."""
        rows = [
            f"| {cell(outcome.fault)} | {cell(outcome.text)} | {cell(outcome.figure)} |"
            for outcome in self.outcomes
        ]
        table = "\n".join(["| fault | what happened | figure |", "|---|---|---|", *rows])
        return f"\n{textwrap.fill(self.what, 118)}\n\n`{self.command}`\n\n{self.run_on}\n\n{table}\n"

    def show(self, console: Console) -> None:
        """Print the section."""
        table = Table(title=self.title, title_justify="left")
        for name in ("fault", "what happened", "figure"):
            table.add_column(name, overflow="fold")
        for outcome in self.outcomes:
            style = "red" if outcome.failures else ""
            table.add_row(outcome.fault, outcome.text, outcome.figure, style=style)
        console.print(table)


async def guarded(fault: str, trial: Awaitable[Outcome]) -> Outcome:
    """Return the outcome of a trial; an unexpected error is a failure, and does not stop the next ones."""
    try:
        return await trial
    except Exception as error:
        return Outcome(fault, "", "", [f"{type(error).__name__}: {error}"[:MAX_CELL]])


def cell(text: str) -> str:
    """Return a text as the cell of a table."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= MAX_CELL else f"{flat[:MAX_CELL]}…"


def write(page: Path, sections: Iterable[Section], order: Iterable[str]) -> None:
    """Update the sections of the page that were run; the others stay as they are."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    texts = dict(SECTION.findall(before)) | {section.title: section.markdown() for section in sections}
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"## {title}\n{texts[title].rstrip()}\n" for title in order if title in texts]
    page.write_text("\n".join([INTRODUCTION, *parts]), encoding="utf-8")
