"""What all tests share: how much is run, on what, a clock of their own, and the real parts."""

import builtins
import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import NonCallableMock

import pytest
import pytest_socket
from _pytest.terminal import TerminalReporter
from homeassistant.helpers import aiohttp_client, translation

from tests.parts import home_assistant, installations, old_names, pyscript_source, s2_schemas, trials
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.in_process import pyscript_hass  # noqa: F401
from tests.parts.virtual_time import VirtualTime, virtual_time

ROOT = Path(__file__).parents[1]
builtins.pyscript_compile = lambda function: function


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the longer run."""
    parser.addoption(
        "--long", action="store_true", help="run the tests that take long too, and all examples of properties"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose how much is tried, before the tests are collected."""
    config.addinivalue_line("markers", "long: runs with --long only")
    trials.is_long = config.getoption("long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long."""
    if not trials.is_long:
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionstart() -> None:
    """Put back what the pyscript of the tests uses, before anything imports it."""
    old_names.put_back(pyscript_source.source().path)


def pytest_report_header() -> list[str]:
    """Say what the tests run on, and what S2 messages are checked against."""
    return [*installations.describe(), f"S2: {s2_schemas.describe()}"]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say it at the end too, where a long output is read, and what went unchecked in red."""
    for line in installations.describe():
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"S2: {s2_schemas.describe()}", red=not s2_schemas.available())


@pytest.fixture(scope="session")
def source() -> pyscript_source.Source:
    """Return the pyscript that the tests run on."""
    return pyscript_source.source()


@pytest.fixture(scope="session")
def configuration() -> ModuleType:
    """Return the app's module of that name, without the app that it is a part of."""
    path = ROOT / "pyscript" / "apps" / "flexmeasures" / "configuration.py"
    spec = importlib.util.spec_from_file_location("configuration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path, source) -> Path:
    """Return a configuration folder with pyscript and our scripts, installed as docs/install.md says."""
    home_assistant.install(tmp_path, source)
    return tmp_path


@pytest.fixture(autouse=True)
def no_calls_remembered() -> Iterator[None]:
    """Let go of each Home Assistant: mocks of the test helpers last over all tests, with their calls."""
    yield
    for mock in (translation._async_get_component_strings, aiohttp_client._async_make_resolver):
        if isinstance(mock, NonCallableMock):
            mock.reset_mock()


@pytest.fixture(autouse=True)
def enable_event_loop_debug() -> None:
    """Do without asyncio's debug mode, for which the test helpers ask: it doubles the time of a test."""


@pytest.fixture
async def clock() -> AsyncIterator[VirtualTime]:
    """Let the test's time pass at once."""
    with virtual_time() as clock:
        yield clock


@pytest.fixture(scope="session")
def flexmeasures_server():
    """Run the real FlexMeasures server."""
    pytest_socket.enable_socket()
    with FlexMeasuresServer() as server:
        yield server
