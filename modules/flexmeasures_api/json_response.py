"""The JSON of an answer: limited in size, parsed once and outside the event loop, shortened in logs."""

import asyncio
import json
import math
from typing import Any

from aiohttp import ClientResponse, ContentTypeError
from homeassistant.util.json import json_loads

import flexmeasures_api.errors as errors

MAX_BYTES = 2**22
MAX_DEPTH = 64
"""Far beyond any answer of FlexMeasures: a month of values per minute is 1 MB, each asset of a site 150
bytes. To parse JSON holds up all threads (GIL): 16 MiB for half a second, and longer on a small machine."""
LONG_BYTES = 100_000
SHOWN_BYTES = 200
"""The repr of an answer above LONG_BYTES is its beginning: the client formats each one for the log, logged or
not."""


class _LongDict(dict):  # type: ignore[type-arg]  # pyscript takes no dict[…] as a base
    """A dict whose repr is the beginning of the text it was parsed from."""

    shown = ""

    @pyscript_compile
    def __repr__(self) -> str:
        return self.shown


class _LongList(list):  # type: ignore[type-arg]  # pyscript takes no list[…] as a base
    """A list whose repr is the beginning of the text it was parsed from."""

    shown = ""

    @pyscript_compile
    def __repr__(self) -> str:
        return self.shown


LongDict = _LongDict
LongList = _LongList


class _LimitedResponse(ClientResponse):
    """An answer of which no more than MAX_BYTES is read.

    `payload` is its JSON and `size` the length of its text (bytes), both None until `json()` has run.
    """

    payload: Any = None
    size: int | None = None

    @pyscript_compile
    async def read(self) -> bytes:
        """Return the body, also for text() and json(); raise a FlexMeasuresError where it is too long."""
        if self._body is None:
            self._body = await limited_body(self)
        return await ClientResponse.read(self)

    @pyscript_compile
    async def json(self, **_options: Any) -> Any:
        """Return the JSON; raise ContentTypeError, ValueError or a FlexMeasuresError."""
        if self.size is None:
            if "json" not in self.headers.get("Content-Type", ""):
                raise ContentTypeError(self.request_info, self.history, message="no JSON", status=self.status)
            text = await self.read() if self._body is None else self._body
            self.payload = await asyncio.get_running_loop().run_in_executor(None, parse, text)
            self.size = len(text)
        return self.payload


LimitedResponse = _LimitedResponse


@pyscript_compile
async def limited_body(response: ClientResponse) -> bytes:
    """Return the body of an answer; raise a FlexMeasuresError where it is longer than MAX_BYTES."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_BYTES:
            response.close()
            raise errors.FlexMeasuresError(
                f"FlexMeasures at {response.url.origin()} answered {response.method} {response.url.path} "
                f"with more than {MAX_BYTES // 2**20} MiB: ask for less, such as a shorter duration"
            )
        parts.append(part)
    return b"".join(parts)


@pyscript_compile
def parse(text: bytes) -> Any:
    """Return what a JSON text stands for, None where it is empty; raise ValueError."""
    if not text.strip():
        return None
    payload: Any
    try:
        payload = json_loads(text)
    except ValueError:
        if b"NaN" not in text:
            raise
        payload = parse_with_nan(text)
    refuse_deep_nesting(payload)
    if len(text) > LONG_BYTES and isinstance(payload, (dict, list)):
        long: LongDict | LongList = LongDict(payload) if isinstance(payload, dict) else LongList(payload)
        long.shown = f"{text[:SHOWN_BYTES].decode(errors='replace')}… ({len(text)} bytes)"
        return long
    return payload


@pyscript_compile
def parse_with_nan(text: bytes) -> Any:
    """Return what a JSON text stands for, with None for NaN, which FlexMeasures writes; raise ValueError."""
    try:
        return json.loads(text, parse_constant=nan_as_none, parse_float=finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


@pyscript_compile
def nan_as_none(constant: str) -> None:
    """Return None for NaN; raise ValueError for an infinity."""
    if constant != "NaN":
        raise ValueError(f"{constant} is not a number")


@pyscript_compile
def finite(text: str) -> float:
    """Return a number; raise ValueError where it is too large for a float."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:SHOWN_BYTES]} is too large")
    return number


@pyscript_compile
def refuse_deep_nesting(payload: Any) -> None:
    """Raise ValueError for lists and dicts nested deeper than MAX_DEPTH."""
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for container in level
            if isinstance(container, (dict, list))
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
