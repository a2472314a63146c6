"""Background work: an unexpected failure is shown to the user, and the work is started again."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from flexmeasures_home.backoff import Backoff
from flexmeasures_home.status import TASK_FAILED, Status

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5, 300
STEADY_SECONDS = 60
"""Work that has gone on for this long resolves its earlier failure."""
MAX_QUOTED = 80
Work = Callable[[], Coroutine[Any, Any, None]]


@pyscript_compile
def supervise(status: Status, what: str, work: Work) -> asyncio.Task[None]:
    """Return the task that does `work` until it ends or is cancelled; `what` names it for the user."""
    return status.hass.async_create_background_task(keep_going(status, what, work), f"flexmeasures {what}")


@pyscript_compile
async def keep_going(status: Status, what: str, work: Work) -> None:
    """Do the work; show each unexpected failure, and start again after growing pauses."""
    backoff = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
    while True:
        task = asyncio.ensure_future(work())
        try:
            done, _pending = await asyncio.wait([task], timeout=STEADY_SECONDS)
            if not done:
                backoff.reset()
                status.resolve(problem_key(what))
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            status.resolve(problem_key(what))
            return
        report(status, what, error)
        await asyncio.sleep(backoff.seconds)
        backoff.grow()


@pyscript_compile
def guard(status: Status, what: str, act: Callable[[], object]) -> None:
    """Call a function that is called regularly, and show an unexpected failure; `what` names it."""
    try:
        act()
    except Exception as error:
        report(status, what, error)
    else:
        resolve(status, what)


@pyscript_compile
def resolve(status: Status, what: str) -> None:
    """Resolve the failure of some work."""
    if problem_key(what) in status.problems:
        status.resolve(problem_key(what))


@pyscript_compile
def report_outcome(status: Status, what: str, error: BaseException | None) -> None:
    """Report that work failed unexpectedly, and goes on; or, without an error, resolve that."""
    if error is None:
        resolve(status, what)
    else:
        report(status, what, error)


@pyscript_compile
def problem_key(what: str) -> str:
    """Return the key of some work in the status."""
    return f"task {what}"


@pyscript_compile
def report(status: Status, what: str, error: BaseException) -> None:
    """Report that work failed unexpectedly."""
    LOGGER.error("The %s failed unexpectedly", what, exc_info=error)
    text = (
        f"The {what} failed unexpectedly ({type(error).__name__}: {str(error)[:MAX_QUOTED]}) and is started "
        f"again: please report the log"
    )
    status.fail(problem_key(what), text, cause=TASK_FAILED)
