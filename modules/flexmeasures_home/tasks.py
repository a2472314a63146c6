"""Work in the background: where it fails unexpectedly, that is told, and it is started again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import flexmeasures_home.status as statuses

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5, 300
STEADY_SECONDS = 60
"""How long work must have gone on for its failure before to be over."""
MAX_QUOTED = 80


@pyscript_compile
def supervise(status: statuses.Status, what: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task:
    """Return the task that does `work` until it ends or is cancelled; `what` names it for the user."""
    return status.hass.async_create_background_task(keep_going(status, what, work), f"flexmeasures {what}")


@pyscript_compile
async def keep_going(status: statuses.Status, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do work; tell of each unexpected failure, and start again with growing pauses."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        task = asyncio.ensure_future(work())
        try:
            done, _pending = await asyncio.wait([task], timeout=STEADY_SECONDS)
            if not done:
                pause = FIRST_PAUSE_SECONDS
                statuses.settle(status, matter(what))
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            statuses.settle(status, matter(what))
            return
        tell(status, what, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


@pyscript_compile
def guard(status: statuses.Status, what: str, act: Callable[[], Any]) -> None:
    """Do something that is done again and again, and tell where it fails unexpectedly; `what` names it."""
    try:
        act()
    except Exception as error:
        tell(status, what, error)
    else:
        over(status, what)


@pyscript_compile
def over(status: statuses.Status, what: str) -> None:
    """Take back that work has failed."""
    if matter(what) in status.problems:
        statuses.settle(status, matter(what))


@pyscript_compile
def fault(status: statuses.Status, what: str, error: BaseException | None) -> None:
    """Tell that work has failed unexpectedly, and goes on; or, without an error, take that back."""
    if error is None:
        over(status, what)
    else:
        tell(status, what, error)


@pyscript_compile
def matter(what: str) -> str:
    """Return the matter of some work in the status."""
    return f"task {what}"


@pyscript_compile
def tell(status: statuses.Status, what: str, error: BaseException) -> None:
    """Tell that work has failed unexpectedly."""
    LOGGER.error("The %s failed unexpectedly", what, exc_info=error)
    text = (
        f"The {what} failed unexpectedly ({type(error).__name__}: {str(error)[:MAX_QUOTED]}) and is started "
        f"again: please report the log"
    )
    statuses.fail(status, matter(what), text, cause=statuses.TASK_FAILED)
