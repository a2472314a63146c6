"""Pyscript with our scripts in the `hass` fixture of pytest-homeassistant-custom-component."""

import ast
import asyncio
import contextlib
import importlib
import sys
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, ClassVar, Protocol, cast
from unittest.mock import patch

import pytest
from homeassistant import loader
from homeassistant.const import EVENT_HOMEASSISTANT_STARTED
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component

from tests.parts.home_assistant import REPOSITORY, install, write_configuration
from tests.parts.pyscript_source import source

MODULES = REPOSITORY / "modules"

type Start = Callable[[dict[str, Any]], Awaitable[HomeAssistant]]
"""Starts pyscript with our scripts and a configuration of the app."""


class Running(Protocol):
    """Our app as it runs."""

    started: asyncio.Event


@pytest.fixture
async def pyscript_hass(hass: HomeAssistant, tmp_path: Path) -> AsyncIterator[Start]:
    """Give a function that starts pyscript with our scripts and a configuration of the app."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(app_config: dict[str, Any]) -> HomeAssistant:
            install(tmp_path, source())
            return await stack.enter_async_context(pyscript(hass, tmp_path, app_config))

        yield start


@contextlib.asynccontextmanager
async def pyscript(
    hass: HomeAssistant, config: Path, app_config: dict[str, Any], *, allow_all_imports: bool = True
) -> AsyncIterator[HomeAssistant]:
    """Run the scripts in a configuration folder, and stop Home Assistant afterwards."""
    hass.config.config_dir = str(config)
    section = configure(hass, app_config, allow_all_imports=allow_all_imports)
    hass.data.pop(loader.DATA_CUSTOM_COMPONENTS, None)
    scripts = {path.stem for part in ("apps", "modules") for path in _scripts(config, part)}
    ours = {path.name for path in MODULES.iterdir()}
    others = [path for path in sys.path if Path(path) != MODULES]  # unit tests import what is not installed
    with (
        _own_imports({"custom_components", *scripts, *ours}),
        patch.object(sys, "path", [str(config), *others]),
        patch("watchdog.observers.Observer", return_value=None),
    ):
        try:
            _remember_compiled()
            assert await async_setup_component(hass, "pyscript", {"pyscript": section})
            await hass.async_block_till_done()
            hass.bus.async_fire(EVENT_HOMEASSISTANT_STARTED)
            await settle(hass)
            if "flexmeasures_home" in scripts:
                await started(hass)
            yield hass
        finally:
            await hass.async_stop(force=True)


class _RememberingAst:
    """The module ast for pyscript's evaluator, with a cache of the parsed scripts."""

    _parsed: ClassVar[dict[tuple[str, str], tuple[ast.AST, list[tuple[Any, list[ast.expr]]]]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(ast, name)

    def parse(self, source: str, filename: str = "<unknown>", mode: str = "exec") -> ast.AST:
        """Return a parsed script; the evaluator removes decorators from its functions: restore them."""
        if (source, mode) not in self._parsed:
            parsed: ast.AST = ast.parse(source, filename, mode)
            nodes: list[Any] = [node for node in ast.walk(parsed) if hasattr(node, "decorator_list")]
            self._parsed[source, mode] = parsed, [(node, node.decorator_list) for node in nodes]
        tree, decorated = self._parsed[source, mode]
        for node, decorators in decorated:
            node.decorator_list = decorators
        return tree


_compiled: dict[int, CodeType] = {}


def _compile(tree: ast.Module, filename: str, mode: str) -> CodeType:
    """Compile a function of a parsed script once."""
    [function] = tree.body
    if id(function) not in _compiled:
        _compiled[id(function)] = compile(tree, filename, mode)
    return _compiled[id(function)]


def _remember_compiled() -> None:
    """Have pyscript parse and compile a script once per process: this halves the time of a test."""
    with contextlib.suppress(ModuleNotFoundError):  # the stand-in has no evaluator
        evaluator: Any = importlib.import_module("custom_components.pyscript.eval")
        evaluator.ast, evaluator.compile = _RememberingAst(), _compile


def configure(
    hass: HomeAssistant, app_config: dict[str, Any], *, allow_all_imports: bool = True
) -> dict[str, Any]:
    """Write the configuration for a reload, and return pyscript's section of it."""
    section = {"allow_all_imports": allow_all_imports, "apps": {"flexmeasures": app_config}}
    write_configuration(Path(hass.config.config_dir), {"pyscript": section})
    return section


async def reload(hass: HomeAssistant, **data: Any) -> None:
    """Call `pyscript.reload`, and wait until our app has started again, or is gone."""
    before = _running(hass)
    await hass.services.async_call("pyscript", "reload", data, blocking=True)
    await settle(hass)
    if before and data.get("global_ctx") == "*":
        await started(hass, before)


async def started(hass: HomeAssistant, before: Running | None = None) -> None:
    """Wait until an app other than `before` has started; if there is none, wait for a second only."""
    for count in range(1000):
        running = _running(hass)
        if running is None and count > 100:
            return
        if running is not None and running != before and running.started.is_set():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("our app did not start")


def _running(hass: HomeAssistant) -> Running | None:
    """Return our app, if it runs."""
    stage = hass.data.get("flexmeasures_for_pyscript")
    running: Running | None = stage and stage.running
    return running


async def settle(hass: HomeAssistant) -> None:
    """Wait for triggers, which pyscript runs in tasks unknown to Home Assistant."""
    for _ in range(3):
        await hass.async_block_till_done()
        await asyncio.sleep(0.02)


def module_globals(module: str) -> dict[str, Any]:
    """Return the globals of one of our modules, e.g. `package.module`, as pyscript loaded it."""
    if contexts := sys.modules.get("custom_components.pyscript.global_ctx"):
        loaded = [contexts.GlobalContextMgr.get(f"{part}.{module}") for part in ("modules", "apps")]
        names: list[dict[str, Any]] = [context.get_global_sym_table() for context in loaded if context]
    else:
        names = [vars(sys.modules[module])] if module in sys.modules else []
    if not names:
        raise LookupError(f"the app did not load {module}")
    return names[0]


def module_namespace(module: str) -> SimpleNamespace:
    """Return a module as pyscript loaded it, for tests that need it after this Home Assistant has stopped."""
    return SimpleNamespace(**module_globals(module))


def _scripts(config: Path, part: str) -> list[Path]:
    return list((config / "pyscript" / part).glob("[!_]*"))


@contextlib.contextmanager
def _own_imports(packages: set[str]) -> Iterator[None]:
    """Import packages again inside: pyscript keeps state in classes, and unit tests have copies."""

    def imported() -> dict[str, ModuleType]:
        return {name: m for name, m in sys.modules.items() if name.split(".")[0] in packages}

    before = imported()
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in imported():
            del sys.modules[name]
        sys.modules.update(before)
        for clear in cast(Any, typing)._cleanups:  # generic aliases keep the imported modules alive
            clear()
