"""What all tests share: the scripts under plain CPython and under pyscript, and the real parts."""

import builtins
import functools
import platform
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path
from unittest.mock import NonCallableMock

import pytest
import pytest_socket
from homeassistant.helpers import translation

from tests.parts import home_assistant, old_names, pyscript_source, s2_schemas
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.in_process import pyscript_hass  # noqa: F401
from tests.parts.virtual_time import VirtualTime, virtual_time

ROOT = Path(__file__).parents[1]
APPS = ROOT / "pyscript" / "apps"
builtins.pyscript_compile = lambda function: function


def pytest_sessionstart() -> None:
    """Put back what the pyscript of the tests uses, before anything imports it."""
    put_back()


@functools.cache
def put_back() -> str:
    """Put back the names that pyscript uses and this Home Assistant has moved, and say which."""
    moved = old_names.put_back(pyscript_source.source().path)
    return f"; put back for it: {', '.join(moved)}" if moved else ""


def pytest_report_header() -> list[str]:
    """Say what the tests run on, and what S2 messages are checked against."""
    runs_on = f"Home Assistant {version('homeassistant')}, Python {platform.python_version()}"
    return [
        f"{runs_on}, {pyscript_source.source().description}{put_back()}",
        f"S2: {s2_schemas.describe()}",
    ]


def pytest_terminal_summary(terminalreporter) -> None:
    """Say it at the end too, where a long output is read."""
    for line in pytest_report_header():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def source() -> pyscript_source.Source:
    """Return the pyscript that the tests run on."""
    return pyscript_source.source()


@pytest.fixture
def config(tmp_path, source) -> Path:
    """Return a configuration folder with pyscript and our scripts, installed as the README says."""
    home_assistant.install(tmp_path, source)
    return tmp_path


@pytest.fixture(autouse=True)
def no_calls_remembered() -> Iterator[None]:
    """Let go of each Home Assistant: a mock of the test helpers lasts over all tests, with its calls."""
    yield
    mock = translation._async_get_component_strings
    if isinstance(mock, NonCallableMock):
        mock.reset_mock()


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
