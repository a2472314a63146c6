"""What plain CPython cannot show: that pyscript loads each script, and compiles what is to be compiled."""

import ast
import asyncio
import builtins
import dis
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from pytest_homeassistant_custom_component.common import async_test_home_assistant

from tests.parts import home_assistant, in_process

ROOT = Path(__file__).parents[1]
MODULES, APPS = ROOT / "modules", ROOT / "pyscript" / "apps"
LAYERS = {
    "flexmeasures_s2": set(),
    "flexmeasures_api": set(),
    "flexmeasures_cem": {"flexmeasures_s2", "flexmeasures_api"},
    "flexmeasures_home": {"flexmeasures_s2", "flexmeasures_api", "flexmeasures_cem"},
}
"""What each package may import of ours, besides itself."""
INNER_LAYERS = {
    "flexmeasures_cem.optimisation": ("flexmeasures_s2", "flexmeasures_api", "flexmeasures_cem.site"),
    "flexmeasures_cem.control_types": ("flexmeasures_cem.site",),
}
"""What the packages inside flexmeasures_cem do not import."""


def names(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by the names of their modules, without the packages' own."""
    files = [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in files}


COMPILED = names(MODULES)
SCRIPTS = COMPILED | names(APPS)


@pytest.fixture(scope="module")
def loaded(source, tmp_path_factory) -> dict[str, dict]:
    """Return the globals of the scripts as pyscript has loaded them, without those that it has not."""
    config = tmp_path_factory.mktemp("config")
    home_assistant.install(config, source)

    async def collect() -> dict[str, dict]:
        found = {}
        async with async_test_home_assistant() as hass, in_process.pyscript(hass, config, {}):
            for name in SCRIPTS:
                try:
                    found[name] = dict(in_process.module_globals(name))
                except LookupError:
                    continue
        return found

    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(asyncio.run, collect()).result()


@pytest.mark.parametrize("name", SCRIPTS)
def test_pyscript_loads_each_file(loaded, name):
    defined = {
        node.name
        for node in ast.parse(SCRIPTS[name].read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    assert defined - set(loaded[name]) == set()


@pytest.mark.parametrize("name", COMPILED)
def test_pyscript_has_compiled_each_function(loaded, name):
    interpreted = [key for key, value in loaded[name].items() if "EvalFunc" in type(value).__name__]
    assert interpreted == []


@pytest.mark.parametrize("name", COMPILED)
def test_each_function_and_method_is_to_be_compiled(name):
    assert list(interpreted(ast.parse(COMPILED[name].read_text()))) == []


def interpreted(node: ast.AST) -> Iterator[str]:
    """Yield the functions, methods and lambdas that pyscript would interpret."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [each.id for each in inner.decorator_list if isinstance(each, ast.Name)]
            if "pyscript_compile" not in decorators:
                yield f"{inner.name}, line {inner.lineno}"
        elif isinstance(inner, ast.Lambda):
            yield f"lambda, line {inner.lineno}"
        else:
            yield from interpreted(inner)


@pytest.mark.parametrize("name", COMPILED)
def test_no_class_has_an_init_that_pyscript_would_move_aside(name):
    classes = [each for each in ast.parse(COMPILED[name].read_text()).body if isinstance(each, ast.ClassDef)]
    methods = [(each.name, getattr(part, "name", None)) for each in classes for part in each.body]
    assert [name for name, method in methods if method == "__init__"] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_global_that_compiled_code_names_exists(loaded, name):
    symbols = loaded[name]
    used = {each for function in functions(symbols) for each in used_globals(function.__code__)}
    assert {each for each in used if each not in symbols and not hasattr(builtins, each)} == set()


def functions(symbols: dict) -> list[FunctionType]:
    """Return the compiled functions of a module, and the methods of its classes."""
    classes = [value for value in symbols.values() if isinstance(value, type)]
    values = [*symbols.values(), *(member for each in classes for member in vars(each).values())]
    values += [part for each in values if isinstance(each, property) for part in (each.fget, each.fset)]
    bare = [getattr(each, "__wrapped__", getattr(each, "__func__", each)) for each in values]
    return [each for each in bare if isinstance(each, FunctionType) and is_ours(each, symbols)]


def is_ours(function: FunctionType, symbols: dict) -> bool:
    """Tell whether a function was defined in the module of these globals."""
    return function.__globals__.get("__name__") == symbols.get("__name__")


def used_globals(code: CodeType) -> Iterator[str]:
    """Yield the globals that a piece of code, and all that is defined in it, looks up."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from used_globals(inner)


@pytest.mark.parametrize("name", COMPILED)
def test_each_attribute_of_a_module_of_ours_exists(name):
    tree = ast.parse(COMPILED[name].read_text())
    ours = {
        alias.asname: importlib.import_module(alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname and alias.name in COMPILED
    }
    hidden = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    missing = [
        f"{module}.{attribute}"
        for module, attribute in used
        if module in ours.keys() - hidden and not hasattr(ours[module], attribute)
    ]
    assert missing == []


@pytest.mark.parametrize("name", COMPILED)
def test_layers_import_one_way(name):
    package = name.partition(".")[0]
    nodes = list(ast.walk(ast.parse(COMPILED[name].read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    ours = {each.partition(".")[0] for each in imported} & {*LAYERS, "flexmeasures"}
    assert ours <= LAYERS[package] | {package}
    for inner, others in INNER_LAYERS.items():
        if name.startswith(inner):
            assert not [each for each in imported if each.startswith(others)]
