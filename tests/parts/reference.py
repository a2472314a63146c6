"""The generated parts of the manual: tables of configuration keys and of service fields.

`python -m tests.parts.reference` writes them. A table of keys takes names, order, values and defaults from
the schema, and leaves the last column, which is written by hand. The fields of services come from the
docstrings of the app, which Home Assistant's forms show too.
"""

import ast
import importlib.util
import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import voluptuous as vol
import yaml

import tests.parts.without_pyscript  # noqa: F401
from tests.parts.pages import ROOT

APP = ROOT / "pyscript" / "apps" / "flexmeasures"
CONFIGURATION = ROOT / "docs" / "configuration.md"
SERVICES = ROOT / "docs" / "services-and-states.md"
LISTS = ("soc_targets", "measurements")
EMPTY: list[Any] = [{}, []]
"""Defaults of keys that have a table of their own."""
GENERATED = re.compile(r"(<!-- (keys|fields): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
CELL = re.compile(r"(?<!\\)\|")


def configuration_module() -> ModuleType:
    """Import the app's module with the schema, without the app."""
    spec = importlib.util.spec_from_file_location("configuration", APP / "configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_with_keys(text: str, module: ModuleType) -> str:
    """Return a page with its tables of keys as the schema has them."""
    return GENERATED.sub(lambda part: part[1] + _table_of_keys(part[3], part[4], module) + part[5], text)


def page_with_fields(text: str, app_source: str) -> str:
    """Return a page with its descriptions and fields of services as the docstrings have them."""
    services = docstrings(app_source)
    return GENERATED.sub(lambda part: part[1] + _table_of_fields(services[part[3]]) + part[5], text)


def docstrings(app_source: str) -> dict[str, Any]:
    """Return the YAML of the docstring of each service, by its name."""
    functions = [node for node in ast.parse(app_source).body if isinstance(node, ast.AsyncFunctionDef)]
    texts = {function.name: ast.get_docstring(function) or "" for function in functions}
    yamls = {name: text.removeprefix("yaml\n") for name, text in texts.items() if text.startswith("yaml\n")}
    return {name: yaml.safe_load(text) for name, text in yamls.items()}


def _table_of_keys(name: str, table: str, module: ModuleType) -> str:
    schema = getattr(module, name)
    schema = getattr(schema, "schema", schema)
    written = _last_cells(table)
    keys = [str(key) for key in schema]
    if missing := [key for key in keys if key not in written]:
        raise ValueError(f"{CONFIGURATION.name}, table {name}: add a row for {', '.join(missing)}")
    if unknown := [key for key in written if key not in keys]:
        raise ValueError(f"{CONFIGURATION.name}, table {name}: delete the row of {', '.join(unknown)}")
    limits = {key: f"{default:g}" for key, default in asdict(module.listener.Limits()).items()}
    limits["message"] = "1 MiB"
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for key, validate in schema.items():
        default = _default(key) or (limits[str(key)] if name == "LIMITS_SCHEMA" else "")
        rows.append(_row(f"`{key}`", _expected(str(key), validate), default, written[str(key)]))
    return "\n".join(rows) + "\n"


def _last_cells(table: str) -> dict[str, str]:
    rows = [CELL.split(line) for line in table.splitlines()[2:]]
    return {row[1].strip().strip("`"): row[-2].strip() for row in rows}


def _expected(key: str, validate: Any) -> str:
    """Return what a validator accepts, from the text of its error."""
    if key in LISTS:
        return "a list"
    try:
        vol.Schema(validate)(object())
    except vol.Invalid as error:
        first = error.errors[0] if isinstance(error, vol.MultipleInvalid) else error
        return re.sub(r"'([^']+)'", r"`\1`", str(first.error_message).removeprefix("expected "))
    raise ValueError(f"{key} accepts anything")


def _default(key: vol.Required | vol.Optional) -> str:
    if isinstance(key, vol.Required):
        return "required"
    if isinstance(key.default, vol.Undefined) or key.default() in EMPTY:
        return ""
    value = key.default()
    if isinstance(value, list):
        return "every day"
    text = (
        str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    )
    return f"`{text}`"


def _table_of_fields(service: dict[str, Any]) -> str:
    rows = [service["description"], "", "| field | required | | example |", "|---|---|---|---|"]
    for name, field in service["fields"].items():
        is_required = "yes" if field.get("required") else ""
        example = field["example"]
        shown = str(example).lower() if isinstance(example, bool) else str(example)
        rows.append(_row(f"`{name}`", is_required, field["description"], f"`{shown}`"))
    return "\n".join(rows) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def write(page: Path, text: str) -> None:
    """Write a page, and say so if it has changed."""
    if page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
        print(f"{page.relative_to(ROOT)} was renewed")


if __name__ == "__main__":
    write(CONFIGURATION, page_with_keys(CONFIGURATION.read_text(encoding="utf-8"), configuration_module()))
    source = (APP / "__init__.py").read_text(encoding="utf-8")
    write(SERVICES, page_with_fields(SERVICES.read_text(encoding="utf-8"), source))
