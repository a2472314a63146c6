"""Secrets are taken out of every text that leaves: the log, states, notifications, errors and responses."""

import html
import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "**redacted**"
MIN_LENGTH = 4
"""A shorter secret is taken out as a word only: texts would be unreadable otherwise."""
NAMES_A_SECRET = re.compile(r"(?i)pass|pwd|token|secret|api_?key|authorization|credential")
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
def redactor(secrets: Callable[[], Iterable[Any]]) -> Callable[[str], str]:
    """Return a function that takes secrets out of a text; `secrets()` returns those that there are now."""

    def redact(text: str) -> str:
        known = {spelling for secret in secrets() if secret for spelling in spellings(str(secret))}
        for spelling in sorted(known, key=len, reverse=True):
            if spelling not in text:
                continue
            if len(spelling) >= MIN_LENGTH:
                text = text.replace(spelling, REDACTED)
            else:
                text = re.sub(rf"(?<!\w){re.escape(spelling)}(?!\w)", REDACTED, text)
        return text

    return redact


@pyscript_compile
def within(section: Any, is_secret: bool = False) -> list[str]:
    """Return the texts and numbers in a configuration whose keys, or those above, name a secret."""
    if isinstance(section, dict):
        return [
            found
            for key, value in section.items()
            for found in within(value, is_secret or bool(NAMES_A_SECRET.search(str(key))))
        ]
    if isinstance(section, (list, tuple)):
        return [found for value in section for found in within(value, is_secret)]
    return [str(section)] if is_secret and not isinstance(section, (bool, type(None))) else []


@pyscript_compile
def redacted(redact: Callable[[str], str], value: Any) -> Any:
    """Return a response without secrets in any of its texts."""
    if isinstance(value, dict):
        return {key: redacted(redact, each) for key, each in value.items()}
    if isinstance(value, list):
        return [redacted(redact, each) for each in value]
    return redact(value) if isinstance(value, str) else value


@pyscript_compile
def log_filter(redact: Callable[[str], str]) -> Callable[[logging.LogRecord], bool]:
    """Return a logging filter that takes secrets out of messages and tracebacks."""

    def without_secrets(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(IN_LOG.sub(rf"\1{REDACTED}", record.getMessage())), ()
        if record.exc_info:
            text = FORMATTER.formatException(record.exc_info)
            if (safe := redact(text)) != text:
                record.exc_info, record.exc_text = None, safe
        return True

    return without_secrets
