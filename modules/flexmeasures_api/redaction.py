"""Remove secrets from every text that leaves: logs, states, notifications, errors and responses."""

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
"""A shorter secret is removed as a whole word only: it may well be a part of a name, a number or a time."""
NAMES = ("password", "passphrase", "token", "access_token", "auth_token", "secret", "api_key", "credentials")
MIN_LIKENESS = 0.8
"""Keys that resemble one of the NAMES this much (difflib) count as misspellings of it."""
EXACT_NAMES = ("pass", "passwd", "pwd", "authorization")
"""Names of secrets that resemble ordinary words too much to allow for misspellings."""
FREE_TEXT_FIELDS = ("warnings",)
"""Fields of a response that may quote a server or a device; the others are values, times, units and ids."""
SECRET_IN_LOG = re.compile(
    r"(?i)(['\"](?:password|auth_token|authorization|set-cookie)['\"]: )"
    r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
)
FORMATTER = logging.Formatter()


@pyscript_compile
def spellings(secret: str) -> set[str]:
    """Return a secret as it may appear in a text: as it is, and escaped for Python, JSON, URLs and HTML."""
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
    """Return the pattern of a spelling: anywhere in a text, or as a whole word if it is short.

    Dots and hyphens are parts of a word, as in 1.5, sensor.x and 2026-01-15, and colons are parts of a time.
    """
    escaped = re.escape(spelling)
    if len(spelling) >= MIN_LENGTH:
        return escaped
    before = r"(?<!\w)(?<!\w[.\-])" + (r"(?<!\d:)" if spelling[0].isdigit() else "")
    after = r"(?!\w)(?![.\-]\w)" + (r"(?!:\d)" if spelling[-1].isdigit() else "")
    return f"{before}{escaped}{after}"


@pyscript_compile
def redactor(secrets: Callable[[], Iterable[Any]]) -> Callable[[str], str]:
    """Return a function that removes secrets from a text; `secrets()` returns the current ones."""
    prepared: tuple[tuple[str, ...], list[str], re.Pattern[str]] = ((), [], re.compile(""))

    def redact(text: str) -> str:
        nonlocal prepared
        present = tuple(str(secret) for secret in secrets() if secret)
        if present != prepared[0]:
            all_spellings = {spelling for secret in present for spelling in spellings(secret)}
            longest_first = sorted(all_spellings, key=len, reverse=True)
            prepared = (present, longest_first, re.compile("|".join(map(pattern, longest_first))))
        _present, current_spellings, regex = prepared
        if not any(spelling in text for spelling in current_spellings):
            return text
        return regex.sub(REDACTED, text)

    return redact


@pyscript_compile
def names_secret(key: str) -> bool:
    """Tell whether a key is the name of a secret, or a misspelling of one; to contain one is not enough."""
    name = re.sub(r"[\W_]", "", key.lower())
    names = [secret_name.replace("_", "") for secret_name in NAMES]
    return name in EXACT_NAMES or bool(difflib.get_close_matches(name, names, 1, MIN_LIKENESS))


@pyscript_compile
def secrets_in(section: Any, is_secret: bool = False) -> list[str]:
    """Return the texts and numbers in a configuration whose key, or a key above it, names a secret."""
    if isinstance(section, dict):
        return [
            secret
            for key, value in section.items()
            for secret in secrets_in(value, is_secret or names_secret(str(key)))
        ]
    if isinstance(section, (list, tuple)):
        return [secret for value in section for secret in secrets_in(value, is_secret)]
    return [str(section)] if is_secret and not isinstance(section, (bool, type(None))) else []


@pyscript_compile
def redacted_response(redact: Callable[[str], str], response: Any) -> Any:
    """Return a service's response without secrets in its free text."""
    if not isinstance(response, dict):
        return response
    texts = {
        name: [redact(text) for text in response[name]] for name in FREE_TEXT_FIELDS if response.get(name)
    }
    return response | texts


@pyscript_compile
def message_of(record: logging.LogRecord) -> str:
    """Return the message of a log record; where it cannot be formatted, its template and arguments."""
    try:
        return record.getMessage()
    except Exception as error:
        try:
            return f"{record.msg} {record.args!r} ({error})"
        except Exception:
            return f"A message of {record.pathname}:{record.lineno} that cannot be formatted"


@pyscript_compile
def log_filter(redact: Callable[[str], str]) -> Callable[[logging.LogRecord], bool]:
    """Return a logging filter that removes secrets from messages, tracebacks and stacks."""

    def without_secrets(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(SECRET_IN_LOG.sub(rf"\1{REDACTED}", message_of(record))), ()
        if record.exc_info:
            text = FORMATTER.formatException(record.exc_info)
            if (safe := redact(text)) != text:
                record.exc_info, record.exc_text = None, safe
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True

    return without_secrets
