"""Measure the event loop's lag inside Home Assistant, and call services with data that JSON cannot represent.

It is installed in the configuration folder of a test only, and does not use pyscript. `loop_lag.log` has a
line per second: its end (s since 1970), the duration of the longest garbage collection (ms), and the delays
of its sleeps (ms).
"""

import asyncio
import gc
import json
import time
from pathlib import Path
from typing import Any

from homeassistant.const import EVENT_HOMEASSISTANT_STOP
from homeassistant.core import Event, HomeAssistant, ServiceCall, SupportsResponse

DOMAIN = "torture"
SLEEP_SECONDS = 0.01


async def async_setup(hass: HomeAssistant, _config: dict[str, Any]) -> bool:
    """Start measuring, and register the service."""
    watching = hass.async_create_background_task(watch(hass), "torture watching the loop")

    async def stop(_event: Event) -> None:
        watching.cancel()

    async def call(given: ServiceCall) -> dict[str, Any]:
        """Call a service with data in Python's JSON, which has NaN; return the response or the error."""
        data = json.loads(given.data["data"])
        began = time.monotonic()
        try:
            response = await hass.services.async_call(
                given.data["domain"], given.data["service"], data, blocking=True, return_response=True
            )
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            return {"kinds": kinds, "text": str(error), "seconds": time.monotonic() - began}
        return {"response": repr(response)[:1000], "seconds": time.monotonic() - began}

    hass.bus.async_listen_once(EVENT_HOMEASSISTANT_STOP, stop)
    hass.services.async_register(DOMAIN, "call", call, supports_response=SupportsResponse.ONLY)
    return True


async def watch(hass: HomeAssistant) -> None:
    """Log the delays of the loop."""
    path, lags, noted_at = Path(hass.config.path("loop_lag.log")), [], time.time()
    began_at, pauses = [0.0], [0.0]

    def note_collection(phase: str, _info: dict[str, int]) -> None:
        """Record the duration of a garbage collection."""
        if phase == "start":
            began_at[0] = time.perf_counter()
        else:
            pauses.append(1000 * (time.perf_counter() - began_at[0]))

    gc.callbacks.append(note_collection)
    while True:
        began = time.perf_counter()
        await asyncio.sleep(SLEEP_SECONDS)
        lags.append(1000 * (time.perf_counter() - began - SLEEP_SECONDS))
        if (now := time.time()) >= noted_at + 1:
            line = f"{now:.3f} {max(pauses):.1f} " + " ".join(f"{lag:.2f}" for lag in lags) + "\n"
            lags, noted_at = [], now
            pauses[1:] = []
            await hass.async_add_executor_job(append, path, line)


def append(path: Path, line: str) -> None:
    """Write a line at the end of a file."""
    with path.open("a") as file:
        file.write(line)
