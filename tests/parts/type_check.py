"""Check the types, with mypy: `python -m tests.parts.type_check`.

Pyscript adds names to Python's builtins, which mypy takes from typeshed: it gets a copy that has them.
"""

import importlib.metadata
import shutil
import sys
from pathlib import Path

import mypy
from mypy.main import main as run_mypy

from tests.parts import cache

BUILTINS = Path(__file__).with_name("pyscript_builtins.pyi")


def typeshed() -> Path:
    """Return a copy of mypy's typeshed whose builtins have pyscript's names, too."""
    source = Path(mypy.__file__).parent / "typeshed"
    names = BUILTINS.read_text()

    def build(path: Path) -> None:
        shutil.copytree(source, path, dirs_exist_ok=True)
        with (path / "stdlib" / "builtins.pyi").open("a") as file:
            file.write(names)

    return cache.built("typeshed", [importlib.metadata.version("mypy"), names], build)


def main() -> None:
    """Check the files that pyproject.toml names, or those of the command line."""
    run_mypy(args=[f"--custom-typeshed-dir={typeshed()}", *sys.argv[1:]], clean_exit=True)


if __name__ == "__main__":
    main()
