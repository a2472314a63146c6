"""Secrets are taken out of every text that leaves: the log, states, notifications, errors and responses."""

import difflib
import html
import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "**redacted**"
MIN_LENGTH = 8
"""A shorter secret is taken out as a word only: it may well be a part of a name, a number or a time."""
NAMES = ("password", "passphrase", "token", "access_token", "auth_token", "secret", "api_key", "credentials")
OTHER_NAMES = ("pass", "passwd", "pwd", "authorization")
"""Names of secrets that are too like other words to be taken for misspelt."""
MIN_LIKENESS = 0.8
FREE_TEXT = ("warnings",)
"""What may quote somebody else in a response; the rest is values, times, units and ids."""
IN_LOG = re.compile(
    r"(?i)(['\"](?:password|auth_token|authorization|set-cookie)['\"]: )"
    r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
)
FORMATTER = logging.Formatter()


@pyscript_compile
def spellings(secret: str) -> set[str]:
    """Return how a text may stand in others: as it is, and escaped for Python, JSON, addresses and HTML."""
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        html.escape(secret),
    }


@pyscript_compile
def pattern(spelling: str) -> str:
    """Return the pattern of a spelling: wherever it stands, or as a word only where it is short.

    Dots and hyphens are parts of a word, as in 1.5, sensor.x and 2026-01-15, and colons are of a time.
    """
    escaped = re.escape(spelling)
    if len(spelling) >= MIN_LENGTH:
        return escaped
    before = r"(?<!\w)(?<!\w[.\-])" + (r"(?<!\d:)" if spelling[0].isdigit() else "")
    after = r"(?!\w)(?![.\-]\w)" + (r"(?!:\d)" if spelling[-1].isdigit() else "")
    return f"{before}{escaped}{after}"


@pyscript_compile
def redactor(secrets: Callable[[], Iterable[Any]]) -> Callable[[str], str]:
    """Return a function that takes secrets out of a text; `secrets()` returns those that there are now."""
    prepared: tuple[tuple[str, ...], list[str], re.Pattern] = ((), [], re.compile(""))

    def redact(text: str) -> str:
        nonlocal prepared
        present = tuple(str(secret) for secret in secrets() if secret)
        if present != prepared[0]:
            ways = {spelling for secret in present for spelling in spellings(secret)}
            longest_first = sorted(ways, key=len, reverse=True)
            prepared = (present, longest_first, re.compile("|".join(map(pattern, longest_first))))
        _present, written, regex = prepared
        if not any(spelling in text for spelling in written):
            return text
        return regex.sub(REDACTED, text)

    return redact


@pyscript_compile
def names_secret(key: str) -> bool:
    """Tell whether a key is the name of a secret, or nearly one: not if it only has one in it."""
    name = re.sub(r"[\W_]", "", key.lower())
    names = [known.replace("_", "") for known in NAMES]
    return name in OTHER_NAMES or bool(difflib.get_close_matches(name, names, 1, MIN_LIKENESS))


@pyscript_compile
def within(section: Any, is_secret: bool = False) -> list[str]:
    """Return the texts and numbers in a configuration whose keys, or a key above, name a secret."""
    if isinstance(section, dict):
        return [
            found
            for key, value in section.items()
            for found in within(value, is_secret or names_secret(str(key)))
        ]
    if isinstance(section, (list, tuple)):
        return [found for value in section for found in within(value, is_secret)]
    return [str(section)] if is_secret and not isinstance(section, (bool, type(None))) else []


@pyscript_compile
def redacted(redact: Callable[[str], str], response: Any) -> Any:
    """Return a service's response without secrets in its free text."""
    if not isinstance(response, dict):
        return response
    texts = {name: [redact(text) for text in response[name]] for name in FREE_TEXT if response.get(name)}
    return response | texts


@pyscript_compile
def message_of(record: logging.LogRecord) -> str:
    """Return a record's message; where that cannot be formatted, what it was to be of."""
    try:
        return record.getMessage()
    except Exception as error:
        try:
            return f"{record.msg} {record.args!r} ({error})"
        except Exception:
            return f"A message of {record.pathname}:{record.lineno} that cannot be formatted"


@pyscript_compile
def log_filter(redact: Callable[[str], str]) -> Callable[[logging.LogRecord], bool]:
    """Return a logging filter that takes secrets out of messages, tracebacks and stacks."""

    def without_secrets(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(IN_LOG.sub(rf"\1{REDACTED}", message_of(record))), ()
        if record.exc_info:
            text = FORMATTER.formatException(record.exc_info)
            if (safe := redact(text)) != text:
                record.exc_info, record.exc_text = None, safe
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True

    return without_secrets
