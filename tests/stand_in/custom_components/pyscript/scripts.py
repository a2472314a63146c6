"""The scripts that are loaded: import, services, triggers, reload."""

import ast
import asyncio
import builtins
import importlib
import inspect
import io
import logging
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import yaml
from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.helpers.service import async_set_service_schema
from homeassistant.util.async_ import run_callback_threadsafe

from .interface import interface

_LOGGER = logging.getLogger("custom_components.pyscript")
ALLOWED_IMPORTS = {
    "black",
    "cmath",
    "datetime",
    "decimal",
    "fractions",
    "functools",
    "homeassistant.const",
    "isort",
    "json",
    "math",
    "number",
    "random",
    "re",
    "statistics",
    "string",
    "time",
    "voluptuous",
}
"""What a script may import without `allow_all_imports`, besides other scripts."""


class Scripts:
    """The apps and modules of one Home Assistant, and what they registered."""

    def __init__(self, hass: HomeAssistant) -> None:
        """Look for scripts where pyscript does."""
        self.hass = hass
        self.folder = Path(hass.config.path("pyscript"))
        self.section = {"allow_all_imports": False, "apps": {}}
        self.files = {}
        self.services = []
        self.triggers = {"startup": [], "shutdown": []}

    @property
    def apps(self) -> dict:
        """Return the apps' configurations."""
        return self.section["apps"]

    async def load(self, section: dict) -> None:
        """Import the configured apps: what they import off the event loop, their own code on it."""
        self.section = section
        await self.hass.async_add_executor_job(self._import)

    def declare(self, domain: str, name: str, function, supports_response) -> None:
        """Register a decorated service."""
        self.hass.services.async_register(
            domain, name, self._handler(function), supports_response=supports_response
        )
        async_set_service_schema(self.hass, domain, name, _description(function))
        self.services.append((domain, name))

    def start(self) -> None:
        """Run the startup triggers."""
        for function in self.triggers["startup"]:
            self.hass.async_create_task(self._run(function, "startup"))
        self.triggers["startup"] = []

    async def unload(self) -> None:
        """Remove the services, run the shutdown triggers to their end, forget the modules."""
        self._remove_services()
        await asyncio.gather(*(self._run(f, "shutdown") for f in self.triggers["shutdown"]))
        self.triggers = {"startup": [], "shutdown": []}
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        for name, module in list(sys.modules.items()):
            if getattr(module.__spec__, "loader", None) is self:
                del sys.modules[name]

    def _remove_services(self) -> None:
        for domain, name in self.services:
            self.hass.services.async_remove(domain, name)
        self.services.clear()

    async def changed(self, section: dict) -> bool:
        """Tell whether a file or the configuration is not what was loaded."""
        return section != self.section or self.files != await self.hass.async_add_executor_job(self._read)

    def _read(self) -> dict[str, bytes]:
        paths = (path for part in ("apps", "modules") for path in (self.folder / part).rglob("*.py"))
        return {str(path): path.read_bytes() for path in paths}

    def _import(self) -> None:
        self.files = self._read()
        sys.meta_path.insert(0, self)
        importlib.invalidate_caches()
        for app in self.apps:
            if not (self.folder / "apps" / app / "__init__.py").is_file():
                continue
            try:
                importlib.import_module(app)
            except Exception:
                _LOGGER.exception("Could not load the app %s", app)
                run_callback_threadsafe(self.hass.loop, self._remove_services).result()
                self.triggers = {"startup": [], "shutdown": []}
            else:
                _LOGGER.info("Loaded %s", self.folder / "apps" / app / "__init__.py")

    def find_spec(self, name: str, path=None, _target=None) -> ModuleSpec | None:
        """Find the scripts' own files, before installed packages, as pyscript does."""
        folders = path or [str(self.folder / "apps"), str(self.folder / "modules")]
        spec = PathFinder.find_spec(name, folders)
        if spec is None or spec.origin not in self.files:
            return None
        spec.loader = self
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Let Python make the module."""

    def exec_module(self, module) -> None:
        """Run a file with pyscript's names as its builtins."""
        path = module.__spec__.origin
        is_app = path == str(self.folder / "apps" / module.__name__ / "__init__.py")
        config = self.apps.get(module.__name__) if is_app else None
        part = Path(path).relative_to(self.folder).parts[0]
        module.__builtins__ = interface(self, f"{part}.{module.__name__}", config)
        if not self.section["allow_all_imports"]:
            module.__builtins__["__import__"] = self._import_if_allowed
        tree = ast.parse(self.files[path], path)
        self._check_imports(tree, is_package=path.endswith("__init__.py"))
        if not is_app:
            exec(compile(tree, path, "exec"), vars(module))
            return
        first = next((n for n, node in enumerate(tree.body) if not _is_import(node)), len(tree.body))
        imports, rest = (
            compile(ast.Module(part, []), path, "exec") for part in (tree.body[:first], tree.body[first:])
        )
        exec(imports, vars(module))
        run_callback_threadsafe(self.hass.loop, exec, rest, vars(module)).result()

    def _import_if_allowed(
        self, name: str, here: dict, local: dict, names: tuple | None, level: int
    ) -> ModuleType:
        """Do what an import statement of a script does: other scripts may be imported, and little else."""
        if level == 0 and name not in ALLOWED_IMPORTS and not self._is_script(name):
            raise ModuleNotFoundError(f"import of {name} not allowed")
        return builtins.__import__(name, here, local, names, level)

    def _check_imports(self, tree: ast.Module, *, is_package: bool) -> None:
        """Refuse the forms that plain Python takes and pyscript does not."""
        for node in ast.walk(tree):
            for name in getattr(node, "names", ()):
                match node:
                    case ast.ImportFrom(level=1) if not is_package:
                        raise ImportError("attempted relative import with no known parent package")
                    case ast.ImportFrom(level=0, module=parent) if self._has(f"{parent}.{name.name}"):
                        raise ImportError(f"write `import {parent}.{name.name} as {name.name}`")
                    case ast.Import() if name.asname is None and self._has(name.name):
                        raise ImportError(f"write `import {name.name} as ...`")

    def _has(self, name: str) -> bool:
        """Tell whether this is a module of ours inside a package."""
        return "." in name and self._is_script(name)

    def _is_script(self, name: str) -> bool:
        """Tell whether this is a module of ours."""
        path = Path(*name.split("."))
        return any(
            str(self.folder / part / file) in self.files
            for part in ("apps", "modules")
            for file in (path.with_suffix(".py"), path / "__init__.py")
        )

    def _handler(self, function):
        async def handle(call: ServiceCall):
            extra = {"trigger_type": "service", "context": call.context}
            try:
                return await _call(function, extra, dict(call.data))
            except Exception:
                _LOGGER.exception("Exception in the service %s.%s", call.domain, call.service)

        return handle

    async def _run(self, function, moment: str) -> None:
        try:
            await _call(function, {"trigger_type": "time", "trigger_time": moment}, {})
        except Exception:
            _LOGGER.exception("Exception in the %s trigger %s", moment, function.__name__)


def _is_import(node: ast.stmt) -> bool:
    """Tell whether this is an import, one that may fail, or the docstring before the imports."""
    if isinstance(node, ast.Try):
        return all(_is_import(tried) for tried in node.body)
    return isinstance(node, (ast.Import, ast.ImportFrom)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


async def _call(function, extra: dict, data: dict):
    """Call with the data, and with what pyscript adds where the function takes it."""
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        extra = {name: value for name, value in extra.items() if name in parameters}
    result = function(**{**extra, **data})
    return await result if inspect.isawaitable(result) else result


def _description(function) -> dict:
    text = (inspect.getdoc(function) or f"pyscript function {function.__name__}()").lstrip()
    if text.startswith("yaml"):
        return yaml.load(io.StringIO(text[4:]), Loader=yaml.BaseLoader) or {}
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind < 2]
    return {"description": text, "fields": {n: {"description": f"argument {n}"} for n in names}}
