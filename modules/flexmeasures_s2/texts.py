"""Texts of a peer, made fit to be shown: on one line, printable, and of limited length."""

import logging
from collections.abc import Iterable

MAX_LINE = 4_200
"""Characters of a line of the log: at level debug, a whole message is logged."""
MAX_QUOTED = 80
"""Characters of a peer's text that are quoted in a line of the log or an error."""
MAX_LISTED = 5
"""Items of a list that are named in an error."""


@pyscript_compile
def printable(text: str, max_length: int = MAX_LINE) -> str:
    """Return a text on one line: unprintable characters escaped, and cut at `max_length`."""
    cut = text if len(text) <= max_length else f"{text[:max_length]}…"
    return cut if cut.isprintable() else "".join(map(escaped, cut))


@pyscript_compile
def escaped(character: str) -> str:
    """Return a character, or its escape sequence if it cannot be printed."""
    return character if character.isprintable() else ascii(character)[1:-1]


@pyscript_compile
def quoted(text: str | None) -> str:
    """Return the beginning of a peer's text, printable."""
    return printable(text or "", MAX_QUOTED)


@pyscript_compile
def label(text: str | None, max_length: int) -> str:
    """Return a name or label on one line, without unprintable characters; empty if none are left."""
    kept = "".join(character for character in text or "" if character.isprintable() or character.isspace())
    return " ".join(kept.split())[:max_length].rstrip()


@pyscript_compile
def few(items: Iterable[str]) -> str:
    """Return the first items of a list, and how many more there are."""
    listed = [quoted(item) for item in items]
    more = [f"and {len(listed) - MAX_LISTED} more"] if len(listed) > MAX_LISTED else []
    return ", ".join([*listed[:MAX_LISTED], *more])


class _OneLine(logging.Filter):
    """Keep each record of a log on one printable line, whatever a peer's text in it contains."""

    @pyscript_compile
    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the message of a record if it is not printable."""
        text = record.getMessage()
        shown = printable(text)
        if shown != text:
            record.msg, record.args = shown, None
        return True


OneLine = _OneLine


@pyscript_compile
def guard(logger: logging.Logger) -> None:
    """Filter a logger by OneLine, in place of the filter of an earlier load of this module."""
    for earlier in [item for item in logger.filters if type(item).__name__ == OneLine.__name__]:
        logger.removeFilter(earlier)
    logger.addFilter(OneLine())
