"""What a peer says, as it may be shown: on one line, printable, and cut."""

import logging
from collections.abc import Iterable

MAX_QUOTED = 80
"""How many characters are quoted of what a peer says."""
MAX_LISTED = 5
"""How many of a list are told."""
MAX_LINE = 4_200
"""How long a line of the log is at most: a whole message is logged at level debug."""


@pyscript_compile
def printable(text: str, longest: int = MAX_LINE) -> str:
    """Return a text on one line: what cannot be printed is escaped, and what is too long is cut."""
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return cut if cut.isprintable() else "".join(map(escaped, cut))


@pyscript_compile
def escaped(character: str) -> str:
    """Return a character, or its escape where it cannot be printed."""
    return character if character.isprintable() else ascii(character)[1:-1]


@pyscript_compile
def quoted(text: str | None) -> str:
    """Return the first of what a peer says."""
    return printable(text or "", MAX_QUOTED)


@pyscript_compile
def label(text: str | None, longest: int) -> str:
    """Return a name or label on one line, without what cannot be printed; empty where nothing is left."""
    kept = "".join(character for character in text or "" if character.isprintable() or character.isspace())
    return " ".join(kept.split())[:longest].rstrip()


@pyscript_compile
def few(items: Iterable[str]) -> str:
    """Return the first of some texts as a list, and how many more there are."""
    listed = [quoted(item) for item in items]
    more = [f"and {len(listed) - MAX_LISTED} more"] if len(listed) > MAX_LISTED else []
    return ", ".join([*listed[:MAX_LISTED], *more])


@pyscript_compile
def one_line_filter() -> type:
    """Define the filter: natively, so that logging can call it."""

    class OneLine(logging.Filter):
        """Have each record of the log be one printable line, whatever a peer put into it."""

        def filter(self, record: logging.LogRecord) -> bool:
            """Put the text in place of the record's parts, where it is not printable."""
            text = record.getMessage()
            shown = printable(text)
            if shown != text:
                record.msg, record.args = shown, None
            return True

    return OneLine


OneLine = one_line_filter()


@pyscript_compile
def guard(logger: logging.Logger) -> None:
    """Have what a logger writes be on one line each; the filter of an earlier load is taken out."""
    for found in [each for each in logger.filters if type(each).__name__ == OneLine.__name__]:
        logger.removeFilter(found)
    logger.addFilter(OneLine())
