"""An installation that lacks a step says which."""

import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component

from tests.apps.flexmeasures.conftest import Home
from tests.parts import in_process
from tests.parts.home_assistant import REPOSITORY

NOT_LOADED = "flexmeasures_not_loaded"

Start = Callable[..., contextlib.AbstractAsyncContextManager[Home]]


@pytest.fixture
def start(hass: HomeAssistant, config: Path) -> Start:
    """Give a context manager that runs what is installed, with a configuration that has mistakes."""

    @contextlib.asynccontextmanager
    async def start(*, allow_all_imports: bool = True) -> AsyncIterator[Home]:
        assert await async_setup_component(hass, "persistent_notification", {})
        given = {"host": "localhost"}
        async with in_process.pyscript(hass, config, given, allow_all_imports=allow_all_imports):
            yield Home(hass)

    return start


def errors(caplog: pytest.LogCaptureFixture) -> str:
    """Return the errors in the log, with their tracebacks."""
    return "\n".join(
        caplog.handler.format(record) for record in caplog.records if record.levelno == logging.ERROR
    )


async def test_tells_that_imports_are_to_be_allowed(start, hass, caplog):
    async with start(allow_all_imports=False) as home:
        message = home.notifications()[NOT_LOADED]
        assert "import of ipaddress not allowed" in message
        assert "`allow_all_imports: true`" in message
        assert "step 3" in message
        assert "import of ipaddress not allowed" in errors(caplog)
        assert home.status() is None
        in_process.configure(hass, {"host": "localhost"})
        await in_process.reload(hass)
        await home.until(lambda: home.status() is not None)
        assert NOT_LOADED not in home.notifications()


@pytest.mark.parametrize("missing", ["flexmeasures_s2", "flexmeasures_home"])
async def test_tells_that_the_modules_are_to_be_copied(start, hass, config, caplog, missing):
    shutil.rmtree(config / "pyscript" / "modules" / missing)
    async with start() as home:
        message = home.notifications()[NOT_LOADED]
        assert f"No module named '{missing}'" in message
        assert "`modules/`" in message
        assert "step 2" in message
        assert f"No module named '{missing}'" in errors(caplog)
        shutil.copytree(REPOSITORY / "modules" / missing, config / "pyscript" / "modules" / missing)
        await in_process.reload(hass)
        await home.until(lambda: home.status() is not None)
        assert NOT_LOADED not in home.notifications()


async def test_tells_it_too_where_the_app_has_run_before(start, hass, config, clock):
    async with start() as home:
        shutil.rmtree(config / "pyscript" / "modules" / "flexmeasures_home")
        await in_process.reload(hass, global_ctx="*")
        assert NOT_LOADED in home.notifications()
        await home.tick_to(clock, datetime.now(UTC) + timedelta(seconds=31))
        assert home.status().state == "unavailable"
        assert NOT_LOADED in home.notifications()
