"""The Home Assistants that the main jobs run on: that of this environment, and the newest supported one."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.parts import cache, environments, old_names, pins, pyscript_source


@dataclass(frozen=True)
class Installation:
    """A Home Assistant that can be started: its Python, and the pyscript for it."""

    release: str
    python: Path
    source: pyscript_source.Source

    def __str__(self) -> str:
        """Return the name in a test's id."""
        return f"Home Assistant {self.release}"


@functools.cache
def installations() -> list[Installation]:
    """Return the Home Assistant of this environment, and the newest one if it differs and has a Python."""
    own = Installation(version("homeassistant"), Path(sys.executable), pyscript_source.source())
    newest = environments.newest_home_assistant()
    if newest is None or newest == own.release:
        return [own]
    python = environments.python(environments.home_assistant(newest))
    return [own, Installation(newest, python, pyscript_source.source(home_assistant=newest))]


@functools.cache
def describe() -> list[str]:
    """Describe the installations, with their Pythons and pyscripts, and why the newest one is missing."""
    lines = [
        f"{installation}, Python {_python(installation)}, {installation.source.description}"
        for installation in installations()
    ]
    newest = pins.releases()[-1]
    if newest not in [installation.release for installation in installations()]:
        wanted = pins.requires_python(pins.path("home-assistant", newest).read_text())
        return [*lines, f"NOT RUN on Home Assistant {newest}: no Python {wanted} was found"]
    return [lines[0], *[f"main job, S2 and reload also on {line}" for line in lines[1:]]]


def _python(installation: Installation) -> str:
    """Return the version of the Python, and the names of Home Assistant that are restored for pyscript."""
    pyscript = installation.source.path

    def build(path: Path) -> None:
        version = _output(installation, "-c", "import platform; print(platform.python_version())")
        names = _output(installation, old_names.__file__, str(pyscript))
        (path / "description").write_text(
            f"{version}, with old names put back: {names}" if names else version
        )

    made_from = [str(installation.python.resolve()), str(pyscript), Path(old_names.__file__).read_text()]
    return (cache.built(f"description-{installation.release}", made_from, build) / "description").read_text()


def _output(installation: Installation, *arguments: str) -> str:
    command = [str(installation.python), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
