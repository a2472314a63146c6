"""How often FlexMeasures may be called, as the headers of its answers say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RESET_SECONDS = 86_400.0
MAX_RETRY_AFTER_SECONDS = 86_400
MAX_TIMESTAMP = 10**11
"""Larger values of X-RateLimit-Reset, Retry-After and of seconds since 1970 count as these."""


@dataclass
class _RateLimit:
    """How many triggers FlexMeasures accepts, as its latest answer to one said.

    `remaining` of `limit` were left at `updated_at`; all are available again `reset_seconds` later, at
    `resets_at` (s since 1970, by our clock). `limit` is None until an answer has named one.
    """

    limit: int | None = None
    remaining: int = 0
    updated_at: float = 0.0
    resets_at: float = 0.0
    reset_seconds: float = 0.0

    @pyscript_compile
    def update(self, headers: Mapping[str, str]) -> None:
        """Take over the X-RateLimit headers of an answer to a trigger, unless one is missing or invalid."""
        texts = [headers.get(f"X-RateLimit-{name}", "") for name in ("Limit", "Remaining", "Reset")]
        if not all(text.isascii() and text.isdigit() for text in texts):
            return
        limit, remaining, resets_at = [whole_number(text, MAX_TIMESTAMP) for text in texts]
        now = datetime.now(UTC)
        try:
            server_time = parsedate_to_datetime(headers.get("Date", ""))
        except (IndexError, OverflowError, TypeError, ValueError):
            server_time = now
        self.limit, self.remaining, self.updated_at = limit, remaining, now.timestamp()
        self.reset_seconds = min(max(resets_at - server_time.timestamp(), 0.0), MAX_RESET_SECONDS)
        self.resets_at = self.updated_at + self.reset_seconds


RateLimit = _RateLimit


@pyscript_compile
def retry_after(headers: Mapping[str, str]) -> int | None:
    """Return the seconds of a Retry-After header (number or date), at most a day; None if it is invalid."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return whole_number(text, MAX_RETRY_AFTER_SECONDS)
    try:
        wait = parsedate_to_datetime(text) - datetime.now(UTC)
    except (IndexError, OverflowError, TypeError, ValueError):
        return None
    return min(max(0, math.ceil(wait.total_seconds())), MAX_RETRY_AFTER_SECONDS)


@pyscript_compile
def whole_number(digits: str, maximum: int) -> int:
    """Return the number of a text of digits, which int() refuses if they are thousands, at most `maximum`."""
    digits = digits.lstrip("0") or "0"
    return maximum if len(digits) > len(str(maximum)) else min(int(digits), maximum)
