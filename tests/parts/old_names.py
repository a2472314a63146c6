"""Restore the names of Home Assistant that pyscript uses and newer releases have moved.

None of pyscript's files is changed. As a program, it starts Home Assistant with the names in place:
`python old_names.py <pyscript's folder> <options of Home Assistant>`.
"""

import ast
import importlib
import operator
import runpy
import sys
from pathlib import Path

TEMPLATE = "homeassistant.helpers.template"
HELPERS = f"{TEMPLATE}.helpers"
TYPES = f"{TEMPLATE}.extensions.type_cast:TypeCastExtension"
MATH = f"{TEMPLATE}.extensions.math:MathExtension"
PLACES = {
    "_SENTINEL": HELPERS,
    "forgiving_boolean": HELPERS,
    "raise_no_default": HELPERS,
    "forgiving_float": TYPES,
    "forgiving_int": TYPES,
    "forgiving_round": MATH,
}
"""The new places of names of homeassistant.helpers.template, since Home Assistant 2026.5."""
STATES, MOVED_STATES = "last_states", "last_states_by_entity_id"


def put_back(pyscript: Path) -> list[str]:
    """Restore the names that a pyscript uses and this Home Assistant has moved, and return them."""
    sources = [ast.parse(file.read_text()) for file in sorted(pyscript.glob("*.py"))]
    template = importlib.import_module(TEMPLATE)
    moved = [name for name in _imported(sources) if name in PLACES and not hasattr(template, name)]
    for name in moved:
        place, _, holder = PLACES[name].partition(":")
        module = importlib.import_module(place)
        setattr(template, name, getattr(getattr(module, holder) if holder else module, name))
    data = importlib.import_module("homeassistant.helpers.restore_state").RestoreStateData
    if _uses(sources, STATES) and STATES not in data.__init__.__code__.co_names:
        setattr(data, STATES, property(operator.attrgetter(MOVED_STATES)))
        moved.append(f"RestoreStateData.{STATES}")
    return moved


def _imported(sources: list[ast.Module]) -> list[str]:
    """Return the names that are imported from homeassistant.helpers.template."""
    return [
        alias.name
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and node.module == TEMPLATE
        for alias in node.names
    ]


def _uses(sources: list[ast.Module], attribute: str) -> bool:
    """Return whether the sources use an attribute."""
    nodes = (node for source in sources for node in ast.walk(source))
    return any(isinstance(node, ast.Attribute) and node.attr == attribute for node in nodes)


def main(pyscript: str) -> None:
    """Start Home Assistant with the options that follow; without any, print the restored names."""
    moved = put_back(Path(pyscript))
    if len(sys.argv) > 1:
        runpy.run_module("homeassistant", run_name="__main__", alter_sys=True)
    else:
        print(*moved)


if __name__ == "__main__":
    main(sys.argv.pop(1))
