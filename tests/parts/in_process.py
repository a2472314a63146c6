"""Pyscript and our scripts in the `hass` fixture of pytest-homeassistant-custom-component."""

import ast
import asyncio
import contextlib
import importlib
import sys
import typing
from collections.abc import AsyncIterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from homeassistant import loader
from homeassistant.const import EVENT_HOMEASSISTANT_STARTED
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component

from tests.parts.home_assistant import REPOSITORY, install, write_configuration
from tests.parts.pyscript_source import source

MODULES = REPOSITORY / "modules"


@pytest.fixture
async def pyscript_hass(hass: HomeAssistant, tmp_path: Path):
    """Give a function that starts pyscript with our scripts and a configuration of the app."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(app_config: dict) -> HomeAssistant:
            install(tmp_path, source())
            return await stack.enter_async_context(pyscript(hass, tmp_path, app_config))

        yield start


@contextlib.asynccontextmanager
async def pyscript(
    hass: HomeAssistant, config: Path, app_config: dict, *, allow_all_imports: bool = True
) -> AsyncIterator[HomeAssistant]:
    """Run what is installed in a configuration folder, and stop Home Assistant afterwards."""
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
    """The module ast for pyscript's evaluator, which gets what was parsed before again, as it was."""

    _parsed: ClassVar[dict[tuple[str, str], tuple[ast.AST, list[tuple[Any, list]]]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(ast, name)

    def parse(self, source: str, filename: str = "<unknown>", mode: str = "exec") -> ast.AST:
        """Parse a script; the evaluator takes decorators off its functions, so they are put on again."""
        if (source, mode) not in self._parsed:
            tree = ast.parse(source, filename, mode)
            nodes = [node for node in ast.walk(tree) if hasattr(node, "decorator_list")]
            self._parsed[source, mode] = tree, [(node, node.decorator_list) for node in nodes]
        tree, decorated = self._parsed[source, mode]
        for node, decorators in decorated:
            node.decorator_list = decorators
        return tree


_compiled: dict[int, CodeType] = {}


def _compile(tree: ast.Module, filename: str, mode: str) -> CodeType:
    """Compile a function of a script that was parsed; one that was compiled before is not compiled again."""
    [function] = tree.body
    if id(function) not in _compiled:
        _compiled[id(function)] = compile(tree, filename, mode)
    return _compiled[id(function)]


def _remember_compiled() -> None:
    """Have pyscript parse and compile each script once in a process: that was half of a test's time."""
    with contextlib.suppress(ModuleNotFoundError):  # the stand-in has no evaluator
        evaluator: Any = importlib.import_module("custom_components.pyscript.eval")
        evaluator.ast, evaluator.compile = _RememberingAst(), _compile


def configure(hass: HomeAssistant, app_config: dict, *, allow_all_imports: bool = True) -> dict:
    """Write the configuration that a reload reads, and return pyscript's section of it."""
    section = {"allow_all_imports": allow_all_imports, "apps": {"flexmeasures": app_config}}
    write_configuration(Path(hass.config.config_dir), {"pyscript": section})
    return section


async def reload(hass: HomeAssistant, **data) -> None:
    """Call `pyscript.reload` and wait until all has come to rest: our app has started anew, or is gone."""
    before = _running(hass)
    await hass.services.async_call("pyscript", "reload", data, blocking=True)
    await settle(hass)
    if before and data.get("global_ctx") == "*":
        await started(hass, before)


async def started(hass: HomeAssistant, before: object = None) -> None:
    """Wait until our app has started, another one than before; if it is gone, for a moment only."""
    for count in range(1000):
        running = _running(hass)
        if (running is None and count > 100) or (running not in (None, before) and running.started.is_set()):
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("our app did not start")


def _running(hass: HomeAssistant) -> object:
    """Return our app, if it runs."""
    stage = hass.data.get("flexmeasures_for_pyscript")
    return stage and stage.running


async def settle(hass: HomeAssistant) -> None:
    """Wait for triggers, which pyscript runs in tasks that Home Assistant does not track."""
    for _ in range(3):
        await hass.async_block_till_done()
        await asyncio.sleep(0.02)


def module_globals(module: str) -> dict:
    """Return the globals of one of our modules, e.g. `package.module`, as pyscript loaded it."""
    if contexts := sys.modules.get("custom_components.pyscript.global_ctx"):
        found = [contexts.GlobalContextMgr.get(f"{part}.{module}") for part in ("modules", "apps")]
        names = [context.get_global_sym_table() for context in found if context]
    else:
        names = [vars(sys.modules[module])] if module in sys.modules else []
    if not names:
        raise LookupError(f"the app did not load {module}")
    return names[0]


def module_namespace(module: str) -> SimpleNamespace:
    """Return a module as pyscript loaded it, for tests that outlast this Home Assistant."""
    return SimpleNamespace(**module_globals(module))


def _scripts(config: Path, part: str) -> list[Path]:
    return list((config / "pyscript" / part).glob("[!_]*"))


@contextlib.contextmanager
def _own_imports(packages: set[str]):
    """Import these packages anew inside: pyscript keeps state in classes, unit tests have copies."""

    def imported() -> dict:
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
        for forget in typing._cleanups:  # generic aliases of what was imported, which lead to all of it
            forget()
