"""What all tests share: the scripts under plain CPython and under pyscript, and the real parts."""

import asyncio
import builtins
import functools
import importlib
import importlib.util
import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_socket
from pytest_homeassistant_custom_component.common import async_test_home_assistant

from tests.parts import home_assistant, in_process, old_names, pyscript_source, s2_schemas
from tests.parts.flexmeasures_server import FlexMeasuresServer
from tests.parts.in_process import pyscript_hass  # noqa: F401

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


@pytest.fixture(scope="session")
def loaded_by_pyscript(source, tmp_path_factory) -> dict:
    """Return our modules as pyscript has loaded them."""
    config = tmp_path_factory.mktemp("config")
    home_assistant.install(config, source)
    names = [
        *(
            ".".join(path.relative_to(ROOT / "modules").with_suffix("").parts)
            for path in modules(ROOT / "modules")
        ),
        *(".".join(path.relative_to(APPS).with_suffix("").parts) for path in modules(APPS)),
    ]

    async def collect() -> dict:
        async with async_test_home_assistant() as hass, in_process.pyscript(hass, config, {}):
            return {name: in_process.module_namespace(name) for name in names}

    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(asyncio.run, collect()).result()


def modules(folder: Path) -> list[Path]:
    """Return the module files in a folder, without the packages' own."""
    return [path for path in folder.rglob("*.py") if path.name != "__init__.py"]


@pytest.fixture(params=["CPython", "pyscript"])
def load(request):
    """Return a function that loads one of our modules: the same tests for plain CPython and pyscript."""
    if request.param == "pyscript":
        return request.getfixturevalue("loaded_by_pyscript").__getitem__
    return load_natively


def load_natively(name: str) -> SimpleNamespace:
    """Import a module of `modules/`, or of the app without the app itself."""
    path = APPS.joinpath(*name.split(".")).with_suffix(".py")
    if not path.exists():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def flexmeasures_server():
    """Run the real FlexMeasures server."""
    pytest_socket.enable_socket()
    with FlexMeasuresServer() as server:
        yield server
