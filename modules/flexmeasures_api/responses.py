"""An answer's JSON: read up to a size, parsed beside the event loop, once, and shown in short."""

import asyncio
import json
import math
from typing import Any

from aiohttp import ClientResponse, ContentTypeError
from homeassistant.util.json import json_loads

import flexmeasures_api.errors as errors

MAX_BYTES = 2**22
"""A month of values of a minute comes to 1 MB, the assets of a site to 150 bytes each. To parse a text holds
up all threads (GIL): one of 16 MiB for half a second, and more on a small machine."""
MAX_DEPTH = 64
LONG_BYTES = 100_000
"""From which size on an answer shows in short: the client formats each for the log, logged or not."""
SHOWN_BYTES = 200


@pyscript_compile
def kinds() -> tuple[type, type, type]:
    """Define the classes: natively, since they inherit from others."""

    class LongDict(dict):
        """A dict that shows the beginning of the text that it was."""

        shown = ""

        def __repr__(self) -> str:
            return self.shown

    class LongList(list):
        """A list that shows the beginning of the text that it was."""

        shown = ""

        def __repr__(self) -> str:
            return self.shown

    class LimitedResponse(ClientResponse):
        """An answer of a server, of which no more is read than we ever ask for.

        `payload` is its JSON once that was read. `size` is that of its text.
        """

        payload: Any = None
        size: int | None = None

        async def read(self) -> bytes:
            """Return its body, which text() and json() read too; raise a FlexMeasuresError."""
            if self._body is None:
                self._body = await limited_body(self)
            return await super().read()

        async def json(self, **_named: Any) -> Any:
            """Return its JSON; raise ContentTypeError, ValueError or a FlexMeasuresError."""
            if self.size is None:
                if "json" not in self.headers.get("Content-Type", ""):
                    raise ContentTypeError(
                        self.request_info, self.history, message="no JSON", status=self.status
                    )
                text = await self.read() if self._body is None else self._body
                self.payload = await asyncio.get_running_loop().run_in_executor(None, parsed, text)
                self.size = len(text)
            return self.payload

    return LongDict, LongList, LimitedResponse


LongDict, LongList, LimitedResponse = kinds()


@pyscript_compile
async def limited_body(response: Any) -> bytes:
    """Return an answer's body; raise a FlexMeasuresError where it is too long."""
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
def parsed(text: bytes) -> Any:
    """Return what a JSON text says, None where it is empty; raise ValueError. Takes long for a long one."""
    if not text.strip():
        return None
    try:
        payload = json_loads(text)
    except ValueError:
        if b"NaN" not in text:
            raise
        payload = with_gaps(text)
    refuse_deep(payload)
    kind = {dict: LongDict, list: LongList}.get(type(payload))
    if len(text) > LONG_BYTES and kind is not None:
        payload = kind(payload)
        payload.shown = f"{text[:SHOWN_BYTES].decode(errors='replace')}… ({len(text)} bytes)"
    return payload


@pyscript_compile
def with_gaps(text: bytes) -> Any:
    """Return what a JSON text says, None for NaN, which Python writes; raise ValueError."""
    try:
        return json.loads(text, parse_constant=gap, parse_float=finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


@pyscript_compile
def gap(constant: str) -> None:
    """Return None for NaN; raise ValueError for an infinity."""
    if constant != "NaN":
        raise ValueError(f"{constant} is no number")


@pyscript_compile
def finite(text: str) -> float:
    """Return a number; raise ValueError where it is too large for one."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:SHOWN_BYTES]} is too large")
    return number


@pyscript_compile
def refuse_deep(payload: Any) -> None:
    """Raise ValueError for lists and dicts that are nested deeper than any of FlexMeasures' own."""
    level = [payload]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for each in level
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
